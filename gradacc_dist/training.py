"""A training run, from its configuration to what it leaves behind."""

from __future__ import annotations

import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import transformers
from transformers import PreTrainedTokenizerBase

from gradacc_dist import __version__
from gradacc_dist.checkpoint.export import continuation, save_model
from gradacc_dist.config import Config, Resolved, dump, fingerprint
from gradacc_dist.data import tokenizer as tokenizers
from gradacc_dist.data.formats import segments
from gradacc_dist.data.order import Order
from gradacc_dist.data.sources import Role, Source
from gradacc_dist.data.tokens import Tokens, prepare
from gradacc_dist.denominator import Agreement
from gradacc_dist.engines import Engine, build_engine
from gradacc_dist.errors import ConfigError, DiskError
from gradacc_dist.evaluate import Evaluation
from gradacc_dist.model import build_model
from gradacc_dist.objectives.causal_lm import CausalLM
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.observe.ledger import Term, TrainRecord
from gradacc_dist.observe.observer import Observer
from gradacc_dist.optim import build_optimizer, learning_rate
from gradacc_dist.step import StepOutcome, StepSettings, train_step
from gradacc_dist.windows import Assembler, LocalWindow, agreed_windows
from gradacc_dist.world import World, start


@dataclass(frozen=True)
class Data:
    """What every rank reads."""

    tokenizer: PreTrainedTokenizerBase
    train: Tokens
    evaluate: Tokens | None


def train(resolved: Resolved) -> None:
    """Do the whole run. Collective over the ranks that the launcher started.

    Raises a GradaccError for whatever a user can mend.
    """
    config = resolved.config
    # One progress line, ours.
    transformers.utils.logging.disable_progress_bar()
    # Before the ranks meet: tokenising can take longer than a collective may wait.
    data = load_data(config)
    with start(config.engine.timeout_seconds) as world:
        claim_output_dir(resolved, world)
        engine = make_engine(config, data.tokenizer, world)
        with Observer(config, enabled=world.is_main) as observer:
            observer.start(start_rows(config, data, engine, world))
            train_windows(config, data, engine, observer, world)
            if config.checkpoint.save_model:
                save_model(engine, data.tokenizer, config.run.output_dir / "model", world)
            observer.end()
            if world.is_main:
                show_sample(config, observer)
        world.barrier()


def load_data(config: Config) -> Data:
    """Tokenizer and tokens, from the cache where it has them. Not collective."""
    cache_dir = config.data.cache_dir.expanduser()
    tokenizer = tokenizers.load(config.model.tokenizer or str(config.model.path), cache_dir)

    def tokens(name: str, role: Role) -> Tokens:
        return prepare(Source(name, role), tokenizer, config.data.max_length, cache_dir)

    evaluate = config.data.evaluate
    return Data(
        tokenizer,
        tokens(config.data.train, "train"),
        tokens(evaluate, "evaluate") if evaluate else None,
    )


def claim_output_dir(resolved: Resolved, world: World) -> None:
    """Make the output folder, with the configuration in it. Collective.

    Raises ConfigError, on every rank, when an earlier run is there and may not be replaced.
    """
    run = resolved.config.run
    ledger = run.output_dir / "ledger.jsonl"
    taken = world.is_main and ledger.exists() and not run.overwrite
    if world.share_row([float(taken)]).wait().any():
        raise ConfigError(
            f"run.output_dir: {run.output_dir} holds an earlier run; choose another folder, "
            "or set --run.overwrite true to replace it",
            same_on_all_ranks=True,
        )
    if world.is_main:
        with DiskError.naming(run.output_dir):
            run.output_dir.mkdir(parents=True, exist_ok=True)
            ledger.unlink(missing_ok=True)
            (run.output_dir / "config.resolved.yaml").write_text(dump(resolved))


def make_engine(config: Config, tokenizer: PreTrainedTokenizerBase, world: World) -> Engine:
    """Model and objective under the engine asked for. Collective."""
    model = build_model(config.model, config.precision, tokenizer, config.run.seed)
    return build_engine(
        config.engine,
        ObjectiveModule(model, CausalLM()),
        lambda module: build_optimizer(config.optimizer, module),
        world,
    )


