"""The roll call as every node but the first sees it."""

from __future__ import annotations

import errno
import socket
import time

from pydantic import ValidationError

from gradacc_dist.errors import PeerLostError
from launcher.findings import Finding
from launcher.place import Place
from launcher.rollfolder import sees
from launcher.rollmessages import PROGRESS_SECONDS, WORD, Hello, Say, error_of, line_of

CONNECT_SECONDS = 5.0
RETRY_SECONDS = 1.0
# Nodes that start together are apart by less.
FIRST_LINE_SECONDS = 2.0
# Node 0 speaks every few seconds while it waits.
SILENCE_SECONDS = 60.0

BLOCKED = "a firewall may block the port, or the address is wrong"


class _NotYetError(Exception):
    """Why node 0 was not reached this time."""


def attend(place: Place, hello: Hello, seconds: float, say: Say) -> tuple[Finding, ...]:
    """Report to node 0 and wait for its word. Raises what node 0 ended with, or PeerLostError
    where it could not be reached within `seconds`."""
    started = time.monotonic()
    next_line = FIRST_LINE_SECONDS
    while True:
        try:
            return _visit(place, hello, say)
        except _NotYetError as reason:
            waited = time.monotonic() - started
            if waited > seconds:
                raise PeerLostError(
                    f"node 0 was not reached within {seconds:g} s: {reason}; start again once it "
                    "can be, or with a longer --join-seconds"
                ) from None
            if waited >= next_line:
                next_line = waited + PROGRESS_SECONDS
                say(f"waiting for node 0 since {waited:.0f} s: {reason}")
        time.sleep(RETRY_SECONDS)


def _visit(place: Place, hello: Hello, say: Say) -> tuple[Finding, ...]:
    where = f"{place.host}:{place.port}"
    try:
        with socket.create_connection((place.host, place.port), CONNECT_SECONDS) as connection:
            return _converse(connection, where, hello, say)
    except OSError as error:
        raise _NotYetError(_why_not(error, where, place.host)) from error


def _converse(connection: socket.socket, where: str, hello: Hello, say: Say) -> tuple[Finding, ...]:
    connection.settimeout(SILENCE_SECONDS)
    connection.sendall(line_of(hello))
    with connection.makefile("rb") as lines:
        for line in lines:
            try:
                word = WORD.validate_json(line)
            except ValidationError:
                break
            if word.kind == "go":
                return word.findings
            if word.kind == "ended":
                raise error_of(word)
            if word.kind == "refused":
                raise _NotYetError(f"{where}: {word.text}")
            if word.kind == "clock":
                connection.sendall(line_of(time.time()))
            elif word.kind == "knock":
                connection.sendall(line_of(_knock(word.host, word.port)))
            elif word.kind == "look":
                connection.sendall(line_of(sees(hello.report.output.folder, word.text)))
            else:
                say(word.text)
        else:
            raise _NotYetError(f"{where} hung up: it ended, or is no roll call")
    raise _NotYetError(f"{where} is no roll call; give the launch another MASTER_PORT")


def _knock(host: str, port: int) -> str:
    """Why there is no way to a port that nobody opened in a firewall; "" where there is one."""
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS):
            return ""
    except OSError as error:
        return str(error.strerror or error)


def _why_not(error: OSError, where: str, host: str) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name {host} does not resolve here; mend MASTER_ADDR, /etc/hosts or DNS"
    if isinstance(error, ConnectionRefusedError):
        return f"{where} refuses connections: node 0 has not begun, or listens on another port"
    if isinstance(error, TimeoutError):
        return f"{where} does not answer: {BLOCKED}"
    if error.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM}:
        return f"{where} cannot be reached ({error.strerror}): {BLOCKED}"
    return f"{where}: {error.strerror or error}: {BLOCKED}"
