"""What ranks tell each other at the end of each window, beside its loss: four numbers a rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from gradacc_dist.signals import Asked


class Status(IntEnum):
    """What a rank does for the save under way."""

    READY = 0
    """Nothing (more), in this stage of it."""
    BUSY = 1
    FAILED = 2


@dataclass(frozen=True)
class News:
    """Of one rank. `is_time`: by its own clock; rank 0's counts. `has_failed`: it cannot write what
    the run leaves beside checkpoints, and must end.
    """

    asked: Asked
    is_time: bool
    status: Status
    has_failed: bool

    def row(self) -> list[float]:
        """As it travels."""
        return [float(self.asked), self.is_time, float(self.status), self.has_failed]


@dataclass(frozen=True)
class Told:
    """Of all ranks, by rank; the same on each."""

    news: Sequence[News]

    @classmethod
    def by(cls, rows: Tensor) -> Told:
        """`rows`: (ranks, 4), as every rank filled in its own."""
        return cls(
            [News(Asked(int(a)), bool(t), Status(int(s)), bool(f)) for a, t, s, f in rows.tolist()]
        )

    @property
    def statuses(self) -> list[Status]:
        """By rank."""
        return [news.status for news in self.news]

    @property
    def asks_for_save(self) -> bool:
        """Some rank had a signal, or it is time."""
        return self.news[0].is_time or any(news.asked for news in self.news)

    @property
    def is_failure(self) -> bool:
        """Some rank, and with it the run, must end."""
        return any(news.has_failed for news in self.news)

    @property
    def asked_to_leave(self) -> list[int]:
        """Ranks that had SIGTERM."""
        return [rank for rank, news in enumerate(self.news) if news.asked is Asked.LEAVE]
