"""Nodes meet on loopback: threads stand for nodes, and raw sockets for strangers."""

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest
from node_reports import healthy

from gradacc_dist.errors import ConfigError, PeerLostError, PreemptedError
from launcher import rollfolder, rollguest, rollhost, rollmessages
from launcher.place import Place
from launcher.report import Disk
from launcher.rollcall import may_be_asked_to_leave, name_of_launch, roll_call
from launcher.rollmessages import Hello, Meeting, line_of

LIMIT_SECONDS = 60
LAUNCH = "20260101T000000-abcdef"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    for module in (rollhost, rollguest):
        monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.2)
    monkeypatch.setattr(rollguest, "FIRST_LINE_SECONDS", 0.0)
    monkeypatch.setattr(rollguest, "RETRY_SECONDS", 0.1)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Nodes:
    """Nodes of one launch, each in its thread; what each of them says is kept."""

    def __init__(self, port: int, threads: ThreadPoolExecutor) -> None:
        self.port, self._threads = port, threads
        self.said: dict[str, list[str]] = {}

    def start(
        self, rank: int, host: str, *, of: int = 2, launch=LAUNCH, seconds=LIMIT_SECONDS, **changes
    ) -> Future:
        place = Place(rank, "127.0.0.1", self.port, tuple(f"n{each + 1}" for each in range(of)))
        said = self.said.setdefault(host, [])
        mine = healthy(host, **changes)
        return self._threads.submit(roll_call, place, of, launch, mine, seconds, said.append)

    def heard(self, host: str, text: str) -> None:
        """Wait until `host` said it."""
        until(lambda: any(text in line for line in self.said[host]), f"{text}: {self.said}")


@pytest.fixture
def nodes(port):
    with ThreadPoolExecutor(8) as threads:
        yield Nodes(port, threads)


