"""A training run, from its configuration to what it leaves behind."""

from __future__ import annotations

import json
import os
import time
from contextlib import closing
from functools import partial
from hashlib import sha256
from itertools import islice

import numpy as np
import transformers

from gradacc_dist import __version__
from gradacc_dist.agreement import agree_on_run
from gradacc_dist.checkpoint.beginning import Beginning, find_beginning
from gradacc_dist.checkpoint.export import continuation, save_model
from gradacc_dist.checkpoint.folder import held
from gradacc_dist.checkpoint.launch import launch_id
from gradacc_dist.checkpoint.lock import Owner
from gradacc_dist.checkpoint.preflight import require_room, require_shared_folder
from gradacc_dist.checkpoint.sameness import Identity
from gradacc_dist.checkpoint.saver import Saver
from gradacc_dist.checkpoint.store import CHECKPOINTS, Store
from gradacc_dist.config.deepspeed import asked_for
from gradacc_dist.config.identity import identity
from gradacc_dist.config.present import dump
from gradacc_dist.config.resolved import Resolved, fingerprint
from gradacc_dist.config.schema import Config
from gradacc_dist.data.load import Data, load_data
from gradacc_dist.data.mixture import Mixture
from gradacc_dist.data.order import Order
from gradacc_dist.data.stream import Stream
from gradacc_dist.data.stream_order import StreamOrder
from gradacc_dist.data.tokens import Example
from gradacc_dist.engines import Engine, build_engine
from gradacc_dist.errors import ConfigError
from gradacc_dist.evaluate import Evaluation
from gradacc_dist.items import IGNORED_LABEL
from gradacc_dist.model import build_model, check_positions
from gradacc_dist.objectives.causal_lm import CausalLM
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.observe.observer import Observer
from gradacc_dist.observe.tokenising import TokenisingProgress
from gradacc_dist.observe.tracker import new_id
from gradacc_dist.optim import build_optimizer, learning_rate
from gradacc_dist.records import run_state, start_rows, train_record
from gradacc_dist.signals import Signals
from gradacc_dist.step import StepSettings, train_step
from gradacc_dist.windows import Assembler, agreed_windows
from gradacc_dist.world import World, start


def train(resolved: Resolved, signals: Signals) -> None:
    """Do the whole run. Collective over the ranks that the launcher started.

    Raises a GradaccError for whatever a user can mend, and when the run is asked to leave.
    """
    config = resolved.config
    # One progress line, ours.
    transformers.utils.logging.disable_progress_bar()
    # Before the ranks meet: tokenising can take longer than a collective may wait.
    with TokenisingProgress() as progress:
        data = load_data(config, progress)
    with start(config.engine.timeout_seconds) as world:
        signals.defer()  # from here on the ranks leave together
        run_sha256 = fingerprint_of(config, data)
        agree_on_run(run_sha256, world)
        engine = make_engine(config, data, world)
        order = make_order(config, data.train)
        num_steps = count_steps(config, order)
        with held(config.run.folder, world) as died:
            run = Identity(identity(config), *data.hashes, num_steps)
            beginning = find_beginning(config, run, order, dump(resolved), launch_id(), world)
            if beginning.is_finished(config):
                say_finished(beginning, world)
                return
            check_checkpoints_fit(config, engine, num_steps, world)
            beginning.load_into(engine, world)
            started = time.perf_counter() - beginning.elapsed_seconds
            tracker_id = beginning.tracker_id or new_id(config)
            describe = partial(
                run_state, config, data, engine, num_steps, started, tracker_id, world
            )
            with Observer(
                config, num_steps, started, tracker_id, enabled=world.is_main
            ) as observer:
                rows = start_rows(config, data.train, num_steps, engine, world)
                with world.main_alone():
                    observer.start({**rows, **beginning.rows()}, notes_on(beginning, died))
                note, failure = observer.note, observer.failure
                saver = Saver(config, engine, describe, signals, note, failure, world)
                with saver:
                    train_windows(
                        config, data, run_sha256, order, beginning, engine, observer, saver, world
                    )
                is_complete = last_step(config, num_steps) == num_steps
                if is_complete and config.checkpoint.save_model:
                    save_model(engine, data.tokenizer, config.run.folder / "model", world)
                observer.end(checkpoint=saver.newest or beginning.folder)
                if not is_complete:
                    observer.stopped(last_step(config, num_steps))
    # After the ranks have parted: the others need not wait for it.
    if world.is_main and is_complete and config.checkpoint.save_model:
        show_sample(config, data, observer)


