"""The server's end of a worker's WebSocket, which says whatever a test wants."""

from __future__ import annotations

import base64
import hashlib
import json
import queue
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

LIMIT_SECONDS = 20.0
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode: int, body: bytes, *, first_bits: int = 0x80) -> bytes:
    """Return a frame as a server sends it, without a mask."""
    length = len(body)
    head = bytes([first_bits | opcode])
    if length < 126:
        return head + bytes([length]) + body
    if length < 65536:
        return head + b"\x7e" + length.to_bytes(2, "big") + body
    return head + b"\x7f" + length.to_bytes(8, "big") + body


@dataclass
class Visit:
    """One connection of a worker: its handshake, and what it says."""

    request_line: str
    headers: dict[str, str]
    connection: socket.socket
    heard: queue.Queue[tuple[int, bytes]] = field(default_factory=queue.Queue)
    is_over: threading.Event = field(default_factory=threading.Event)

    def order(self, **message: object) -> None:
        self.raw(frame(TEXT, json.dumps(message).encode()))

    def raw(self, content: bytes) -> None:
        with suppress(OSError):
            self.connection.sendall(content)

    def next(self, opcode: int = TEXT) -> bytes:
        """Return what the worker says next in frames of a kind."""
        while True:
            found, body = self.heard.get(timeout=LIMIT_SECONDS)
            if found == opcode:
                return body

    def message(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.next())
        return found


class ChannelStandIn:
    """Takes connections in a thread each. ``answer`` may refuse a handshake."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answer: Callable[[Visit], bytes] = accept
        self._context = context
        self._visits: queue.Queue[Visit] = queue.Queue()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def url(self) -> str:
        scheme = "wss" if self._context else "ws"
        return f"{scheme}://127.0.0.1:{self.port}/ws/worker/"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in [self._listener, *self._open]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT_SECONDS)
        for end in [self._listener, *self._open]:
            end.close()

    def visit(self) -> Visit:
        """Return the next connection, once it is there."""
        return self._visits.get(timeout=LIMIT_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(plain)
            self._threads.append(threading.Thread(target=self._serve, args=[plain]))
            self._threads[-1].start()

    def _serve(self, plain: socket.socket) -> None:
        with suppress(OSError, ValueError):
            connection = plain
            if self._context is not None:
                connection = self._context.wrap_socket(plain, server_side=True)
                self._open.append(connection)
            stream = connection.makefile("rb")
            request_line = stream.readline().decode().strip()
            headers = {}
            while line := stream.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            visit = Visit(request_line, headers, connection)
            answer = self.answer(visit)
            connection.sendall(answer)
            if answer != accept(visit):
                connection.shutdown(socket.SHUT_WR)
            self._visits.put(visit)
            try:
                self._listen(stream, visit)
            finally:
                visit.is_over.set()

    def _listen(self, stream: Any, visit: Visit) -> None:
        while len(head := stream.read(2)) == 2:
            length = head[1] & 0x7F
            if length > 125:
                length = int.from_bytes(stream.read(2 if length == 126 else 8), "big")
            mask = stream.read(4)
            body = bytes(
                each ^ mask[i % 4] for i, each in enumerate(stream.read(length))
            )
            visit.heard.put((head[0] & 0x0F, body))


def accept(visit: Visit) -> bytes:
    """Return the answer that makes a connection a WebSocket."""
    key = visit.headers.get("sec-websocket-key", "").encode()
    proof = base64.b64encode(hashlib.sha1(key + _MAGIC).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + proof + b"\r\n\r\n"
    )
