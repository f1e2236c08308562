"""Start training runs as users do, and read what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 240

ACCELERATE = [
    *(sys.executable, "-m", "accelerate.commands.launch"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0"),
]


def launcher(name: str, ranks: int) -> list[str]:
    """The command that starts `ranks` processes."""
    if name == "accelerate" and ranks > 1:
        shipped = ROOT / "configs" / "accelerate" / "cpu_ddp.yaml"
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        return [*command, "--config_file", str(shipped), "--num_processes", str(ranks)]
    if name == "accelerate":
        return [*ACCELERATE, "--cpu", "--num_processes", "1"]
    if name == "torchrun":
        standalone = ["--standalone", "--nproc-per-node", str(ranks)]
        return [sys.executable, "-m", "torch.distributed.run", *standalone]
    assert name == "python"
    return [sys.executable]


def run(command: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run to the end with the threads a launcher would give each rank; no other variable leaks."""
    environment = {name: value for name, value in os.environ.items() if "ACCELERATE" not in name}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    return subprocess.run(
        command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=LIMIT_SECONDS
    )


def train(
    config: Path, output: Path, *flags: str, name: str = "python", ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    """`gradacc_dist.train` with `config`, into `output`."""
    command = [*launcher(name, ranks), "-m", "gradacc_dist.train", "--config", str(config)]
    return run([*command, "--run.output_dir", str(output), *flags])


def ledger(output: Path, kind: str = "train") -> list[dict]:
    """The ledger's lines of one kind, by a reader that is not the project's."""
    lines = (output / "ledger.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
