"""A TCP proxy whose connections can fall silent without anybody being told."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from typing import Self

_CHUNK_BYTES = 64 * 1024


class HalfOpenProxy:
    """Forwards connections to a port of this machine, in a thread; a context manager.

    `freeze` makes every connection of now half-open: both ends stay up, and nothing
    passes any more. Later connections are forwarded. `move` makes it refuse or forward
    elsewhere, and cuts what there is.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port: int | None = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._frozen: list[socket.socket] = []
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="proxy")

    def __enter__(self) -> Self:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join(5.0)
        for end in (*self._pairs, *self._frozen, self._listener, self._woken):
            end.close()
        self._selector.close()

    def freeze(self) -> None:
        """Let nothing pass over the connections there are."""
        with self._lock:
            for end in self._pairs:
                self._selector.unregister(end)
                self._frozen.append(end)
            self._pairs.clear()

    def inject(self, content: bytes) -> None:
        """Say something to every client, as if its server had."""
        with self._lock:
            for client in self._clients & self._pairs.keys():
                with suppress(OSError):
                    client.sendall(content)

    def move(self, target_port: int | None) -> None:
        """Cut every connection; from now on forward elsewhere, or nowhere."""
        with self._lock:
            self._target_port = target_port
            for end in tuple(self._pairs):
                self._cut(end)

    def _serve(self) -> None:
        while True:
            ready = [key.fileobj for key, _ in self._selector.select()]
            for end in ready:
                assert isinstance(end, socket.socket)
                if end is self._woken:
                    return
                with self._lock:
                    if end is self._listener:
                        self._accept()
                    elif end in self._pairs:
                        self._forward(end)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            assert self._target_port is not None
            server = socket.create_connection(("127.0.0.1", self._target_port))
        except (OSError, AssertionError):
            client.close()
            return
        self.accepted += 1
        self._clients.add(client)
        self._pairs.update({client: server, server: client})
        for end in (client, server):
            self._selector.register(end, selectors.EVENT_READ)

    def _forward(self, end: socket.socket) -> None:
        content = b""
        with suppress(OSError):
            content = end.recv(_CHUNK_BYTES)
            self._pairs[end].sendall(content)
        if not content:
            self._cut(end)

    def _cut(self, end: socket.socket) -> None:
        other = self._pairs.pop(end, None)
        if other is not None:
            self._pairs.pop(other)
            for each in (end, other):
                self._selector.unregister(each)
                each.close()
