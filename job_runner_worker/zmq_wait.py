"""Waits in gevent's loop for ZeroMQ sockets, each used by one greenlet alone.

zmq.green waits for sockets that several greenlets use: what one of them takes another
may have been woken for, so it looks again every 1.33 s, also while nothing happens.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import zmq
from gevent import select


def wait_for_input(sockets: Iterable[Any], seconds: float) -> set[Any]:
    """Return the sockets of which something can be received; none after a time.

    A socket's descriptor tells once of whatever has changed, and of no more before
    that has been looked at. So each wait begins with a look, and whoever is told of
    input receives until there is none. Source: zmq_getsockopt(3), ZMQ_FD.
    """
    awaited = list(sockets)
    poller = select.poll()
    for socket in awaited:
        poller.register(socket.getsockopt(zmq.FD), zmq.POLLIN)
    deadline = time.monotonic() + seconds
    while True:
        ready = {
            socket for socket in awaited if socket.getsockopt(zmq.EVENTS) & zmq.POLLIN
        }
        left = deadline - time.monotonic()
        if ready or left <= 0:
            return ready
        poller.poll(left * 1000)
