"""WebSockets of workers: orders to them, and what they answer. See docs/channel.rst."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from http import HTTPStatus

import zmq
from django.core.handlers.wsgi import WSGIRequest
from django.db import Error as DatabaseError
from django.db import close_old_connections
from django.utils import timezone
from rest_framework.exceptions import AuthenticationFailed
from wsproto.utilities import RemoteProtocolError

from job_runner_worker import protocol
from job_runner_worker.errors import ProtocolError
from job_runner_worker.models import Event, EventKind, Pong
from job_runner_worker.server import lifecycle
from job_runner_worker.server.api_auth import WorkerAuthentication
from job_runner_worker.server.models import KillRequest, Worker
from job_runner_worker.server.order_feed import OrderFeed
from job_runner_worker.server.websocket import Client, Environ, handshake, refuse

WORKER_PATH = "/ws/worker/"
MAX_CHANNELS = 4000
MAX_NONSENSE = 100
"""So many messages that make no sense end a connection."""
_log = logging.getLogger(__name__)


class WorkerChannels:
    """The workers that keep a connection open. ``publish`` passes their events on."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        publish: Callable[[bytes], None],
        max_channels: int = MAX_CHANNELS,
    ) -> None:
        self.pongs: dict[str, Pong] = {}
        """What each connected worker last said of itself, by its key."""
        self._publish = publish
        self._max_channels = max_channels
        self._feed = OrderFeed(context, self._deliver)
        self._channels: dict[str, set[_Channel]] = {}
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._channels.values()))

    def start(self) -> None:
        """Hear the broadcaster from now on."""
        self._feed.start()

    def serve(self, connection: socket.socket, environ: Environ) -> int:
        """Talk to one worker until it goes; return the HTTP status it was given."""
        talk = handshake(connection, environ)
        if talk is None:
            return HTTPStatus.BAD_REQUEST
        worker = _worker(environ)
        if worker is None:
            return refuse(connection, HTTPStatus.UNAUTHORIZED)
        if self._closed or len(self) >= self._max_channels:
            return refuse(connection, HTTPStatus.SERVICE_UNAVAILABLE)
        channel = _Channel(self, worker)
        channel.client = Client(connection, talk, channel.hear)
        self._enter(channel)
        try:
            channel.client.run()
        finally:
            self._leave(channel)
        return HTTPStatus.SWITCHING_PROTOCOLS

    def close(self) -> None:
        """Tell every worker that the server goes; take no more."""
        self._closed = True
        for channels in tuple(self._channels.values()):
            for channel in tuple(channels):
                channel.client.leave()
        self._feed.close()

    def heard(self, worker: Worker, answer: Pong | Event, body: bytes) -> None:
        """Take note of what a worker says. Raises DatabaseError."""
        now = timezone.now()
        if isinstance(answer, Pong):
            self.pongs[worker.api_key] = answer
            Worker.objects.filter(pk=worker.pk).update(
                ping_response_dts=now,
                worker_version=answer.version,
                concurrent_jobs=answer.slots,
            )
            return
        if answer.kind is EventKind.KILL_REQUEST and answer.event == "enqueued":
            mine = KillRequest.objects.filter(pk=answer.id, run__worker=worker.pk)
            if mine.exists():
                lifecycle.kill_enqueued(answer.id, now)
        self._publish(body)

    def _enter(self, channel: _Channel) -> None:
        api_key = channel.worker.api_key
        others = self._channels.setdefault(api_key, set())
        if others:
            # Subscribed anew: the broadcaster repeats what the old connection lost.
            self._feed.leave(api_key)
        others.add(channel)
        self._feed.join(api_key)
        _log.info("worker %s: connected by WebSocket", api_key)

    def _leave(self, channel: _Channel) -> None:
        api_key = channel.worker.api_key
        others = self._channels[api_key]
        others.discard(channel)
        if not others:
            del self._channels[api_key]
            self.pongs.pop(api_key, None)
            self._feed.leave(api_key)

    def _deliver(self, api_key: str, body: bytes) -> None:
        for channel in tuple(self._channels.get(api_key, ())):
            channel.client.offer(body.decode("utf-8"))


class _Channel:
    """One connection of one worker."""

    client: Client

    def __init__(self, channels: WorkerChannels, worker: Worker) -> None:
        self.worker = worker
        self._channels = channels
        self._nonsense = 0

    def hear(self, text: str) -> None:
        """Take a message; much that makes no sense ends the connection."""
        body = text.encode("utf-8")
        try:
            answer = protocol.decode_answer(body)
        except ProtocolError as error:
            self._nonsense += 1
            _log.warning("worker %s: ignored: %s", self.worker.api_key, error)
            if self._nonsense >= MAX_NONSENSE:
                raise RemoteProtocolError("too much nonsense") from error
            return
        try:
            self._channels.heard(self.worker, answer, body)
        except DatabaseError as error:
            _log.error("worker %s: not noted: %s", self.worker.api_key, error)
        finally:
            close_old_connections()


def _worker(environ: Environ) -> Worker | None:
    """Return who has signed a handshake: it is signed as every request is."""
    try:
        found = WorkerAuthentication().authenticate(WSGIRequest(environ))
    except AuthenticationFailed:
        return None
    finally:
        close_old_connections()
    return found[0] if found else None
