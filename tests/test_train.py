"""The main job, started as users start it: same run on any launcher, ranks and micro-batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from launching import launcher, ledger, run, train
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS = 6
LAYOUTS = {
    "python, 1 rank": {"name": "python", "ranks": 1, "micro_batch": 4},
    "accelerate, 1 rank": {"name": "accelerate", "ranks": 1, "micro_batch": 16},
    "accelerate, 2 ranks": {"name": "accelerate", "ranks": 2, "micro_batch": 4},
    "accelerate, 2 ranks, micro-batch 1": {"name": "accelerate", "ranks": 2, "micro_batch": 1},
    "accelerate, 2 ranks, micro-batch 16": {"name": "accelerate", "ranks": 2, "micro_batch": 16},
    "torchrun, 2 ranks": {"name": "torchrun", "ranks": 2, "micro_batch": 4},
}


def write_rows(path: Path, num: int, seed: int) -> Path:
    """Rows of very unequal lengths; the completion counts upwards, which can be learned."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(num):
        start, count = (int(n) for n in random.integers(1, 40, 2))
        completion = " ".join(str(start + i) for i in range(count))
        rows.append({"prompt": f"count from {start} for {count}: ", "completion": completion})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small run's configuration and data; the tokenizer is cached beside them."""
    folder = tmp_path_factory.mktemp("train")
    config = {
        "run": {"seed": 3},
        "model": {
            "tokenizer": "embedded",
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
            },
        },
        "data": {
            "train": str(write_rows(folder / "train.jsonl", 70, seed=0)),
            "evaluate": str(write_rows(folder / "held_out.jsonl", 9, seed=1)),
            "max_length": 128,
            "cache_dir": str(folder / "cache"),
        },
        "window": {"examples": 16},
        "micro_batch": {"examples": 4},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"steps": STEPS},
        "evaluate": {"every_steps": 4},
        "track": {"every_steps": 2, "sample_tokens": 4},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def runs(folder) -> dict[str, Path]:
    outputs = {}
    for number, (title, layout) in enumerate(LAYOUTS.items()):
        outputs[title] = folder / f"run{number}"
        done = train(
            folder / "run.yaml",
            outputs[title],
            *("--micro_batch.examples", str(layout["micro_batch"])),
            name=layout["name"],
            ranks=layout["ranks"],
        )
        assert done.returncode == 0, done.stderr
        outputs[title].with_suffix(".out").write_text(done.stdout)
    return outputs


def test_the_ledger_says_what_ran(runs):
    for title, layout in LAYOUTS.items():
        records = ledger(runs[title])
        assert [record["step"] for record in records] == list(range(1, STEPS + 1))
        for record in records:
            assert record["ranks"] == layout["ranks"]
            assert record["engine"] == ("single" if layout["ranks"] == 1 else "ddp")
            assert record["reduction_factor"] == 1.0
            assert record["denominator"] == "window"
            assert record["skipped"] is None
            assert record["micro_batches"] == -(-record["num_examples"] // layout["micro_batch"])
            assert record["padded_tokens"] >= record["input_tokens"] > record["supervised_tokens"]
            assert record["tokens_per_second"] == record["input_tokens"] / record["seconds"]
            term = record["terms"]["cross_entropy"]
            assert term["value"] == term["sum"] / term["count"]
            assert term["count"] == record["supervised_tokens"]
        # 70 examples: the fifth window closes the epoch with the 6 that are left.
        assert [record["num_examples"] for record in records] == [16, 16, 16, 16, 6, 16]
        assert [record["epoch"] for record in records] == [0, 0, 0, 0, 0, 1]
        assert [record["examples_seen"] for record in records] == [16, 32, 48, 64, 70, 86]


@pytest.mark.parametrize("title", list(LAYOUTS)[1:])
def test_another_layout_is_the_same_run(runs, title):
    """ids and denominators exactly; loss and gradient norm to fp32 rounding (6e-8 a sum of
    thousands of products, grown a little by each step's new weights)."""
    first, *_ = runs.values()
    for ours, theirs in zip(ledger(runs[title]), ledger(first), strict=True):
        for exact in ("example_ids_sha256", "supervised_tokens", "input_tokens", "learning_rate"):
            assert ours[exact] == theirs[exact]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-5)


@pytest.mark.parametrize("title", list(LAYOUTS)[1:])
def test_a14_evaluation_does_not_depend_on_the_layout(runs, title):
    first, *_ = runs.values()
    ours, theirs = ledger(runs[title], "eval"), ledger(first, "eval")
    assert [record["step"] for record in ours] == [4, STEPS]
    for one, other in zip(ours, theirs, strict=True):
        assert (one["num_examples"], one["supervised_tokens"]) == (9, other["supervised_tokens"])
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-6)


def test_what_a_run_leaves(runs, folder):
    output = runs["accelerate, 2 ranks"]
    assert {path.name for path in output.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.resolved.yaml",
        "ledger.jsonl",
        "loss.png",
        "model",
    }
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert model.config.vocab_size == len(tokenizer)
    resolved = yaml.safe_load((output / "config.resolved.yaml").read_text())
    assert resolved["micro_batch"] == {"examples": 4}
    assert resolved["window"]["examples"] == 16
    shown = output.with_suffix(".out").read_text()
    for fragment in ["step 1/6", "step 6/6", "evaluation at step 4", "train loss", "Sample"]:
        assert fragment in shown


