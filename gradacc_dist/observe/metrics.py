"""The ledger's values under the names that people look for in a tracker."""

from __future__ import annotations

from gradacc_dist.observe.ledger import EvalRecord, Record, Term, TrainRecord


class Metrics:
    """Names the values of records, given to it in the ledger's order, and counts over the run.

    Where TRL has a name for a thing, it is TRL's: `num_tokens` is the input tokens, padding left
    out, that all ranks have seen since the start of the run.
    """

    def __init__(self) -> None:
        self._num_tokens = 0
        self._num_skipped = 0

    def of(self, record: Record) -> dict[str, float]:
        """The values of one record. NaN stays NaN; what a step did not have (a norm) is absent."""
        if isinstance(record, EvalRecord):
            values: dict[str, float] = {
                "eval/loss": record.loss,
                "eval/supervised_tokens": record.supervised_tokens,
            }
            return values | _terms("eval", record)
        self._num_tokens += record.input_tokens
        self._num_skipped += record.skipped is not None
        values = {
            "train/loss": record.loss,
            "train/learning_rate": record.learning_rate,
            "train/epoch": record.epoch,
            "train/num_tokens": self._num_tokens,
            "train/examples_seen": record.examples_seen,
            "train/supervised_tokens": record.supervised_tokens,
            "train/denominator": _main_term(record).count,
            "train/skipped": self._num_skipped,
            "throughput/tokens_per_second": record.tokens_per_second,
            "throughput/padding_fraction": 1 - record.input_tokens / record.padded_tokens,
        }
        if record.grad_norm is not None:
            values["train/grad_norm"] = record.grad_norm
        return values | _terms("train", record)


def _main_term(record: TrainRecord) -> Term:
    """The first one: its count is what the sum over the window is divided by."""
    return next(iter(record.terms.values()))


def _terms(kind: str, record: Record) -> dict[str, float]:
    """Each term's own value and count; of a single term, both are there already."""
    if len(record.terms) == 1:
        return {}
    named = {f"{kind}/terms/{name}": term.value for name, term in record.terms.items()}
    counts = {f"{kind}/terms/{name}_count": term.count for name, term in record.terms.items()}
    return named | counts
