"""Orders by ZeroMQ broadcast: the source of an ordinary Job-Runner worker."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import gevent
import zmq
from gevent.event import Event

from job_runner_worker import curve, protocol
from job_runner_worker.connection_watch import ConnectionWatch
from job_runner_worker.curve_keys import ClientKeys
from job_runner_worker.errors import ProtocolError
from job_runner_worker.models import Command
from job_runner_worker.sources.central import CentralSource, Claims
from job_runner_worker.zmq_wait import wait_for_input

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
        self._watch: ConnectionWatch | None = None
        self._told = ""
        self._listening = Event()

    def commands(self) -> Iterator[Command]:
        """Yield orders. Nonsense is logged; it costs the connection nothing."""
        self._current = self._connect()
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
        self._close_previous()
        self._close_watch()
        if self._current is not None:
            self._current.close(linger=0)
        self._context.term()

    def _receive(self) -> list[list[bytes]]:
        """Wait for broadcasts; after a long silence, or to end an overlap, return none.

        The queue has no limit of its own: a full one together with heartbeats aborts
        the process in libzmq 4.3.5.
        """
        sockets = [socket for socket in (self._current, self._previous) if socket]
        if self._previous is not None:
            patience = OVERLAP_SECONDS
        else:
            patience = self._options.reconnect_after_inactivity_seconds
        watch = self._watch
        assert watch is not None
        seconds_to_live = watch.seconds_to_live
        if seconds_to_live is not None:
            # A timer may be early by less than this.
            patience = min(patience, seconds_to_live + 0.001)
        ready = wait_for_input([*sockets, watch.monitor], patience)
        if watch.monitor in ready or seconds_to_live is not None:
            ready.discard(watch.monitor)
            self._look_at_connection(watch)
            if watch is not self._watch or not ready:
                return []
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
            self._listening.set()
            self._start_anew()

    def _reconnect(self) -> None:
        _log.info(
            "nothing heard from the broadcaster for %g s: connecting again",
            self._options.reconnect_after_inactivity_seconds,
        )
        self._close_watch()
        self._previous, self._current = self._current, self._connect()
        self._overlaps_until = time.monotonic() + OVERLAP_SECONDS

    def _start_anew(self) -> None:
        self._close_previous()
        self._close_watch()
        if self._current is not None:
            self._current.close(linger=0)
        self._current = self._connect()

    def _close_previous(self) -> None:
        if self._previous is not None:
            self._previous.close(linger=0)
            self._previous = None

    def _close_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _look_at_connection(self, watch: ConnectionWatch) -> None:
        """Tell why there is none; make another one where it is over for good."""
        failure = watch.look()
        # It is tried again for ever.
        if failure and failure != self._told:
            _log.warning("broadcaster at %s: %s", self._options.address, failure)
        self._told = failure or self._told
        if watch.was_through:
            self._told = ""
            self._listening.set()
        if watch.seconds_to_live == 0:
            if not self._told:
                _log.warning(
                    "the broadcaster has broken the protocol, with a frame of more than"
                    " %d bytes perhaps: connecting again",
                    protocol.MAX_FRAME_BYTES,
                )
            self._start_anew()

    def _connect(self) -> zmq.Socket[bytes]:
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
        self._watch = ConnectionWatch(socket, is_curve=options.curve_keys is not None)
        socket.connect(options.address)
        return socket


def _take(socket: zmq.Socket[bytes]) -> Iterator[list[bytes]]:
    with contextlib.suppress(zmq.Again):
        for _ in range(BATCH_MESSAGES):
            yield socket.recv_multipart(zmq.NOBLOCK)
