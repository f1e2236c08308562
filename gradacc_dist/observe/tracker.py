"""wandb, as the run sees it: a process of its own that reads the ledger while it grows.

Nothing that wandb does can reach the training then: it stalls, prompts, prints, crashes (its core
does, on an answer that it did not expect) or waits at exit somewhere else, and the ledger on disk
is a queue that never fills. A training that is killed leaves a process that sends what is left.
It gets the environment that wandb needs and nothing more, and no argument of the command line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from gradacc_dist.config.schema import Config
from gradacc_dist.observe.ledger import comparison_label

# How long the end of a run may wait for wandb.
END_SECONDS = 30.0
# The rank that has to tell of an error is ended by its launcher soon after the others have left.
ERROR_SECONDS = 3.0

# Any other variable stays here: trackers keep what they find (C11).
VARIABLES = frozenset(
    {
        *("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL", "TZ"),
        *("HOME", "USER", "NETRC", "XDG_CONFIG_HOME"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    }
)


class Tracker:
    """Context manager around the steps of a run, on rank 0. No method raises; only leaving waits.

    `tracker_id`: of the run in wandb, the same over all of its invocations. `say` shows one line to
    the user, for what wandb could not do.
    """

    def __init__(
        self, config: Config, ledger_path: Path, tracker_id: str, say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._ledger_path = ledger_path
        self._spoke = False
        self.where: str | None = None
        """Where the run can be looked at, once that is known."""
        folder = ledger_path.parent.absolute()
        try:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [sys.executable, "-m", "gradacc_dist.observe.wandb_client"],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment(folder, os.environ),
                start_new_session=True,  # Ctrl-C is the run's; no terminal to ask for a key on
            )
        except OSError as error:
            self._process = None
            self._warn(f"its process did not start: {error}")
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._write(json.dumps(job(config, folder, ledger_path.absolute(), tracker_id)))

    def poll(self) -> None:
        """Show what the process has said since the last call, if anything."""
        if self._process is not None:
            assert self._process.stdout is not None
            for line in (self._process.stdout.read() or b"").splitlines():
                told = json.loads(line)
                self.where = told.get("where", self.where)
                if "warning" in told:
                    self._warn(told["warning"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let wandb send the rest, for at most END_SECONDS; after an error, it goes on alone."""
        if self._process is None:
            return
        self._write("done" if kind is None else "failed")
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            exit_code = self._process.wait(END_SECONDS if kind is None else ERROR_SECONDS)
        except subprocess.TimeoutExpired:
            if kind is not None:
                return
            os.killpg(self._process.pid, signal.SIGKILL)  # the core of wandb with it
            self._process.wait()
            self.poll()
            self._warn(f"it had not sent everything after {END_SECONDS:g} seconds")
        else:
            self.poll()
            if exit_code and not self._spoke:
                self._warn(f"its process ended with code {exit_code}")
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _write(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
        except OSError:
            # It is gone, and its exit code will be reported at the end.
            return

    def _warn(self, what: str) -> None:
        """One line, once: a second failure tells nothing that the first one did not."""
        if not self._spoke:
            self._spoke = True
            self._say(f"wandb: {what}; the run goes on, and {self._ledger_path} has every value")


def new_id(config: Config) -> str | None:
    """An id for a run that has none yet; None where nothing tracks it."""
    return None if config.track.wandb == "off" else uuid4().hex[:8]


def job(config: Config, folder: Path, ledger_path: Path, tracker_id: str) -> Mapping[str, Any]:
    """What the process has to know, as JSON: the only thing of the run, beside its ledger, that
    wandb is given.
    """
    label = comparison_label(config.objective.denominator)
    return {
        "mode": config.track.wandb,
        "id": tracker_id,
        "project": config.track.project,
        "name": config.track.name or folder.resolve().name,
        "folder": str(folder),
        "ledger": str(ledger_path),
        "tags": [label] if label else [],
        "config": config.model_dump(mode="json"),
    }


def environment(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """What wandb's process may see of `environ`: its own settings, and what Python needs.

    Not WANDB_SERVICE, which would have this run served by the process of another.
    """
    own = {
        name: value
        for name, value in environ.items()
        if name in VARIABLES or (name.startswith("WANDB_") and name != "WANDB_SERVICE")
    }
    # The logs of its core would lie in the home folder, its tracebacks go to its makers.
    defaults = {"WANDB_CACHE_DIR": str(folder), "WANDB_ERROR_REPORTING": "false"}
    return defaults | own
