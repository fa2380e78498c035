"""WebSockets of browsers, which only ever listen, and what all WebSockets share.

One text frame per event, nothing is replayed, no subprotocol. Source: protocol.md,
section 2. The protocol itself is wsproto's; this module moves its bytes.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import gevent
from gevent import queue
from wsproto import ConnectionType, WSConnection, events
from wsproto.connection import ConnectionState
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

Environ = dict[str, Any]
Allow = Callable[[Environ], bool]
"""Whether a request, as a WSGI environment, may listen."""
Serve = Callable[[socket.socket, Environ], int]
"""Talks WebSocket over a connection until its end; returns the HTTP status given."""

MAX_CLIENTS = 500
MAX_WAITING_FRAMES = 1000
"""A client that has not taken so many events is dropped."""
PING_SECONDS = 30.0
SILENCE_SECONDS = 75.0
"""A client that has not answered pings for so long is dropped."""
SEND_SECONDS = 10.0
MAX_HEARD_CHARACTERS = 16 * 1024
"""What a worker says is some hundred characters."""
_CHUNK_BYTES = 16 * 1024
_log = logging.getLogger(__name__)


class EventSockets:
    """All WebSocket clients of a server. Used from one thread, any greenlet."""

    def __init__(self, max_clients: int = MAX_CLIENTS) -> None:
        self._max_clients = max_clients
        self._clients: set[Client] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._clients)

    def publish(self, body: bytes) -> None:
        """Give an event's JSON text to every client; never waits for one."""
        text = body.decode("utf-8")
        for client in tuple(self._clients):
            client.offer(text)

    def serve(self, connection: socket.socket, environ: Environ, allow: Allow) -> int:
        """Talk to one client until it goes; return the HTTP status it was given."""
        protocol = handshake(connection, environ)
        if protocol is None:
            return HTTPStatus.BAD_REQUEST
        if not allow(environ):
            return refuse(connection, HTTPStatus.FORBIDDEN)
        if self._closed or len(self._clients) >= self._max_clients:
            return refuse(connection, HTTPStatus.SERVICE_UNAVAILABLE)
        client = Client(connection, protocol)
        self._clients.add(client)
        try:
            client.run()
        finally:
            self._clients.discard(client)
        return HTTPStatus.SWITCHING_PROTOCOLS

    def close(self) -> None:
        """Tell every client that the server goes; take no more."""
        self._closed = True
        for client in tuple(self._clients):
            client.leave()


class Client:
    """One connection: its own greenlet reads, another one writes.

    ``hear`` is called with each text that the client sends; it may raise
    RemoteProtocolError, which ends the connection. Without it texts are ignored.
    """

    def __init__(
        self,
        connection: socket.socket,
        protocol: WSConnection,
        hear: Callable[[str], None] | None = None,
    ) -> None:
        self._connection = connection
        self._protocol = protocol
        self._hear = hear
        self._text = ""
        self._waiting: queue.Queue[events.Event | None] = queue.Queue(
            MAX_WAITING_FRAMES
        )

    def offer(self, text: str) -> None:
        """Queue an event; drop the client where it does not keep up."""
        self._queue(events.TextMessage(data=text))

    def leave(self) -> None:
        """Say goodbye."""
        self._queue(events.CloseConnection(code=CloseReason.GOING_AWAY))

    def run(self) -> None:
        """Read until the client goes, while another greenlet writes."""
        self._queue(events.AcceptConnection())
        writer = gevent.spawn(self._write)
        try:
            self._read()
        except (OSError, RemoteProtocolError):
            pass  # Gone, or not worth talking to.
        finally:
            # None ends the writer, which first sends what has been answered.
            with suppress(queue.Full):
                self._waiting.put_nowait(None)
            writer.join(1.0)
            writer.kill()

    def _read(self) -> None:
        self._connection.settimeout(PING_SECONDS)
        heard = time.monotonic()
        while True:
            try:
                data = self._connection.recv(_CHUNK_BYTES)
            except TimeoutError:
                if time.monotonic() - heard > SILENCE_SECONDS:
                    return
                self._queue(events.Ping())
                continue
            if not data:
                return
            heard = time.monotonic()
            self._protocol.receive_data(data)
            for event in self._protocol.events():
                # What a browser says is not for us; only its pings and its goodbye.
                if isinstance(event, events.Message):
                    self._listen_to(event)
                elif isinstance(event, events.Ping):
                    self._queue(event.response())
                elif isinstance(event, events.CloseConnection):
                    if self._protocol.state is ConnectionState.REMOTE_CLOSING:
                        self._queue(event.response())
                    return

    def _listen_to(self, event: events.Message) -> None:
        if self._hear is None:
            return
        if not isinstance(event, events.TextMessage):
            raise RemoteProtocolError("a message that is no text")
        self._text += event.data
        if len(self._text) > MAX_HEARD_CHARACTERS:
            raise RemoteProtocolError("too long a message")
        if event.message_finished:
            text, self._text = self._text, ""
            self._hear(text)

    def _write(self) -> None:
        with suppress(OSError, LocalProtocolError, gevent.Timeout):
            while (event := self._waiting.get()) is not None:
                data = self._protocol.send(event)
                while not self._waiting.empty() and len(data) < _CHUNK_BYTES:
                    event = self._waiting.get_nowait()
                    if event is None:
                        break
                    data += self._protocol.send(event)
                with gevent.Timeout(SEND_SECONDS):
                    self._connection.sendall(data)
                if event is None:
                    return
        self._drop()

    def _queue(self, event: events.Event) -> None:
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            _log.info("a WebSocket client does not keep up: dropped")
            self._drop()

    def _drop(self) -> None:
        """Wake the reader, which sees the end."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


def is_same_origin(environ: Environ) -> bool:
    """Return whether a browser's page comes from this server; programs send no Origin.

    Browsers send cookies with WebSockets of any page: only this tells them apart.
    """
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or origin.partition("://")[2] == environ.get("HTTP_HOST")


def handshake(connection: socket.socket, environ: Environ) -> WSConnection | None:
    """Return what answers a handshake; None where there is none, and it was refused."""
    try:
        return _handshake(environ)
    except RemoteProtocolError as error:
        refuse(
            connection,
            HTTPStatus.BAD_REQUEST,
            getattr(error.event_hint, "headers", []),
        )
        return None


def _handshake(environ: Environ) -> WSConnection:
    """Raises RemoteProtocolError where the request is no WebSocket handshake."""
    if environ["REQUEST_METHOD"] != "GET":
        raise RemoteProtocolError("a handshake is a GET")
    headers = [
        (name[5:].replace("_", "-").lower().encode(), value.encode("latin-1"))
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    protocol = WSConnection(ConnectionType.SERVER)
    protocol.initiate_upgrade_connection(headers, environ.get("REQUEST_URI", "/"))
    # The request itself; what it says has been judged by wsproto.
    next(protocol.events())
    return protocol


def refuse(
    connection: socket.socket,
    status: HTTPStatus,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> int:
    """Answer a request that becomes no WebSocket; return its status."""
    lines = [f"HTTP/1.1 {status:d} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    lines += [b"Content-Length: 0", b"Connection: close", b"", b""]
    with suppress(OSError, gevent.Timeout), gevent.Timeout(SEND_SECONDS):
        connection.sendall(b"\r\n".join(lines))
    return int(status)
