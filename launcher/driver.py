"""What the GPU driver's own program, `nvidia-smi`, says; it hangs where the driver does."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress

LIMIT_SECONDS = 30
"""How long a driver may take to answer: many GPUs, woken one by one, take ten and more."""

# For the program to die of SIGKILL. One that waits within the kernel does not.
END_SECONDS = 1.0


class NoAnswerError(Exception):
    """Why the program said nothing."""


def ask(*words: str) -> subprocess.CompletedProcess[str] | None:
    """What it answers; None where there is no such program. Raises NoAnswerError."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    argv = [program, *words]
    try:
        # Not `subprocess.run`, which waits without a limit for what it has killed.
        asked = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        raise NoAnswerError(f"{program} cannot be started: {error.strerror}") from error
    try:
        out, err = asked.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        asked.kill()
        with suppress(subprocess.TimeoutExpired):
            asked.wait(END_SECONDS)
        raise NoAnswerError(f"nvidia-smi has not answered for {LIMIT_SECONDS} s") from None
    finally:
        for pipe in (asked.stdout, asked.stderr):
            if pipe is not None:
                pipe.close()
    return subprocess.CompletedProcess(argv, asked.returncode, out, err)


def visible(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names, by number or UUID; None where it is not set."""
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = []
    for name in map(str.strip, text.split(",")):
        # CUDA sees none from the first number on that is no GPU.
        if not name or name.startswith("-"):
            break
        names.append(name)
    return tuple(names)
