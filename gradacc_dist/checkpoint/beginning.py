"""Where a run begins: at its first window, or after the one that a checkpoint was saved at."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gradacc_dist.checkpoint.folder import RunFolder
from gradacc_dist.checkpoint.history import History
from gradacc_dist.checkpoint.launch import began, remember
from gradacc_dist.checkpoint.restore import (
    candidates_at,
    find_together,
    restore,
    run_state,
)
from gradacc_dist.checkpoint.sameness import Difference, Identity, allowed_changes
from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.checkpoint.store import Checkpoint
from gradacc_dist.config.schema import Config
from gradacc_dist.data.order import Order
from gradacc_dist.data.stream_order import StreamOrder
from gradacc_dist.engines import Engine
from gradacc_dist.engines.loss_scale import ScaleState
from gradacc_dist.world import World

DECIDE_ORDER = ("data", "window", "run")  # sections: which examples a window holds


@dataclass(frozen=True)
class Beginning:
    """The same on every rank, but for `notes`: what rank 0 tells of how it was found.

    Without a checkpoint all is at zero. `is_evaluated`: the held-out loss at `step` is known.
    `changed`: what differs from the run that is continued, as its user allowed. `tracker_id`: what
    a tracker knows the run by, where that run goes on, and not another course of it.
    """

    num_steps: int
    checkpoint: Checkpoint | None = None
    state: RunState | None = None
    changed: tuple[Difference, ...] = ()
    is_evaluated: bool = False
    has_model: bool = False
    tracker_id: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path | None:
        """Of the checkpoint."""
        return self.checkpoint.folder if self.checkpoint else None

    @property
    def step(self) -> int:
        """Windows consumed."""
        return self.state.step if self.state else 0

    @property
    def position(self) -> int:
        """Examples seen."""
        return self.state.examples_seen if self.state else 0

    @property
    def num_updates(self) -> int:
        """Optimizer steps made."""
        return self.state.num_updates if self.state else 0

    @property
    def elapsed_seconds(self) -> float:
        """Wall-clock seconds of the run's earlier invocations."""
        return self.state.elapsed_seconds if self.state else 0.0

    def is_finished(self, config: Config) -> bool:
        """Whether there is nothing left to train, to evaluate or to export."""
        needs_loss = config.data.evaluate is not None
        needs_model = config.checkpoint.save_model
        return (
            self.step >= self.num_steps
            and (self.is_evaluated or not needs_loss)
            and (self.has_model or not needs_model)
        )

    def rows(self) -> dict[str, str]:
        """For the start table: from where the run goes on; nothing where it begins anew."""
        if self.state is None or self.checkpoint is None:
            return {}
        layout = self.state.layout
        saved = f"saved under {layout.get('engine')} on {layout.get('ranks')} rank(s)"
        rows = {
            "resumed": f"step {self.step:,} of {self.num_steps:,}, from {self.checkpoint.folder} "
            f"({saved}; {self.position:,} examples seen)"
        }
        if self.changed:
            told = "; ".join(difference.text for difference in self.changed)
            rows["changed"] = f"from here on, here | there: {told}"
        return rows

    def load_into(self, engine: Engine, world: World) -> None:
        """Bring `engine` to where the run begins. Collective. Raises CheckpointError."""
        if self.checkpoint is not None and self.state is not None:
            # The state of another kind of optimizer would mean nothing to this one.
            same = all(difference.at != "optimizer.name" for difference in self.changed)
            restore(engine, self.checkpoint, world, with_optimizer=same)
            if (scale := self.state.loss_scale) is not None:
                counts = self.state.loss_scale_updates, self.state.loss_scale_borne
                engine.restore_loss_scale(ScaleState(scale, *counts))


