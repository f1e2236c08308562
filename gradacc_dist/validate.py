"""Look at the data of a run before it: `python -m gradacc_dist.validate --config run.yaml`.

Takes the configuration of a training run, and trains nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradacc_dist.cli import run_command

if TYPE_CHECKING:
    from gradacc_dist.config.resolved import Resolved

PURPOSE = "Say what a run's data holds and what is wrong with it, without training."


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point. Returns the process's exit code: 11 where training would refuse the data."""
    return run_command("gradacc_dist.validate", PURPOSE, _validate, argv)


def _validate(resolved: Resolved) -> None:
    from gradacc_dist.validation import validate

    validate(resolved.config)


if __name__ == "__main__":
    sys.exit(main())
