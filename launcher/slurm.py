"""SLURM: submit a run as a batch job, ask what became of it, and ask it to end."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence

from gradacc_dist.errors import ConfigError, DiskError
from launcher.checked import checked, output_of
from launcher.grace import mistake_of_grace
from launcher.launches import Launch, LaunchFolder, new_id
from launcher.plan import Layout
from launcher.request import Request
from launcher.slurm_script import batch_script

SCRIPT = "job.sh"
PENDING, RUNNING = "PENDING", "RUNNING"

PATIENCE_SECONDS = 300.0
"""So long a job that has ended waits for a SLURM that does not answer."""
PAUSE_SECONDS = 10.0


def prepare(
    request: Request, options: Sequence[str], grace_seconds: int, environ: Mapping[str, str]
) -> tuple[LaunchFolder, str]:
    """The folder of a new launch, not yet made, and the batch script for it.

    `options` are lines of options for sbatch, and win over ours. Raises ConfigError with every
    mistake of the configuration.
    """
    if request.ranks is None:
        raise ConfigError("--ranks: say how many ranks each node is to start, one a GPU")
    layout = Layout(request.ranks, "cpu" if request.cpu else "gpu", "--ranks asks for it")
    resolved = checked(request, layout, environ)
    if mistake := mistake_of_grace(resolved, grace_seconds):
        raise ConfigError(mistake)
    folder = LaunchFolder.of(output_of(resolved), new_id())
    return folder, batch_script(request, folder, options, grace_seconds)


def submit(request: Request, folder: LaunchFolder, script: str) -> str:
    """Hand what was prepared to SLURM, and note it. Returns the job's id.

    Raises ConfigError where SLURM refuses, and DiskError.
    """
    path = folder.path / SCRIPT
    with DiskError.naming(path):
        path.parent.mkdir(parents=True)
        path.write_text(script)
    # A cluster may append its own name: 12;west
    job_id = _ask("sbatch", "--parsable", str(path)).strip().partition(";")[0]
    folder.write_launch(
        Launch(
            id=folder.path.name,
            kind="slurm",
            host=socket.gethostname(),
            started=time.time(),
            command=("submit", "--slurm", *request.command_line()),
            job_id=job_id,
        )
    )
    return job_id


def state(job_id: str) -> str | None:
    """Such as `RUNNING (n1,n2)` or `PENDING (Resources)`; None once it is not in the queue.

    Raises ConfigError where SLURM cannot be asked.
    """
    return _queued(job_id, "%T %R")


def stop(job_id: str) -> str:
    """Ask a job to save and leave, or take it out of the queue where it waits there.

    Returns what was done. Note the launch's `stop` before, or the job goes on later. Raises
    ConfigError where SLURM refuses.
    """
    found = _queued(job_id, "%T")
    if found is None:
        return f"SLURM job {job_id} has ended already"
    if found == PENDING:
        # One that starts at this moment finds the note and leaves by itself.
        _ask("scancel", f"--state={PENDING}", job_id)
        return f"SLURM job {job_id} waited in the queue, and is taken out of it"
    _ask("scancel", "--batch", "--signal=TERM", job_id)
    return f"SLURM job {job_id} is asked to save and leave"


def may_requeue(job_id: str) -> bool:
    """Whether the job runs, and so nobody else has ended it or put it back into the queue.

    SLURM would start a job again that its user has cancelled. For the job itself to ask. Waits for
    a SLURM that does not answer; raises ConfigError where it does not for long.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        # The job that asks is known, so that a failure is SLURM's.
        done = _squeue(job_id, "%T")
        if done.returncode == 0:
            return done.stdout.strip() == RUNNING
        if time.monotonic() > end:
            said = done.stderr.strip()
            raise ConfigError(
                f"squeue: no answer of SLURM for {PATIENCE_SECONDS:.0f} seconds: {said}; when it "
                "is back, submit the run once more: it goes on from its last checkpoint"
            )
        time.sleep(PAUSE_SECONDS)


def _queued(job_id: str, form: str) -> str | None:
    done = _squeue(job_id, form)
    if done.returncode:
        # It fails alike for a job long gone and for a controller that is down.
        _ask("scontrol", "ping")
        return None
    return done.stdout.strip() or None


def _squeue(job_id: str, form: str) -> subprocess.CompletedProcess[str]:
    return _run("squeue", "--noheader", f"--jobs={job_id}", f"--format={form}")


def _ask(program: str, *words: str) -> str:
    """What `program` prints. Raises ConfigError where it fails."""
    done = _run(program, *words)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ConfigError(f"{program} {' '.join(words)}: {said} [exit status {done.returncode}]")
    return done.stdout


def _run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    # What a user has set for these programs would change what they print.
    hidden = ("SQUEUE_", "SCANCEL_", "SLURM_TIME_FORMAT")
    environ = {name: text for name, text in os.environ.items() if not name.startswith(hidden)}
    try:
        return subprocess.run([program, *words], text=True, capture_output=True, env=environ)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{program}: no such program on {socket.gethostname()}; run this where SLURM's "
            "commands are (a login node), or train here with `gradacc train`"
        ) from error
