"""The configuration that `gradacc init` leaves."""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path

from gradacc_dist.errors import ConfigError, DiskError


def write_starter(folder: Path) -> str:
    """Write `run.yaml` into `folder`, made if need be; say what to do next.

    Raises ConfigError where there is such a file, and DiskError.
    """
    path = folder.expanduser() / "run.yaml"
    text = resources.files("launcher").joinpath("starter.yaml").read_text(encoding="utf-8")
    with DiskError.naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise ConfigError(f"{path} exists; name another folder, or remove it first") from None
    return f"wrote {path}; train with: gradacc train --config {shlex.quote(str(path))}"
