"""Start training runs as users do, and read what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 240

ACCELERATE_FILES = ROOT / "configs" / "accelerate"
DEEPSPEED_FILES = ROOT / "configs" / "deepspeed"


def accelerate(file: str, *flags: str) -> list[str]:
    """The command that starts ranks as the shipped `file` says, but for `flags`."""
    program = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*program, "--config_file", str(ACCELERATE_FILES / f"{file}.yaml"), *flags]


def launcher(name: str, ranks: int) -> list[str]:
    """The command that starts `ranks` processes."""
    if name == "accelerate" and ranks > 1:
        return accelerate("cpu_ddp", "--num_processes", str(ranks))
    if name == "accelerate":
        return accelerate("cpu_single")
    if name == "torchrun":
        standalone = ["--standalone", "--nproc-per-node", str(ranks)]
        return [sys.executable, "-m", "torch.distributed.run", *standalone]
    if name == "deepspeed":
        # As its script bin/deepspeed does.
        main = "from deepspeed.launcher.runner import main; main()"
        return [sys.executable, "-c", main, "--num_gpus", str(ranks), "--module"]
    assert name == "python"
    return [sys.executable]


def environment() -> dict[str, str]:
    """With the threads a launcher would give each rank; nothing of accelerate's leaks."""
    inherited = {name: value for name, value in os.environ.items() if "ACCELERATE" not in name}
    return (
        inherited
        | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
        | {
            # What launchers find out by themselves, with a warning.
            "DS_ACCELERATOR": "cpu"
        }
    )


def run(command: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        text=True,
        capture_output=True,
        timeout=LIMIT_SECONDS,
    )


def program(config: Path, output: Path, *flags: str) -> list[str]:
    """`gradacc_dist.train` with `config`, into `output`: what comes after the launcher."""
    chosen = ["--config", str(config), "--run.output_dir", str(output)]
    return ["-m", "gradacc_dist.train", *chosen, *flags]


def train(
    config: Path, output: Path, *flags: str, name: str = "python", ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    """`gradacc_dist.train` with `config`, into `output`."""
    what = program(config, output, *flags)
    # DeepSpeed's launcher is told of a module before its name, and once.
    return run([*launcher(name, ranks), *(what[1:] if name == "deepspeed" else what)])


def ledger(output: Path, kind: str = "train") -> list[dict]:
    """The ledger's lines of one kind, by a reader that is not the project's."""
    lines = (output / "ledger.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
