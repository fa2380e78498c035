"""Many workers' ears in one process: ``many_subscribers.py PORT PREFIX FIRST COUNT``.

Connects COUNT SUB sockets, that of worker N subscribed to its orders, and prints
``ready``; then a line ``N NANOSECONDS RUN`` for each order to run something. Ends with
its standard input.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import zmq

from job_runner_worker import protocol


def main(arguments: Sequence[str]) -> None:
    """Listen until nobody asks any more."""
    port, prefix, first, count = arguments
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, int(count) + 16)
    poller = zmq.Poller()
    numbers = {}
    for number in range(int(first), int(first) + int(count)):
        end = context.socket(zmq.SUB)
        end.setsockopt(zmq.LINGER, 0)
        end.subscribe(protocol.broadcast_topic(f"{prefix}{number}"))
        end.connect(f"tcp://127.0.0.1:{port}")
        poller.register(end, zmq.POLLIN)
        numbers[end] = number
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    print("ready", flush=True)
    while True:
        for end, _ in poller.poll():
            if end == sys.stdin.fileno():
                context.destroy(linger=0)
                return
            _, content = end.recv_multipart()
            now_ns = time.monotonic_ns()
            order = json.loads(content)
            if order["action"] == "enqueue":
                print(numbers[end], now_ns, order["run_id"], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
