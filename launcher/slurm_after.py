"""What a batch script asks when its ranks have ended: is the job to be started again?

How the ranks ended decides, not the exit status of a launcher: those of ranks that saved and left
look like a failure's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from gradacc_dist.checkpoint.store import CHECKPOINTS, Store
from gradacc_dist.errors import ConfigError
from gradacc_dist.exits import Exit, read_exits
from launcher.decisions import FINAL, MEANT
from launcher.launches import LaunchFolder, Outcome, read_note, write_note
from launcher.slurm import may_requeue
from launcher.slurm_script import TRY_AGAIN
from launcher.verdict import NO_PROGRESS, PREEMPTED, Verdict, verdict

PROGRESS = "progress.json"
MAX_FRUITLESS = 3
MAX_PREEMPTED = 20


@dataclass(frozen=True, kw_only=True)
class Try:
    """What the batch script knows of one start of its job."""

    job_id: str
    attempt: int
    began: float
    """Seconds since the epoch, by the clock of the first node."""
    status: int
    """Of srun."""
    asked: bool
    """Whether the script got SIGTERM."""


@dataclass(frozen=True)
class Progress:
    """How far the tries up to `attempt` came: `step` of their newest checkpoint, -1 without one.

    Since then, `fruitless` restarts left no newer one, and `preempted` tries were asked to leave.
    """

    attempt: int = 0
    step: int = -1
    fruitless: int = 0
    preempted: int = 0

    def after(self, attempt: int, step: int, *, preempted: bool) -> Progress:
        """With the tries up to `attempt`; of those between, SLURM itself started the next.

        That a try was preempted before it came far is nobody's fault: it is not fruitless.
        """
        if step > self.step:
            return Progress(attempt, step)
        restarts = attempt - max(self.attempt, 1)
        blameless = 1 if preempted and restarts else 0
        fruitless = self.fruitless + restarts - blameless
        return Progress(attempt, self.step, fruitless, self.preempted + preempted)


_PROGRESS = TypeAdapter(Progress)


def after(folder: LaunchFolder, this: Try) -> int:
    """Judge a try, note it, say it in a line. Returns TRY_AGAIN, or what the job ends with.

    Raises DiskError.
    """
    noted = folder.read_outcome()
    said = noted if noted and noted.ended >= this.began else None  # not by an earlier try
    exits = read_exits(folder.exits / str(this.attempt))
    ended = judged(this.status, exits, said, asked=this.asked)
    before = read_note(folder.path / PROGRESS, _PROGRESS) or Progress()
    store = Store(folder.output / CHECKPOINTS)
    newest = max((step for step, _ in store.candidates()), default=-1)
    progress = before.after(this.attempt, newest, preempted=ended.exit_code == PREEMPTED)
    write_note(folder.path / PROGRESS, asdict(progress))

    ended, again, why = _decided(folder, ended, progress, this.job_id)
    restarts = this.attempt - 1
    folder.write_outcome(Outcome(ended.exit_code, ended.cause, time.time(), restarts))
    cause = ended.cause or "done"
    print(f"gradacc: {cause} [exit code {ended.exit_code}]{why}", file=sys.stderr, flush=True)
    return TRY_AGAIN if again else ended.exit_code


def judged(status: int, exits: Sequence[Exit], said: Outcome | None, *, asked: bool) -> Verdict:
    """How the ranks of all nodes ended; `said`: by `gradacc train` on the first node, in this try.

    srun tells the highest status only: that of a node that it killed hides that of one which
    refused to begin.
    """
    if exits and all(each.exit_code == 0 for each in exits) and len(exits) == exits[0].ranks:
        return Verdict(0)  # whatever befell srun afterwards
    if exits:
        return verdict(status, exits, asked)
    if said and said.exit_code:
        return Verdict(said.exit_code, said.cause)
    if status in MEANT:
        # What `gradacc train` of a node found before it started a rank; its words are in the log.
        return Verdict(status, "ended before any rank began; see above" if status else "")
    return verdict(status, exits, asked)


def _decided(
    folder: LaunchFolder, ended: Verdict, progress: Progress, job_id: str
) -> tuple[Verdict, bool, str]:
    """The verdict, whether to try again, and a sentence on it."""
    if ended.exit_code in FINAL:
        return ended, False, ""
    if folder.stop.exists():
        return ended, False, "; asked to stop: not started again"
    try:
        if not may_requeue(job_id):
            return ended, False, "; SLURM itself ends this job, or starts it again"
    except ConfigError as error:
        return ended, False, f"; not started again: {error}"
    if why := _no_progress(ended.exit_code, progress):
        return Verdict(NO_PROGRESS, f"{why}; the last: {ended.cause}"), False, "; not started again"
    where = "anew" if progress.step < 0 else f"from step {progress.step}"
    return ended, True, f"; starts again, {where} (restart {progress.attempt})"


def _no_progress(exit_code: int, progress: Progress) -> str | None:
    """Why another try would come no further; None where it may."""
    if exit_code != PREEMPTED:
        fruitless = progress.fruitless
        too_many = fruitless >= MAX_FRUITLESS
        return f"{fruitless} restarts in a row left no newer checkpoint" if too_many else None
    if progress.preempted < MAX_PREEMPTED:
        return None
    return (
        f"asked to leave {progress.preempted} times without a newer checkpoint; the job's time "
        "limit has to be longer than --grace, the start of the ranks and a window together"
    )
