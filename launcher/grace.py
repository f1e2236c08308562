"""The time to save in: from SIGTERM, where a scheduler wants the nodes back, to the end."""

from __future__ import annotations

from gradacc_dist.config.resolved import Resolved

# The window under way ends and all is saved: 84 GB, say, the weights and moments of 7 billion
# parameters, in 7 minutes at 200 MB/s.
GRACE_SECONDS = 600


def mistake_of_grace(resolved: Resolved, grace_seconds: int) -> str | None:
    """What is wrong with so long a time for this run; None where nothing is."""
    timeout = resolved.config.engine.timeout_seconds
    if grace_seconds >= timeout:
        return None
    return (
        f"--grace: got {grace_seconds}, but engine.timeout_seconds is {timeout:g} "
        f"({resolved.source('engine.timeout_seconds')}): ranks may wait so long for each other "
        "before they save; give more, and what the saving itself takes"
    )
