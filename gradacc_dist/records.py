"""What a run tells of itself: the table at its start, the record of each step, its state."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import torch

from gradacc_dist import __version__
from gradacc_dist.agreement import Agreement
from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.config.identity import identity
from gradacc_dist.config.schema import Config
from gradacc_dist.data.load import Data
from gradacc_dist.data.mixture import Mixture
from gradacc_dist.data.order import Window
from gradacc_dist.data.stream import Stream
from gradacc_dist.engines import Engine
from gradacc_dist.errors import DiskError
from gradacc_dist.model import dropout_of
from gradacc_dist.observe.ledger import LEDGER, Term, TrainRecord, comparison_label
from gradacc_dist.step import StepOutcome
from gradacc_dist.windows import LocalWindow
from gradacc_dist.world import World


def train_record(
    config: Config,
    local: LocalWindow,
    agreement: Agreement,
    outcome: StepOutcome,
    engine: Engine,
    rate: float,
    seconds: float,
) -> TrainRecord:
    """The ledger's line for one step; every figure is global. `seconds` since the step before."""
    sums, counts = outcome.window_loss.sums, agreement.global_items
    main_term, *_ = engine.module.objective.weights
    return TrainRecord(
        step=local.window.step,
        epoch=local.window.epoch,
        examples_seen=local.window.examples_seen,
        num_examples=len(local.window.example_ids),
        example_ids_sha256=local.window.ids_sha256,
        loss=outcome.window_loss.loss,
        terms={name: Term.over(sums.get(name, 0.0), counts[name]) for name in counts},
        supervised_tokens=int(counts[main_term]),
        input_tokens=agreement.input_tokens,
        padded_tokens=agreement.padded_tokens,
        micro_batches=local.num_micro_batches,
        ranks=agreement.ranks,
        engine=engine.name,
        denominator=config.objective.denominator,
        reduction_factor=engine.reduction_factor,
        grad_norm=outcome.grad_norm,
        learning_rate=rate,
        seconds=seconds,
        tokens_per_second=agreement.input_tokens / seconds,
        skipped=outcome.skipped,
        loss_scale=outcome.loss_scale,
        truncated_examples=agreement.truncated_examples,
        truncated_tokens=agreement.truncated_tokens,
    )


def run_state(
    config: Config,
    data: Data,
    engine: Engine,
    num_steps: int,
    started: float,
    tracker_id: str | None,
    world: World,
    window: Window,
    num_updates: int,
) -> RunState:
    """Where the run stands after `window`, for its checkpoint. On rank 0: it reads the ledger's
    length. `started`: by time.perf_counter.
    """
    ledger = config.run.folder / LEDGER
    with DiskError.naming(ledger):
        ledger_bytes = ledger.stat().st_size
    scale = engine.loss_scale_state
    return RunState(
        step=window.step,
        num_updates=num_updates,
        examples_seen=window.examples_seen,
        epoch=window.epoch,
        seed=config.run.seed,
        num_steps=num_steps,
        loss_scale=scale.value if scale else None,
        loss_scale_updates=scale.num_good if scale else 0,
        loss_scale_borne=scale.num_borne if scale else 0,
        ledger_bytes=ledger_bytes,
        elapsed_seconds=time.perf_counter() - started,
        tracker_id=tracker_id,
        version=__version__,
        identity=identity(config),
        data_sha256=data.train.sha256,
        held_out_sha256=data.evaluate.sha256 if data.evaluate else None,
        layout={
            "ranks": world.ranks,
            "engine": engine.name,
            "micro_batch": config.micro_batch.examples,
            "hostnames": list(world.hostnames),
        },
    )


def start_rows(
    config: Config, train: Mixture | Stream, num_steps: int, engine: Engine, world: World
) -> dict[str, str]:
    """What is about to run, for a person to check before it does."""
    model = engine.module.model
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = {
        "model": f"{type(model).__name__}, {num_parameters:,} parameters, "
        f"{config.precision.compute}",
        **_layout_rows(config, None if isinstance(train, Stream) else len(train), world),
        **host_rows(world.hostnames),
        **_engine_rows(engine, world),
        "denominator": comparison_label(config.objective.denominator) or "window",
        "steps": f"{num_steps:,}",
        **(stream_rows(config, train) if isinstance(train, Stream) else data_rows(config, train)),
    }
    if dropout := dropout_of(model):
        rows["dropout"] = (
            f"{dropout:g}: it follows the micro-batch, so runs of another micro_batch.examples "
            "agree in expectation only"
        )
    return {**rows, "output": f"{config.run.output_dir}/"}


