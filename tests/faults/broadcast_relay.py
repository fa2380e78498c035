"""Stands between the broadcaster and workers: restarts, and repeats what it heard."""

from __future__ import annotations

import random
import threading
from collections import deque

import zmq

POLL_MILLISECONDS = 20
LIMIT_SECONDS = 20.0
MAX_REMEMBERED = 200


class BroadcastRelay:
    """Passes orders on from a port of its own while the context is entered.

    Of the orders a share is sent twice, and now and then one of the last hundreds is
    sent again, whatever has become of its run. ``restart`` closes every connection
    and opens the same port again; orders that arrive meanwhile are lost.
    """

    def __init__(self, server_port: int, seed: str, rate: float) -> None:
        self.server_port = server_port
        self.rate = rate
        self.restarts = 0
        self.repeats = 0
        self.port = 0
        self._dice = random.Random(f"{seed} relay")
        self._heard: deque[list[bytes]] = deque(maxlen=MAX_REMEMBERED)
        self.subscribed = threading.Event()
        """Set when somebody has subscribed."""
        self._to_say: deque[list[bytes]] = deque()
        self._context = zmq.Context()
        self._stopping = threading.Event()
        self._restart = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broadcast relay")

    def __enter__(self) -> BroadcastRelay:
        self._thread.start()
        assert self._ready.wait(LIMIT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(LIMIT_SECONDS)
        assert not self._thread.is_alive()
        self._context.destroy(linger=0)

    def restart(self) -> None:
        """Close the port and open it again."""
        self._ready.clear()
        self._restart.set()
        assert self._ready.wait(LIMIT_SECONDS)
        self.restarts += 1

    def say(self, frames: list[bytes]) -> None:
        """Send something that no server has sent."""
        self._to_say.append(frames)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._restart.clear()
            workers = self._context.socket(zmq.XPUB)
            server = self._context.socket(zmq.XSUB)
            for socket in (workers, server):
                socket.setsockopt(zmq.LINGER, 0)
            # The server has to hear of each worker, also of the second with one key.
            workers.setsockopt(zmq.XPUB_VERBOSER, 1)
            self._bind(workers)
            server.connect(f"tcp://127.0.0.1:{self.server_port}")
            self._ready.set()
            self._pass_on(workers, server)
            workers.close()
            server.close()

    def _bind(self, workers: zmq.Socket[bytes]) -> None:
        """Take the same port again; it is free a moment after it was closed."""
        address = f"tcp://127.0.0.1:{self.port or '*'}"
        while True:
            try:
                workers.bind(address)
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE or self._stopping.is_set():
                    raise
                self._restart.wait(POLL_MILLISECONDS / 1000)
            else:
                break
        bound = workers.getsockopt_string(zmq.LAST_ENDPOINT)
        self.port = int(bound.rpartition(":")[2])

    def _pass_on(self, workers: zmq.Socket[bytes], server: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(workers, zmq.POLLIN)
        poller.register(server, zmq.POLLIN)
        while not (self._stopping.is_set() or self._restart.is_set()):
            ready = dict(poller.poll(POLL_MILLISECONDS))
            while self._to_say:
                workers.send_multipart(self._to_say.popleft())
            if workers in ready:
                subscription = workers.recv_multipart()
                server.send_multipart(subscription)
                if subscription[0][:1] == b"\1":
                    self.subscribed.set()
            if server in ready:
                order = server.recv_multipart()
                self._heard.append(order)
                workers.send_multipart(order)
                if self._dice.random() < self.rate:
                    self._repeat(workers, order)
            elif self._heard and self._dice.random() < self.rate / 4:
                self._repeat(workers, self._dice.choice(self._heard))

    def _repeat(self, workers: zmq.Socket[bytes], order: list[bytes]) -> None:
        workers.send_multipart(order)
        self.repeats += 1
