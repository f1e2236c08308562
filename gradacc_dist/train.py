"""Train a language model: `accelerate launch -m gradacc_dist.train --config run.yaml`.

Without arguments it trains the packaged demo. Imports no torch until the configuration is known
to be right, so that `--help`, `--check` and mistakes answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradacc_dist.cli import run_command

if TYPE_CHECKING:
    from gradacc_dist.config.resolved import Resolved

PURPOSE = "Train a language model with the gradients of one large batch, on any number of ranks."


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point. Returns the process's exit code."""
    return run_command("gradacc_dist.train", PURPOSE, _train, argv)


def _train(resolved: Resolved) -> None:
    from gradacc_dist.signals import listening

    with listening() as signals:
        from gradacc_dist.training import train

        train(resolved, signals)


if __name__ == "__main__":
    sys.exit(main())
