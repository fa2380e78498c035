"""Connections to one HTTP server, each used for one request after the other.

`http_way` opens them. What is said on them is the same every time, and said here: all
that a general client does for a request takes several times as long as the request
itself.
"""

from __future__ import annotations

import ssl
import time
import weakref
from collections.abc import Mapping
from typing import Any

import gevent
from gevent.lock import Semaphore

from job_runner_worker.http_answer import Answer, AnswerReader
from job_runner_worker.http_way import Way

MAX_CONNECTIONS = 16
_LARGE_BYTES = 64 * 1024


class HttpConnections:
    """``headers`` are those of every request, besides what the way says.

    ``timeout_seconds`` bounds a request as a whole, ``max_answer_bytes`` what is read
    of its answer.
    """

    def __init__(
        self,
        way: Way,
        headers: Mapping[str, str],
        timeout_seconds: float,
        max_answer_bytes: int,
    ) -> None:
        self._way = way
        self._timeout_seconds = timeout_seconds
        self._max_answer_bytes = max_answer_bytes
        self._headers = _lines({"Host": way.host, **headers, **way.proxy_headers})
        self._room = Semaphore(MAX_CONNECTIONS)
        self._idle: list[Any] = []
        weakref.finalize(self, _close, self._idle)

    def exchange(
        self,
        method: str,
        target: str,
        identity: Mapping[str, bytes],
        body: bytes | None,
    ) -> Answer:
        """Send a request and return its answer; nothing is sent a second time.

        ``identity`` are the headers that say who asks. Raises OSError, ValueError for
        what is no answer.
        """
        parts = [f"{method} {self._way.address}{target} HTTP/1.1\r\n".encode("ascii")]
        parts += [self._headers, _lines(identity)]
        if body is not None:
            parts.append(b"Content-Length: %d\r\n" % len(body))
        # One write, so that no answer waits for half a request; but no copy of a log.
        head, rest = b"".join((*parts, b"\r\n")), body or b""
        if len(rest) < _LARGE_BYTES:
            head, rest = head + rest, b""
        deadline = time.monotonic() + self._timeout_seconds
        if not self._room.acquire(timeout=self._timeout_seconds):
            raise TimeoutError("timed out: every connection is in use")
        try:
            connection = self._idle_one() or self._connect()
            try:
                answer = self._ask(connection, (head, rest), deadline)
            except BaseException:
                connection.close()
                raise
            if answer.may_reuse:
                self._idle.append(connection)
            else:
                connection.close()
        finally:
            self._room.release()
        return answer

    def close(self) -> None:
        """Close the connections that nobody uses."""
        _close(self._idle)

    def _ask(
        self, socket: Any, request: tuple[bytes, bytes], deadline: float
    ) -> Answer:
        def receive(length: int) -> bytes:
            socket.settimeout(_left(deadline))
            received: bytes = socket.recv(length)
            return received

        socket.settimeout(_left(deadline))
        for part in filter(None, request):
            socket.sendall(part)
        return AnswerReader(receive, self._max_answer_bytes).read()

    def _idle_one(self) -> Any | None:
        """Return the connection that was used last, None if there is none."""
        while self._idle:
            connection = self._idle.pop()
            connection.settimeout(0.0)
            try:
                # What is there belongs to no request: mostly it is the end.
                connection.recv(1)
            except (BlockingIOError, ssl.SSLWantReadError):
                return connection
            except OSError:
                pass
            connection.close()
        return None

    def _connect(self) -> Any:
        # Names, tunnels and TLS have waits of their own; this is all of them.
        with gevent.Timeout(self._timeout_seconds, TimeoutError("timed out")):
            return self._way.connect(self._timeout_seconds)


def _close(connections: list[Any]) -> None:
    while connections:
        connections.pop().close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _lines(headers: Mapping[str, str | bytes]) -> bytes:
    """Return headers as they are sent. Raises ValueError for a value of two lines."""
    lines = b""
    for name, value in headers.items():
        content = value if isinstance(value, bytes) else value.encode("latin-1")
        if b"\r" in content or b"\n" in content:
            raise ValueError(f"a line end in {name}")
        lines += b"%s: %s\r\n" % (name.encode("ascii"), content)
    return lines
