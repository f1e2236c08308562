"""Links between ranks: which are measured, and who is named."""

import re

import pytest
from launching import launcher, run

from gradacc_dist.bandwidth import links, rank_speeds, ring, summary


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("aabb", [0, 2, 1, 3]),
        ("abc", [0, 1, 2]),
        ("aaa", [0, 1, 2]),
        ("aaabbbccc", [0, 3, 6, 1, 4, 7, 2, 5, 8]),
    ],
)
def test_neighbours_are_on_different_hosts(hosts, expected):
    circle = ring(hosts)
    assert circle == expected
    pairs = links(circle)
    assert {rank for pair in pairs for rank in pair} == set(range(len(hosts)))
    if len(set(hosts)) > 1:
        assert all(hosts[one] != hosts[other] for one, other in pairs)


def test_each_link_once():
    assert links([0]) == []
    assert links([0, 1]) == [(0, 1)]
    assert links([0, 2, 1]) == [(0, 2), (1, 2), (0, 1)]


@pytest.mark.parametrize("slow", range(5))
def test_a_slow_rank_is_named_and_not_its_neighbours(slow):
    hosts = ["n1", "n1", "n2", "n2", "n3"]
    measured = {pair: 10.0 if slow in pair else 100.0 for pair in links(ring(hosts))}
    lines = summary(rank_speeds(measured), hosts)
    named = f"rank {slow} (host {hosts[slow]})"
    assert lines[-2] == f"slowest: {named} with 10 MB/s, median 100"
    assert lines[-1].startswith(f"warning: {named} has 10% of the median")
    assert len(lines) == 5 + 2


def test_half_of_the_median_is_not_yet_slow():
    speeds = {0: 100.0, 1: 50.0, 2: 100.0}
    assert not any("warning" in line for line in summary(speeds, ["a", "b", "c"]))


@pytest.mark.cluster
def test_three_ranks_measure_themselves():
    done = run([*launcher("accelerate", 3), "-m", "gradacc_dist.bandwidth"])
    assert done.returncode == 0, done.stderr
    assert "all-reduce over 3 ranks (cpu)" in done.stdout
    assert len(re.findall(r"^ +\d+ MB: [\d.,]+ ms, [\d,]+ MB/s$", done.stdout, re.M)) == 3
    for rank in range(3):
        assert re.search(rf"^rank {rank} \(host .*\): [1-9][\d,]* MB/s$", done.stdout, re.M)
    assert len(re.findall("^slowest: rank", done.stdout, re.M)) == 1