def until(holds, what: str) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def stranger(port: int) -> socket.socket:
    """A connection to node 0, once it listens."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), LIMIT_SECONDS)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_all_go_on_together_and_node_0_knows_all(nodes):
    guests = [nodes.start(2, "n3", of=3), nodes.start(1, "n2", of=3)]
    meeting = nodes.start(0, "n1", of=3).result(LIMIT_SECONDS)
    assert [guest.result(LIMIT_SECONDS).findings for guest in guests] == [(), ()]
    assert meeting.findings == ()
    assert meeting.nodes.reports == {0: healthy("n1"), 1: healthy("n2"), 2: healthy("n3")}
    assert meeting.nodes.names == {0: "n1", 1: "n2", 2: "n3"}
    assert all(abs(seconds) < 5 for seconds in meeting.nodes.clock_seconds.values())
    meeting.refuse_errors()


def test_c4_the_missing_is_named_to_all_while_they_wait(nodes):
    first, second = nodes.start(0, "n1", of=3), nodes.start(1, "n2", of=3)
    for host in ("n1", "n2"):
        nodes.heard(host, "2 of 3 nodes here after ")
        nodes.heard(host, "; missing: n3")
    nodes.start(2, "n3", of=3).result(LIMIT_SECONDS)
    for host, future in (("n1", first), ("n2", second)):
        future.result(LIMIT_SECONDS)
        nodes.heard(host, "3 of 3 nodes here")


def test_c4_all_leave_when_one_does_not_come(nodes):
    futures = [nodes.start(0, "n1", of=3, seconds=1.5), nodes.start(1, "n2", of=3)]
    for future in futures:
        with pytest.raises(PeerLostError, match=r"2 of 3 nodes here after .*missing: n3"):
            future.result(LIMIT_SECONDS)


def test_what_is_wrong_with_one_is_told_to_all(nodes):
    odd = {"config_sha256": "b" * 64, "settings": {"window.examples": "12", "run.seed": "0"}}
    futures = [nodes.start(0, "n1"), nodes.start(1, "n2", **odd)]
    for future in futures:
        with pytest.raises(ConfigError, match=r"n2: window.examples: 12 here, 16 on n1"):
            future.result(LIMIT_SECONDS).refuse_errors()


def test_warnings_let_all_go_on(nodes):
    guest = nodes.start(1, "n2", shared_memory=replace(healthy().shared_memory, free_bytes=1))
    meeting = nodes.start(0, "n1").result(LIMIT_SECONDS)
    meeting.refuse_errors()
    guest.result(LIMIT_SECONDS).refuse_errors()
    told = []
    meeting.tell_warnings(told.append)
    assert [line.partition(";")[0] for line in told] == [
        "warning: n2: /dev/shm: 1 bytes free for 2 rank(s), needs 134,217,728"
    ]


def test_the_offset_of_a_clock_is_measured(nodes):
    """A guest that lies by an hour, told by a stranger who speaks as nodes do."""
    first = nodes.start(0, "n1")
    with stranger(nodes.port) as guest, guest.makefile("rb") as words:
        guest.sendall(line_of(Hello(LAUNCH, 1, 2, 1, healthy("n2"))))
        assert json.loads(words.readline())["kind"] == "clock"
        guest.sendall(line_of(time.time() - 3600) + line_of(""))
        kinds = [json.loads(words.readline())["kind"] for _ in range(3)]
    assert kinds == ["knock", "progress", "go"]
    meeting = first.result(LIMIT_SECONDS)
    assert meeting.nodes.clock_seconds[1] == pytest.approx(-3600, abs=LIMIT_SECONDS)
    (finding,) = meeting.findings
    assert (finding.node, finding.level) == ("n2", "warning")
    assert "s behind the others'" in finding.text


def test_a_node_that_reaches_one_port_only(nodes, monkeypatch):
    monkeypatch.setattr(rollguest, "_knock", lambda host, port: f"{host} timed out")
    guest = nodes.start(1, "n2")
    meeting = nodes.start(0, "n1", gloo_address="127.0.0.1", gloo_interface="lo").result(60)
    (finding,) = guest.result(LIMIT_SECONDS).findings
    assert meeting.findings == (finding,)
    assert (finding.level, finding.node, finding.item) == ("warning", "n2", "ports")
    assert "does not reach n1 (127.0.0.1)" in finding.text
    assert finding.text.endswith("127.0.0.1 timed out")


def test_two_of_one_number_are_both_named(nodes):
    futures = [nodes.start(0, "n1", of=3), nodes.start(1, "n2", of=3)]
    nodes.heard("n1", "2 of 3")
    futures.append(nodes.start(1, "n9", of=3))
    for future in futures[:2]:
        with pytest.raises(ConfigError, match=r"n2 \(.*and n9 \(.*that they are node 1; give each"):
            future.result(LIMIT_SECONDS)
    with pytest.raises(ConfigError, match="node 1"):
        futures[2].result(LIMIT_SECONDS)


def test_a_node_that_died_in_silence_is_replaced_on_its_host(nodes):
    first = nodes.start(0, "n1")
    with stranger(nodes.port) as silent, silent.makefile("rb") as words:
        silent.sendall(line_of(Hello(LAUNCH, 1, 2, 77, healthy("n2"))))
        assert [json.loads(words.readline())["kind"] for _ in range(2)] == ["clock", "knock"]
        guest = nodes.start(1, "n2")
        # Were it alive after all, it would hear who took its place.
        told = next(word for word in map(json.loads, words) if word["kind"] == "ended")
        assert told["exit_code"] == ConfigError.exit_code
        assert "n2 (process 77) and n2 (process" in told["text"]
        guest.result(LIMIT_SECONDS).refuse_errors()
        assert set(first.result(LIMIT_SECONDS).nodes.reports) == {0, 1}
    nodes.heard("n1", "n2 was started again")


def test_of_a_node_that_starts_again_and_again_the_last_counts(nodes):
    first = nodes.start(0, "n1")
    with stranger(nodes.port) as one, stranger(nodes.port) as other:
        for number, silent in enumerate((one, other)):
            silent.sendall(line_of(Hello(LAUNCH, 1, 2, number, healthy("n2"))))
            assert silent.recv(1)
        nodes.start(1, "n2").result(LIMIT_SECONDS)
        first.result(LIMIT_SECONDS)
    assert sum("was started again" in line for line in nodes.said["n1"]) == 2


@pytest.mark.parametrize("is_shared", [True, False])
def test_an_output_folder_that_nodes_do_not_share(is_shared, nodes, tmp_path, monkeypatch):
    monkeypatch.setattr(rollfolder, "LOOK_SECONDS", 0.1)
    folders = [tmp_path / "a", tmp_path / ("a" if is_shared else "b")]
    for folder in folders:
        (folder / "launches" / "earlier").mkdir(parents=True, exist_ok=True)
    mine, theirs = (Disk(str(folder), "/", 10**12) for folder in folders)
    guest = nodes.start(1, "n2", output=theirs)
    found = nodes.start(0, "n1", output=mine).result(LIMIT_SECONDS).findings
    assert guest.result(LIMIT_SECONDS).findings == found
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    if is_shared:
        assert found == ()
    else:
        (finding,) = found
        assert (finding.level, finding.node, finding.item) == ("error", "n2", "output")
        assert f"{folders[1]}: what n1 wrote to {folders[0]} is not to be seen" in finding.text


def test_connections_to_hosts_that_vanish_do_not_last():
    """What the kernel is asked; to see it at work takes a network that can be cut."""
    with socket.socket() as connection:
        rollhost._notice_silence(connection)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        of_tcp = {
            name: connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
            for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")
        }
    assert of_tcp["KEEPIDLE"] + of_tcp["KEEPINTVL"] * of_tcp["KEEPCNT"] == 10
    assert of_tcp["USER_TIMEOUT"] == 10_000


def test_nodes_are_named_by_number_where_the_scheduler_names_too_few(port):
    def node(rank: int) -> Meeting:
        place = Place(rank, "127.0.0.1", port, ("first",))
        return roll_call(place, 2, LAUNCH, healthy(f"n{rank}"), LIMIT_SECONDS, print)

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.submit(node, 0), threads.submit(node, 1)
        assert first.result(LIMIT_SECONDS).nodes.names == {0: "first", 1: "node 1 (n1)"}
        second.result(LIMIT_SECONDS)


def test_nodes_that_were_promised_other_numbers_of_nodes(nodes):
    futures = [nodes.start(0, "n1", of=2), nodes.start(1, "n2", of=3)]
    for future in futures:
        with pytest.raises(ConfigError, match=r"n2 .* one of 3 nodes, node 0 as one of 2"):
            future.result(LIMIT_SECONDS)


def test_a_node_of_another_launch_is_refused_and_the_right_one_let_in(nodes):
    first = nodes.start(0, "n1")
    other = nodes.start(1, "n8", launch="another", seconds=3)
    nodes.heard("n1", f"is of launch another, not of {LAUNCH}")
    nodes.heard("n8", f"this is the roll call of launch {LAUNCH}, not of another")
    nodes.start(1, "n2").result(LIMIT_SECONDS)
    assert first.result(LIMIT_SECONDS).nodes.reports[1].host == "n2"
    with pytest.raises(PeerLostError, match="was not reached within 3 s"):
        other.result(LIMIT_SECONDS)


@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff\x16\n", b"[]\n", b"7\n", b"{}\n", b"", b"no end"],
)
def test_strangers_do_not_disturb(nodes, noise):
    first = nodes.start(0, "n1")
    with stranger(nodes.port) as connection:
        connection.sendall(noise)
        if not noise.endswith(b"\n"):
            connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"", "hung up on"
        nodes.heard("n1", "127.0.0.1:")
    nodes.start(1, "n2").result(LIMIT_SECONDS)
    assert set(first.result(LIMIT_SECONDS).nodes.reports) == {0, 1}


def test_a_line_without_end_is_cut_off(nodes, monkeypatch):
    monkeypatch.setattr(rollhost, "MAX_LINE_BYTES", 1000)
    first = nodes.start(0, "n1")
    with stranger(nodes.port) as connection:
        connection.sendall(b"x" * 2000)
        nodes.heard("n1", "sends no lines of a node")
    monkeypatch.undo()
    nodes.start(1, "n2").result(LIMIT_SECONDS)
    first.result(LIMIT_SECONDS)


def test_a_node_of_another_version_is_told_so(nodes):
    first = nodes.start(0, "n1")
    with stranger(nodes.port) as connection:
        connection.sendall(b'{"launch": null, "gradacc_dist": "0.0.1"}\n')
        with pytest.raises(ConfigError, match=r"speaks as gradacc_dist 0.0.1 does"):
            first.result(LIMIT_SECONDS)


def test_a_node_that_dies_while_waiting_is_missing_again_and_may_come_back(nodes):
    first = nodes.start(0, "n1", of=3)
    with stranger(nodes.port) as guest, guest.makefile("rb") as words:
        guest.sendall(line_of(Hello(LAUNCH, 1, 3, 1, healthy("n2"))))
        words.readline()
        guest.sendall(line_of(time.time()) + line_of(""))
        nodes.heard("n1", "2 of 3 nodes here")
    nodes.heard("n1", "n2 is gone again: it hung up")
    nodes.heard("n1", "missing: n2, n3")
    again, third = nodes.start(1, "n2", of=3), nodes.start(2, "n3", of=3)
    for future in (first, again, third):
        future.result(LIMIT_SECONDS)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1", "refuses connections: node 0 has not begun"),
        ("no-such-node.invalid", "the name no-such-node.invalid does not resolve here"),
    ],
)
def test_c4_a_node_that_cannot_reach_the_first_says_why(host, said, port):
    lines = []
    with pytest.raises(PeerLostError, match=said):
        roll_call(Place(1, host, port), 2, LAUNCH, healthy(), 1, lines.append)
    assert said in lines[0]


def test_something_else_that_answers_is_no_roll_call(port):
    lines = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        server.listen()

        def answer():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(PeerLostError, match="is no roll call; give the launch another"):
            roll_call(Place(1, "127.0.0.1", port), 2, LAUNCH, healthy(), 1, lines.append)
        server.shutdown(socket.SHUT_RDWR)
        thread.join(LIMIT_SECONDS)


def test_a_port_that_is_taken_is_named(port, monkeypatch):
    monkeypatch.setattr(rollhost, "BIND_SECONDS", 0.3)
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        with pytest.raises(ConfigError, match=f"MASTER_PORT {port} of .* cannot be listened on"):
            roll_call(Place(0, "127.0.0.1", port), 2, LAUNCH, healthy(), 1, print)


def test_the_port_is_free_for_the_ranks_at_once(nodes):
    """Without SO_REUSEADDR, which a rank's store need not set."""
    for _ in range(20):
        guest = nodes.start(1, "n2")
        nodes.start(0, "n1").result(LIMIT_SECONDS)
        with socket.socket() as store:
            store.bind(("", nodes.port))
            store.listen()
            guest.result(LIMIT_SECONDS)
            store.setblocking(False)
            with pytest.raises(BlockingIOError):  # no guest came twice
                store.accept()


