"""The ZeroMQ side of a central server: orders out, events in.

One thread owns the sockets; the others talk to it over an in-process pipe.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import zmq

from job_runner_worker import protocol
from job_runner_worker.errors import ProtocolError

_PIPE = "inproc://commands"
_REBIND_SECONDS = 5.0
_PAUSE_SECONDS = 0.002
_JOIN_SECONDS = 5.0


class Exchange:
    """Binds the broadcast (XPUB: subscriptions are seen) and the events (SUB).

    ``changing`` is entered around every change of `events` and `subscribers`.
    """

    def __init__(
        self,
        changing: Callable[[], AbstractContextManager[None]],
        host: str,
        broadcast_port: int = 0,
        events_port: int = 0,
    ) -> None:
        self.broadcast_port = broadcast_port
        self.events_port = events_port
        self.events: list[dict[str, Any]] = []
        """Every event so far, decoded, in the order of arrival."""
        self.bad_events: list[list[bytes]] = []
        """The frames of whatever is no event."""
        self.subscribers: Counter[bytes] = Counter()
        """How many connections subscribe to a topic now."""
        self._changing = changing
        self._host = host
        self._context: zmq.Context[zmq.Socket[bytes]]
        self._pipe: zmq.Socket[bytes]
        self._pipe_lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="zmq")
        self._answers = threading.Semaphore(0)
        self._error: Exception | None = None

    def start(self) -> None:
        """Bind the sockets. Raises zmq.ZMQError where a given port is taken."""
        self._context = zmq.Context()
        self._pipe = self._context.socket(zmq.PUSH)
        self._pipe.setsockopt(zmq.SNDTIMEO, round(_JOIN_SECONDS * 1000))
        self._pipe.connect(_PIPE)
        self._thread.start()
        self._wait_for_answer()

    def publish(self, frames: Sequence[bytes]) -> None:
        """Send some frames to whoever subscribes to the first one."""
        self._tell(b"publish", *frames)

    def restart_broadcaster(self) -> None:
        """Close the broadcast socket and bind another one to the same port."""
        self._tell(b"restart")
        self._wait_for_answer()

    def close(self) -> None:
        """Close the sockets; orders that are not sent yet are lost."""
        if self._thread.ident is None:
            return
        # A thread that failed has closed its end of the pipe.
        if self._error is None:
            self._tell(b"stop")
        self._thread.join(_JOIN_SECONDS)
        self._pipe.close(linger=0)
        self._context.term()

    def _tell(self, *frames: bytes) -> None:
        if self._error is not None:
            raise self._error
        with self._pipe_lock:
            self._pipe.send_multipart(frames)

    def _wait_for_answer(self) -> None:
        self._answers.acquire()
        if self._error is not None:
            raise self._error

    def _serve(self) -> None:
        commands = self._context.socket(zmq.PULL)
        events = self._context.socket(zmq.SUB)
        broadcast = self._context.socket(zmq.XPUB)
        try:
            commands.bind(_PIPE)
            events.setsockopt(zmq.RCVHWM, 0)
            events.subscribe(protocol.EVENT_TOPIC)
            self.events_port = self._bind(events, self.events_port)
            self._bind_broadcast(broadcast)
            self._answers.release()
            poller = _poller(commands, events, broadcast)
            while True:
                ready = dict(poller.poll())
                if broadcast in ready:
                    self._note_subscription(broadcast.recv())
                if events in ready:
                    self._note_event(events.recv_multipart())
                if commands not in ready:
                    continue
                name, *frames = commands.recv_multipart()
                if name == b"stop":
                    return
                if name == b"restart":
                    broadcast = self._rebound(broadcast)
                    poller = _poller(commands, events, broadcast)
                else:
                    broadcast.send_multipart(frames)
        except Exception as error:
            self._error = error
            self._answers.release()
        finally:
            for end in (commands, events, broadcast):
                end.close(linger=0)

    def _bind(self, end: zmq.Socket[bytes], port: int) -> int:
        """Bind to a port, or a free one for 0; returns it."""
        if ":" in self._host:
            end.setsockopt(zmq.IPV6, 1)
        host = f"[{self._host}]" if ":" in self._host else self._host
        end.bind(f"tcp://{host}:{port or '*'}")
        endpoint: str = end.get_string(zmq.LAST_ENDPOINT)
        return int(endpoint.rpartition(":")[2])

    def _bind_broadcast(self, broadcast: zmq.Socket[bytes]) -> None:
        broadcast.setsockopt(zmq.SNDHWM, 0)
        # Every subscription and its end, also where another connection has the same.
        broadcast.setsockopt(zmq.XPUB_VERBOSER, 1)
        self.broadcast_port = self._bind(broadcast, self.broadcast_port)

    def _rebound(self, broadcast: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        broadcast.close(linger=0)
        with self._changing():
            self.subscribers.clear()
        fresh = self._context.socket(zmq.XPUB)
        deadline = time.monotonic() + _REBIND_SECONDS
        while True:
            # The old socket gives its port back in a thread of libzmq's.
            try:
                self._bind_broadcast(fresh)
            except zmq.ZMQError:
                if time.monotonic() > deadline:
                    fresh.close(linger=0)
                    raise
                time.sleep(_PAUSE_SECONDS)
            else:
                self._answers.release()
                return fresh

    def _note_subscription(self, message: bytes) -> None:
        change = {b"\1": 1, b"\0": -1}.get(message[:1], 0)
        with self._changing():
            self.subscribers[message[1:]] += change

    def _note_event(self, frames: list[bytes]) -> None:
        with self._changing():
            try:
                protocol.decode_event(frames)
            except ProtocolError:
                self.bad_events.append(frames)
            else:
                self.events.append(json.loads(frames[1]))


def _poller(*ends: zmq.Socket[bytes]) -> zmq.Poller:
    poller = zmq.Poller()
    for end in ends:
        poller.register(end, zmq.POLLIN)
    return poller
