"""What the image is built from: the sources as they are checked out, and secrets to be found."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from image.containers import Engine
from image.index import Index
from launching import ROOT

IMAGE = "localhost/gradacc"
VERSION, REVISION, SOURCE = "1.2.3", "0123abc", "https://example.org/gradacc"

IN_FILES = (".env", ".git/config", "runs/demo/ledger.jsonl", "gradacc_dist/keys.txt")
IN_ENVIRONMENT, IN_BUILD_SECRETS = "environment", "build secrets"


@dataclass(frozen=True)
class Built:
    """`planted`: what must be nowhere in the image `name`, by where it was planted."""

    engine: Engine
    name: str
    planted: dict[str, str]


def copy_sources(folder: Path) -> None:
    """Into `folder`, with what is not committed yet, and without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def plant(sources: Path) -> dict[str, str]:
    """Put secrets beside the sources and among them, and think up those that go elsewhere."""
    places = (*IN_FILES, IN_ENVIRONMENT, IN_BUILD_SECRETS)
    planted = {place: f"planted-{secrets.token_hex(16)}" for place in places}
    for place in IN_FILES:
        (sources / place).parent.mkdir(parents=True, exist_ok=True)
        (sources / place).write_text(f"token = {planted[place]}\n")
    return planted


def build(engine: Engine, base: str, sources: Path, planted: dict[str, str], index: Index) -> Built:
    """The image as it is shipped, but for its base."""
    tokens = dict.fromkeys(("HF_TOKEN", "WANDB_API_KEY"), planted[IN_ENVIRONMENT])
    said = {"VERSION": VERSION, "REVISION": REVISION, "SOURCE": SOURCE}
    engine.build(
        IMAGE,
        sources,
        *index.mounts,
        secrets=index.secrets,
        environment=tokens,
        BASE_IMAGE=base,
        **said,
    )
    return Built(engine, IMAGE, planted)
