"""From a folder to an engine that goes on: a checkpoint is found, verified, fitted, then loaded.

Hashes are checked before any tensor is read, by all ranks together: each reads its share of the
files. Whatever is wrong is met by every rank or by none, so that none waits for another. Nothing
is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradacc_dist.checkpoint.manifest import MANIFEST, REMEDY, STATE, Manifest
from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.checkpoint.store import (
    CHECKPOINTS,
    Check,
    Checkpoint,
    Store,
    first_complete,
)
from gradacc_dist.checkpoint.verify import read_state, verify
from gradacc_dist.engines import Engine
from gradacc_dist.engines.state import optimizer_names
from gradacc_dist.errors import CheckpointError, ConfigError
from gradacc_dist.world import World

NUM_NAMED = 3  # of tensors that do not fit

Candidates = Sequence[tuple[int | None, Path]]
"""Steps and folders, the newest first; a folder that was named itself has no step."""

Found = TypeVar("Found")


def candidates_at(path: Path, asked: str = "run.resume") -> Candidates:
    """What `path` means: a checkpoint, or those of a run's folder or of its `checkpoints`.

    Raises ConfigError where there is none; `asked` for it.
    """
    if (path / MANIFEST).exists() or (path.is_dir() and path.name.startswith("step-")):
        return [(None, path)]
    for folder in (path / CHECKPOINTS, path):
        if candidates := Store(folder).candidates():
            return [*candidates]
    raise ConfigError(
        f"{asked}: {path} is neither a checkpoint (.../step-00000040) nor the folder of a run that "
        f"has some in {CHECKPOINTS}/; name one of these"
        + ("" if path.exists() or asked != "run.resume" else ", or `auto` or `never`")
    )


def first_of(candidates: Candidates, check: Check) -> tuple[Checkpoint | None, list[str]]:
    """The newest that passes `check`, and why newer ones were passed over; None where there is
    none. Raises CheckpointError where none of them passes.
    """
    if candidates and candidates[0][0] is None:  # this one or none
        folder = candidates[0][1]
        return Checkpoint(folder, check(folder)), []
    found, passed_over = first_complete([(step or 0, path) for step, path in candidates], check)
    if candidates and found is None:
        raise CheckpointError(
            "none of the checkpoints can be used; restore one from a copy, or set "
            "--run.overwrite true to start anew:\n" + "\n".join(f"- {why}" for why in passed_over),
            same_on_all_ranks=True,
        )
    return found, passed_over


def find_together(
    candidates: Callable[[], Candidates], world: World
) -> tuple[Checkpoint | None, list[str]]:
    """`first_of` what `candidates` lists on rank 0, verified by all ranks. Collective.

    Raises what these raise, on every rank.
    """
    listed: Candidates = []
    with world.main_alone():
        if world.is_main:
            listed = candidates()
    # A shared disk may show a new folder to one node before it does to another.
    told = world.share_text(json.dumps([(step, str(path)) for step, path in listed]))[0]
    agreed = [(step, Path(path)) for step, path in json.loads(told)]
    return first_of(agreed, partial(verify_together, world=world))


def verify_together(folder: Path, world: World) -> Manifest:
    """`verify`, each rank its share of the files. Collective.

    Raises CheckpointError, on every rank, for what any of them finds.
    """
    manifest = together(lambda: verify(folder, world.rank, world.ranks), world)
    digests = world.share_text(hashlib.sha256(manifest.to_bytes()).hexdigest())
    if len(set(digests)) > 1:
        raise CheckpointError(
            f"{folder}: the ranks see different manifests there: {', '.join(digests)}; resume from "
            "a folder that all nodes share",
            same_on_all_ranks=True,
        )
    return manifest


def together(work: Callable[[], Found], world: World) -> Found:
    """Do `work` on every rank, and raise its CheckpointError on all of them. Collective."""
    mistake, done = "", None
    try:
        done = work()
    except CheckpointError as error:
        mistake = str(error)
    mistakes = world.share_text(mistake)
    for told in filter(None, mistakes):
        raise CheckpointError(told, same_on_all_ranks=True)
    assert done is not None, "work that returns nothing has nothing to tell"
    return done


def run_state(checkpoint: Checkpoint) -> RunState:
    """What its state.json says. Raises CheckpointError."""
    state = RunState.parse(
        read_state(checkpoint.folder, checkpoint.manifest), checkpoint.folder / STATE
    )
    if state.step != checkpoint.manifest.step:
        raise CheckpointError(
            f"{checkpoint.folder}: its state is of step {state.step}, its manifest of step "
            f"{checkpoint.manifest.step}; {REMEDY}"
        )
    return state


def restore(
    engine: Engine,
    checkpoint: Checkpoint,
    world: World,
    *,
    with_optimizer: bool = True,
) -> None:
    """Load a verified checkpoint into `engine`. Collective.

    Without the optimizer's state, for another optimizer, that begins anew. Raises CheckpointError,
    on every rank, for tensors that are not the model's.
    """
    saved = SavedTensors(checkpoint.folder, checkpoint.manifest, with_optimizer=with_optimizer)
    together(lambda: check_fit(saved, engine.shapes), world)
    engine.load_state(saved)


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of a verified checkpoint, each read when it is asked for, onto the CPU.

    In the format they were saved in. One file is open at a time. Raises CheckpointError.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, with_optimizer: bool = True) -> None:
        self.folder = folder
        files = manifest.tensors()
        self._files = {n: file for n, file in files.items() if with_optimizer or "/" not in n}
        self._open: tuple[str, safe_open] | None = None

    def __getitem__(self, name: str) -> Tensor:
        """The tensor `name`, which stays good when its file is deleted."""
        with self._reading(self._files[name]) as file:
            tensor: Tensor = file.get_tensor(name)  # a view of the mapped file
            return tensor.clone()

    def __iter__(self) -> Iterator[str]:
        """Names, file by file."""
        return iter(self._files)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the tensor `name`, without reading it."""
        with self._reading(self._files[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    @contextmanager
    def _reading(self, name: str) -> Iterator[safe_open]:
        path = self.folder / name
        try:
            if self._open is None or self._open[0] != name:
                self._open = (name, safe_open(path, framework="pt", device="cpu"))
            yield self._open[1]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: cannot be read as safetensors: {error}; {REMEDY}"
            ) from error


def check_fit(saved: SavedTensors, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of tensors. Raises CheckpointError unless they are those of a model of `shapes`."""
    wrong = [f"{name} is missing" for name in shapes if name not in saved]
    beside = {f"{key}/{name}": name for key, name in optimizer_names(saved)}
    for name in saved:
        expected, found = shapes.get(beside.get(name, name)), saved.shape(name)
        if expected is None:
            wrong.append(f"{name} is not in the model")
        elif found != expected and not (name.startswith("step/") and found == ()):
            wrong.append(f"{name} is {_of(found)}, {_of(expected)} in the model")
    if wrong:
        more = f" and {len(wrong) - NUM_NAMED:,} more" if len(wrong) > NUM_NAMED else ""
        raise CheckpointError(
            f"{saved.folder}: is of another model: {'; '.join(wrong[:NUM_NAMED])}{more}; resume "
            "with the model configuration of that run, or start anew with another run.output_dir"
        )
    return len(saved)


def _of(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
