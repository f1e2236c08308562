"""Hosts of their own on one machine: network namespaces, joined by a switch.

Each has its hostname, its hosts file, its address and its ports, and shares the disk, the
processors and the process table with the machine. Made by iproute2's `ip`, as root.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

INTERFACE = "eth0"
HOSTS_FILES = Path("/etc/netns")
END_LIMIT_SECONDS = 10

# A port that nobody listens on, said by the kernel of the host itself.
ASK_FOR_PORT = """
import socket
with socket.socket() as probe:
    probe.bind(("", 0))
    print(probe.getsockname()[1])
"""


@dataclass(frozen=True)
class Host:
    """A host. `namespace`: how `ip netns` calls it; no other session has one of that name."""

    name: str
    address: str
    namespace: str

    def command(self, command: Sequence[str]) -> list[str]:
        """What runs `command` here, started from the machine itself."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.namespace, *named, *command]

    def run(
        self, command: Sequence[str], limit_seconds: float = 60, **options: object
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end. What a run past its limit leaves behind ends with the host."""
        return subprocess.run(
            self.command(command), text=True, capture_output=True, timeout=limit_seconds, **options
        )

    def free_port(self, python: str) -> int:
        """A port on which nothing listens here."""
        return int(self.run([python, "-c", ASK_FOR_PORT]).stdout)

    def traffic_bytes(self) -> tuple[int, int]:
        """What came in and went out over the wire so far; loopback is another interface."""
        shown = _ip("-n", self.namespace, "-s", "-j", "link", "show", INTERFACE)
        ((counters),) = [link["stats64"] for link in json.loads(shown)]
        return counters["rx"]["bytes"], counters["tx"]["bytes"]

    def end_processes(self) -> None:
        """End all that runs here, which nobody but this session can have started."""
        deadline = time.monotonic() + END_LIMIT_SECONDS
        while pids := _ip("netns", "pids", self.namespace).split():
            assert time.monotonic() < deadline, f"{self.name}: {pids} do not end"
            for pid in map(int, pids):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:  # it ended on its own
                    continue
            time.sleep(0.05)


def forbidden() -> str | None:
    """Why this machine cannot have hosts; None where it can."""
    if os.geteuid() != 0:
        return "hosts of their own need root"
    for program in ("ip", "unshare", "hostname"):
        if shutil.which(program) is None:
            return f"hosts of their own need the program {program}"
    # What a container without the privilege refuses.
    attempt = "mount -t sysfs sysfs /sys && ip link add type veth"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "sh", "-c", attempt],
        text=True,
        capture_output=True,
    )
    return f"network namespaces are forbidden: {tried.stderr.strip()}" if tried.returncode else None


@contextmanager
def connected(*names: str) -> Iterator[tuple[Host, ...]]:
    """Hosts of these names that reach each other by name. Leaves nothing behind.

    Addresses are the same in every session: each session's switch is a network of its own.
    """
    session = f"gradacc-{os.getpid()}-{secrets.token_hex(2)}"
    hosts = tuple(
        Host(name, f"10.77.0.{number}", f"{session}-{name}")
        for number, name in enumerate(names, start=11)
    )
    switch = f"{session}-switch"
    with ExitStack() as stack:
        _add_namespace(switch, stack)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        for number, host in enumerate(hosts):
            _add_namespace(host.namespace, stack)
            _write_hosts_file(host, hosts, stack)
            _plug_in(host, switch, f"port{number}")
            stack.callback(host.end_processes)
        yield hosts


def run_on_each(
    commands: Mapping[Host, Sequence[str]], limit_seconds: float, **options: object
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run a command on each host, all at once. Returns how each ended, by the host's name."""
    with ThreadPoolExecutor(len(commands)) as threads:
        runs = {
            host.name: threads.submit(host.run, command, limit_seconds, **options)
            for host, command in commands.items()
        }
        return {name: run.result() for name, run in runs.items()}


def _add_namespace(name: str, stack: ExitStack) -> None:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name)
    _ip("-n", name, "link", "set", "lo", "up")


def _write_hosts_file(host: Host, hosts: Sequence[Host], stack: ExitStack) -> None:
    """`ip netns exec` lays the file over /etc/hosts. gloo looks up its own name in it."""
    folder = HOSTS_FILES / host.namespace
    folder.mkdir(parents=True)
    stack.callback(_remove_folder, folder)
    lines = ["127.0.0.1 localhost", *(f"{each.address} {each.name}" for each in hosts)]
    (folder / "hosts").write_text("\n".join(lines) + "\n")


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    with suppress(OSError):  # not the last one: other hosts, of whoever, have files there
        folder.parent.rmdir()


def _plug_in(host: Host, switch: str, port: str) -> None:
    cable = ["type", "veth", "peer", "name", INTERFACE, "netns", host.namespace]
    _ip("-n", switch, "link", "add", port, *cable)
    _ip("-n", switch, "link", "set", port, "master", "switch", "up")
    _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", INTERFACE)
    _ip("-n", host.namespace, "link", "set", INTERFACE, "up")


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], text=True, capture_output=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout
