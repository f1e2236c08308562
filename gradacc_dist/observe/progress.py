"""What rank 0 shows of a run while it goes on."""

from __future__ import annotations

import time
from collections import deque
from typing import Self

from rich import progress
from rich.console import Console
from rich.table import Column
from rich.text import Text

from gradacc_dist.observe.ledger import EvalRecord, TrainRecord, show_loss

RECENT_STEPS = 100  # over which the time left is estimated


class Progress:
    """One live line on a terminal; elsewhere a plain line every `every_steps` steps.

    Notes, evaluations and skipped steps stay as lines of their own in both. `label`, if given,
    is part of every line about a loss.
    """

    def __init__(
        self,
        total_steps: int,
        every_steps: int,
        console: Console | None = None,
        label: str | None = None,
    ) -> None:
        self._console = console or Console()
        self._total_steps = total_steps
        self._every_steps = every_steps
        self._prefix = [label] if label else []
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._bar = progress.Progress(
            progress.TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True)
            ),
            progress.BarColumn(bar_width=None),
            console=self._console,
            refresh_per_second=4,
            expand=True,
            disable=not self._is_live,
        )
        self._task = self._bar.add_task(f"step 0/{total_steps}", total=total_steps)
        self._step_ends: deque[float] = deque(maxlen=RECENT_STEPS + 1)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.stop()

    def step(self, record: TrainRecord) -> None:
        """Show an optimizer step that has just ended."""
        is_first = not self._step_ends
        self._step_ends.append(time.monotonic())
        step = f"{record.step}/{self._total_steps}"
        loss = f"loss {show_loss(record.loss)}"
        rate = f"{record.tokens_per_second:,.0f} tokens/s"
        left = f"{clock(self._seconds_left(record))} left"
        is_due = is_first or record.step % self._every_steps == 0
        if record.skipped or (not self._is_live and (is_due or record.step == self._total_steps)):
            counted = f"supervised tokens {record.supervised_tokens:,}"
            reason = [f"skipped: {record.skipped}"] if record.skipped else []
            self.note(self._line(f"step {step}", loss, counted, rate, left, *reason))
        # Short enough to leave room for the bar on 80 columns.
        live = self._line(step, loss, f"{record.supervised_tokens:,} supervised", rate, left)
        self._bar.update(self._task, completed=record.step, description=live)

    def evaluation(self, record: EvalRecord) -> None:
        """Show an evaluation, as a line that stays."""
        self.note(
            self._line(
                f"evaluation at step {record.step}",
                f"loss {show_loss(record.loss)}",
                f"supervised tokens {record.supervised_tokens:,}",
                clock(record.seconds),
            )
        )

    def note(self, text: str) -> None:
        """Show a line that stays, a warning for example."""
        self._console.print(Text(text), soft_wrap=True)

    def _line(self, *parts: str) -> str:
        return (" | " if self._console.options.ascii_only else " · ").join([*self._prefix, *parts])

    def _seconds_left(self, record: TrainRecord) -> float:
        """Wall-clock between recent steps: counts evaluations and saving, but not start-up."""
        between = len(self._step_ends) - 1
        passed = self._step_ends[-1] - self._step_ends[0]
        seconds_per_step = passed / between if between else record.seconds
        return seconds_per_step * (self._total_steps - record.step)


def clock(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
