"""state.json: strict, and whatever is wrong with it names the field."""

import json
from pathlib import Path

import pytest

from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.config.identity import identity
from gradacc_dist.config.schema import Config
from gradacc_dist.errors import CheckpointError

STATE = {
    "format": 1,
    "step": 6,
    "num_updates": 5,
    "examples_seen": 66,
    "epoch": 1,
    "seed": 3,
    "num_steps": 8,
    "loss_scale": None,
    "loss_scale_updates": 0,
    "loss_scale_borne": 0,
    "ledger_bytes": 100,
    "elapsed_seconds": 1.5,
    "tracker_id": None,
    "version": "0.1.0",
    "identity": identity(Config()),
    "data_sha256": "a" * 64,
    "held_out_sha256": None,
    "layout": {"ranks": 4, "engine": "zero3"},
}


def test_a_state_comes_back_through_json():
    state = RunState.parse(STATE)
    assert RunState.parse(json.loads(json.dumps(state.model_dump()))) == state


@pytest.mark.parametrize("name", STATE)
def test_a_field_that_is_missing_is_named(name):
    fields = {key: value for key, value in STATE.items() if key != name}
    with pytest.raises(CheckpointError, match=rf"^x/state.json: .*{name}|format None"):
        RunState.parse(fields, Path("x/state.json"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "6"),
        ("step", -1),
        ("step", True),
        ("examples_seen", 6.0),
        ("loss_scale", 0.0),
        ("elapsed_seconds", float("nan")),
        ("data_sha256", "A" * 64),
        ("held_out_sha256", ""),
        ("identity", []),
        ("surplus", 1),
    ],
)
def test_a_wrong_field_is_named(name, value):
    with pytest.raises(CheckpointError, match=f"state.json: {name}: ") as caught:
        RunState.parse({**STATE, name: value})
    assert caught.value.exit_code == 12


@pytest.mark.parametrize("written_in", [0, 2, None, "1"])
def test_another_format_asks_for_the_version_that_wrote_it(written_in):
    with pytest.raises(CheckpointError, match="the version of gradacc_dist that wrote it"):
        RunState.parse({**STATE, "format": written_in})
