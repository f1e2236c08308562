"""Each fault is found once, at its node, with its values; healthy nodes have none."""

from dataclasses import replace

import pytest
from node_reports import GIB, HEALTHY, healthy, nodes_of

from launcher.findings import SHARED_BYTES_PER_RANK, Unreached, findings
from launcher.gpus import Gpu
from launcher.report import Disk

GPU = Gpu(0, "H100", 81559, 4, 0, ())


def only(found):
    (finding,) = found
    return finding


def test_healthy_nodes_have_no_findings():
    assert findings(nodes_of(healthy("n1"), healthy("n2"), healthy("n3"))) == []


@pytest.mark.parametrize("odd", [0, 1, 2])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"versions": {"python": "3.11", "torch": "2.12.1"}}, "torch: 2.12.1 here, 2.13.0 on"),
        ({"code_sha256": "d" * 64}, "code of gradacc_dist: dddddddddddd here, cccccccccccc on"),
        (
            {"config_sha256": "b" * 64, "settings": {"window.examples": "12", "run.seed": "0"}},
            "window.examples: 12 here, 16 on",
        ),
        (
            {"config_sha256": "b" * 64, "settings": {"run.seed": "0"}},
            "window.examples: not set here, 16 on",
        ),
        ({"ranks": 4}, "number of ranks: 4 on CPU here, 2 on CPU on"),
    ],
)
def test_the_odd_one_out_is_named(odd, changes, said):
    reports = [healthy(f"n{number}") for number in range(3)]
    reports[odd] = replace(reports[odd], **changes)
    finding = only(findings(nodes_of(*reports)))
    assert (finding.level, finding.node) == ("error", f"n{odd}")
    assert said in finding.text
    assert "2 others" in finding.text


def test_of_two_that_differ_the_first_is_the_measure():
    odd = healthy("n2", versions={"python": "3.11", "torch": "2.12.1"})
    finding = only(findings(nodes_of(healthy("n1"), odd)))
    assert finding.node == "n2"
    assert finding.text == "torch: 2.12.1 here, 2.13.0 on n1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"addresses": ("127.0.1.1",), "gloo_address": "127.0.1.1"},
            "to 127.0.1.1, by which",
        ),
        ({"addresses": ("::1",), "gloo_address": "::1"}, "leads to ::1, by which"),
        ({"addresses": (), "gloo_address": None}, "does not resolve"),
        (
            {"addresses": ("10.0.0.9",), "gloo_address": None},
            "leads to 10.0.0.9, which is none of its own",
        ),
    ],
)
def test_a_name_by_which_no_other_host_reaches_a_node(changes, said):
    finding = only(findings(nodes_of(healthy("n1"), healthy("n2", **changes))))
    assert (finding.level, finding.node, finding.item) == ("error", "n2", "hostname")
    assert said in finding.text
    # What gloo is told to take instead; and a node that nobody else must reach.
    named = healthy("n2", gloo_interface="eth0", **changes)
    assert findings(nodes_of(healthy("n1"), named)) == []
    assert findings(nodes_of(healthy("n2", **changes))) == []


def test_a_clock_that_is_wrong_is_named_be_it_the_first():
    reports = [healthy("n1"), healthy("n2"), healthy("n3")]
    assert findings(nodes_of(*reports, clocks=(0.0, 4.9, -4.9))) == []
    finding = only(findings(nodes_of(*reports, clocks=(0.0, 0.1, 7.5))))
    assert (finding.level, finding.node) == ("warning", "n3")
    assert finding.text == "its clock is 7.4 s ahead of the others'"
    finding = only(findings(nodes_of(*reports, clocks=(0.0, 60.0, 60.0))))
    assert finding.node == "n1"
    assert finding.text == "its clock is 60.0 s behind the others'"
    finding = only(findings(nodes_of(*reports, clocks=(0.0, -60.0, -60.0))))
    assert finding.node == "n1"
    # Of two, one is as good as the other: node 0's is the measure.
    assert only(findings(nodes_of(*reports[:2], clocks=(0.0, -60.0)))).node == "n2"


def test_a_port_of_the_first_node_that_is_not_reached():
    """An error where gloo listens at that address; who sends it elsewhere may know better."""

    def from_second(address, **changes):
        nodes = nodes_of(healthy("n1", **changes), healthy("n2"))
        return only(findings(replace(nodes, unreached={1: Unreached(address, "timed out")})))

    finding = from_second("10.0.0.1")
    assert (finding.level, finding.node, finding.item) == ("error", "n2", "ports")
    assert "does not reach n1 (10.0.0.1) at a port that the kernel chose: timed out" in finding.text
    assert from_second("10.9.9.9").level == "warning"
    assert from_second("10.0.0.1", gloo_interface="eth1").level == "warning"


