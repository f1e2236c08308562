"""Streamed runs, started as users start them: the same on any layout, and mistakes end all ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from launching import ledger, train

STEPS = 5
ROWS = 26


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small run's configuration and data: two files in a folder, rows of unequal lengths."""
    folder = tmp_path_factory.mktemp("streaming")
    (folder / "data").mkdir()
    random = np.random.default_rng(0)
    lengths = random.integers(2, 60, ROWS)
    for name, some in [("a", lengths[:15]), ("b", lengths[15:])]:
        rows = ({"prompt": "count: ", "completion": " ".join("12345678" * n)[:n]} for n in some)
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = {
        "run": {"seed": 3},
        "model": {"tokenizer": "embedded", "config": {"model_type": "llama", **shape, **heads}},
        "data": {
            "train": str(folder / "data"),
            "streaming": True,
            "shuffle_buffer": 0,
            "max_length": 40,
            "cache_dir": str(folder / "cache"),
        },
        "window": {"examples": 8},
        "micro_batch": {"examples": 4},
        "schedule": {"steps": STEPS},
        "checkpoint": {"save_model": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_streamed_run_is_the_same_on_one_and_two_ranks(folder):
    """Ids, denominators and truncation exactly; loss and gradient norm to fp32 rounding (6e-8 a
    sum of thousands of products, grown a little by each step's new weights)."""
    one = train(folder / "run.yaml", folder / "one")
    flags = ["--micro_batch.examples", "3"]
    two = train(folder / "run.yaml", folder / "two", *flags, name="torchrun", ranks=2)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    ours, theirs = ledger(folder / "two"), ledger(folder / "one")
    assert [record["num_examples"] for record in ours] == [8, 8, 8, 2, 8]
    assert [record["epoch"] for record in ours] == [0, 0, 0, 0, 1]
    assert [record["ranks"] for record in ours] == [2] * STEPS
    exact = ["example_ids_sha256", "supervised_tokens", "input_tokens", "examples_seen"]
    for record, other in zip(ours, theirs, strict=True):
        for name in [*exact, "truncated_examples", "truncated_tokens"]:
            assert record[name] == other[name]
        assert record["loss"] == pytest.approx(other["loss"], rel=2e-6)
        assert record["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-5)
    assert sum(record["truncated_tokens"] for record in ours) > 0
    shown = " ".join(two.stdout.split())
    assert "streamed in file order, not shuffled; not a permutation of the whole." in shown
    assert "tokens to data.max_length" in shown


def test_a_mistake_that_one_rank_meets_ends_all_in_its_step(folder):
    """Row 21 is of rank 1's share: step 3 stops with its name, said once; two steps are done."""
    lines = (folder / "data" / "a.jsonl").read_text().splitlines() * 2
    lines[20] = '{"prompt": "nothing", "completion": ""}'
    path = folder / "bad.jsonl"
    path.write_text("\n".join(lines))
    flags = ["--data.train", str(path), "--data.max_length", "4"]
    flags = ["--data.train", str(path), "--data.supervise", "completion"]
    lines[20] = '{"input_ids": [5, 6], "labels": [5, -100]}'
    done = train(folder / "run.yaml", folder / "bad", *flags, name="torchrun", ranks=2)
    assert done.returncode != 0
    assert f"DataError: step 3: {path}: row 21: holds no supervised token" in done.stderr
    assert done.stderr.count("DataError") == 1
    assert "exitcode  : 11" in done.stderr
    assert [record["step"] for record in ledger(folder / "bad")] == [1, 2]
