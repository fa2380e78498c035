"""How soon many browsers hear of an event: WebSocket clients of a logged-in person."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import zmq
from central import BenchmarkError
from figures import Figure
from server_measures import Site
from wsproto import ConnectionType, WSConnection, events

from job_runner_worker import protocol

CLIENTS = 200
PATH = "/ws/events/"
LIMIT_SECONDS = 30.0
PAUSE_SECONDS = 0.02
TARGET = {"p95": 100.0}


class Client:
    """One WebSocket."""

    def __init__(self, url: str, cookie: str) -> None:
        where = urlsplit(url)
        address = (where.hostname or "", where.port or 0)
        self.socket = socket.create_connection(address, LIMIT_SECONDS)
        self._protocol = WSConnection(ConnectionType.CLIENT)
        headers = [(b"cookie", cookie.encode())]
        request = events.Request(where.netloc, PATH, extra_headers=headers)
        self.socket.sendall(self._protocol.send(request))

    def heard(self) -> Iterator[events.Event]:
        """Yield what has come, after the socket is readable."""
        self._protocol.receive_data(self.socket.recv(65536) or None)
        yield from self._protocol.events()


def measure_listeners(site: Site, rounds: int, count: int = CLIENTS) -> list[Figure]:
    """Publish events as a worker does; how long until the last client has each?"""
    with _clients(site, count) as selector, _mouth(site) as mouth:
        last = [
            _publish(selector, mouth, number, count) for number in range(1, rounds + 1)
        ]
    return [
        Figure(
            f"listeners_{site.kind}",
            f"event -> the last of {count} WebSocket clients; {site.kind}",
            "ms",
            last,
            TARGET,
        )
    ]


@contextmanager
def _clients(site: Site, count: int) -> Iterator[selectors.BaseSelector]:
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(count):
            client = Client(site.server.url, site.server.cookie)
            stack.callback(client.socket.close)
            (answer,) = client.heard()
            if not isinstance(answer, events.AcceptConnection):
                raise BenchmarkError(f"no WebSocket: {answer}")
            selector.register(client.socket, selectors.EVENT_READ, client)
        yield selector


@contextmanager
def _mouth(site: Site) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.XPUB) as mouth:
        mouth.setsockopt(zmq.LINGER, 0)
        mouth.setsockopt(zmq.RCVTIMEO, int(LIMIT_SECONDS * 1000))
        mouth.connect(f"tcp://127.0.0.1:{site.server.ports['events']}")
        mouth.recv()
        yield mouth


def _publish(
    selector: selectors.BaseSelector,
    mouth: zmq.Socket[bytes],
    number: int,
    count: int,
) -> float:
    time.sleep(PAUSE_SECONDS)
    event = {"kind": "run", "event": "started", "run_id": number}
    began = time.perf_counter()
    mouth.send_multipart([protocol.EVENT_TOPIC, json.dumps(event).encode()])
    waiting = count
    while waiting:
        ready = selector.select(LIMIT_SECONDS)
        if not ready:
            raise BenchmarkError(f"{waiting} of {count} clients heard nothing")
        for key, _ in ready:
            waiting -= sum(
                isinstance(each, events.TextMessage)
                and json.loads(each.data)["run_id"] == number
                for each in key.data.heard()
            )
    return (time.perf_counter() - began) * 1000
