"""What the process that tokenises shows, once that takes a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.status import Status
from rich.text import Text

QUIET_SECONDS = 3.0
SECONDS_PER_LINE = 10.0


class TokenisingProgress:
    """One live line on a terminal; elsewhere a plain line now and then. Call it to report."""

    def __init__(
        self, console: Console | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console()
        self._now = now
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._status: Status | None = None
        self._name = ""
        self._started = self._line_due = now()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, name: str, num_rows: int) -> None:
        """Show that `num_rows` of the source `name` are tokenised; the first call is its start."""
        now = self._now()
        if name != self._name:
            self._name, self._started, self._line_due = name, now, now + QUIET_SECONDS
        if now < self._line_due:
            return
        rate = num_rows / (now - self._started)
        dot = "|" if self._console.options.ascii_only else "·"
        line = Text(f"{name}: tokenised {num_rows:,} rows {dot} {rate:,.0f} rows/s")
        if not self._is_live:
            self._console.print(line, soft_wrap=True)
            self._line_due = now + SECONDS_PER_LINE
        elif self._status is None:
            self._status = self._console.status(line)
            self._status.start()
        else:
            self._status.update(line)
