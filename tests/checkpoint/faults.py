"""Jobs on a folder of checkpoints with faults injected into their system calls by strace.

A job runs in a fork of a server that has imported everything, and is traced from its first own
call on: a run costs some 50 ms, and its calls are numbered alike every time.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from checkpoint.saving import save
from requirements_of import require

from gradacc_dist.checkpoint import disk
from gradacc_dist.checkpoint.store import Store
from gradacc_dist.errors import GradaccError

# What changes a disk, or makes it lasting. Opening a folder to list it does neither.
CALLS = "mkdir,openat,write,fsync,rename,unlink,unlinkat,rmdir"
_CALL = re.compile(r"(?P<name>\w+)\((?!.*O_NONBLOCK)(?P<arguments>.*)\) += ")
LIMIT_SECONDS = 60
_PR_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1)


@dataclass(frozen=True)
class Call:
    """The `number`-th call (from 1) of `name` in a job."""

    name: str
    number: int
    arguments: str

    def __str__(self) -> str:
        return f"{self.name} {self.number} ({self.arguments})"


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    """Negative: the signal that ended it."""
    message: str
    calls: list[Call]


class Faults:
    """A server of jobs: `save(step, mark)` or `prune(keep)`."""

    def __init__(self, scratch: Path) -> None:
        require(shutil.which("strace") is not None, "strace is not installed")
        self._log, self._message = scratch / "strace.log", scratch / "message"
        path = os.pathsep.join(sys.path)
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(self._message)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.wait(LIMIT_SECONDS)
        self._server.stdout.close()

    def run(self, folder: Path, job: tuple[object, ...], fault: str = "") -> Outcome:
        """Run `job` on `folder`; `fault` is an injection of strace's."""
        assert self._server.stdin
        assert self._server.stdout
        print(json.dumps([str(folder), *job]), file=self._server.stdin, flush=True)
        pid = int(self._server.stdout.readline())
        command = ["strace", "-y", "-o", str(self._log), "-e", f"trace={CALLS}", "-p", str(pid)]
        inject = ["-e", f"inject={fault}"] if fault else []
        with subprocess.Popen([*command, *inject], stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr
            said = strace.stderr.readline()
            os.kill(pid, signal.SIGCONT)  # in any case: the server waits for its end
            exit_code = int(self._server.stdout.readline())
        require("Operation not permitted" not in said, f"tracing is not allowed: {said.strip()}")
        assert "attached" in said, said
        return Outcome(exit_code, self._message.read_text(), _calls(self._log.read_text()))


@contextmanager
def injected(pid: int, path: Path, fault: str) -> Iterator[None]:
    """A fault, an injection of strace's, in what a running process does with `path`."""
    require(shutil.which("strace") is not None, "strace is not installed")
    command = ["strace", "-f", "-p", str(pid), "-P", str(path), "-o", os.devnull]
    command += ["-e", f"trace={CALLS}", "-e", f"inject={fault}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr
        said: list[str] = []
        while not said or not ("attached" in said[-1] or "strace: attach" in said[-1]):
            said.append(strace.stderr.readline())
            assert said[-1], said
        require("not permitted" not in said[-1], f"tracing is not allowed: {said[-1].strip()}")
        try:
            yield
        finally:
            strace.terminate()  # it lets go of the process


def _calls(log: str) -> list[Call]:
    """The calls of a log that are boundaries, numbered among all of their name."""
    calls, counts = [], dict.fromkeys(CALLS.split(","), 0)
    for line in log.splitlines():
        name = line.partition("(")[0]
        if name in counts:
            counts[name] += 1
            if found := _CALL.match(line):
                calls.append(Call(name, counts[name], found["arguments"]))
    return calls


def _serve(message: Path) -> None:
    disk.CHUNK_BYTES = 256  # some writes a file, so that it can be cut off between them
    for line in sys.stdin:
        folder, verb, *numbers = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(message, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY)  # else root only may attach
            os.kill(os.getpid(), signal.SIGSTOP)
            _leave_with(Path(folder), verb, numbers)
        os.waitpid(pid, os.WUNTRACED)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _leave_with(folder: Path, verb: str, numbers: list[int]) -> None:
    code = 1
    try:
        if verb == "save":
            save(folder, *numbers)
        else:
            Store(folder).prune(*numbers)
        code = 0
    except GradaccError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    finally:
        if error := sys.exception():
            traceback.print_exception(error)
        os._exit(code)  # an orderly end of the interpreter takes longer than the job


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
