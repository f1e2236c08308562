"""What became of a run that was started: its state, its figures, its log, and how to end it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gradacc_dist.checkpoint.store import CHECKPOINTS, Store
from gradacc_dist.config.load import read_back
from gradacc_dist.config.present import RESOLVED
from gradacc_dist.errors import ConfigError
from gradacc_dist.exits import read_exits
from gradacc_dist.observe.ledger import LEDGER, TrainRecord, read, show_loss
from launcher import local, slurm
from launcher.launches import LAUNCHES, Launch, LaunchFolder, is_alive, newest

POLL_SECONDS = 0.5
SLURM_POLL_SECONDS = 5.0
"""Its controller serves many."""
UNKNOWN = "not known from this host"


@dataclass(frozen=True)
class State:
    """Of a launch. `text` for people; `goes_on`: it runs, or waits to; None where nobody knows."""

    text: str
    goes_on: bool | None


def runs_here() -> list[Path]:
    """Output folders below `runs/` that a launch was noted in. Raises ConfigError without any."""
    noted = Path("runs").glob(f"*/{LAUNCHES}/*/launch.json")
    found = sorted({path.parents[2] for path in noted})
    if not found:
        raise ConfigError(f"no run in {Path('runs').absolute()}; name the run.output_dir of one")
    return found


def status(output: Path) -> str:
    """A few lines about the last launch of the run in `output`. Raises ConfigError."""
    folder, launch = newest(output)
    rows = {
        "run": str(output),
        "launch": f"{launch.id}, {_where(launch)}, {_ago(launch.started)}",
        "state": state_of(folder, launch).text,
        **_progress(output),
        "restarts": str(_num_restarts(folder)),
    }
    return "\n".join(f"{name:<11} {text}" for name, text in rows.items())


def require_alone(output: Path) -> None:
    """Raises ConfigError where a launch of the run in `output` goes on, or waits to."""
    try:
        folder, launch = newest(output)
    except ConfigError:
        return
    state = state_of(folder, launch)
    if state.goes_on:
        raise ConfigError(
            f"{output} has a run going on: {_where(launch)}, {state.text}; watch it with gradacc "
            f"status {output}, end it with gradacc stop {output}, or choose another "
            "--run.output_dir"
        )


def state_of(folder: LaunchFolder, launch: Launch) -> State:
    """What the launch is doing, or how it ended."""
    outcome = folder.read_outcome()
    if launch.job_id is not None:
        in_queue = slurm.state(launch.job_id)
        if in_queue is not None:
            return State(in_queue, goes_on=True)
    elif is_alive(launch):
        leaving = " (asked to leave)" if folder.stop.exists() else ""
        return State(f"running{leaving}", goes_on=True)
    if outcome is not None and outcome.ended < launch.started and launch.job_id is None:
        outcome = None  # of an earlier start of the same launch
    if outcome is not None:
        how = "finished" if not outcome.exit_code else f"ended with exit code {outcome.exit_code}"
        cause = f": {outcome.cause}" if outcome.cause else ""
        return State(f"{how} {_ago(outcome.ended)}{cause}", goes_on=False)
    if launch.job_id is not None and folder.stop.exists():
        return State("stopped before it began", goes_on=False)
    if launch.kind == "kubernetes" or not launch.is_here:
        return State(UNKNOWN, goes_on=None)
    return State("ended without a word: killed, or its host went down", goes_on=False)


def logs(output: Path, *, follow: bool) -> None:
    """Print what the last launch printed; with `follow` also what comes, until it ends.

    Raises ConfigError where nothing was kept.
    """
    folder, launch = newest(output)
    if not folder.log.exists():
        kept = "printed to the terminal it was started from"
        if launch.kind == "kubernetes":
            kept = f"printed to its pods; kubectl logs {launch.host} shows it"
        if launch.job_id is not None:
            kept = f"has printed nothing yet ({state_of(folder, launch).text})"
        raise ConfigError(f"{output}: launch {launch.id} {kept}")
    with folder.log.open("rb") as log:
        for part in _parts(lambda: log.read(1 << 16), folder, launch, follow=follow):
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()


def stop(output: Path) -> str:
    """Ask the last launch to save and leave, wait until it has, and say how it ended.

    Nobody starts it again. Raises ConfigError where it cannot be asked.
    """
    folder, launch = newest(output)
    before = state_of(folder, launch)
    if before.goes_on is False:
        return f"{output}: {before.text}"
    if launch.job_id is not None:
        folder.ask_to_stop()  # first: the job reads it when its ranks have left
        slurm.stop(launch.job_id)
    else:
        local.stop(launch)
        folder.ask_to_stop()
    print(f"asked launch {launch.id} to save and leave; waiting (Ctrl-C leaves it to it)")
    while state_of(folder, launch).goes_on:
        _wait_a_little(launch)
    return f"{output}: {state_of(folder, launch).text}"


def _parts(
    take: Callable[[], bytes], folder: LaunchFolder, launch: Launch, *, follow: bool
) -> Iterator[bytes]:
    """What `take` gives; with `follow`, until nothing more can come."""
    while True:
        goes_on = follow and state_of(folder, launch).goes_on
        while part := take():
            yield part
        if not goes_on:
            return
        _wait_a_little(launch)


def _wait_a_little(launch: Launch) -> None:
    time.sleep(POLL_SECONDS if launch.job_id is None else SLURM_POLL_SECONDS)


def _progress(output: Path) -> dict[str, str]:
    """Step, loss and speed by the ledger, and the newest checkpoint."""
    last: TrainRecord | None = None
    if (output / LEDGER).exists():
        for record in read(output / LEDGER):
            last = record if isinstance(record, TrainRecord) else last
    rows = {"step": f"0{_of_steps(output)}"}
    if last is not None:
        rows["step"] = f"{last.step:,}{_of_steps(output)}"
        rows["loss"] = show_loss(last.loss)
        rows["grad_norm"] = "none" if last.grad_norm is None else f"{last.grad_norm:.4g}"
        rows["tokens/s"] = f"{last.tokens_per_second:,.0f}"
    saved = Store(output / CHECKPOINTS).candidates() if (output / CHECKPOINTS).exists() else []
    rows["checkpoint"] = "none yet"
    if saved:
        _, path = saved[0]
        rows["checkpoint"] = f"{path.name}, {_ago(path.stat().st_mtime)}"
    return rows


def _of_steps(output: Path) -> str:
    try:
        steps = read_back(output / RESOLVED).schedule.steps
    except ConfigError:  # not yet written
        return ""
    return "" if steps is None else f" of {steps:,}"


def _num_restarts(folder: LaunchFolder) -> int:
    """How often rank 0 was started once more, by a scheduler or an elastic launcher."""
    tries = [each for path in folder.exits.glob("*") for each in read_exits(path)]
    return max(0, sum(each.rank == 0 for each in tries) - 1)


def _where(launch: Launch) -> str:
    if launch.job_id is not None:
        return f"SLURM job {launch.job_id}"
    return f"process {launch.pid} on {launch.host}"


def _ago(then: float) -> str:
    seconds = max(0.0, time.time() - then)
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            number = math.floor(seconds / size)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return f"{seconds:.0f} s ago"
