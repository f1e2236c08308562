"""Evaluation: sum over count, whatever the ranks and micro-batches (A14)."""

import numpy as np
import pytest
import torch
from distributed.cases import Case
from distributed.product import ListedTokens
from torch.nn import functional

from gradacc_dist.config.schema import Engine as EngineConfig
from gradacc_dist.config.schema import Optimizer
from gradacc_dist.engines import build_engine
from gradacc_dist.evaluate import Evaluation
from gradacc_dist.objectives.causal_lm import CausalLM
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.optim import build_optimizer

CASE = Case(tuple(range(1, 20)), (0.0, *[0.1 * (i % 10) for i in range(18)]), window=1, steps=1)
NUM_EXAMPLES = 17


def evaluate(world, micro_batch):
    engine = build_engine(
        EngineConfig(),
        ObjectiveModule(CASE.model(), CausalLM()),
        lambda module: build_optimizer(Optimizer(), module),
        world,
    )
    tokens = ListedTokens(CASE.examples())
    tokens.lengths = np.array(CASE.lengths)
    return Evaluation(tokens, NUM_EXAMPLES, micro_batch, "window").run(engine, 5, world)


def truth() -> tuple[float, int]:
    model, total, count = CASE.model().eval(), 0.0, 0
    for ids, labels in CASE.examples()[:NUM_EXAMPLES]:
        logits = model(input_ids=torch.from_numpy(ids).long()[None]).logits[0, :-1]
        targets = torch.from_numpy(labels).long()[1:]
        total += float(functional.cross_entropy(logits, targets, reduction="sum").detach())
        count += int((targets != -100).sum())
    return total / count, count


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a14_the_number_is_the_same_on_any_layout(pools, ranks):
    loss, count = truth()
    for micro_batch in (1, 3, 50):
        for record in pools[ranks].run(evaluate, micro_batch):
            assert record.loss == pytest.approx(loss, rel=1e-13)
            assert (record.supervised_tokens, record.num_examples) == (count, NUM_EXAMPLES)
            assert record.step == 5
