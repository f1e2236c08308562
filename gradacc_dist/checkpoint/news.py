"""What ranks tell each other of checkpoints at the end of each window: three numbers a rank."""

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
    """Of one rank. `is_time`: by its own clock; rank 0's counts."""

    asked: Asked
    is_time: bool
    status: Status

    def row(self) -> list[float]:
        """As it travels."""
        return [float(self.asked), float(self.is_time), float(self.status)]


@dataclass(frozen=True)
class Told:
    """Of all ranks, by rank; the same on each."""

    news: Sequence[News]

    @classmethod
    def by(cls, rows: Tensor) -> Told:
        """`rows`: (ranks, 3), as every rank filled in its own."""
        return cls([News(Asked(int(a)), bool(t), Status(int(s))) for a, t, s in rows.tolist()])

    @property
    def statuses(self) -> list[Status]:
        """By rank."""
        return [news.status for news in self.news]

    @property
    def asks_for_save(self) -> bool:
        """Some rank had a signal, or it is time."""
        return self.news[0].is_time or any(news.asked for news in self.news)

    @property
    def asked_to_leave(self) -> list[int]:
        """Ranks that had SIGTERM."""
        return [rank for rank, news in enumerate(self.news) if news.asked is Asked.LEAVE]
