"""What each exit code asks of whoever would start the run again: one table for all schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Decision = Literal["FailJob", "Ignore", "Count"]
"""FailJob: nobody starts it again. Ignore: start again; it was no failure. Count: start again,
but not for ever. The words are those of Kubernetes."""

DECISIONS: Mapping[int, Decision] = MappingProxyType(
    {
        1: "Count",  # nobody knows why; the next try may tell
        10: "FailJob",  # configuration
        11: "FailJob",  # data
        12: "FailJob",  # checkpoint
        20: "Count",  # a rank hung
        21: "Count",  # a rank or node is gone
        22: "FailJob",  # not finite: it would be so again
        23: "Ignore",  # was asked to leave, and saved
        24: "FailJob",  # started again and again without a step forward
        25: "FailJob",  # disk
    }
)
"""Of each exit code that is not 0. A code that is not here counts (137: killed)."""

FINAL = frozenset({0} | {code for code, what in DECISIONS.items() if what == "FailJob"})
"""Exit codes of what another try would only meet again."""

MEANT = frozenset({0, *DECISIONS} - {1})
"""Exit codes that only a run leaves with which knows what they say."""