def stream_rows(config: Config, stream: Stream) -> dict[str, str]:
    """What is streamed, and what its order is and is not."""
    buffer = config.data.shuffle_buffer
    shuffled = f"shuffled within {buffer:,} examples" if buffer > 1 else "not shuffled"
    work = "every rank reads every row and tokenises its own examples"
    if config.window.examples is None:
        work = "every rank tokenises every example, as the window's budget needs each one's count"
    rows = {
        "train data": f"streamed: {', then '.join(source.name for source in stream.sources)}",
        "order": f"streamed in file order, {shuffled}; not a permutation of the whole. It is the "
        "same on any cluster",
        "reading": work,
        "truncated": f"to data.max_length {stream.max_length}: counted step by step in the ledger",
    }
    if left_out := sum(len(source.left_out()) for source in stream.sources):
        rows["not read"] = f"{left_out} files of other kinds"
    return rows


def data_rows(config: Config, train: Mixture) -> dict[str, str]:
    """What the indexed examples are, and what was found as they were tokenised."""
    return {
        "train data": f"{len(train):,} examples, {train.lengths.sum():,} tokens, "
        f"{train.items.sum():,} supervised",
        **source_rows(train),
        **odd_rows(train, config.data.max_length),
    }


def source_rows(train: Mixture) -> dict[str, str]:
    """A line for each source: rows by shape, examples by weight, files that are not read."""
    rows: dict[str, str] = {}
    for index, part in enumerate(train.parts):
        report = part.tokens.report
        shapes = "; ".join(f"{num:,} of {shape}" for shape, num in report.shapes.items())
        text = f"{part.name}: {report.num_rows:,} rows ({shapes})"
        if part.weight != 1:
            text += f" x {part.weight:g} = {train.num_examples(index):,} examples"
        if part.left_out:
            text += f"; {len(part.left_out)} files of other kinds are not read"
        rows["source" if len(train.parts) == 1 else f"source {index + 1}"] = text
    return rows


def odd_rows(train: Mixture, max_length: int) -> dict[str, str]:
    """What tokenising found odd, counted in the sources' rows; nothing where all is well."""
    reports = [part.tokens.report for part in train.parts]
    rows: dict[str, str] = {}
    if num_truncated := sum(report.num_truncated for report in reports):
        num_tokens = sum(report.num_truncated_tokens for report in reports)
        rows["truncated"] = (
            f"{num_truncated:,} rows lost {num_tokens:,} tokens to data.max_length {max_length}"
        )
    if num_without := sum(report.num_without_items for report in reports):
        rows["no supervision"] = f"{num_without:,} rows hold no supervised token"
    if num_endless := sum(report.num_without_end for report in reports):
        rows["missing EOS"] = (
            f"{num_endless:,} rows do not end with the end-of-text token; gradacc_dist.validate "
            "names them"
        )
    return rows


def host_rows(hostnames: Sequence[str]) -> dict[str, str]:
    """Which hosts the ranks are on, in the order of ranks; nothing where it is one host.

    `hostnames`: one entry a rank.
    """
    named = [f"{host}: {num} rank(s)" for host, num in Counter(hostnames).items()]
    if len(named) == 1:
        return {}
    shown = named if len(named) <= 8 else [*named[:4], "...", *named[-1:]]
    return {"hosts": f"{len(named)} ({', '.join(shown)})"}


def _engine_rows(engine: Engine, world: World) -> dict[str, str]:
    rows = {
        "engine": f"{engine.name} on {world.device.type}: {engine.reason}; measured reduction "
        f"factor {engine.reduction_factor:g}"
    }
    if world.ranks > 1:
        when = "once a window" if engine.reduces_once else "in each micro-batch"
        rows["reduction"] = f"gradients travel {when}"
        if engine.extra_memory_bytes:
            rows["reduction"] += (
                f", for up to {engine.extra_memory_bytes / 2**20:,.1f} MiB more on each rank than "
                "engine.reduce: micro_batch"
            )
    # One process drives one device; torch's DataParallel, which would take them all, divides
    # gradients again and is never used.
    elif (devices := torch.cuda.device_count()) > 1:
        rows["idle devices"] = (
            f"{devices - 1} of {devices} GPUs: one rank uses one; start with `accelerate launch "
            f"--multi_gpu --num_processes {devices}` to use all"
        )
    return rows


def _layout_rows(config: Config, num_examples: int | None, world: World) -> dict[str, str]:
    per_micro_batch = config.micro_batch.examples
    if config.window.examples is None:
        size = f"window of up to {config.window.supervised_tokens:,} supervised tokens"
        layout = f"{world.ranks} rank(s), micro-batches of up to {per_micro_batch} examples"
        return {"layout": f"{layout}, {size}"}
    window = min(config.window.examples, num_examples or config.window.examples)
    num_micro_batches = -(-window // per_micro_batch)
    turns = -(-num_micro_batches // world.ranks)
    rows = {
        "layout": f"{world.ranks} rank(s) x {turns} micro-batch(es) of up to {per_micro_batch} "
        f"= window of {window} examples"
    }
    if idle := turns * world.ranks - num_micro_batches:
        rows["idle"] = (
            f"{idle} of {turns * world.ranks} turns a window run filler: "
            "a smaller micro_batch.examples would share the work evenly"
        )
    return rows
