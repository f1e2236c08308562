"""From a command line to an exit code, the same for every entry point."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

from gradacc_dist.config import Resolved, help_text, load, parse_command_line, table
from gradacc_dist.errors import ConfigError, DataError, GradaccError

SILENT_RANKS_LINGER_SECONDS = 2.0


def run_command(
    module: str, purpose: str, work: Callable[[Resolved], None], argv: Sequence[str] | None = None
) -> int:
    """Parse `argv`, load the configuration, do `work`. Returns the exit code.

    A GradaccError becomes its text on standard error and its exit code. Every rank meets a mistake
    in the configuration, so only the first of each host speaks.
    """
    try:
        command = parse_command_line(sys.argv[1:] if argv is None else argv)
        if command.help:
            print(help_text(f"python -m {module}", purpose))
            return 0
        resolved = load(command.path, command.flags)
        if command.check:
            if os.environ.get("RANK", "0") == "0":
                print(table(resolved))
            return 0
        work(resolved)
    except GradaccError as error:
        _report(error)
        return error.exit_code
    return 0


def _report(error: GradaccError) -> None:
    rank, local_rank = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    # Every rank of a host reads the same configuration and data, and meets the same mistake.
    same_on_this_host = isinstance(error, ConfigError | DataError)
    if (error.same_on_all_ranks and rank != "0") or (same_on_this_host and local_rank != "0"):
        # The launcher kills the others once one rank leaves: let the one that speaks finish.
        time.sleep(SILENT_RANKS_LINGER_SECONDS)
        return
    speaker = f"[rank {rank}] " if "RANK" in os.environ else ""
    print(f"{speaker}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