def test_a_disk_must_hold_a_checkpoint():
    def on_disk(free, checkpoint):
        output = Disk("/out", "/mnt", free)
        return findings(nodes_of(healthy(output=output, checkpoint_bytes=checkpoint)))

    assert on_disk(10**9, None) == []
    assert on_disk(500, 500) == []
    finding = only(on_disk(10**9 - 1, None))
    assert (finding.level, finding.item) == ("error", "output")
    assert "/out (disk /mnt): 999,999,999 bytes free, needs at least 1,000,000,000" in finding.text
    finding = only(on_disk(10 * GIB, 11 * GIB))
    assert "10,737,418,240 bytes free, needs 11,811,160,064 a checkpoint" in finding.text
    assert only(on_disk(None, None)).level == "warning"
    cache = Disk("/cache", "/", 5)
    finding = only(findings(nodes_of(healthy(cache=cache))))
    assert (finding.level, finding.item) == ("warning", "cache")


def test_shared_memory_is_needed_by_gpu_ranks_of_one_node():
    def with_shared(free, **changes):
        return findings(nodes_of(healthy(shared_memory=Disk("/dev/shm", "/", free), **changes)))

    assert with_shared(2 * SHARED_BYTES_PER_RANK) == []
    assert only(with_shared(2 * SHARED_BYTES_PER_RANK - 1)).level == "warning"
    assert only(with_shared(SHARED_BYTES_PER_RANK, device="gpu")).level == "error"
    assert only(with_shared(1, device="gpu", ranks=1)).level == "warning"


def test_limits_that_ranks_would_meet():
    def with_limits(**changes):
        return findings(nodes_of(replace(HEALTHY, limits=replace(HEALTHY.limits, **changes))))

    assert with_limits(open_files=None) == []
    assert with_limits(open_files=264) == []  # 4 for each of 2 ranks, and 256
    finding = only(with_limits(open_files=263))
    assert (finding.level, finding.item) == ("error", "limits")
    assert "263 open files allowed, 2 ranks need 264" in finding.text
    assert only(with_limits(cgroup_cores=1.5)).text == "2 ranks share 1.5 core(s)"
    assert only(with_limits(cores=1)).text == "2 ranks share 1 core(s)"


def test_infiniband_needs_locked_memory():
    locked = replace(HEALTHY.limits, locked_bytes=65536)
    assert findings(nodes_of(healthy(limits=locked))) == []
    finding = only(findings(nodes_of(healthy(limits=locked, has_infiniband=True))))
    assert (finding.level, finding.item) == ("warning", "limits")
    assert "65,536 bytes of locked memory" in finding.text


def test_gpus_that_would_fail_or_slow_a_run():
    def with_gpu(**changes):
        gpu = replace(GPU, **changes)
        return findings(nodes_of(healthy(device="gpu", gpus=(gpu,))))

    assert with_gpu() == []
    assert with_gpu(uncorrected_errors=None) == []
    finding = only(with_gpu(uncorrected_errors=3))
    assert (finding.level, finding.item) == ("error", "GPU 0")
    assert "GPU 0 (H100): 3 uncorrected ECC error(s)" in finding.text
    finding = only(with_gpu(used_mib=20000))
    assert finding.level == "warning"
    assert "20,000 of 81,559 MiB are in use by others" in finding.text
    finding = only(with_gpu(slowed_by=("heat",)))
    assert finding.level == "warning"
    assert "held down by heat" in finding.text


def test_a_driver_that_does_not_answer_is_an_error_where_gpus_are_wanted():
    fault = {"gpu_fault": "nvidia-smi has not answered for 30 s"}
    assert only(findings(nodes_of(healthy(device="gpu", **fault)))).level == "error"
    assert only(findings(nodes_of(healthy(**fault)))).level == "warning"


def test_errors_come_first():
    late = healthy("n2", versions={"python": "3.11", "torch": "2.12.1"})
    crowded = healthy("n1", limits=replace(HEALTHY.limits, cores=1))
    assert [each.level for each in findings(nodes_of(crowded, late))] == ["error", "warning"]