def test_an_address_that_is_not_the_first_nodes_own_is_doubted(port):
    lines = []
    with pytest.raises(PeerLostError):
        roll_call(Place(0, "203.0.113.7", port), 2, LAUNCH, healthy(), 0.1, lines.append)
    assert "MASTER_ADDR, 203.0.113.7, leads to 203.0.113.7, none of an address" in lines[0]


def test_who_is_asked_to_leave_tells_the_others(nodes, monkeypatch):
    """SIGTERM raises in the main thread, wherever it is."""
    first, second = nodes.start(0, "n1", of=3), nodes.start(1, "n2", of=3)
    nodes.heard("n1", "2 of 3")

    def interrupted(*_):
        raise PreemptedError("asked to leave")

    monkeypatch.setattr(rollhost._Host, "_missing", interrupted)
    for future in (first, second):
        with pytest.raises(PreemptedError, match="asked to leave"):
            future.result(LIMIT_SECONDS)


def test_signals_before_there_are_ranks():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with pytest.raises(PreemptedError), may_be_asked_to_leave():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LIMIT_SECONDS)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before


def test_a_launch_is_named_with_its_try():
    assert name_of_launch({}) is None
    assert name_of_launch({"GRADACC_ATTEMPT": "2"}) is None
    assert name_of_launch({"GRADACC_LAUNCH_ID": "a"}) == "a"
    assert name_of_launch({"GRADACC_LAUNCH_ID": "a", "GRADACC_ATTEMPT": "2"}) == "a, try 2"


def test_messages_survive_the_way():
    hello = Hello(None, 1, 2, 3, healthy("n2", addresses=("10.0.0.2", "::1")))
    assert rollmessages.HELLO.validate_json(line_of(hello)) == hello
    assert b"\n" not in line_of(hello)[:-1]
    assert asdict(hello)["gradacc_dist"]
