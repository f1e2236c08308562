"""Images and containers without an engine that runs as a service: buildah and podman, as root.

All they store is in one folder, and their mounts are in namespaces of their own, so nothing of the
machine's is seen or left changed.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("buildah", "crun", "debootstrap", "podman", "unshare")
DEBIAN = "bookworm"
BASE = f"localhost/{DEBIAN}"
LIMIT_SECONDS = 600
BUILD_LIMIT_SECONDS = 1800

STORAGE = """
[storage]
driver = "{driver}"
graphroot = "{folder}/stored"
runroot = "{folder}/running"
"""
# No control groups, and limits said: what a machine without systemd can give. Locks in a file, for
# those in memory are the whole machine's.
CONTAINERS = """
[containers]
cgroups = "disabled"
default_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]
log_driver = "none"
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "crun"
tmp_dir = "{folder}/engine"
"""
# crun wants to see the second version of control groups, if only to leave them alone.
IN_NAMESPACE = (
    'umount --recursive /sys/fs/cgroup; mount --types cgroup2 none /sys/fs/cgroup; exec "$0" "$@"'
)


def forbidden() -> str | None:
    """Why this machine cannot build and run images; None where it can."""
    if os.geteuid() != 0:
        return "building and running an image needs root"
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if lacking:
        return f"building and running an image needs {', '.join(lacking)}"
    tried = subprocess.run(
        ["unshare", "--mount", "sh", "-c", IN_NAMESPACE, "true"], text=True, capture_output=True
    )
    return f"mount namespaces are forbidden: {tried.stderr.strip()}" if tried.returncode else None


class Engine:
    """Builds images and runs containers, and keeps all of it under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        texts = {"storage.conf": STORAGE, "containers.conf": CONTAINERS, "auth.json": "{{}}"}
        for name, text in texts.items():
            filled = text.format(folder=folder, driver=_driver(folder), files=files)
            (folder / name).write_text(filled)
        self._environment = os.environ | {
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "REGISTRY_AUTH_FILE": str(folder / "auth.json"),
            "TMPDIR": str(folder),
        }
        self._num_containers = 0

    def command(self, *words: str) -> list[str]:
        """What runs `words` (buildah or podman) where their mounts are their own."""
        return ["unshare", "--mount", "sh", "-c", IN_NAMESPACE, *words]

    def do(self, *words: str, limit_seconds: float = LIMIT_SECONDS, **environment: str) -> str:
        """Run to the end; returns what it printed."""
        done = subprocess.run(
            self.command(*words),
            env=self._environment | environment,
            text=True,
            capture_output=True,
            timeout=limit_seconds,
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def make_base(self) -> str:
        """The smallest Debian there is, as an image. Returns its name."""
        root = self.folder / "debian"
        variant = ["--variant=minbase", DEBIAN, str(root)]
        self.do("debootstrap", *variant, limit_seconds=BUILD_LIMIT_SECONDS)
        self.derive("scratch", root, BASE)
        shutil.rmtree(root)
        return BASE

    def derive(self, image: str, folder: Path, name: str) -> None:
        """Name `image` with `folder` laid over its root `name`."""
        container = self.do("buildah", "from", image).strip()
        self.do("buildah", "add", "--quiet", container, str(folder), "/")
        self.do("buildah", "commit", "--quiet", "--rm", container, name)

    def build(
        self,
        name: str,
        context: Path,
        *options: str,
        secrets: Mapping[str, Path],
        environment: Mapping[str, str],
        **arguments: str,
    ) -> None:
        """Build docker/Dockerfile of `context`. Steps that another build took are not retaken."""
        words = ["--isolation", "chroot", "--format", "docker", "--layers", "--tag", name]
        words += ["--file", str(context / "docker" / "Dockerfile"), *options]
        for argument, value in arguments.items():
            words += ["--build-arg", f"{argument}={value}"]
        for secret, path in secrets.items():
            words += ["--secret", f"id={secret},src={path}"]
        limit = BUILD_LIMIT_SECONDS
        self.do("buildah", "bud", *words, str(context), limit_seconds=limit, **environment)

    def inspect(self, image: str) -> dict:
        """Of an image, what `docker image inspect` shows as Config."""
        (shown,) = json.loads(self.do("podman", "image", "inspect", image))
        return shown["Config"]

    def saved(self, image: str) -> Path:
        """The image as one file: configuration, history and every layer, none compressed."""
        path = self.folder / "saved.tar"
        path.unlink(missing_ok=True)
        self.do("buildah", "push", "--quiet", image, f"docker-archive:{path}")
        return path

    def run(self, image: str, *words: str, options: Sequence[str] = ()) -> Container:
        """Run a container to its end, on a read-only root."""
        with self.started(image, *words, options=options) as container:
            container.end()
        return container

    @contextmanager
    def started(self, image: str, *words: str, options: Sequence[str] = ()) -> Iterator[Container]:
        """A container on a read-only root with an empty /tmp. Ended at the latest with the body."""
        self._num_containers += 1
        name = f"c{self._num_containers}"
        shown = self.folder / f"{name}.out"
        asked = ["--read-only", "--tmpfs", "/tmp", "--name", name, *options]
        with shown.open("w") as file:
            process = subprocess.Popen(
                self.command("podman", "run", "--rm", *asked, image, *words),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Container(process, shown)
        finally:
            if process.poll() is None:
                self.do("podman", "rm", "--force", "--time", "0", name)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=LIMIT_SECONDS)
                process.kill()
                process.wait()


class Container:
    """What runs in a container, as podman sees it: it passes on signals and the exit code."""

    def __init__(self, process: subprocess.Popen, shown: Path) -> None:
        self.process = process
        self._shown = shown

    @property
    def shown(self) -> str:
        """All that was printed so far."""
        return self._shown.read_text()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def end(self) -> int:
        """Wait for the end."""
        return self.process.wait(timeout=LIMIT_SECONDS)

    def until_lines(self, path: Path, lines: int) -> None:
        """Wait until the file `path` has so many lines."""
        end = time.monotonic() + LIMIT_SECONDS
        while not path.exists() or path.read_bytes().count(b"\n") < lines:
            assert self.exit_code is None, self.shown
            assert time.monotonic() < end, self.shown
            time.sleep(0.05)


@contextmanager
def engine() -> Iterator[Engine]:
    """An engine whose images and containers are gone afterwards."""
    # A short path: engines put sockets there, whose names the kernel limits to 108 characters.
    with tempfile.TemporaryDirectory(prefix="gradacc-image-") as folder:
        yield Engine(Path(folder))


def _driver(folder: Path) -> str:
    """Layers laid over each other by the kernel where it can do so in `folder`, else by copies."""
    lower, upper, work, merged = (folder / name for name in ("lower", "upper", "work", "merged"))
    for each in (lower, upper, work, merged):
        each.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mount = ["mount", "--types", "overlay", "none", "--options", options, str(merged)]
    tried = subprocess.run(["unshare", "--mount", *mount], capture_output=True)
    for each in (lower, upper, work, merged):
        shutil.rmtree(each)
    return "overlay" if tried.returncode == 0 else "vfs"
