"""Orders for the workers that this process talks to, as one more subscriber hears them.

So the broadcaster need not know in which way a worker listens: a subscription says that
it does, and its end that it does not any more.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import gevent
import gevent.event
import zmq

from job_runner_worker import protocol
from job_runner_worker.server.binding import wait_readable
from job_runner_worker.server.broadcaster import INTERNAL_ADDRESS

LOOK_SECONDS = 60.0
_PREFIX = protocol.BROADCAST_TOPIC_PREFIX
_log = logging.getLogger(__name__)


class OrderFeed:
    """Subscribes for some workers; one greenlet owns the socket.

    ``deliver`` is called with a worker's key and the JSON text of an order for it. It
    must return at once.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        deliver: Callable[[str, bytes], None],
    ) -> None:
        self._context = context
        self._deliver = deliver
        self._socket: zmq.Socket[bytes] | None = None
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._wake = gevent.event.Event()
        self._changes: deque[tuple[int, bytes]] = deque()

    def start(self) -> None:
        """Listen to the broadcaster of this process."""
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(INTERNAL_ADDRESS)
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """Listen no more."""
        if self._greenlet is not None:
            self._greenlet.kill()
        if self._socket is not None:
            self._socket.close(linger=0)

    def join(self, api_key: str) -> None:
        """Hear orders for a worker from now on."""
        self._change(zmq.SUBSCRIBE, api_key)

    def leave(self, api_key: str) -> None:
        """Hear no more orders for a worker."""
        self._change(zmq.UNSUBSCRIBE, api_key)

    def _change(self, option: int, api_key: str) -> None:
        self._changes.append((option, protocol.broadcast_topic(api_key)))
        self._wake.set()

    def _run(self) -> None:
        socket = self._socket
        assert socket is not None
        while True:
            self._wake.clear()
            while self._changes:
                socket.setsockopt(*self._changes.popleft())
            self._hand_on(socket)
            wait_readable(socket, self._wake, LOOK_SECONDS)

    def _hand_on(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                topic, body = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            # The whole topic: a subscription also matches longer keys.
            self._deliver(topic.decode("utf-8").removeprefix(_PREFIX), body)
