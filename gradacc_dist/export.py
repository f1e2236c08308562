"""A checkpoint as a model that transformers loads: `python -m gradacc_dist.export CHECKPOINT OUT`.

Imports no torch until the arguments are known to be right. One process, no launcher.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gradacc_dist.cli import exit_code_of, show
from gradacc_dist.errors import ConfigError

USAGE = "usage: python -m gradacc_dist.export CHECKPOINT OUT"

HELP = f"""{USAGE}

Write the model of a checkpoint as a folder that `from_pretrained` loads: weights, configuration,
tokenizer, generation config, and a model card (README.md).

  CHECKPOINT  Folder of a checkpoint (runs/demo/checkpoints/step-00000200), or of a run, whose
              newest complete one is taken. Every file of it is verified first.
  OUT         Folder to make; one that exists is refused.
  -h, --help  Print this text and leave.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point. Returns the process's exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not {"-h", "--help"}.isdisjoint(words):
        show(HELP)
        return 0
    return exit_code_of(lambda: _export(words))


def _export(words: Sequence[str]) -> None:
    strange = [word for word in words if word.startswith("-")]
    if strange or len(words) != 2:
        what = f"{strange[0]} is no flag" if strange else f"{len(words)} arguments, not 2"
        raise ConfigError(f"{what}; {USAGE}")
    checkpoint, out = (Path(word).expanduser() for word in words)
    if not checkpoint.is_dir():
        raise ConfigError(f"CHECKPOINT: {checkpoint} is no folder; name a checkpoint or a run")
    if out.exists():
        raise ConfigError(f"OUT: {out} exists; name a folder that does not, or remove it first")

    from gradacc_dist.exporting import export

    show(export(checkpoint, out))


if __name__ == "__main__":
    sys.exit(main())