def notes_on(beginning: Beginning, died: Owner | None) -> list[str]:
    """What a person should know of how the run begins."""
    taken = f"run.output_dir was held by {died}, which ended without letting go of it"
    return [*([taken] if died else []), *beginning.notes]


def say_finished(beginning: Beginning, world: World) -> None:
    """To people; there is nothing to do."""
    if world.is_main:
        for note in beginning.notes:
            print(note)
        print(
            f"This run is finished: step {beginning.step:,} of {beginning.num_steps:,} is in "
            f"{beginning.folder}. Raise schedule.steps to train on, or set --run.overwrite true "
            "to start anew."
        )


def make_engine(config: Config, data: Data, world: World) -> Engine:
    """Model and objective under the engine asked for. Collective."""
    model = build_model(config.model, config.precision, data.tokenizer, config.run.seed)
    train = data.train
    longest = train.max_length if isinstance(train, Stream) else int(train.lengths.max())
    check_positions(model, longest)
    return build_engine(
        config.engine,
        ObjectiveModule(model, CausalLM()),
        lambda module: build_optimizer(config.optimizer, module),
        world,
        config.precision,
    )


def make_order(config: Config, train: Mixture | Stream) -> Order | StreamOrder:
    """Which examples form which window."""
    seed, size = config.run.seed, (config.window.examples, config.window.supervised_tokens)
    if isinstance(train, Stream):
        return StreamOrder(train, seed, config.data.shuffle_buffer, *size)
    return Order(len(train), seed, *size, train.items)


def count_steps(config: Config, order: Order | StreamOrder) -> int:
    """Number of windows to train on. Raises ConfigError when warm-up would not end in them."""
    schedule = config.schedule
    if schedule.epochs is None:
        assert schedule.steps is not None, "the configuration's rules ask for one of the two"
        return schedule.steps
    assert isinstance(order, Order), "the configuration's rules refuse epochs of a stream"
    num_steps = order.num_windows(schedule.epochs)
    if schedule.warmup_steps > num_steps:
        raise ConfigError(
            f"schedule.warmup_steps: {schedule.warmup_steps} exceeds the {num_steps} windows in "
            f"schedule.epochs: {schedule.epochs:g}; lower warmup_steps or raise epochs"
        )
    return num_steps


def check_checkpoints_fit(config: Config, engine: Engine, num_steps: int, world: World) -> None:
    """Refuse a folder that cannot hold the run's checkpoints. Collective.

    Raises, on every rank, ConfigError when nodes do not share it and DiskError when it is too
    small, unless the policy is to go on without checkpoints.
    """
    store = Store(config.run.folder / CHECKPOINTS)
    if len(set(world.hostnames)) > 1:
        require_shared_folder(config.run.folder, world)
    with world.main_alone():
        if world.is_main and config.checkpoint.on_error == "stop":
            require_room(config, engine.shapes, num_steps, store)


def last_step(config: Config, num_steps: int) -> int:
    """The step after which this invocation ends."""
    return min(num_steps, config.run.stop_after_steps or num_steps)


