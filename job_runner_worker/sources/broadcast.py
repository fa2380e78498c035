"""Orders by ZeroMQ broadcast: the source of an ordinary Job-Runner worker."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import gevent
import zmq.green as zmq
from gevent.event import Event
from zmq.utils.monitor import recv_monitor_message

from job_runner_worker import curve, protocol
from job_runner_worker.curve_keys import ClientKeys
from job_runner_worker.errors import ProtocolError
from job_runner_worker.models import Command
from job_runner_worker.sources.central import CentralSource, Claims

OVERLAP_SECONDS = 5.0
"""How long two connections stay open at a reconnect, so that nothing is missed."""
BATCH_MESSAGES = 1_000
"""How many are taken at once before others have their turn."""
MAX_BACKLOG_MESSAGES = 200_000
MAX_BACKLOG_BYTES = 64 * 1024 * 1024
"""After so much without a pause, what waits is dropped unread."""
_HEARTBEAT_PATIENCE = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BroadcastOptions:
    """Where the broadcaster is, and how long its silence is believed."""

    address: str
    api_key: str
    heartbeat_seconds: float
    reconnect_after_inactivity_seconds: float
    curve_keys: ClientKeys | None = None


class BroadcastSource(CentralSource):
    """Subscribes to the central broadcaster; claims over REST."""

    name = "broadcast"

    def __init__(self, options: BroadcastOptions, claims: Claims) -> None:
        super().__init__(claims)
        self._options = options
        self._context = zmq.Context()
        self._current: zmq.Socket[bytes] | None = None
        self._previous: zmq.Socket[bytes] | None = None
        self._overlaps_until = 0.0
        self._closed = False
        self.heard_at: float | None = None
        """When the broadcaster last said something, in monotonic seconds."""
        self._backlog_messages = self._backlog_bytes = 0
        self._monitor: zmq.Socket[bytes] | None = None
        self._watching: gevent.Greenlet[..., None] | None = None
        self._listening = Event()

    def commands(self) -> Iterator[Command]:
        """Yield orders. Nonsense is logged; it costs the connection nothing."""
        self._current = self._connect(is_first=True)
        while not self._closed:
            for frames in self._receive():
                try:
                    command = protocol.decode_command(frames, self._options.api_key)
                except ProtocolError as error:
                    _log.warning("broadcast ignored: %s", error)
                    continue
                if command is not None:
                    yield command
            if self._backlog_messages:
                gevent.sleep(0)

    def wait_until_listening(self) -> None:
        """Return when the broadcaster has taken the first connection."""
        self._listening.wait()

    def close(self) -> None:
        """See sources.base.Source."""
        self._closed = True
        self._stop_watching()
        self._close_previous()
        if self._current is not None:
            self._current.close(linger=0)
        self._context.term()

    def _receive(self) -> list[list[bytes]]:
        """Wait for broadcasts; after a long silence, or to end an overlap, return none.

        The queue has no limit of its own: a full one together with heartbeats aborts
        the process in libzmq 4.3.5.
        """
        poller = zmq.Poller()
        sockets = [socket for socket in (self._current, self._previous) if socket]
        for socket in sockets:
            poller.register(socket, zmq.POLLIN)
        if self._previous is not None:
            patience = OVERLAP_SECONDS
        else:
            patience = self._options.reconnect_after_inactivity_seconds
        ready = dict(poller.poll(int(patience * 1000)))
        received = [frames for socket in ready for frames in _take(socket)]
        self._note_backlog(received)
        if received:
            self.heard_at = time.monotonic()
        if self._previous is not None:
            is_drained = len(received) < BATCH_MESSAGES
            is_late = self._overlaps_until < time.monotonic()
            if is_late or (is_drained and self._current in ready):
                self._close_previous()
        elif not ready:
            self._reconnect()
        return received

    def _note_backlog(self, received: list[list[bytes]]) -> None:
        """Drop what waits where the sender has been faster for too long.

        Orders are repeated until they are heard. Nobody knows how many these were.
        """
        if len(received) < BATCH_MESSAGES:
            self._backlog_messages = self._backlog_bytes = 0
            return
        self._backlog_messages += len(received)
        self._backlog_bytes += sum(map(len, chain.from_iterable(received)))
        if (
            self._backlog_messages > MAX_BACKLOG_MESSAGES
            or self._backlog_bytes > MAX_BACKLOG_BYTES
        ):
            _log.error(
                "the broadcaster has sent %d messages, %d bytes, without a pause: what "
                "waits is dropped, orders come again",
                self._backlog_messages,
                self._backlog_bytes,
            )
            self._backlog_messages = self._backlog_bytes = 0
            self._close_previous()
            self._listening.set()
            self._stop_watching()
            assert self._current is not None
            self._current.close(linger=0)
            self._current = self._connect()

    def _reconnect(self) -> None:
        _log.info(
            "nothing heard from the broadcaster for %g s: connecting again",
            self._options.reconnect_after_inactivity_seconds,
        )
        self._previous, self._current = self._current, self._connect()
        self._overlaps_until = time.monotonic() + OVERLAP_SECONDS

    def _close_previous(self) -> None:
        if self._previous is not None:
            self._previous.close(linger=0)
            self._previous = None

    def _watch_handshake(self, socket: zmq.Socket[bytes]) -> None:
        """Note when the first connection is through, with its subscription."""
        self._monitor = socket.get_monitor_socket(curve.HANDSHAKE_EVENTS)
        self._watching = gevent.spawn(self._await_handshake, socket, self._monitor)

    def _await_handshake(
        self, socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes]
    ) -> None:
        told = ""
        is_curve = self._options.curve_keys is not None
        while why := curve.failure(recv_monitor_message(monitor), is_curve=is_curve):
            # It is tried again for ever.
            if why != told:
                _log.warning("broadcaster at %s: %s", self._options.address, why)
            told = why
        self._listening.set()
        self._stop_watching()

    def _stop_watching(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None and watching is not gevent.getcurrent():
            watching.kill()
        if self._monitor is not None and self._current is not None:
            if not self._current.closed:
                self._current.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None

    def _connect(self, *, is_first: bool = False) -> zmq.Socket[bytes]:
        options = self._options
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.IPV6, 1)
        curve.protect(socket, options.curve_keys)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_FRAME_BYTES)
        if options.heartbeat_seconds:
            milliseconds = int(options.heartbeat_seconds * 1000)
            socket.setsockopt(zmq.HEARTBEAT_IVL, milliseconds)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, milliseconds * _HEARTBEAT_PATIENCE)
        socket.setsockopt(zmq.SUBSCRIBE, protocol.broadcast_topic(options.api_key))
        if is_first:
            self._watch_handshake(socket)
        socket.connect(options.address)
        return socket


def _take(socket: zmq.Socket[bytes]) -> Iterator[list[bytes]]:
    with contextlib.suppress(zmq.Again):
        for _ in range(BATCH_MESSAGES):
            yield socket.recv_multipart(zmq.NOBLOCK)
