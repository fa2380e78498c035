"""What becomes of a ZeroMQ connection: whether it came about, and whether it is over.

libzmq connects again after a connection was lost, but not after the other side has
broken the protocol: a frame that is too long, another mechanism, no ZeroMQ at all.
Then nothing is ever heard again, and no error tells so. Source: session_base.cpp of
libzmq 4.3.5 (engine_error), zmq_socket_monitor(3).
"""

from __future__ import annotations

import time
from typing import Any

import zmq

from job_runner_worker import curve

GIVEN_UP_SECONDS = 2.0
"""libzmq says within moments that it is going to connect again; or never."""
_EVENTS = (
    curve.HANDSHAKE_EVENTS
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
)


class ConnectionWatch:
    """Watches one socket that connects to one address; made before it connects."""

    def __init__(self, socket: Any, *, is_curve: bool) -> None:
        self.monitor: Any = socket.get_monitor_socket(_EVENTS)
        """Readable when there is something to `look` at."""
        self.was_through = False
        """Whether there has ever been a connection, with its subscriptions."""
        self._socket = socket
        self._is_curve = is_curve
        self._lost_at: float | None = None

    def look(self) -> str:
        """Take note of what has happened; return why a handshake failed, if one did."""
        failure = ""
        while True:
            try:
                frames = self.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return failure
            event = curve.monitor_event(frames)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.was_through = True
            elif event & curve.HANDSHAKE_EVENTS:
                failure = curve.failure(event, is_curve=self._is_curve)
            is_lost = event == zmq.EVENT_DISCONNECTED
            self._lost_at = time.monotonic() if is_lost else None

    @property
    def seconds_to_live(self) -> float | None:
        """After how long it is given up that libzmq connects again; None for never."""
        if self._lost_at is None:
            return None
        return max(0.0, self._lost_at + GIVEN_UP_SECONDS - time.monotonic())

    def close(self) -> None:
        """Watch no more. Before the socket is closed."""
        self._socket.disable_monitor()
        self.monitor.close(linger=0)
