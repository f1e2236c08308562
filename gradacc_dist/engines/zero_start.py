"""DeepSpeed made ready, where it was chosen and not before: its import can fail on machines that
never use it. Nothing that it waits for goes unsaid.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import warnings
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch.utils.cpp_extension import get_default_build_root

from gradacc_dist.errors import ConfigError
from gradacc_dist.world import World, form_group_alone

# Several times what compiling takes.
COMPILING_SECONDS = 300.0


def ready_deepspeed(world: World, *, compiles: bool, timeout_seconds: float) -> Any:
    """The deepspeed module, with all that its engines need of a process. Collective.

    Raises ConfigError, on every rank, naming what any of them misses. See import_deepspeed.
    """
    deepspeed = _import_together(world, compiles=compiles)
    form_group_alone(world.device)
    _clone_group(timedelta(seconds=timeout_seconds))
    wait_for_compilers(speaks=world.is_main)
    return deepspeed


def _import_together(world: World, *, compiles: bool) -> Any:
    """`import_deepspeed` on every rank. Collective. One rank's mistake is every rank's."""
    mistake, deepspeed = "", None
    try:
        deepspeed = import_deepspeed(world.device, compiles=compiles)
    except ConfigError as error:
        mistake = str(error)
    told = world.share_text(mistake)
    for rank, text in enumerate(told):
        if text:
            where = "" if all(told) else f" (on {world.describe_rank(rank)})"
            raise ConfigError(text + where, same_on_all_ranks=True)
    return deepspeed


def wait_for_compilers(*, speaks: bool) -> None:
    """Operators are compiled under a lock, a mere file: all later starts would wait for ever for
    one whose owner was killed, and say nothing (C4).
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.rglob("lock"):
        if speaks:
            print(
                f"waiting for a process that compiles an operator of DeepSpeed ({lock}), for at "
                f"most {COMPILING_SECONDS:g} s",
                file=sys.stderr,
                flush=True,
            )
        with suppress(FileNotFoundError):  # done
            while time.time() - lock.stat().st_mtime < COMPILING_SECONDS:
                time.sleep(0.5)
            lock.unlink()


def _clone_group(timeout: timedelta) -> None:
    """The group on which DeepSpeed communicates: its own would wait with torch's time limit."""
    from deepspeed.utils import groups

    if groups._WORLD_GROUP is None:
        groups._WORLD_GROUP = dist.new_group(timeout=timeout)


def import_deepspeed(device: torch.device, *, compiles: bool = False) -> Any:
    """The deepspeed module. Raises ConfigError naming what is missing.

    `compiles`: an optimizer of DeepSpeed's own will be used, which it builds first.
    """
    # Without a launcher there is one rank, and DeepSpeed insists on being told.
    os.environ.setdefault("LOCAL_RANK", "0")
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # There it builds its communication op when it starts, whatever the stage.
        _check_compiler("c++")
    elif compiles:
        _check_compiler("c++", "nvcc")
    # DeepSpeed still calls collectives that torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(deepspeed|torch)\.")
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"engine.name: deepspeed cannot be used: {error}; install it with `pip install "
            "'gradacc-dist[deepspeed]'`, or choose engine.name: fsdp2 or ddp"
        ) from error
    # What it warns of (untested optimizers, overflows) is tested, and told, by this project.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def _check_compiler(*compilers: str) -> None:
    if shutil.which("ninja") is None:
        with suppress(ImportError):
            import ninja

            # A virtual environment that is not activated is not on the path.
            os.environ["PATH"] = f"{ninja.BIN_DIR}{os.pathsep}{os.environ.get('PATH', '')}"
    missing = [tool for tool in ("ninja", *compilers) if shutil.which(tool) is None]
    if missing:
        raise ConfigError(
            f"engine.name: deepspeed compiles an operator here and needs {' and '.join(missing)}, "
            "not found on PATH; install (pip install ninja; a C++ compiler such as g++; CUDA's "
            "nvcc), or choose engine.name: fsdp2 or ddp"
        )


def initialize(deepspeed: Any, **arguments: Any) -> Any:
    """deepspeed.initialize. Collective. Raises ConfigError for a JSON that it does not take."""
    try:
        return deepspeed.initialize(**arguments)
    except ValidationError as error:
        mistakes = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: got {e['input']!r} ({e['msg']})"
            for e in error.errors()
        )
        raise ConfigError(
            f"the DeepSpeed JSON is not taken by DeepSpeed {deepspeed.__version__}: {mistakes}",
            same_on_all_ranks=True,
        ) from error
