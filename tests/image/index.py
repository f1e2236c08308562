"""How pip on this machine reaches its packages, told to a build as its secrets."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

CERTIFICATES = "/run/secrets/ca.pem"


@dataclass(frozen=True)
class Index:
    """`secrets` of a build by their id, and the `folders` of packages that are on this machine."""

    secrets: dict[str, Path]
    folders: tuple[Path, ...]

    @property
    def mounts(self) -> list[str]:
        """The folders, as options of a build."""
        return [word for each in self.folders for word in ("--volume", f"{each}:{each}:ro")]


def index_of_this_machine(folder: Path, mark: str) -> Index:
    """Write the secrets into `folder`, with `mark` in a comment of each."""
    settings = _settings()
    certificates = settings.pop("cert", None)
    if certificates is not None:
        settings["cert"] = CERTIFICATES
    lines = [f"# {mark}", "[global]", *(f"{key} = {value}" for key, value in settings.items())]
    (folder / "pip.conf").write_text("\n".join(lines) + "\n")
    trusted = Path(certificates).read_text() if certificates else ""
    (folder / "ca.pem").write_text(f"# {mark}\n{trusted}")
    secrets = {name: folder / name for name in ("pip.conf", "ca.pem")}
    return Index(secrets, tuple(sorted(set(_folders(settings)))))


def _settings() -> dict[str, str]:
    """By key, from files and environment alike; what is nearer to the command counts."""
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], text=True, capture_output=True, check=True
    ).stdout
    found: dict[str, dict[str, str]] = {"global": {}, ":env:": {}}
    for line in shown.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in found:
            found[section][key] = str(ast.literal_eval(value))
    return found["global"] | found[":env:"]


def _folders(settings: dict[str, str]) -> Iterator[Path]:
    for key in ("find-links", "index-url", "extra-index-url"):
        for place in settings.get(key, "").split():
            path = Path(urlparse(place).path)
            if urlparse(place).scheme in ("", "file") and path.is_dir():
                # An index leads to files beside it; a folder of links is what it is.
                yield path if key == "find-links" else path.parent
