"""What a batch script asks when its ranks have ended: is the job to be started again?

How the ranks ended decides, not the exit status of a launcher: those of ranks that saved and left
look like a failure's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from gradacc_dist.checkpoint.store import CHECKPOINTS, Store
from gradacc_dist.errors import DiskError
from gradacc_dist.exits import Exit, read_exits
from launcher.launches import LaunchFolder, Outcome
from launcher.slurm import may_requeue
from launcher.slurm_script import TRY_AGAIN
from launcher.verdict import FINAL, NO_PROGRESS, PREEMPTED, Verdict, verdict

MAX_FRUITLESS = 3


@dataclass(frozen=True)
class Progress:
    """How far the tries up to `attempt` came: `step` of their newest checkpoint, -1 without one.

    `fruitless`: restarts in a row that left no newer one.
    """

    attempt: int = 0
    step: int = -1
    fruitless: int = 0

    def after(self, attempt: int, step: int, *, preempted: bool) -> Progress:
        """With the tries up to `attempt`; of those between, SLURM itself started the next.

        That a try was preempted before it came far is nobody's fault: it does not count.
        """
        if step > self.step:
            return Progress(attempt, step)
        restarts = attempt - max(self.attempt, 1)
        blameless = 1 if preempted and restarts else 0
        return Progress(attempt, self.step, self.fruitless + restarts - blameless)


_PROGRESS = TypeAdapter(Progress)


def after(folder: LaunchFolder, attempt: int, status: int, *, asked: bool, job_id: str) -> int:
    """Judge a try, note it, say it in a line. Returns TRY_AGAIN, or what the job ends with.

    `status` is srun's, `asked` whether the script got SIGTERM. Raises DiskError.
    """
    ended = judged(status, read_exits(folder.exits / str(attempt)), asked=asked)
    before = _read_progress(folder)
    store = Store(folder.output / CHECKPOINTS)
    newest = max((step for step, _ in store.candidates()), default=-1)
    progress = before.after(attempt, newest, preempted=ended.exit_code == PREEMPTED)
    _write_progress(folder, progress)

    ended, again, why = _decided(folder, ended, progress, job_id)
    folder.write_outcome(Outcome(ended.exit_code, ended.cause, time.time(), attempt - 1))
    cause = ended.cause or "done"
    print(f"gradacc: {cause} [exit code {ended.exit_code}]{why}", file=sys.stderr, flush=True)
    return TRY_AGAIN if again else ended.exit_code


def judged(status: int, exits: Sequence[Exit], *, asked: bool) -> Verdict:
    """How the ranks of all nodes ended."""
    if exits and all(each.exit_code == 0 for each in exits) and len(exits) == exits[0].ranks:
        return Verdict(0)  # whatever befell srun afterwards
    if not exits and status in FINAL:
        # What `gradacc train` found before it started a rank; its words are in the log.
        return Verdict(status, "" if status == 0 else "refused before any rank began; see above")
    return verdict(status, exits, asked)


def _decided(
    folder: LaunchFolder, ended: Verdict, progress: Progress, job_id: str
) -> tuple[Verdict, bool, str]:
    """The verdict, whether to try again, and a sentence on it."""
    if ended.exit_code in FINAL:
        return ended, False, ""
    if folder.stop.exists():
        return ended, False, "; asked to stop: not started again"
    if not may_requeue(job_id):
        return ended, False, "; SLURM itself ends this job, or starts it again"
    if ended.exit_code != PREEMPTED and progress.fruitless >= MAX_FRUITLESS:
        why = f"{progress.fruitless} restarts in a row left no newer checkpoint; the last: "
        return Verdict(NO_PROGRESS, why + ended.cause), False, "; not started again"
    where = "anew" if progress.step < 0 else f"from step {progress.step}"
    return ended, True, f"; starts again, {where} (restart {progress.attempt})"


def _read_progress(folder: LaunchFolder) -> Progress:
    try:
        return _PROGRESS.validate_json(_progress_file(folder).read_bytes())
    except (OSError, ValidationError):
        return Progress()


def _write_progress(folder: LaunchFolder, progress: Progress) -> None:
    path = _progress_file(folder)
    with DiskError.naming(path):
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(asdict(progress)) + "\n")
        partial.replace(path)


def _progress_file(folder: LaunchFolder) -> Path:
    return folder.path / "progress.json"
