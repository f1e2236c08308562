"""Shared fixtures: pools of ranks, started when first asked for."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from distributed.pool import Pool
from hosts.network import Host, connected, forbidden
from requirements_of import require

# A deadline would be a timed test; a random seed would fail somebody else's change.
settings.register_profile("project", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("project")


class Pools:
    """Pools by number of ranks. One rank runs in a process of its own too: no state leaks."""

    def __init__(self) -> None:
        self._pools: dict[int, Pool] = {}

    def __getitem__(self, ranks: int) -> Pool:
        # A pool in which a rank failed is out of step and closed: it must not fail other tests.
        if ranks not in self._pools or self._pools[ranks].is_closed:
            self._pools[ranks] = Pool(ranks)
        return self._pools[ranks]

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    pools = Pools()
    yield pools
    pools.close()


@pytest.fixture(scope="session")
def hosts_allowed() -> None:
    """Asked for by what is costly and only of use to hosts, so that it is not made in vain."""
    reason = forbidden()
    require(reason is None, f"{reason}")


@pytest.fixture
def two_hosts(hosts_allowed) -> Iterator[tuple[Host, Host]]:
    """Hosts `n1` and `n2`, the test's own: what it leaves running on them ends with it."""
    with connected("n1", "n2") as (one, other):
        yield one, other
