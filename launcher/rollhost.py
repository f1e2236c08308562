"""The roll call as node 0 holds it: one thread, which hears whoever speaks."""

from __future__ import annotations

import errno
import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from pydantic import ValidationError

from gradacc_dist.errors import ConfigError, GradaccError, PeerLostError
from launcher.findings import Reports, Unreached, findings
from launcher.place import Place
from launcher.report import Report, is_own, own_addresses
from launcher.rollfolder import sign
from launcher.rollmessages import HELLO, PROGRESS_SECONDS, Hello, Meeting, Say, Word, line_of

# An earlier try may take a moment to let go of the port.
BIND_SECONDS = 10.0
SEND_SECONDS = 5.0
MAX_LINE_BYTES = 2**22
# After which a node that vanished, without a word to the network either, counts as gone.
VANISHED_SECONDS = 10


def hold(place: Place, hello: Hello, seconds: float, say: Say) -> Meeting:
    """Wait for all nodes, compare them, and tell all what was found."""
    _look_at_address(place, hello.report, say)
    with (
        _listening(place.port) as listener,
        _listening(0) as door,
        selectors.DefaultSelector() as selector,
        sign(hello.report.output.folder) as sign_name,
    ):
        host = _Host(place, hello, selector, listener, door, sign_name, say)
        try:
            host.gather(seconds)
            meeting = host.compare()
        except GradaccError as error:
            host.part_with(Word("ended", str(error), exit_code=error.exit_code))
            raise
        # Before the word: from then on, who comes to this port means the ranks.
        host.stop_listening()
        host.part_with(Word("go", findings=meeting.findings))
    return meeting


@dataclass
class _Visitor:
    """A connection; a node's, once it has said hello and told its clock."""

    socket: socket.socket
    address: str
    heard: bytearray = field(default_factory=bytearray)
    hello: Hello | None = None
    asked_at: float = 0.0
    clock_seconds: float | None = None
    unreached: str | None = None
    """Why it did not reach a port of node 0 that the kernel chose; "" where it did."""

    sees_output: bool | None = None
    """Whether it found node 0's file in the output folder; None until it says so."""

    @property
    def is_here(self) -> bool:
        """Whether it has told all that it was asked."""
        return None not in (self.clock_seconds, self.unreached, self.sees_output)