def train_windows(
    config: Config, data: Data, engine: Engine, observer: Observer, world: World
) -> None:
    """The loop: fetch, count, step, report. Collective."""
    order = Order(len(data.train), config.window.examples, config.run.seed)
    assembler = Assembler(
        data.train,
        engine.module.objective,
        config.micro_batch.examples,
        world.rank,
        world.ranks,
        run_sha256(config, data),
    )
    settings = StepSettings(
        config.objective.denominator,
        config.run.seed,
        config.optimizer.max_grad_norm,
        config.window.on_zero_items,
        config.optimizer.on_non_finite,
    )
    steps = range(1, config.schedule.steps + 1)
    num_updates = 0
    previous = time.perf_counter()
    for local, agreement in agreed_windows(steps, order.window, assembler, world):
        rate = learning_rate(config.optimizer, config.schedule, num_updates)
        outcome = train_step(engine, local, agreement, settings, rate, world)
        num_updates += outcome.skipped is None
        seconds, previous = time.perf_counter() - previous, time.perf_counter()
        observer.train(train_record(config, local, agreement, outcome, engine, rate, seconds))
        if is_evaluation_due(config, local.window.step):
            evaluate(config, data, engine, observer, local.window.step, world)
            previous = time.perf_counter()


def is_evaluation_due(config: Config, step: int) -> bool:
    """True after each interval and after the last step."""
    every_steps = config.evaluate.every_steps
    return step == config.schedule.steps or (every_steps is not None and step % every_steps == 0)


def evaluate(
    config: Config, data: Data, engine: Engine, observer: Observer, step: int, world: World
) -> None:
    """Measure the loss on the held-out examples, if there are any. Collective."""
    if data.evaluate is not None:
        num_examples = min(len(data.evaluate), config.evaluate.examples or len(data.evaluate))
        evaluation = Evaluation(data.evaluate, num_examples, config.micro_batch.examples)
        observer.evaluation(evaluation.run(engine, step, world))


def run_sha256(config: Config, data: Data) -> str:
    """What ranks must share to compute the same run: code, configuration, data."""
    parts = [__version__, fingerprint(config), data.train.sha256]
    return sha256(" ".join(parts).encode()).hexdigest()


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
    sums = outcome.window_loss.sums
    main_term, *_ = engine.module.objective.weights
    return TrainRecord(
        step=local.window.step,
        epoch=local.window.epoch,
        examples_seen=local.window.examples_seen,
        num_examples=len(local.window.example_ids),
        example_ids_sha256=local.window.ids_sha256,
        loss=outcome.window_loss.loss,
        terms={
            name: Term.over(sums.get(name, 0.0), count) for name, count in agreement.items.items()
        },
        supervised_tokens=int(agreement.items[main_term]),
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
    )


def start_rows(config: Config, data: Data, engine: Engine, world: World) -> dict[str, str]:
    """What is about to run, for a person to check before it does."""
    model = engine.module.model
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    micro_batches = -(-config.window.examples // config.micro_batch.examples)
    turns = -(-micro_batches // world.ranks)
    report = data.train.report
    rows = {
        "model": f"{type(model).__name__}, {num_parameters:,} parameters, "
        f"{config.precision.compute}",
        "layout": f"{world.ranks} rank(s) x {turns} micro-batch(es) of up to "
        f"{config.micro_batch.examples} = window of {config.window.examples} examples",
        "engine": f"{engine.name} on {world.device.type}, reduction factor "
        f"{engine.reduction_factor:g}",
        "denominator": config.objective.denominator,
        "train data": f"{config.data.train}: {report.num_rows:,} examples, "
        f"{data.train.lengths.sum():,} tokens, {data.train.items.sum():,} supervised",
        "truncated": f"{report.num_truncated:,} examples lost {report.num_truncated_tokens:,} "
        f"tokens to data.max_length {config.data.max_length}",
        "no supervision": f"{report.num_without_items:,} examples hold no supervised token",
        "output": str(config.run.output_dir),
    }
    if micro_batches % world.ranks:
        idle = turns * world.ranks - micro_batches
        rows["idle"] = (
            f"{idle} of {turns * world.ranks} turns a window run filler: "
            "a smaller micro_batch.examples would share the work evenly"
        )
    return rows


def show_sample(config: Config, observer: Observer) -> None:
    """Let the exported model continue the prompt of a held-out example."""
    folder: Path = config.run.output_dir / "model"
    name = config.data.evaluate
    if config.checkpoint.save_model and config.track.sample_tokens and name:
        place, row = next(Source(name, "evaluate").rows())
        prompt = segments(row, place)[0].text
        observer.sample(prompt, continuation(folder, prompt, config.track.sample_tokens))
