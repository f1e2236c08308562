"""A SLURM of two nodes on one machine: its daemons on hosts of their own, its state in a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hosts.network import Host, connected
from launching import ROOT, environment

# Every daemon is a process that starts at once; jobs import torch on what may be two busy cores.
START_LIMIT_SECONDS = 120
JOB_LIMIT_SECONDS = 480

SLOWLY = Path(__file__).parent / "slowly"

# Jobs of the partition `urgent` take the nodes of others, which get SIGTERM a minute before.
# A node is lost after 10 silent seconds. A job that starts again waits for the credential of its
# first try to expire. No time is spent on accounting, limits or other users.
CONF = """
ClusterName=gradacc
SlurmctldHost=ctl
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/linear
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
SlurmdParameters=config_overrides
MessageTimeout=5
KillWait=5
MailProg=/bin/true
NodeName=n[1-2] CPUs=2 RealMemory=1000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n1,n2 PriorityTier=2
"""


def missing() -> str | None:
    """The programs of SLURM that this machine lacks; None where it has all."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch")
    lacking = [name for name in programs if shutil.which(name) is None]
    return f"SLURM needs {', '.join(lacking)}" if lacking else None


class Cluster:
    """Started by `cluster`. Commands are those of a login node, which is the controller's host."""

    def __init__(self, root: Path, hosts: tuple[Host, ...], stack: ExitStack) -> None:
        self.root = root
        self._stack = stack
        self._login, *nodes = hosts
        self._nodes = {node.name: node for node in nodes}
        self._environ = environment() | {
            "SLURM_CONF": str(root / "slurm.conf"),
            "PYTHONPATH": os.pathsep.join([str(SLOWLY), str(ROOT), *sys.path]),
        }

    def start(self) -> None:
        """Start everything, and wait until both nodes are idle."""
        (self.root / "slurm.conf").write_text(CONF.format(root=self.root))
        # The kernel's control groups are neither needed nor looked for.
        (self.root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.root / "state").mkdir()
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = [f"--{name}-file={self.root}/munge.{name}" for name in ("key", "pid", "seed")]
        socket = f"--socket={self.root}/munge.socket"
        self._daemon("munged", ["munged", "--foreground", "--force", socket, *files])
        self._daemon("slurmctld", self._login.command(["slurmctld", "-D"]))
        for name in self._nodes:
            self.start_node(name)
        self.until(lambda: self.ask("sinfo", "-h", "-o", "%T %D") == "idle 2", START_LIMIT_SECONDS)

    def start_node(self, name: str) -> None:
        """The node comes up, or back."""
        self._daemon(name, self._nodes[name].command(["slurmd", "-D"]))

    def lose_node(self, name: str) -> None:
        """The node dies, with all that it runs."""
        self._nodes[name].end_processes()

    def ask(self, *command: str) -> str:
        """What a command prints on the login node; "" where it fails."""
        done = self.run(*command)
        return done.stdout.strip() if done.returncode == 0 else ""

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command on the login node."""
        return self._login.run(command, env=self._environ, cwd=ROOT)

    def gradacc(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`gradacc` on the login node."""
        return self.run(sys.executable, "-m", "launcher", *words)

    def submit(self, config: Path, output: Path, *words: str) -> Job:
        """Two nodes of one CPU rank each."""
        where = ("--config", str(config), "--run.output_dir", str(output))
        size = ("--nodes", "2", "--ranks", "1", "--cpu")
        done = self.gradacc("submit", "--slurm", *size, *where, *words)
        assert done.returncode == 0, done.stderr
        (folder,) = (output / "launches").iterdir()
        number = done.stdout.removeprefix("SLURM job ").partition(";")[0]
        return Job(self, number, output, folder)

    def until(self, happened: Callable[[], bool], limit_seconds: float = JOB_LIMIT_SECONDS) -> None:
        """Wait for something; where it does not happen, show what the daemons said."""
        end = time.monotonic() + limit_seconds
        while not happened():
            if time.monotonic() > end:
                logs = sorted(self.root.glob("*.log"))
                raise AssertionError("\n".join(f"{p.name}: {p.read_text()[-2000:]}" for p in logs))
            time.sleep(0.2)

    def _daemon(self, name: str, command: list[str]) -> None:
        with (self.root / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                command, env=self._environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self._stack.callback(_end, process)


class Job:
    """A job that was submitted. `folder`: of its launch."""

    def __init__(self, cluster: Cluster, job_id: str, output: Path, folder: Path) -> None:
        self.cluster = cluster
        self.id = job_id
        self.output = output
        self.folder = folder

    @property
    def log(self) -> str:
        path = self.folder / "log.txt"
        return path.read_text() if path.exists() else ""

    @property
    def state(self) -> str:
        """As SLURM calls it, for some minutes after the end too."""
        return self.cluster.ask("squeue", "-h", "-t", "all", "-j", self.id, "-o", "%T")

    @property
    def outcome(self) -> dict:
        return json.loads((self.folder / "outcome.json").read_text())

    @property
    def restarts(self) -> int:
        """As SLURM counts them."""
        shown = self.cluster.ask("scontrol", "show", "job", self.id)
        return int(shown.partition("Restarts=")[2].split()[0])

    def until(self, happened: Callable[[], bool]) -> None:
        def look() -> bool:
            # First: what has not happened by the job's end never will.
            has_ended = self.state in ("FAILED", "CANCELLED", "COMPLETED")
            is_there = happened()
            assert is_there or not has_ended, self.log
            return is_there

        try:
            self.cluster.until(look)
        except AssertionError as error:
            raise AssertionError(f"{self.log}\n{error}") from error

    def until_step(self, step: int) -> None:
        path = self.output / "ledger.jsonl"
        self.until(lambda: path.exists() and path.read_bytes().count(b"\n") >= step)

    def end(self) -> str:
        """Wait for the end. Returns the state in which it is."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
        self.until(lambda: self.state in ended)
        return self.state

    def rank_on(self, node: str, attempt: int) -> int:
        """The process of the rank that a node has; its table is the machine's."""
        (note,) = (self.folder / "exits" / str(attempt)).glob(f"{node}-*.json")
        return json.loads(note.read_text())["pid"]

    def gradacc(self, command: str) -> str:
        """What `gradacc COMMAND` of this run prints on the login node."""
        done = self.cluster.gradacc(command, str(self.output))
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Up and idle. Leaves nothing behind. Root's, since its daemons change hosts and users."""
    # Below /tmp: the name of a socket has room for a hundred letters.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as root,
        connected("ctl", "n1", "n2") as hosts,
        ExitStack() as stack,
    ):
        Path(root).chmod(0o755)
        up = Cluster(Path(root), hosts, stack)
        up.start()
        yield up


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
