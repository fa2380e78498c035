"""A small HTTP/1.1 server: a thread per connection, keep-alive, no delays."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import BinaryIO

from job_runner_worker.testing.rest import Answer

Handle = Callable[[str, str, dict[str, str], bytes], Answer]
"""(method, path with query, headers in lower case, body) to the answer."""

_MAX_LINE_BYTES = 64 * 1024
_JOIN_SECONDS = 5.0


class HttpFront:
    """Takes connections on one address and lets a function answer the requests.

    With ``keep_alive=False`` it answers as the original development server does:
    HTTP/1.0, no Content-Length, one request per connection.
    """

    def __init__(
        self, handle: Handle, host: str, port: int = 0, *, keep_alive: bool = True
    ) -> None:
        self._handle = handle
        self._host = host
        self._wanted_port = port
        self._keep_alive = keep_alive
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._listener: socket.socket | None = None
        self._acceptor = threading.Thread(target=self._accept, name="http accept")
        self.connections_accepted = 0

    @property
    def port(self) -> int:
        """The port that connections are taken on."""
        assert self._listener is not None
        port: int = self._listener.getsockname()[1]
        return port

    def start(self) -> None:
        """Take connections from now on."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        address = (self._host, self._wanted_port)
        self._listener = socket.create_server(address, family=family, backlog=128)
        self._acceptor.start()

    def drop_connections(self) -> None:
        """Cut every connection there is; new ones are taken."""
        with self._lock:
            for connection in self._connections:
                _cut(connection)

    def close(self) -> None:
        """Cut everything and wait until the threads are gone."""
        if self._listener is None:
            return
        # Wakes accept(), which close() does not.
        _cut(self._listener)
        self._acceptor.join(_JOIN_SECONDS)
        self._listener.close()
        self.drop_connections()
        for thread in tuple(self._connections.values()):
            thread.join(_JOIN_SECONDS)

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="http connection"
            )
            with self._lock:
                self.connections_accepted += 1
                self._connections[connection] = thread
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A client may go away at any moment; that is its own business.
        with suppress(OSError), connection.makefile("rb") as stream:
            while self._serve_one(connection, stream):
                pass
        with self._lock:
            del self._connections[connection]
            connection.close()

    def _serve_one(self, connection: socket.socket, stream: BinaryIO) -> bool:
        """Answer one request; return whether the connection stays."""
        words = stream.readline(_MAX_LINE_BYTES).decode("utf-8", "replace").split()
        if len(words) != 3:
            return False
        method, target, version = words
        headers = _read_headers(stream)
        body = stream.read(int(headers.get("content-length", "0")))
        answer = self._handle(method, target, headers, body)
        if answer.is_lost:
            return False
        stays = (
            self._keep_alive
            and version == "HTTP/1.1"
            and headers.get("connection", "").lower() != "close"
            and "transfer-encoding" not in headers
        )
        encoded = self._encode(answer, stays)
        if answer.is_cut:
            # Within the body; where there is none, within the first line.
            encoded = encoded[: -(len(answer.body) // 2)] if answer.body else b"HTTP/1"
        connection.sendall(encoded)
        return stays and not answer.is_cut

    def _encode(self, answer: Answer, stays: bool) -> bytes:
        # One write: two of them cost 40 ms with Nagle and delayed acknowledgements.
        version = "HTTP/1.1" if self._keep_alive else "HTTP/1.0"
        lines = [f"{version} {answer.status} {HTTPStatus(answer.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        lines.append(f"date: {formatdate(usegmt=True)}")
        if self._keep_alive:
            lines.append(f"content-length: {len(answer.body)}")
        if not stays:
            lines.append("connection: close")
        return "\r\n".join([*lines, "", ""]).encode("utf-8") + answer.body


def _read_headers(stream: BinaryIO) -> dict[str, str]:
    headers = {}
    while (line := stream.readline(_MAX_LINE_BYTES)) not in (b"\r\n", b"\n", b""):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            text = line.decode("latin-1")
        name, _, value = text.partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
