"""A run in the background of this machine: it outlives the terminal it was started from."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from gradacc_dist.errors import ConfigError, DiskError
from gradacc_dist.exits import LAUNCH_ID
from launcher.launches import KIND, Launch, LaunchFolder, is_alive, new_id
from launcher.request import Request


def submit(request: Request, output: Path) -> LaunchFolder:
    """Start `gradacc train` for `request`, into the output folder `output`; return its notes.

    Raises DiskError.
    """
    launch_id = new_id()
    folder = LaunchFolder.of(output, launch_id)
    words = request.train_words
    with DiskError.naming(folder.log):
        folder.path.mkdir(parents=True)
        with folder.log.open("xb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "launcher", *words],
                env={**os.environ, LAUNCH_ID: launch_id, KIND: "local"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # nothing that ends this terminal reaches it
            )
    folder.write_launch(Launch.of_process(process.pid, launch_id, "local", words))
    return folder


def stop(launch: Launch) -> None:
    """Ask the run to save and leave. Raises ConfigError from a host other than its own."""
    if launch.kind == "kubernetes":
        raise ConfigError(
            f"the run is on Kubernetes (pod {launch.host}); kubectl delete -f its manifest: it "
            "saves a checkpoint and leaves"
        )
    if not launch.is_here:
        raise ConfigError(
            f"the run was started on {launch.host}; say gradacc stop there (this is "
            f"{socket.gethostname()})"
        )
    if is_alive(launch):
        assert launch.pid is not None, "what is alive has a process"
        os.kill(launch.pid, signal.SIGTERM)
