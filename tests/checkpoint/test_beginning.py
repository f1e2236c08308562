"""Where a run begins, and what becomes of what lies in its folder: nothing is lost in silence."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint.test_run_state import STATE
from observe.records import eval_record, train_record, write_ledger

from gradacc_dist.checkpoint.beginning import Beginning, find_beginning
from gradacc_dist.checkpoint.folder import held
from gradacc_dist.checkpoint.lock import RunLock
from gradacc_dist.checkpoint.sameness import Identity
from gradacc_dist.checkpoint.store import Store
from gradacc_dist.config.fields import nested
from gradacc_dist.config.identity import identity
from gradacc_dist.config.present import dump
from gradacc_dist.config.resolved import Resolved, leaves
from gradacc_dist.config.schema import Config, Data
from gradacc_dist.data.order import Order
from gradacc_dist.errors import CheckpointError, ConfigError
from gradacc_dist.world import World

WORLD = World(0, 1, torch.device("cpu"), ("host",), None, None)
ORDER = Order(42, 3, 12)
SETTINGS = {"run.seed": 3, "model.path": "x", "schedule.steps": 8, "schedule.shape": "constant"}


def records(last: int):
    """What a run of ORDER leaves, with an evaluation after step 3."""
    for window in ORDER.windows():
        if window.step > last:
            return
        yield replace(
            train_record(window.step),
            epoch=window.epoch,
            examples_seen=window.examples_seen,
            num_examples=len(window.example_ids),
            example_ids_sha256=window.ids_sha256,
        )
        if window.step == 3:
            yield eval_record(3)


def leave(output: Path, *saves: int, last: int = 5) -> Path:
    """What a run that ended after step `last` leaves, with checkpoints after the steps `saves`."""
    output.mkdir(exist_ok=True)
    (output / "ledger.jsonl").unlink(missing_ok=True)
    (output / "config.resolved.yaml").write_text(dumped(output))
    store = Store(output / "checkpoints")
    for step in saves:
        train = [record for record in records(step) if record.kind == "train"]
        num_bytes = len(write_ledger(output / "part", *records(step)).read_bytes())
        if step == 3:  # saved before the evaluation
            num_bytes -= len(write_ledger(output / "eval", eval_record(3)).read_bytes())
        for name in ("part", "eval"):
            (output / name).unlink(missing_ok=True)
        fields = {"step": step, "num_updates": step, "epoch": train[-1].epoch}
        fields |= {"examples_seen": train[-1].examples_seen, "ledger_bytes": num_bytes}
        store.begin(step)
        fields |= {"identity": identity(config(output)), "tracker_id": "t1"}
        store.commit(step, [], {**STATE, **fields})
    write_ledger(output / "ledger.jsonl", *records(last))
    return output


def config(output: Path, **run) -> Config:
    given = {f"run.{name}": value for name, value in run.items()}
    return Config.model_validate(nested({"run.output_dir": str(output), **SETTINGS, **given}))


def dumped(output: Path) -> str:
    """config.resolved.yaml of that run."""
    chosen = config(output)
    return dump(Resolved(chosen, {leaf: "default" for leaf, _ in leaves(chosen)}))


def begin(output: Path, num_steps: int = 8, launch: str | None = None, **run) -> Beginning:
    chosen = config(output, **{"overwrite": False, **run})
    run_identity = Identity(identity(chosen), "a" * 64, None, num_steps)
    with held(output, WORLD):
        return find_beginning(chosen, run_identity, ORDER, "resolved", launch, WORLD)


def steps(output: Path) -> list[int]:
    text = (output / "ledger.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_an_empty_folder_begins_at_zero(tmp_path):
    found = begin(tmp_path / "new" / "run")
    assert (found.step, found.position, found.notes, found.rows()) == (0, 0, (), {})
    assert (tmp_path / "new" / "run" / "config.resolved.yaml").read_text() == "resolved"


def test_auto_goes_on_from_the_newest_and_cuts_the_ledger(tmp_path):
    found = begin(leave(tmp_path, 2, 4))
    assert (found.step, found.position, found.num_updates) == (4, 42, 4)
    assert (found.elapsed_seconds, found.tracker_id) == (1.5, "t1")
    assert steps(tmp_path) == [1, 2, 3, 3, 4]
    assert "1 line(s) after step 4 are cut off" in found.notes[0]
    assert "(saved under zero3 on 4 rank(s); 42 examples seen)" in found.rows()["resumed"]


def test_the_evaluation_right_after_a_checkpoint_stays(tmp_path):
    assert begin(leave(tmp_path / "a", 3)).is_evaluated
    assert steps(tmp_path / "a") == [1, 2, 3, 3]
    assert not begin(leave(tmp_path / "b", 2)).is_evaluated


def test_half_a_line_is_cut(tmp_path):
    with (leave(tmp_path, 4, last=4) / "ledger.jsonl").open("a") as file:
        file.write('{"kind": "eval", "step": 4')
    begin(tmp_path)
    assert steps(tmp_path) == [1, 2, 3, 3, 4]


@pytest.mark.parametrize("is_missing", [True, False])
def test_a_ledger_that_lost_lines_is_told_and_the_run_goes_on(tmp_path, is_missing):
    ledger = leave(tmp_path, 4) / "ledger.jsonl"
    kept = b"" if is_missing else b"".join(ledger.read_bytes().splitlines(keepends=True)[:2])
    ledger.unlink()
    if not is_missing:
        ledger.write_bytes(kept + b'{"ki')
    found = begin(tmp_path)
    assert found.step == 4
    assert "lacks the last" in found.notes[0]
    assert ledger.exists() is not is_missing


def edited(**fields):
    return [replace(r, **fields) if r.step == 4 else r for r in records(5)]


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"step": 9}, "has step 9, not 4"),
        ({"examples_seen": 41}, "has examples_seen 41, not 42"),
        ({"epoch": 7}, "has epoch 7, not 0"),
        ({"example_ids_sha256": "0" * 64}, "was trained on the examples 000000000000"),
    ],
)
def test_the_ledger_of_another_run_is_refused(tmp_path, fields, cause):
    leave(tmp_path, 4)
    write_ledger(tmp_path / "new", *edited(**fields)).replace(tmp_path / "ledger.jsonl")
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=cause):
        begin(tmp_path)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def test_never_refuses_an_earlier_run_and_overwrite_replaces_it(tmp_path):
    leave(tmp_path, 4)
    (tmp_path / "model").mkdir()
    (tmp_path / "loss.png").write_text("")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match=r"--run.resume auto to continue it"):
        begin(tmp_path, resume="never")
    assert steps(tmp_path) == [1, 2, 3, 3, 4, 5]
    lock = (tmp_path / ".lock").stat().st_ino
    found = begin(tmp_path, resume="never", overwrite=True)
    assert found.step == 0
    assert "removed ledger.jsonl, loss.png, model, checkpoints" in found.notes[0]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".lock", "mine.txt", "config.resolved.yaml"}
    assert (tmp_path / ".lock").stat().st_ino == lock


def test_b18_nothing_changes_in_a_folder_that_another_run_holds(tmp_path):
    leave(tmp_path, 4)
    with RunLock(tmp_path), pytest.raises(ConfigError, match="in use by another run"):
        begin(tmp_path, overwrite=True)
    assert steps(tmp_path) == [1, 2, 3, 3, 4, 5]


def test_an_older_checkpoint_sets_the_newer_ones_aside(tmp_path):
    checkpoints = leave(tmp_path, 2, 3, 4) / "checkpoints"
    found = begin(tmp_path, resume=str(checkpoints / "step-00000002"))
    assert (found.step, found.tracker_id) == (2, None)
    (aside,) = checkpoints.glob("abandoned-after-00000002-*")
    assert {p.name for p in aside.iterdir()} == {"ledger.jsonl", "step-00000003", "step-00000004"}
    assert len((aside / "ledger.jsonl").read_text().splitlines()) == 6
    assert steps(tmp_path) == [1, 2]
    assert "2 newer checkpoint(s) are moved to" in found.notes[0]
    assert begin(tmp_path).step == 2


def test_a_new_run_goes_on_from_anothers_checkpoint(tmp_path):
    source = leave(tmp_path / "source", 3, 4)
    before = (source / "ledger.jsonl").read_bytes()
    found = begin(tmp_path / "new", resume=str(source / "checkpoints" / "step-00000003"))
    assert (found.step, found.is_evaluated) == (3, True)
    assert steps(tmp_path / "new") == [1, 2, 3, 3]
    assert "begins with the lines of" in found.notes[0]
    assert (source / "ledger.jsonl").read_bytes() == before
    # Started again before its first checkpoint, it begins from there once more.
    (tmp_path / "new" / "config.resolved.yaml").write_text(dumped(tmp_path / "new"))
    assert begin(tmp_path / "new", resume=str(source)).step == 4
    alone = tmp_path / "alone" / "checkpoints"
    alone.parent.mkdir()
    (source / "checkpoints").rename(alone)
    found = begin(tmp_path / "other", resume=str(alone))
    assert "begins after step 4: there is no" in found.notes[0]
    assert not (tmp_path / "other" / "ledger.jsonl").exists()


def test_a_try_without_checkpoint_begins_anew_if_it_is_the_same_run(tmp_path):
    leave(tmp_path)
    with pytest.raises(ConfigError, match=r"holds an earlier run.*of another configuration"):
        begin(tmp_path, seed=4)
    with pytest.raises(ConfigError, match="holds an earlier run; choose another folder"):
        begin(tmp_path, resume="never")
    with pytest.raises(ConfigError, match="all 5 steps of it, but no checkpoint"):
        begin(tmp_path, num_steps=5)
    assert steps(tmp_path) == [1, 2, 3, 3, 4, 5]
    found = begin(tmp_path)
    assert (found.step, found.notes[0][:30]) == (0, "an earlier try made 5 step(s) ")
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_finished_run_has_its_loss_and_its_model(tmp_path):
    found = begin(leave(tmp_path, 4, last=4), num_steps=4)
    held_out = {"data": Data(evaluate="embedded")}
    chosen = config(tmp_path).model_copy(update=held_out)
    assert not found.is_finished(chosen)
    found = replace(found, has_model=True, is_evaluated=True)
    assert found.is_finished(chosen)
    assert not replace(found, num_steps=5).is_finished(chosen)
    assert not replace(found, has_model=False).is_finished(chosen)
    assert not replace(found, is_evaluated=False).is_finished(chosen)
    assert replace(found, is_evaluated=False).is_finished(config(tmp_path))


def test_the_model_of_a_shorter_schedule_is_not_this_ones(tmp_path):
    model = leave(tmp_path, 4, last=4) / "model"
    assert not begin(tmp_path, num_steps=4).has_model
    model.mkdir()
    assert begin(tmp_path, num_steps=4).has_model
    os.utime(model, (1, 1))
    assert not begin(tmp_path, num_steps=4).has_model


def test_checkpoints_that_are_all_damaged_stop_the_run(tmp_path):
    (leave(tmp_path, 4) / "checkpoints" / "step-00000004" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of the checkpoints can be used"):
        begin(tmp_path)
    assert steps(tmp_path) == [1, 2, 3, 3, 4, 5]