def test_the_historical_bug_is_labelled_and_differs(folder, runs):
    done = train(folder / "run.yaml", folder / "bug", "--objective.denominator", "micro_batch_mean")
    assert done.returncode == 0, done.stderr
    assert "historical bug" in done.stdout
    bug, right = ledger(folder / "bug")[0], ledger(runs["python, 1 rank"])[0]
    assert bug["denominator"] == "micro_batch_mean"
    assert bug["example_ids_sha256"] == right["example_ids_sha256"]
    assert abs(bug["grad_norm"] / right["grad_norm"] - 1) > 1e-3


def test_a_step_that_stops_the_run_is_in_the_ledger(folder):
    """Contract 11, B13: what stopped it is recorded and drawn, and the exit code says it."""
    output = folder / "stopped"
    flags = ["--optimizer.learning_rate", "1e30", "--schedule.warmup_steps", "0"]
    done = train(folder / "run.yaml", output, *flags, name="accelerate", ranks=2)
    assert done.returncode != 0
    assert "exitcode  : 22" in done.stderr
    *_, last = ledger(output)
    assert last["skipped"] == "non_finite"
    assert f"NonFiniteError: step {last['step']}: the " in done.stderr
    assert done.stderr.count("NonFiniteError") == 1
    assert (output / "loss.png").exists()
    assert not (output / "model").exists()


def test_a_run_that_cannot_be_built_leaves_the_earlier_one_alone(folder, runs):
    output = runs["python, 1 rank"]
    before = sorted(path.name for path in output.iterdir())
    flags = ["--run.overwrite", "true", "--model.config.vocab_size", "20"]
    done = train(folder / "run.yaml", output, *flags)
    assert done.returncode == 10
    assert "the tokenizer has" in done.stderr
    assert sorted(path.name for path in output.iterdir()) == before


def test_a_folder_that_rank_0_cannot_write_ends_every_rank(folder):
    (folder / "file").write_text("")
    done = train(folder / "run.yaml", folder / "file" / "x", name="torchrun", ranks=2)
    assert "exitcode  : 25" in done.stderr
    assert "DiskError" in done.stderr
    assert "RuntimeError" not in done.stderr


@pytest.mark.cluster
def test_a_mistake_that_only_another_rank_meets_is_told(folder):
    """C8: rank 0 is fine, rank 1 has other data; both stop and rank 1's words are seen."""
    program = folder / "two_faced.py"
    program.write_text(
        "import os, sys\n"
        "from gradacc_dist.train import main\n"
        "bad = ['--data.train', '/no/such.jsonl'] if os.environ['RANK'] == '1' else []\n"
        "sys.exit(main([*sys.argv[1:], *bad]))\n"
    )
    command = [*launcher("torchrun", 2), str(program), "--config", str(folder / "run.yaml")]
    done = run([*command, "--run.output_dir", str(folder / "two")])
    assert "[rank 1] DataError: /no/such.jsonl" in done.stderr


def test_a_window_smaller_than_the_ranks_works(folder):
    flags = ["--window.examples", "1", "--schedule.steps", "2"]
    done = train(folder / "run.yaml", folder / "small", *flags, name="torchrun", ranks=2)
    assert done.returncode == 0, done.stderr
    assert [record["num_examples"] for record in ledger(folder / "small")] == [1, 1]
    assert "filler" in done.stdout


def test_an_earlier_run_is_not_overwritten(folder, runs):
    output = runs["python, 1 rank"]
    before = (output / "ledger.jsonl").read_bytes()
    done = train(folder / "run.yaml", output)
    assert done.returncode == 0, done.stderr
    assert "This run is finished" in done.stdout
    assert (output / "ledger.jsonl").read_bytes() == before
    done = train(folder / "run.yaml", output, "--run.resume", "never")
    assert done.returncode == 10
    assert "holds an earlier run" in done.stderr
    assert "--run.overwrite true" in done.stderr
    assert (output / "ledger.jsonl").read_bytes() == before


def bad_row(folder: Path) -> str:
    (folder / "bad.jsonl").write_text('{"text": "fine"}\n{"text": 5}\n')
    return "bad.jsonl"


def empty(folder: Path) -> str:
    (folder / "empty.jsonl").write_text("")
    return "empty.jsonl"


@pytest.mark.parametrize(
    ("make", "code", "fragments"),
    [
        (lambda folder: "none.jsonl", 11, ["none.jsonl: cannot be read (No such file"]),
        (bad_row, 11, ["bad.jsonl: row 2: text is int ('5'), but must be a string"]),
        (empty, 11, ["empty.jsonl: no rows"]),
    ],
)
def test_bad_data_is_named_without_a_traceback(folder, make, code, fragments):
    data = str(folder / make(folder))
    done = train(folder / "run.yaml", folder / "never", "--data.train", data)
    assert done.returncode == code
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for fragment in fragments:
        assert fragment in done.stderr
    assert not (folder / "never").exists()


def test_of_several_ranks_only_one_speaks(folder):
    flags = ["--data.train", str(folder / "none.jsonl")]
    done = train(folder / "run.yaml", folder / "never", *flags, name="torchrun", ranks=2)
    assert done.returncode != 0
    assert done.stderr.count("DataError") == 1
    assert "exitcode  : 11" in done.stderr