class _Host:
    def __init__(
        self,
        place: Place,
        hello: Hello,
        selector: selectors.BaseSelector,
        listener: socket.socket,
        door: socket.socket,
        sign_name: str,
        say: Say,
    ) -> None:
        self._place, self._hello, self._say = place, hello, say
        self._selector, self._listener = selector, listener
        # Where others knock. Nobody opens: the kernel answers for it.
        self._door_port = door.getsockname()[1]
        self._sign_name = sign_name
        self._visitors: dict[socket.socket, _Visitor] = {}
        selector.register(listener, selectors.EVENT_READ)

    def gather(self, seconds: float) -> None:
        """Until all nodes are here. Raises PeerLostError that names who is not after `seconds`."""
        started = time.monotonic()
        next_line = PROGRESS_SECONDS
        while missing := self._missing():
            waited = time.monotonic() - started
            if waited > seconds:
                raise PeerLostError(
                    f"{self._progress(waited, missing)}; start again with all nodes, or with a "
                    "longer --join-seconds"
                )
            if waited >= next_line:
                next_line += PROGRESS_SECONDS
                self._tell_all(self._progress(waited, missing))
            self._listen(min(next_line, seconds) - waited)
        self._tell_all(self._progress(time.monotonic() - started, ()))

    def compare(self) -> Meeting:
        """Of all nodes: what they say, and what is wrong with it."""
        reports, clocks = {self._hello.node: self._hello.report}, {self._hello.node: 0.0}
        unreached, blind = {}, []
        for node, visitor in sorted(self._present().items()):
            assert visitor.hello is not None
            assert visitor.clock_seconds is not None
            reports[node], clocks[node] = visitor.hello.report, visitor.clock_seconds
            if visitor.unreached:
                unreached[node] = Unreached(_own_side(visitor), visitor.unreached)
            if not visitor.sees_output:
                blind.append(node)
        names = {node: self._name(node, report) for node, report in reports.items()}
        nodes = Reports(reports, names, clocks, unreached, tuple(blind))
        return Meeting(tuple(findings(nodes)), nodes)

    def stop_listening(self) -> None:
        """Free the port for others to listen on."""
        self._selector.unregister(self._listener)
        self._listener.close()

    def part_with(self, word: Word) -> None:
        """The last word to each. Who hears it hangs up first, so that no half-closed connection of
        this side keeps the port from the ranks."""
        for visitor in list(self._visitors.values()):
            self._send(visitor, word)
        for visitor in list(self._visitors.values()):
            with suppress(OSError):
                visitor.socket.settimeout(SEND_SECONDS)
                while visitor.hello is not None and visitor.socket.recv(4096):
                    pass
            self._drop(visitor)

    def _name(self, node: int, report: Report) -> str:
        name = self._place.describe(node)
        return name if node < len(self._place.names) else f"{name} ({report.host})"

    def _present(self) -> dict[int, _Visitor]:
        return {
            visitor.hello.node: visitor
            for visitor in self._visitors.values()
            if visitor.hello is not None and visitor.is_here
        }

    def _missing(self) -> list[int]:
        present = self._present()
        return [node for node in range(1, self._hello.nodes) if node not in present]

    def _progress(self, waited: float, missing: list[int] | tuple[()]) -> str:
        nodes = self._hello.nodes
        text = f"{nodes - len(missing)} of {nodes} nodes here after {waited:.0f} s"
        named = ", ".join(self._place.describe(node) for node in missing)
        return f"{text}; missing: {named}" if missing else text

    def _tell_all(self, text: str) -> None:
        self._say(text)
        for visitor in list(self._present().values()):
            self._send(visitor, Word("progress", text))

    def _listen(self, seconds: float) -> None:
        for key, _ in self._selector.select(max(0.0, seconds)):
            if key.fileobj is self._listener:
                self._let_in()
            else:
                self._read(key.data)

    def _let_in(self) -> None:
        try:
            connection, address = self._listener.accept()
        except OSError:  # it left at the door
            return
        _notice_silence(connection)
        visitor = _Visitor(connection, f"{address[0]}:{address[1]}")
        self._visitors[connection] = visitor
        self._selector.register(connection, selectors.EVENT_READ, visitor)

    def _read(self, visitor: _Visitor) -> None:
        piece, why = b"", "hung up"
        try:
            piece = visitor.socket.recv(65536)
        except OSError as error:
            why = f"hung up ({error.strerror})"
        visitor.heard += piece
        *lines, rest = bytes(visitor.heard).split(b"\n")
        visitor.heard[:] = rest
        for line in lines:
            if visitor.socket in self._visitors:
                self._hear(visitor, line)
        if len(visitor.heard) > MAX_LINE_BYTES:
            self._drop(visitor, "sends no lines of a node")
        elif not piece:
            self._drop(visitor, why)

    def _hear(self, visitor: _Visitor, line: bytes) -> None:
        if visitor.hello is None:
            self._welcome(visitor, line)
            return
        arrived = time.time()
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if isinstance(answer, bool):
            visitor.sees_output = answer
        elif isinstance(answer, float):
            # What it read half-way between the question and the answer.
            visitor.clock_seconds = answer - (visitor.asked_at + arrived) / 2
        elif isinstance(answer, str):
            visitor.unreached = answer
        else:
            self._drop(visitor, "does not answer as a node does")

    def _welcome(self, visitor: _Visitor, line: bytes) -> None:
        try:
            hello = HELLO.validate_json(line)
        except ValidationError:
            self._refuse_other_version(visitor, line)
            self._drop(visitor, "is no node of a launch of gradacc")
            return
        if hello.launch != self._hello.launch:
            mine, theirs = (each or "without a name" for each in (self._hello.launch, hello.launch))
            text = f"this is the roll call of launch {mine}, not of {theirs}"
            self._send(visitor, Word("refused", text))
            self._drop(visitor, f"is of launch {theirs}, not of {mine}")
            return
        self._refuse_contradiction(hello)
        visitor.hello = hello
        visitor.asked_at = time.time()
        self._send(visitor, Word("clock"))
        if visitor.socket in self._visitors:
            self._send(visitor, Word("knock", host=_own_side(visitor), port=self._door_port))
        visitor.sees_output = None if self._sign_name else True
        if self._sign_name and visitor.socket in self._visitors:
            self._send(visitor, Word("look", self._sign_name))

    def _refuse_other_version(self, visitor: _Visitor, line: bytes) -> None:
        with suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict) and "gradacc_dist" in message:
                raise ConfigError(
                    f"the node at {visitor.address} speaks as gradacc_dist "
                    f"{message['gradacc_dist']} does, node 0 has another version or other code "
                    f"({self._hello.gradacc_dist}); install the same on every node"
                )

    def _refuse_contradiction(self, hello: Hello) -> None:
        """Two that cannot both be right, and waiting does not help.

        But a node that was started again on the same host takes the place of its former self,
        which may have ended without a word.
        """
        who = f"{hello.report.host} (process {hello.pid})"
        if hello.nodes != self._hello.nodes:
            raise ConfigError(
                f"{who} was started as one of {hello.nodes} nodes, node 0 as one of "
                f"{self._hello.nodes}; give every node the same --nodes"
            )
        for visitor in [None, *self._visitors.values()]:
            other = self._hello if visitor is None else visitor.hello
            if other is None or other.node != hello.node:
                continue
            text = (
                f"{other.report.host} (process {other.pid}) and {who} both say that they are "
                f"node {hello.node}; give each node a NODE_RANK of its own"
            )
            if visitor is None or other.report.host != hello.report.host:
                raise ConfigError(text)
            self._say(f"{self._place.describe(hello.node)} was started again: {who}")
            self._send(visitor, Word("ended", text, exit_code=ConfigError.exit_code))
            visitor.hello = None  # it hangs up, or is found to have vanished

    def _send(self, visitor: _Visitor, word: Word) -> None:
        try:
            visitor.socket.settimeout(SEND_SECONDS)
            visitor.socket.sendall(line_of(word))
        except OSError:
            self._drop(visitor, "does not listen")

    def _drop(self, visitor: _Visitor, why: str = "") -> None:
        if self._visitors.pop(visitor.socket, None) is None:
            return
        self._selector.unregister(visitor.socket)
        visitor.socket.close()
        if why:
            node = visitor.hello and self._place.describe(visitor.hello.node)
            self._say(f"{node} is gone again: it {why}" if node else f"{visitor.address} {why}")


