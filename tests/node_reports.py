"""Healthy nodes, for tests to break."""

from dataclasses import replace

from launcher.findings import Reports
from launcher.limits import Limits
from launcher.report import Disk, Report

GIB = 2**30
HEALTHY = Report(
    host="n1",
    addresses=("10.0.0.1",),
    gloo_address="10.0.0.1",
    gloo_interface=None,
    clock=0.0,
    versions={"python": "3.11", "torch": "2.13.0"},
    code_sha256="c" * 64,
    config_sha256="a" * 64,
    settings={"window.examples": "16", "run.seed": "0"},
    ranks=2,
    device="cpu",
    output=Disk("/out", "/", 100 * GIB),
    cache=Disk("/cache", "/", 100 * GIB),
    shared_memory=Disk("/dev/shm", "/dev/shm", 16 * GIB),
    checkpoint_bytes=None,
    limits=Limits(8, None, 64 * GIB, None, 65536, None),
    has_infiniband=False,
    gpus=(),
    gpu_fault=None,
)


def healthy(host: str = "n1", **changes: object) -> Report:
    """The report of a node that nothing is wrong with, but for `changes`."""
    return replace(HEALTHY, host=host, **changes)


def nodes_of(*reports: Report, clocks: tuple[float, ...] = ()) -> Reports:
    """Reports of these reports, called by their hosts."""
    numbered = dict(enumerate(reports))
    seconds = dict(enumerate(clocks or (0.0,) * len(reports)))
    return Reports(numbered, {node: each.host for node, each in numbered.items()}, seconds)
