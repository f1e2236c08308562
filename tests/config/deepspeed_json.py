"""DeepSpeed JSONs for tests, and what the rules say about one."""

import json
from importlib.util import find_spec
from pathlib import Path

from test_rules import messages


def zero(stage: object = 2, **keys: object) -> dict[str, object]:
    """A JSON with ZeRO alone."""
    return {"zero_optimization": {"stage": stage, **keys}}


def written(folder: Path, content: object) -> str:
    """Write a JSON; return its path."""
    path = folder / "ds.json"
    path.write_text(json.dumps(content))
    return str(path)


def objections(path: str, environ=None, **sections) -> list[str]:
    """What is said about a JSON, without the path before it."""
    engine = {"deepspeed": path, **sections.pop("engine", {})}
    found = messages(environ, engine=engine, **sections)
    return [message.removeprefix(f"{path}: ") for message in found]


def source_of(package: str, path: str) -> str:
    """A file of an installed package, which is not imported."""
    found = find_spec(package)
    assert found is not None, f"{package} is not installed"
    assert found.origin is not None
    return (Path(found.origin).parent / path).read_text()
