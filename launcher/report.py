"""What a node says of itself before ranks start on it. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gradacc_dist
import launcher
from gradacc_dist.checkpoint.store import CHECKPOINTS
from gradacc_dist.config.resolved import Resolved, fingerprint, has_effect, leaves
from gradacc_dist.errors import disk_of
from launcher.gpus import Gpu, gpus
from launcher.limits import Limits, limits
from launcher.plan import Layout

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
SHARED_MEMORY = Path("/dev/shm")
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed")


@dataclass(frozen=True)
class Disk:
    """The disk of a folder, which need not exist yet. `free_bytes` None: it cannot be told."""

    folder: str
    mounted_at: str
    free_bytes: int | None


@dataclass(frozen=True)
class Report:
    """One node, in values that JSON carries.

    `addresses`: what its own name leads to there; `gloo_address`: the one of them that gloo takes,
    None if none is this node's; `gloo_interface`: what is set to be taken instead.
    `checkpoint_bytes`: the largest checkpoint of the run so far, None before the first.
    """

    host: str
    addresses: tuple[str, ...]
    gloo_address: str | None
    gloo_interface: str | None
    clock: float
    """Seconds since the epoch."""
    versions: dict[str, str]
    code_sha256: str
    config_sha256: str
    settings: dict[str, str]
    """Every setting that must be the same on all nodes."""
    ranks: int
    device: str
    output: Disk
    cache: Disk
    shared_memory: Disk
    checkpoint_bytes: int | None
    limits: Limits
    has_infiniband: bool
    gpus: tuple[Gpu, ...]
    gpu_fault: str | None


def report(resolved: Resolved, layout: Layout, environ: Mapping[str, str] = os.environ) -> Report:
    """Of this node, which is to start `layout`'s ranks with the configuration."""
    config = resolved.config
    found, gpu_fault = gpus(environ)
    addresses = own_addresses(socket.gethostname())
    return Report(
        host=socket.gethostname(),
        addresses=addresses,
        gloo_address=next(filter(is_own, addresses), None),
        gloo_interface=environ.get(GLOO_INTERFACE) or None,
        clock=time.time(),
        versions=versions(),
        code_sha256=code_sha256(),
        config_sha256=fingerprint(config),
        settings={path: str(value) for path, value in leaves(config) if has_effect(path)},
        ranks=layout.ranks,
        device=layout.device,
        output=_disk(config.run.folder),
        cache=_disk(config.data.cache_dir.expanduser()),
        shared_memory=_disk(SHARED_MEMORY),
        checkpoint_bytes=_largest(config.run.folder / CHECKPOINTS),
        limits=limits(),
        has_infiniband=Path("/sys/class/infiniband").is_dir(),
        gpus=found,
        gpu_fault=gpu_fault,
    )


def own_addresses(host: str) -> tuple[str, ...]:
    """What `host` leads to here, in the order in which a program tries them; () where nowhere."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return ()
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def versions() -> dict[str, str]:
    """Of what ranks run; `not installed` where a package is missing."""
    shown = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in ("gradacc-dist", *PACKAGES):
        try:
            shown[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            shown[package] = "not installed"
    return shown


def code_sha256() -> str:
    """Of this project's own code, as it is installed here."""
    files = {}
    for package in (gradacc_dist, launcher):
        assert package.__file__ is not None
        folder = Path(package.__file__).parent
        for path in folder.rglob("*.py"):
            files[f"{folder.name}/{path.relative_to(folder)}"] = path.read_bytes()
    return sha256_of(files)


def sha256_of(files: Mapping[str, bytes]) -> str:
    """Of names and contents, in hex."""
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name} {hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return whole.hexdigest()


def is_own(address: str) -> bool:
    """gloo's own test of an address: whether it can be listened on."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _disk(folder: Path) -> Disk:
    folder = folder.absolute()
    try:
        mounted_at = disk_of(folder)
        return Disk(str(folder), str(mounted_at), shutil.disk_usage(mounted_at).free)
    except (OSError, StopIteration):
        return Disk(str(folder), "unknown", None)


def _largest(folder: Path) -> int | None:
    sizes = [_size(path) for path in folder.glob("step-*") if path.is_dir()]
    return max(sizes, default=None)


def _size(folder: Path) -> int:
    return sum(_sizes(folder.rglob("*")))


def _sizes(paths: Iterable[Path]) -> Iterable[int]:
    for path in paths:
        try:
            yield path.stat().st_size if path.is_file() else 0
        except OSError:  # it was deleted meanwhile: a run goes on
            continue
