"""An HTTP proxy between a worker and a server, which breaks what passes through it."""

from __future__ import annotations

import http.client
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ANSWER_SECONDS = 10.0
LOGGED_BYTES = 1000
FAULTS = {
    "lose_request": 3,
    "lose_answer": 4,
    "delay": 3,
    "twice": 3,
    "500": 2,
    "502": 2,
    "429": 2,
    "500_after": 2,
    "html": 1,
    "garbage": 1,
    "cut_short": 1,
}
"""What may happen to a request, and how often in proportion.

``..._after``, ``lose_answer`` and ``cut_short`` happen when the server has carried it
out, ``twice`` is carried out two times; the others never reach the server.
"""
_REASONS = {429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway"}
_PAGE = b"<!DOCTYPE html><title>Back soon</title>"


@dataclass(frozen=True)
class Request:
    """A request as it came, byte for byte where that matters."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """An answer of the server's, or one made up."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def raw(self, claimed_bytes: int | None = None) -> bytes:
        """Return what is sent; ``claimed_bytes`` is a wrong Content-Length."""
        length = len(self.body) if claimed_bytes is None else claimed_bytes
        lines = [f"HTTP/1.1 {self.status} {self.reason}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += [f"Content-Length: {length}", "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.body


class FaultProxy:
    """Listens on a port of its own while the context is entered.

    Which request meets which fault follows from the seed, from what is asked and from
    how often it has been asked before, and not from the order of threads.
    """

    def __init__(self, server_port: int, seed: str, rate: float) -> None:
        self.server_port = server_port
        self.rate = rate
        """The share of requests to which something happens: 0 to 1."""
        self.counts: Counter[str] = Counter()
        """How often each fault has happened."""
        self.journal: list[str] = []
        self._seed = seed
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._threads: list[threading.Thread] = []
        self._connections: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> FaultProxy:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would not wake the one who accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _hang_up(connection)
        for thread in self._threads:
            thread.join(2 * ANSWER_SECONDS)
            assert not thread.is_alive()

    def lines_about(self, run_id: int) -> list[str]:
        """Return what the journal has about a run."""
        mark = re.compile(rf"/run/{run_id}/|run {run_id}\b")
        with self._lock:
            return [line for line in self.journal if mark.search(line)]

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, name="fault proxy")
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as stream:
                while (request := _read(stream)) is not None:
                    if not self._handle(request, connection):
                        break
        except (OSError, ValueError):
            pass  # The worker is gone, perhaps killed in the middle of a word.
        finally:
            with self._lock:
                self._connections.discard(connection)
            _hang_up(connection)
            connection.close()

    def _handle(self, request: Request, connection: socket.socket) -> bool:
        """Answer, or not; return whether the connection is still good."""
        fault, chance = self._choose(request)
        raw = None
        outcome = "not sent on"
        if fault in ("", "delay", "twice", "lose_answer", "cut_short", "500_after"):
            if fault == "delay":
                time.sleep(chance * 0.3)
            answer = self._forward(request)
            if fault == "twice" and answer is not None:
                answer = self._forward(request)
            outcome = "no answer" if answer is None else str(answer.status)
            raw = None if answer is None else answer.raw()
        self._note(request, fault, outcome)
        match fault:
            case "lose_request" | "lose_answer":
                raw = None
            case "html":
                raw = Answer(200, "OK", (("Content-Type", "text/html"),), _PAGE).raw()
            case "garbage":
                connection.sendall(b"\x16\x03\x01\x00nonsense\r\n\r\n")
                return False
            case "cut_short" if raw is not None:
                connection.sendall(raw[: int(len(raw) * chance)])
                return False
            case "500" | "502" | "429" | "500_after":
                raw = _failure(int(fault[:3]), chance)
        if raw is None:
            return False
        connection.sendall(raw)
        return True

    def _choose(self, request: Request) -> tuple[str, float]:
        what = f"{request.method} {request.path}"
        with self._lock:
            self._asked[what] += 1
            dice = random.Random(f"{self._seed} {what} {self._asked[what]}")
            fault = ""
            if dice.random() < self.rate:
                (fault,) = dice.choices(list(FAULTS), list(FAULTS.values()))
                self.counts[fault] += 1
        return fault, dice.random()

    def _forward(self, request: Request) -> Answer | None:
        """Return the server's answer, None where it is away."""
        server = http.client.HTTPConnection(
            "127.0.0.1", self.server_port, timeout=ANSWER_SECONDS
        )
        try:
            headers = {**request.headers, "Connection": "close"}
            server.request(request.method, request.path, request.body, headers)
            found = server.getresponse()
            skipped = ("connection", "content-length", "transfer-encoding")
            kept = [
                (name, value)
                for name, value in found.getheaders()
                if name.lower() not in skipped
            ]
            return Answer(found.status, found.reason, tuple(kept), found.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            server.close()

    def _note(self, request: Request, fault: str, outcome: str) -> None:
        seconds = time.monotonic() - self._began
        body = request.body[:LOGGED_BYTES].decode("utf-8", "replace")
        line = (
            f"{seconds:8.3f} {request.method} {request.path} {body!r}: {outcome}"
            f"{f', {fault}' if fault else ''}"
        )
        with self._lock:
            self.journal.append(line)


def _failure(status: int, chance: float) -> bytes:
    later = (("Retry-After", "1"),) if status == 429 and chance < 0.3 else ()
    return Answer(status, _REASONS[status], later, b"no").raw()


def _read(stream: Any) -> Request | None:
    """Return the next request, None where the connection ends."""
    line = stream.readline()
    if not line:
        return None
    method, path, _ = line.decode("latin-1").split(" ", 2)
    headers = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    length = int(headers.pop("content-length", "0"))
    body = stream.read(length)
    if len(body) < length:
        return None
    return Request(method, path, headers, body)


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
