"""What workers publish, passed on to whoever listens over WebSocket."""

from __future__ import annotations

import logging
from collections.abc import Callable

import gevent
import zmq.green as zmq

from job_runner_worker import protocol
from job_runner_worker.errors import ProtocolError
from job_runner_worker.server.binding import bind
from job_runner_worker.server.curve_guard import ConnectionWatch, CurveGuard

_log = logging.getLogger(__name__)


class EventHub:
    """Binds SUB; hands the JSON text of each event on, its bytes unchanged."""

    def __init__(
        self,
        host: str,
        port: int,
        publish: Callable[[bytes], None],
        guard: CurveGuard | None = None,
    ) -> None:
        self.port = port
        self._guard = guard
        self._watch: ConnectionWatch | None = None
        self._host = host
        self._publish = publish
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Bind and listen. Raises ConfigError where it cannot."""
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_FRAME_BYTES)
        self._socket.subscribe(protocol.EVENT_TOPIC)
        if self._guard is not None:
            self._watch = self._guard.protect(self._socket, "event hub")
        self.port = bind(self._socket, self._host, self.port, "--events-port")
        self._greenlet = gevent.spawn(self._listen)

    def close(self) -> None:
        """Stop listening."""
        if self._greenlet is not None:
            self._greenlet.kill()
        if self._watch is not None:
            self._watch.close()
        if self._socket is not None:
            self._socket.close(linger=0)
        self._context.term()

    def _listen(self) -> None:
        assert self._socket is not None
        while True:
            frames = self._socket.recv_multipart()
            try:
                protocol.decode_event(frames)
            except ProtocolError as error:
                _log.warning("event ignored: %s", error)
                continue
            self._publish(frames[1])
