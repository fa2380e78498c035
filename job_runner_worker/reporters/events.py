"""Publishes events for the WebSocket server. Best effort: nobody acknowledges them."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime

import gevent
import zmq

from job_runner_worker import curve, protocol
from job_runner_worker.connection_watch import ConnectionWatch
from job_runner_worker.curve_keys import ClientKeys
from job_runner_worker.models import Event, EventKind, Outcome, Run
from job_runner_worker.reporters.base import Reporter

# Plain numbers: of pyzmq's flags each operation makes an enumeration anew.
_LAST = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
LOOK_SECONDS = 0.5
LINGER_MILLISECONDS = 200
"""How long the last events may take to leave when the worker stops."""


class EventReporter(Reporter):
    """Connects a PUB socket to the WebSocket server. Source: protocol.md, section 2."""

    name = "events"
    sender = "central"

    def __init__(
        self,
        address: str,
        heartbeat_seconds: float,
        curve_keys: ClientKeys | None = None,
    ) -> None:
        self._address = address
        self._curve_keys = curve_keys
        self._heartbeat_seconds = heartbeat_seconds
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._watch: ConnectionWatch | None = None
        self._look_at = 0.0
        self._unsent: list[list[bytes]] = []

    def open(self) -> None:
        """Connect ahead: what is published before the connection is up is lost."""
        self._context = zmq.Context()
        self._connect()

    def _connect(self) -> None:
        assert self._context is not None
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.IPV6, 1)
        curve.protect(self._socket, self._curve_keys)
        if self._heartbeat_seconds:
            milliseconds = int(self._heartbeat_seconds * 1000)
            self._socket.setsockopt(zmq.HEARTBEAT_IVL, milliseconds)
        self._watch = ConnectionWatch(
            self._socket, is_curve=self._curve_keys is not None
        )
        self._socket.connect(self._address)

    def enqueued(self, run: Run, at: datetime) -> None:
        """Publish that a run is this worker's."""
        self._publish(EventKind.RUN, "enqueued", run.id)

    def started(self, run: Run, native_id: int | None, at: datetime) -> None:
        """Publish that a script has begun."""
        self._publish(EventKind.RUN, "started", run.id)

    def finished(self, run: Run, outcome: Outcome) -> None:
        """Publish that a run has ended."""
        self._publish(EventKind.RUN, "returned", run.id)

    def kill_requested(self, kill_request_id: int, at: datetime) -> None:
        """Publish that a kill has been taken."""
        self._publish(EventKind.KILL_REQUEST, "enqueued", kill_request_id)

    def kill_executed(self, kill_request_id: int, at: datetime) -> None:
        """Publish that nothing of a run is alive any more."""
        self._publish(EventKind.KILL_REQUEST, "executed", kill_request_id)

    def close(self) -> None:
        """Give the last events a moment to leave."""
        if self._socket is not None and self._context is not None:
            self._send()
            self._close_watch()
            self._socket.close(linger=LINGER_MILLISECONDS)
            self._context.term()

    def _publish(self, kind: EventKind, event: str, number: int) -> None:
        """Let an event go with all others of this turn of the loop.

        ZeroMQ's thread is woken for what is sent while it sleeps; runs that share a
        batch of requests get on together.
        """
        if not self._unsent:
            gevent.get_hub().loop.run_callback(self._send)
        self._unsent.append(protocol.encode_event(Event(kind, event, number)))

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._socket is None or not unsent:
            return
        self._look_at_connection()
        with contextlib.suppress(zmq.Again):
            for topic, body in unsent:
                self._socket.send(topic, _MORE)
                self._socket.send(body, _LAST)

    def _look_at_connection(self) -> None:
        """Make another where this one is over for good; looked at now and then."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        assert self._watch is not None and self._socket is not None
        self._watch.look()
        if self._watch.seconds_to_live == 0:
            self._close_watch()
            self._socket.close(linger=0)
            self._connect()

    def _close_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
