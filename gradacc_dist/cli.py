"""From a command line to an exit code, the same for every entry point."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gradacc_dist.config.flags import parse_command_line
from gradacc_dist.errors import GradaccError, PreemptedError
from gradacc_dist.exits import noted

if TYPE_CHECKING:
    from gradacc_dist.config.resolved import Resolved

# Ranks that start together on a busy machine reach the same line seconds apart.
LINGER_SECONDS = 10.0


def run_command(
    module: str, purpose: str, work: Callable[[Resolved], None], argv: Sequence[str] | None = None
) -> int:
    """Parse `argv`, load the configuration, do `work`. Returns the exit code."""

    def run() -> None:
        command = parse_command_line(sys.argv[1:] if argv is None else argv)
        if command.help:
            from gradacc_dist.config.help import help_text

            show(help_text(f"python -m {module}", purpose))
            return
        # Here, because help needs nothing that reads files, and is asked for most often.
        from gradacc_dist.config.load import load

        resolved = load(command.path, command.flags)
        if command.check:
            if os.environ.get("RANK", "0") == "0":
                from gradacc_dist.config.present import table

                show(table(resolved))
            return
        work(resolved)

    return exit_code_of(run)


def exit_code_of(work: Callable[[], None]) -> int:
    """Do `work`. A GradaccError becomes its text on standard error and its exit code."""
    try:
        with noted():
            work()
    except GradaccError as error:
        _report(error)
        return error.exit_code
    return 0


def show(text: str) -> None:
    """Print `text`, whoever reads it and for however long."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Who reads (`| head`) has seen enough; Python would say so once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: GradaccError) -> None:
    rank, local_rank = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    # One who was asked to leave has no time to lose, and ignores a launcher that ends it early.
    if local_rank != "0" and not isinstance(error, PreemptedError):
        # Most likely the first rank of this host meets the same mistake. Let it speak: once it
        # leaves, the launcher ends this one. If it does not leave, it had no such mistake.
        time.sleep(LINGER_SECONDS)
    if not (error.same_on_all_ranks and rank != "0"):
        speaker = f"[rank {rank}] " if "RANK" in os.environ else ""
        print(f"{speaker}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