def find_beginning(
    config: Config,
    identity: Identity,
    order: Order | StreamOrder,
    resolved_text: str,
    launch: str | None,
    world: World,
) -> Beginning:
    """Where the run begins, with its output folder made ready for it. Collective.

    The folder is held. Nothing in it changes before it is known that the run may go on. `launch`:
    what this start belongs to, read on rank 0. Raises, on every rank, ConfigError where the run is
    another or an earlier one is in the way, and CheckpointError, DiskError.
    """
    folder = RunFolder(config.run.folder)
    config, carried_out = _without_what_is_done(config, folder, launch, world)
    found = Beginning(identity.num_steps)
    passed_over: list[str] = []
    if config.run.resume != "never" and not config.run.overwrite:
        checkpoint, passed_over = find_together(lambda: _candidates(config, folder), world)
        if checkpoint is not None:
            state = run_state(checkpoint)
            changed = allowed_changes(config, identity, state, checkpoint.folder)
            found = replace(
                found,
                checkpoint=checkpoint,
                state=state,
                changed=tuple(changed),
                tracker_id=state.tracker_id if config.run.resume == "auto" else None,
            )
    notes = [*carried_out, *(f"passed over a damaged checkpoint: {why}" for why in passed_over)]

    def prepare() -> Beginning:
        ready = _prepared(found, folder, config, order)
        if config.run.resume != "auto" or found.checkpoint is None:
            remember(folder.path, launch)
        if not ready.is_finished(config):
            folder.write_resolved(resolved_text)
        return replace(ready, notes=(*notes, *ready.notes))

    return _by_main(prepare, found, world)


def _without_what_is_done(
    config: Config, folder: RunFolder, launch: str | None, world: World
) -> tuple[Config, list[str]]:
    """`config` as it reads once an earlier start of this very launch has begun the run, and what
    there is to say of it. Collective.
    """
    is_begun = has_own = False
    with world.main_alone():
        if world.is_main and began(folder.path, launch):
            is_begun, has_own = True, bool(folder.store.candidates())
    is_begun, has_own = json.loads(world.share_text(json.dumps([is_begun, has_own]))[0])
    asked = config.run
    if not is_begun or (asked.resume == "auto" and not asked.overwrite):
        return config, []
    # Begun from elsewhere, and ended before its own first checkpoint, it begins from there again.
    is_path = asked.resume not in ("auto", "never")
    resume = asked.resume if is_path and not has_own else "auto"
    orders = f"run.overwrite: {str(asked.overwrite).lower()}, run.resume: {asked.resume}"
    note = f"launch {launch} is started again: {orders} were carried out at its first start"
    as_begun = asked.model_copy(update={"overwrite": False, "resume": resume})
    return config.model_copy(update={"run": as_begun}), [note]


def _candidates(config: Config, folder: RunFolder) -> list[tuple[int | None, Path]]:
    if config.run.resume != "auto":
        return [*candidates_at(Path(config.run.resume).expanduser())]
    folder.store.clear()
    return [*folder.store.candidates()]


def _prepared(
    found: Beginning, folder: RunFolder, config: Config, order: Order | StreamOrder
) -> Beginning:
    """`found` with the output folder made ready for it, and what only rank 0 sees."""
    if found.checkpoint is None or found.state is None:
        anew = config.run.overwrite
        notes = folder.clear() if anew else folder.refuse_earlier_run(config, found.num_steps)
        return replace(found, notes=tuple(notes))
    checkpoints, state = found.checkpoint.folder.parent, found.state
    is_own = checkpoints.resolve() == folder.store.folder.resolve()
    ledger = folder.ledger if is_own else checkpoints.parent / folder.ledger.name
    history = History(ledger, state, _known_order(order, found.changed))
    if is_own:
        history.check()
        notes = [*folder.set_aside(state.step, config), *history.cut()]
    else:
        notes = folder.refuse_earlier_run(config, found.num_steps)
        history.check()
        notes += history.copy_to(folder.ledger)
    return replace(
        found,
        is_evaluated=history.is_evaluated(),
        has_model=is_own and folder.has_model_of(found.checkpoint.folder),
        notes=tuple(notes),
    )


def _known_order(order: Order | StreamOrder, changed: tuple[Difference, ...]) -> Order | None:
    """`order`, if it is the one that the ledger's windows were drawn by, and tells at once."""
    sections = {difference.at.partition(".")[0] for difference in changed}
    same = sections.isdisjoint(DECIDE_ORDER)
    return order if same and isinstance(order, Order) else None


def _by_main(work: Callable[[], Beginning], found: Beginning, world: World) -> Beginning:
    """What `work` makes of `found` on rank 0, told to the others. Collective."""
    ready = found
    with world.main_alone():
        if world.is_main:
            ready = work()
    facts = world.share_text(json.dumps([ready.is_evaluated, ready.has_model]))[0]
    is_evaluated, has_model = json.loads(facts)
    return replace(ready, is_evaluated=is_evaluated, has_model=has_model)