def train_windows(
    config: Config,
    data: Data,
    run_sha256: str,
    order: Order | StreamOrder,
    beginning: Beginning,
    engine: Engine,
    observer: Observer,
    saver: Saver,
    world: World,
) -> None:
    """The loop: fetch, count, step, report, save. Collective."""
    num_steps, num_updates = beginning.num_steps, beginning.num_updates
    if not beginning.is_evaluated and is_evaluated_at(beginning.step, config, num_steps):
        evaluate(config, data, engine, observer, beginning.step, world)
    assembler = Assembler(
        data.train,
        engine.module.objective,
        config.micro_batch.examples,
        world.rank,
        world.ranks,
        run_sha256,
    )
    settings = StepSettings(
        config.objective.denominator,
        config.run.seed,
        config.optimizer.max_grad_norm,
        config.window.on_zero_items,
        config.optimizer.on_non_finite,
    )
    end = last_step(config, num_steps)
    windows = order.windows(beginning.step + 1, beginning.position)
    ours = islice(windows, max(0, end - beginning.step))
    saver.before_first_step()
    with closing(agreed_windows(ours, assembler, world)) as agreed:
        previous = time.perf_counter()
        for local, agreement in agreed:
            rate = learning_rate(config.optimizer, config.schedule, num_steps, num_updates)
            outcome = train_step(engine, local, agreement, settings, rate, world, saver.news)
            num_updates += outcome.skipped is None
            seconds = time.perf_counter() - previous
            observer.train(train_record(config, local, agreement, outcome, engine, rate, seconds))
            if outcome.error is not None:
                raise outcome.error
            step, news = local.window.step, outcome.window_loss.news
            if is_evaluated_at(step, config, num_steps):
                evaluate(config, data, engine, observer, step, world)
            saver.after_step(local.window, num_updates, news, is_last=step == end)
            previous = time.perf_counter()


def is_evaluated_at(step: int, config: Config, num_steps: int) -> bool:
    """After each interval and at the end."""
    return step > 0 and (step == num_steps or is_due(step, config.evaluate.every_steps))


def is_due(step: int, every_steps: int | None) -> bool:
    """True after each interval; never without one."""
    return every_steps is not None and step % every_steps == 0


def evaluate(
    config: Config, data: Data, engine: Engine, observer: Observer, step: int, world: World
) -> None:
    """Measure the loss on the held-out examples, if there are any. Collective."""
    if data.evaluate is not None:
        num_examples = min(len(data.evaluate), config.evaluate.examples or len(data.evaluate))
        evaluation = Evaluation(
            data.evaluate,
            num_examples,
            config.micro_batch.examples,
            config.objective.denominator,
        )
        observer.evaluation(evaluation.run(engine, step, world))


def fingerprint_of(config: Config, data: Data) -> str:
    """What ranks must share to compute the same run: code, configuration, data."""
    held_out = data.evaluate.sha256 if data.evaluate else ""
    deepspeed = asked_for(config.engine, os.environ)
    settings = json.dumps(deepspeed.content, sort_keys=True) if deepspeed else ""
    parts = [__version__, fingerprint(config), data.train.sha256, held_out, settings]
    return sha256(" ".join(parts).encode()).hexdigest()


def show_sample(config: Config, data: Data, observer: Observer) -> None:
    """Let the exported model continue the prompt of a held-out example."""
    num_tokens = config.track.sample_tokens
    if data.evaluate is not None and num_tokens > 0:
        prompt_ids = prompt_of(data.evaluate.examples(np.array([0]))[0])
        prompt_ids = prompt_ids[: max(1, config.data.max_length - num_tokens)]
        if prompt_ids:
            folder = config.run.folder / "model"
            observer.sample(*continuation(folder, prompt_ids, num_tokens))


def prompt_of(example: Example) -> list[int]:
    """The tokens before the first supervised one; of text, which is all supervised, all but the
    last, which ends it.
    """
    supervised = np.flatnonzero(example.labels != IGNORED_LABEL)
    num_unsupervised = int(supervised[0]) if len(supervised) else 0
    ids: list[int] = example.input_ids.tolist()
    # A begin-of-text token alone is no prompt.
    return ids[:num_unsupervised] if num_unsupervised > 1 else ids[:-1]
