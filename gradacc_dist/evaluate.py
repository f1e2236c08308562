"""Loss on held-out examples: global sum over global count, whatever the layout."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from gradacc_dist.data.batch import collate
from gradacc_dist.data.plan import plan
from gradacc_dist.data.tokens import Examples
from gradacc_dist.denominator import Mode
from gradacc_dist.engines import Engine
from gradacc_dist.objectives.terms import Objective
from gradacc_dist.observe.ledger import EvalRecord, Term
from gradacc_dist.world import World


@dataclass(frozen=True)
class Evaluation:
    """The first `num_examples` of `tokens`, in micro-batches of like lengths."""

    tokens: Examples
    num_examples: int
    micro_batch_examples: int
    mode: Mode

    def run(self, engine: Engine, step: int, world: World) -> EvalRecord:
        """Evaluate the present weights. Collective; the record is the same on every rank."""
        started = time.perf_counter()
        objective = engine.module.objective
        # Sums and counts do not depend on which examples share a micro-batch: less padding.
        ids = np.argsort(self.tokens.lengths[: self.num_examples], kind="stable")
        cells = plan(ids, self.micro_batch_examples, world.ranks).ranks[world.rank]
        totals = torch.zeros(len(objective.weights), dtype=torch.float64, device=world.device)
        counts = dict.fromkeys(objective.weights, 0)
        for cell in cells:
            batch = collate(cell.index, self.tokens.examples(cell.example_ids))
            sums = engine.evaluate(batch)
            totals += torch.stack([sums[term].double() for term in counts])
            for term, count in objective.count(batch).items():
                counts[term] += count
        shared = world.share_row([*totals.tolist(), *counts.values()]).wait().sum(dim=0)
        return self._record(objective, shared.tolist(), step, time.perf_counter() - started)

    def _record(
        self, objective: Objective, totals: list[float], step: int, seconds: float
    ) -> EvalRecord:
        names = list(objective.weights)
        pairs = zip(names, totals[: len(names)], totals[len(names) :], strict=True)
        terms = {name: Term.over(total, count) for name, total, count in pairs}
        return EvalRecord(
            step=step,
            loss=sum(objective.weights[name] * term.value for name, term in terms.items()),
            terms=terms,
            denominator=self.mode,
            num_examples=self.num_examples,
            supervised_tokens=int(terms[names[0]].count),
            seconds=seconds,
        )
