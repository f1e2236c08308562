"""A case run through the product's own path: order of ids, plan, batch, agreement, engine, step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from distributed.cases import LEARNING_RATE, Case, Trace

from gradacc_dist.config.schema import Engine as EngineConfig
from gradacc_dist.config.schema import Optimizer
from gradacc_dist.data.order import Order, Window
from gradacc_dist.data.tokens import ById, Example
from gradacc_dist.denominator import Denominator
from gradacc_dist.engines import build_engine
from gradacc_dist.objectives.causal_lm import CausalLM
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.optim import build_optimizer
from gradacc_dist.step import accumulate
from gradacc_dist.windows import Assembler, agreed_windows
from gradacc_dist.world import World


class ListedTokens:
    """Examples held in memory, read like `Tokens`."""

    def __init__(self, examples: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self._examples = examples

    def examples(self, ids: np.ndarray) -> list[Example]:
        return [Example(*self._examples[i]) for i in ids]


def windows_of(case: Case) -> list[list[int]]:
    """The ids of each step, for the reference. Their order is tested elsewhere."""
    return [window.example_ids.tolist() for window in case_windows(case)]


def case_windows(case: Case) -> Iterator[Window]:
    return islice(Order(len(case.lengths), case.seed, case.window).windows(), case.steps)


def run_case(
    world: World, case: Case, micro_batch: int, mode: str = "window", engine: str = "auto"
) -> Trace:
    """Train on every window with SGD. Collective."""
    tokens = ListedTokens(case.examples())
    return run_windows(world, case, tokens, case_windows(case), micro_batch, mode, engine)


def run_windows(
    world: World,
    case: Case,
    tokens: ById,
    windows: Iterable[Window],
    micro_batch: int,
    mode: str = "window",
    engine: str = "auto",
) -> Trace:
    """Train the case's model on these windows of these tokens. Collective."""
    objective = CausalLM()
    optimizer = Optimizer(name="sgd", learning_rate=LEARNING_RATE, weight_decay=0)
    built = build_engine(
        EngineConfig(name=engine),
        ObjectiveModule(case.model(), objective),
        lambda module: build_optimizer(optimizer, module),
        world,
    )
    assembler = Assembler(tokens, objective, micro_batch, world.rank, world.ranks, "test")
    trace = Trace([], [], [], {})
    for local, agreement in agreed_windows(windows, assembler, world):
        denominator = Denominator(mode, agreement, local.num_micro_batches)
        loss = accumulate(built, local, denominator, case.seed, world)
        trace.gradients.append(built.gradients())
        trace.norms.append(built.update(LEARNING_RATE, None).grad_norm)
        trace.losses.append(loss.loss)
        trace.counts.append(int(agreement.global_items["cross_entropy"]))
    trace.weights = {n: v.clone() for n, v in built.module.model.state_dict().items()}
    return trace
