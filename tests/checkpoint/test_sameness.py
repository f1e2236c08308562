"""What may differ between a checkpoint and the run that continues it."""

from pathlib import Path

import pytest
from checkpoint.test_run_state import STATE

from gradacc_dist.checkpoint.sameness import Identity, allowed_changes
from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.config.fields import fields, nested
from gradacc_dist.config.identity import decides, identity
from gradacc_dist.config.schema import Config
from gradacc_dist.errors import ConfigError

SHA, OTHER_SHA = "a" * 64, "b" * 64
FREE_SECTIONS = {"engine", "micro_batch", "evaluate", "checkpoint", "track"}


def make(flat: dict, num_steps: int = 8, data: str = SHA, held_out: str | None = None):
    config = Config.model_validate(nested({"schedule.steps": num_steps, **flat}))
    return config, Identity(identity(config), data, held_out, num_steps)


def saved(flat: dict, num_steps: int = 8, step: int = 6) -> RunState:
    _, run = make(flat, num_steps)
    given = {"identity": dict(run.fields), "num_steps": num_steps, "step": step}
    return RunState.parse({**STATE, **given, "num_updates": step})


def refusal(now, then) -> str:
    with pytest.raises(ConfigError) as caught:
        allowed_changes(*now, then, Path("step-6"))
    assert caught.value.same_on_all_ranks
    return str(caught.value)


def is_same(now, then) -> bool:
    return allowed_changes(*now, then, Path("step-6")) == []


def test_each_field_is_free_or_decides():
    """Spelled out by section: a field that moves between the two is a decision."""
    for path in fields():
        section = path.partition(".")[0]
        free = section in FREE_SECTIONS or (section == "run" and path != "run.seed")
        assert decides(path) is not (free or path == "data.cache_dir"), path


def test_every_difference_is_told_at_once_with_both_values_and_the_remedy():
    then = saved({"model.config": {"model_type": "llama", "hidden_size": 32}})
    flat = {"window.examples": 16, "run.seed": 4, "optimizer.betas": [0.9, 0.99]}
    flat["model.config"] = {"model_type": "llama", "hidden_size": 64, "rms_norm_eps": 1e-5}
    text = refusal(make(flat), then)
    for line in (
        "- window.examples: 16 | 64",
        "- run.seed: 4 | 0",
        "- optimizer.betas: [0.9, 0.99] | [0.9, 0.95]",
        "- model.config.hidden_size: 64 | 32",
        "- model.config.rms_norm_eps: 1e-05 | not set",
        "--run.allow_change '[run.seed, model.config.hidden_size, model.config.rms_norm_eps, "
        "window.examples, optimizer.betas]'",
    ):
        assert line in text


@pytest.mark.parametrize("allowed", ["window", "window.examples"])
def test_what_is_listed_is_allowed_and_told(allowed):
    now = make({"window.examples": 16, "run.allow_change": [allowed]})
    (difference,) = allowed_changes(*now, saved({}), Path())
    assert difference.text == "window.examples: 16 | 64"
    assert "window.examples" in refusal(make({"window.examples": 16}), saved({}))
    other = make({"window.examples": 16, "run.allow_change": ["model", "window.on_zero_items"]})
    assert "- window.examples" in refusal(other, saved({}))


def test_cluster_engine_micro_batch_and_trackers_are_free():
    flat = {"engine.name": "fsdp2", "micro_batch.examples": 1, "data.cache_dir": "/x"}
    flat |= {"track.wandb": "offline", "evaluate.every_steps": 3, "run.output_dir": "/y"}
    assert is_same(make(flat), saved({}))


def test_data_may_move_but_not_change():
    moved = {"data.train": "/new/place.jsonl"}
    assert is_same(make(moved), saved({"data.train": "/old/place.jsonl"}))
    other = refusal(make(moved, data=OTHER_SHA), saved({"data.train": "/old/place.jsonl"}))
    assert 'data.train: "/new/place.jsonl" | "/old/place.jsonl"' in other
    same_name = refusal(make({}, data=OTHER_SHA), saved({}))
    assert "data.train: other contents, SHA-256 bbbbbbbbbbbb | aaaaaaaaaaaa" in same_name
    held_out = refusal(make({}, held_out=OTHER_SHA), saved({}))
    assert "data.evaluate: other contents, SHA-256 bbbbbbbbbbbb | None" in held_out
    # A stream's hash does not know its rows.
    streamed = {"data.streaming": True}
    text = refusal(make({**moved, **streamed}), saved({"data.train": "/old.jsonl", **streamed}))
    assert "data.train" in text


def test_a_hash_that_another_difference_explains_is_not_told_twice():
    text = refusal(make({"data.max_length": 7}, data=OTHER_SHA, held_out=OTHER_SHA), saved({}))
    assert "data.max_length: 7 | 1024" in text
    assert "contents" not in text
    now = make({"data.max_length": 7, "run.allow_change": ["data.max_length"]}, data=OTHER_SHA)
    assert len(allowed_changes(*now, saved({}), Path())) == 1


@pytest.mark.parametrize(
    ("flat", "step", "num_steps"),
    [
        ({"schedule.shape": "constant"}, 8, 100),
        ({"schedule.shape": "constant", "schedule.warmup_steps": 4}, 2, 100),
        ({"schedule.shape": "warmup_stable_decay", "schedule.decay_fraction": 0.25}, 6, 100),
        ({"schedule.shape": "cosine", "schedule.warmup_steps": 4}, 4, 100),
    ],
)
def test_a_longer_schedule_goes_on_where_the_rates_used_are_its_own(flat, step, num_steps):
    assert is_same(make(flat, num_steps), saved(flat, step=step))


@pytest.mark.parametrize(
    ("flat", "step"),
    [
        ({"schedule.shape": "warmup_stable_decay", "schedule.decay_fraction": 0.25}, 8),
        ({"schedule.shape": "cosine"}, 3),
        ({"schedule.shape": "linear"}, 3),
    ],
)
def test_a_longer_schedule_is_refused_where_they_are_not(flat, step):
    text = refusal(make(flat, 100), saved(flat, step=step))
    assert f"schedule.steps: 100 steps | 8 steps: under shape {flat['schedule.shape']} step" in text
    assert "--run.allow_change '[schedule.steps]'" in text
    allowed = make({**flat, "run.allow_change": ["schedule"]}, 100)
    assert len(allowed_changes(*allowed, saved(flat, step=step), Path())) == 1


def test_steps_said_as_epochs_are_the_same_run():
    config, run = make({"schedule.steps": None, "schedule.epochs": 2.0})
    assert is_same((config, run), saved({}))


def test_a_schedule_that_ends_before_the_checkpoint_is_refused_even_if_allowed():
    flat = {"schedule.shape": "constant", "run.allow_change": ["schedule"]}
    assert "4 steps, but step-6 is at step 6" in refusal(make(flat, 4), saved(flat))


def test_a_field_that_is_newer_than_the_checkpoint_had_its_default():
    then = saved({})
    older = {k: v for k, v in then.identity.items() if k != "optimizer.eps"}
    then = then.model_copy(update={"identity": older})
    assert is_same(make({}), then)
    assert "optimizer.eps: 0.5 | 1e-08" in refusal(make({"optimizer.eps": 0.5}), then)
