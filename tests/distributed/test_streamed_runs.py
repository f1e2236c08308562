"""A streamed run is the same on any layout, and a mistake in one rank's share ends all of them."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml
from distributed.cases import VOCABULARY, Case, reference, worst_error
from distributed.legs import STEPS, leg, write_config
from distributed.product import run_windows
from distributed.test_exactness import TOLERANCE, mixed
from launching import ledger, train
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from gradacc_dist.data.order import Window
from gradacc_dist.data.sources import Source
from gradacc_dist.data.stream import Stream, Tokenising
from gradacc_dist.data.stream_order import StreamOrder

CASE = mixed(20, window=8, steps=4)
ORDERS = {
    "by count, in file order": {"window_examples": 8},
    "by count, shuffled": {"window_examples": 8, "shuffle_buffer": 5},
    "by budget, shuffled": {"window_items": 160, "shuffle_buffer": 5},
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Numbers from 1 on, of which the case's vocabulary consists."""
    vocabulary = {"<eos>": 0, **{str(number): number for number in range(1, VOCABULARY)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The case's examples in two files of a folder."""
    folder = tmp_path_factory.mktemp("streamed")
    rows = [
        json.dumps({"input_ids": ids.tolist(), "labels": labels.tolist()})
        for ids, labels in CASE.examples()
    ]
    (folder / "a.jsonl").write_text("\n".join(rows[:13]))
    (folder / "b.jsonl").write_text("\n".join(rows[13:]))
    return folder


def streamed(path: Path, options: dict[str, int]) -> StreamOrder:
    tokenising = Tokenising(tiny_tokenizer(), "auto", 100, "keep")
    return StreamOrder(Stream([Source(str(path), "train", True)], tokenising), 7, **options)


def first_windows(order: StreamOrder) -> list[Window]:
    return list(islice(order.windows(), CASE.steps))


def run_stream(world, case: Case, path: Path, options: dict[str, int], micro_batch: int):
    order = streamed(path, options)
    windows = islice(order.windows(), case.steps)
    return run_windows(world, case, order.stream, windows, micro_batch)


@pytest.mark.parametrize("title", ORDERS)
def test_gradients_and_weights_equal_the_single_process_run(pools, data, title):
    """Counts exactly and gradients to float64 rounding, across two epochs, by an independent loop
    over the ids; the tolerance is derived in test_exactness."""
    windows = first_windows(streamed(data, ORDERS[title]))
    assert windows[-1].epoch == 1
    truth = reference(CASE, [window.example_ids.tolist() for window in windows])
    for ranks, micro_batch in [(1, 8), (2, 3)]:
        for trace in pools[ranks].run(run_stream, CASE, data, ORDERS[title], micro_batch):
            assert trace.counts == truth.counts
            for pair in zip(trace.gradients, truth.gradients, strict=True):
                error, parameter = worst_error(*pair)
                assert error <= TOLERANCE, f"{ranks} ranks: {parameter} off by {error}"
            assert worst_error(trace.weights, truth.weights)[0] <= TOLERANCE
            np.testing.assert_allclose(trace.losses, truth.losses, rtol=TOLERANCE)


@pytest.mark.cluster
def test_b12_a_streamed_run_that_moves_is_the_run_that_stayed(pools, tmp_path):
    """Stopped in mid-epoch, in either epoch, and continued by other ranks with other micro-batches:
    ids and denominators exactly, loss and gradient norm to fp32 rounding (see test_moved_runs)."""
    config = str(write_config(tmp_path))
    streamed = ["--data.streaming", "true", "--data.shuffle_buffer", "7"]
    stayed, moved = tmp_path / "stayed", tmp_path / "moved"
    pools[1].run(leg, config, str(stayed), "single", 3, STEPS, *streamed)
    for name, ranks, micro_batch, stop in [
        ("ddp", 2, 2, 2),
        ("single", 1, 5, 6),
        ("fsdp2", 2, 3, STEPS),
    ]:
        pools[ranks].run(leg, config, str(moved), name, micro_batch, stop, *streamed)
        assert len(ledger(moved)) == stop
    ours, theirs = ledger(moved), ledger(stayed)
    assert [line["ranks"] for line in ours] == [2] * 2 + [1] * 4 + [2] * 4
    assert {line["epoch"] for line in ours[:6]} == {0, 1}
    for mine, other in zip(ours, theirs, strict=True):
        for exact in ("step", "example_ids_sha256", "supervised_tokens", "epoch", "examples_seen"):
            assert mine[exact] == other[exact]
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


def test_a_mistake_that_one_rank_meets_ends_all_in_its_step(data, tmp_path):
    """Row 21 is in rank 1's share of step 3: named once, after two whole steps in the ledger."""
    path = tmp_path / "bad.jsonl"
    rows = [
        {"input_ids": [1 + n % 9] * (3 + n), "labels": [1 + n % 9] * (3 + n)} for n in range(40)
    ]
    rows[20]["labels"] = [-100] * 23
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    config = {
        "model": {
            "tokenizer": str(tmp_path / "tokenizer"),
            "config": {"model_type": "llama", **shape, **heads},
        },
        "data": {"train": str(path), "streaming": True, "shuffle_buffer": 0, "max_length": 12},
        "window": {"examples": 8},
        "micro_batch": {"examples": 4},
        "schedule": {"steps": 4},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    done = train(tmp_path / "run.yaml", tmp_path / "bad", name="torchrun", ranks=2)
    assert done.returncode != 0
    assert f"DataError: step 3: {path}: row 21: holds no supervised token" in done.stderr
    assert done.stderr.count("DataError") == 1
    assert "exitcode  : 11" in done.stderr
    first, second = ledger(tmp_path / "bad")
    assert first["example_ids_sha256"] == Window(1, 0, np.arange(8), 8).ids_sha256
    # Rows n = 0, 1, ... are n + 3 tokens long and are cut to 12.
    assert (first["truncated_examples"], first["truncated_tokens"]) == (0, 0)
    assert (second["truncated_examples"], second["truncated_tokens"]) == (6, sum(range(1, 7)))
    shown = " ".join(done.stdout.split())
    assert "streamed in file order, not shuffled; not a permutation of the whole" in shown