def _own_side(visitor: _Visitor) -> str:
    """The address of this node by which the visitor came, whatever names and services it took."""
    return str(visitor.socket.getsockname()[0])


def _notice_silence(connection: socket.socket) -> None:
    """A node whose host or network went away hangs up as little as one that waits."""
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, VANISHED_SECONDS // 2),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, VANISHED_SECONDS // 2),
        # Of what was sent and not answered for, where keepalive does not look.
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_SECONDS * 1000),
    ):
        connection.setsockopt(level, option, value)


def _look_at_address(place: Place, report: Report, say: Say) -> None:
    """A doubt and no error: an address may be forwarded."""
    addresses = own_addresses(place.host)
    if not any(map(is_own, addresses)):
        leads = f"leads to {', '.join(addresses)}, none of" if addresses else "does not resolve to"
        say(
            f"warning: MASTER_ADDR, {place.host}, {leads} an address of node 0 ({report.host}); "
            "the other nodes will look for node 0 there"
        )


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    """On all addresses. Raises ConfigError where somebody else holds the port."""
    deadline = time.monotonic() + BIND_SECONDS
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        # Connections of an earlier try, which ended, do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:
            try:
                listener.bind(("", port))
                listener.listen(1024)
                break
            except OSError as error:
                if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
                raise ConfigError(
                    f"MASTER_PORT {port} of {socket.gethostname()} cannot be listened on: "
                    f"{error.strerror}; end what holds it (`ss -ltnp` names it), or give every "
                    "node another MASTER_PORT"
                ) from error
        yield listener
