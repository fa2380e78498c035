"""One WebSocket connection of a worker: from the handshake to its end.

The protocol itself is wsproto's; this module moves its bytes, and tells a connection
that is up from one over which nothing passes.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

import gevent
from gevent import queue
from wsproto import ConnectionType, WSConnection, events
from wsproto.connection import ConnectionState
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from job_runner_worker import __version__
from job_runner_worker.errors import LinkError
from job_runner_worker.protocol import MAX_FRAME_BYTES

MAX_WAITING = 1000
"""So many messages may wait to be sent: what is more is lost, as any event may be."""
SEND_SECONDS = 10.0
_CHUNK_BYTES = 16 * 1024
_PORTS = {"ws": 80, "wss": 443}
Identify = Callable[[str, str, bytes], Mapping[str, bytes]]
"""Returns the headers that sign a request: method, target, body."""


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """Where the server is, and how it is known.

    ``verify`` is True, False, or the path of a bundle of certificates.
    """

    url: str
    identify: Identify
    ping_seconds: float
    timeout_seconds: float
    verify: bool | str = True
    client_certificate: tuple[str, str] | None = None


class Link:
    """A connection that is up. One greenlet reads, another one writes."""

    def __init__(
        self, connection: socket.socket, protocol: WSConnection, ping_seconds: float
    ) -> None:
        self.heard_at = time.monotonic()
        self._connection = connection
        self._protocol = protocol
        self._ping_seconds = ping_seconds
        self._waiting: queue.Queue[events.Event | None] = queue.Queue(MAX_WAITING)
        self._writer = gevent.spawn(self._write)

    def send(self, body: bytes) -> None:
        """Queue a message; never waits for the other side."""
        self._queue(events.TextMessage(data=body.decode("utf-8")))

    def messages(self) -> Iterator[bytes]:
        """Yield what the server says. Raises LinkError at the end of the connection.

        Bytes that are no text are yielded, too: whoever reads them says what is wrong.
        """
        parts: list[bytes] = []
        length = 0
        for event in self._events():
            if isinstance(event, events.TextMessage | events.BytesMessage):
                data = event.data
                parts.append(data.encode() if isinstance(data, str) else bytes(data))
                length += len(parts[-1])
                if length > MAX_FRAME_BYTES:
                    raise LinkError(f"a message of more than {MAX_FRAME_BYTES} bytes")
                if event.message_finished:
                    yield b"".join(parts)
                    parts, length = [], 0
            elif isinstance(event, events.Ping):
                self._queue(event.response())
            elif isinstance(event, events.CloseConnection):
                why = f" ({event.reason[:80]!a})" if event.reason else ""
                if self._protocol.state is not ConnectionState.REMOTE_CLOSING:
                    # What wsproto itself makes of a frame that is none.
                    raise LinkError(f"no WebSocket any more{why}")
                self._queue(event.response())
                raise LinkError(f"closed by the server, code {event.code}{why}")

    def close(self) -> None:
        """Say goodbye, within moments, and let go."""
        self._queue(events.CloseConnection(code=CloseReason.GOING_AWAY))
        with suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._writer.join(0.2)
        self._writer.kill()
        self._connection.close()

    def _events(self) -> Iterator[events.Event]:
        """Yield what wsproto makes of the bytes; test a connection that is silent."""
        self._connection.settimeout(self._ping_seconds)
        is_tested = False
        while True:
            try:
                # What has come together with the handshake is there already.
                yield from self._protocol.events()
                data = self._connection.recv(_CHUNK_BYTES)
                self._protocol.receive_data(data or None)
            except TimeoutError:
                if is_tested:
                    seconds = 2 * self._ping_seconds
                    raise LinkError(f"nothing heard for {seconds:g} s") from None
                is_tested = True
                self._queue(events.Ping())
                continue
            except RemoteProtocolError as error:
                raise LinkError(f"no WebSocket any more: {error}") from error
            except OSError as error:
                raise LinkError(f"broken: {error}") from error
            is_tested = False
            self.heard_at = time.monotonic()

    def _queue(self, event: events.Event) -> None:
        with suppress(queue.Full):
            self._waiting.put_nowait(event)

    def _write(self) -> None:
        with suppress(OSError, LocalProtocolError, gevent.Timeout):
            while (event := self._waiting.get()) is not None:
                data = self._protocol.send(event)
                with gevent.Timeout(SEND_SECONDS):
                    self._connection.sendall(data)
            return
        # Wake the reader, which sees the end.
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


def dial(options: LinkOptions) -> Link:
    """Return a connection that has been accepted. Raises LinkError."""
    connection: socket.socket | None = None
    try:
        with gevent.Timeout(options.timeout_seconds, TimeoutError("timed out")):
            connection = _connect(options)
            protocol = _shake_hands(connection, options)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if connection is not None:
            connection.close()
        raise LinkError(f"no connection: {error}") from error
    except BaseException:
        if connection is not None:
            connection.close()
        raise
    return Link(connection, protocol, options.ping_seconds)


def _connect(options: LinkOptions) -> socket.socket:
    """Return a connection to the server, through a proxy and with TLS if need be."""
    parts = urlsplit(options.url)
    host, scheme = parts.hostname or "", parts.scheme.lower()
    port = parts.port or _PORTS[scheme]
    proxy = _proxy(scheme, host)
    first = (proxy.hostname or "", proxy.port or 8080) if proxy else (host, port)
    seconds = options.timeout_seconds
    way: http.client.HTTPConnection
    if scheme == "wss":
        context = _tls_context(options)
        way = http.client.HTTPSConnection(*first, timeout=seconds, context=context)
    else:
        way = http.client.HTTPConnection(*first, timeout=seconds)
    if proxy is not None:
        way.set_tunnel(host, port, _proxy_headers(proxy.username, proxy.password))
    try:
        way.connect()
    except BaseException:
        way.close()
        raise
    connection: socket.socket = way.sock
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _shake_hands(connection: socket.socket, options: LinkOptions) -> WSConnection:
    parts = urlsplit(options.url)
    target = parts.path or "/"
    if parts.query:
        target = f"{target}?{parts.query}"
    signed = options.identify("GET", target, b"")
    headers = [(name.encode("ascii"), value) for name, value in signed.items()]
    headers.append((b"User-Agent", f"job_runner_worker/{__version__}".encode("ascii")))
    protocol = WSConnection(ConnectionType.CLIENT)
    request = events.Request(host=parts.netloc, target=target, extra_headers=headers)
    connection.sendall(protocol.send(request))
    while True:
        try:
            protocol.receive_data(connection.recv(_CHUNK_BYTES) or None)
            answer = next(protocol.events(), None)
        except RemoteProtocolError as error:
            raise LinkError(f"the answer is no WebSocket's: {error}") from error
        if isinstance(answer, events.AcceptConnection):
            return protocol
        if isinstance(answer, events.RejectConnection):
            raise LinkError(_refusal(answer), answer.status_code)
        if answer is not None:
            raise LinkError("no answer to the handshake")


def _refusal(answer: events.RejectConnection) -> str:
    status = answer.status_code
    with suppress(ValueError):
        if 300 <= status < 400:
            where = dict(answer.headers).get(b"location", b"nowhere")
            shown = where[:200].decode("ascii", "replace")
            return f"redirected ({status}) to {shown}: correct channel_url"
        phrase = HTTPStatus(status).phrase
        if status == HTTPStatus.UNAUTHORIZED:
            return f"refused ({status} {phrase}): check api_key and secret"
        return f"refused ({status} {phrase})"
    return f"refused ({status})"


def _tls_context(options: LinkOptions) -> ssl.SSLContext:
    bundle = options.verify if isinstance(options.verify, str) else None
    context = ssl.create_default_context(cafile=bundle)
    if options.verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.client_certificate is not None:
        context.load_cert_chain(*options.client_certificate)
    return context


class _Proxy:
    """An HTTP proxy of the environment's."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address if "//" in address else f"//{address}")
        self.hostname, self.port = parts.hostname, parts.port
        self.username, self.password = parts.username, parts.password


def _proxy(scheme: str, host: str) -> _Proxy | None:
    """Return the proxy that the environment names, as the API's client has it."""
    proxies = urllib.request.getproxies_environment()
    address = proxies.get("https" if scheme == "wss" else "http") or proxies.get("all")
    if not address or urllib.request.proxy_bypass(host):
        return None
    return _Proxy(address)


def _proxy_headers(name: str | None, password: str | None) -> dict[str, str]:
    if not name:
        return {}
    words = f"{unquote(name)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(words).decode('ascii')}"}
