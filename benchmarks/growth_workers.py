"""How one server bears many workers: their ears are SUB sockets in a few processes."""

from __future__ import annotations

import os
import resource
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import zmq
from callers import API, Worker
from central import ENVIRONMENT, BenchmarkError
from growth_plot import Series
from measured_server import MeasuredServer, folder, ids
from processes import cpu_seconds, resident_mib

PER_PROCESS = 2500
DESCRIPTORS_EACH = 3
"""Of a SUB socket: its signaller, its connection, and one while it connects."""
SPARE_DESCRIPTORS = 500
READY_SECONDS = 60.0
ORDER_SECONDS = 15.0
QUIET_PERCENT = 3.0
PREFIX = "crowd"
SENDS = 2000


def allowed(sizes: Sequence[int]) -> list[int]:
    """Raise the limit of file descriptors; return the sizes that fit below it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return [size for size in sizes if fits(size, hard)]


def fits(size: int, descriptors: int) -> bool:
    """Return whether that many workers need no more descriptors in one process."""
    crowd = min(size, PER_PROCESS) * DESCRIPTORS_EACH
    return max(crowd, size) + SPARE_DESCRIPTORS <= descriptors


class Crowd:
    """Workers that only listen, while the context is entered."""

    def __init__(self, port: int, size: int) -> None:
        self._port = port
        self._size = size
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Crowd:
        """Connect all of them."""
        script = str(Path(__file__).with_name("many_subscribers.py"))
        for first in range(0, self._size, PER_PROCESS):
            count = min(PER_PROCESS, self._size - first)
            words = [str(self._port), PREFIX, str(first), str(count)]
            process = subprocess.Popen(
                [sys.executable, script, *words],
                env=ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,
            )
            self._processes.append(process)
        for _ in self._processes:
            if self.next_line(READY_SECONDS) is None:
                raise BenchmarkError(f"{self._size} SUB sockets do not connect")
        return self

    def __exit__(self, *about: object) -> None:
        """End their processes."""
        for process in self._processes:
            process.kill()
            process.communicate()

    def hear(self, run_id: int) -> tuple[int, int]:
        """Return who was told first to run something, and when."""
        while (line := self.next_line(ORDER_SECONDS)) is not None:
            number, heard_ns, ordered_id = map(int, line.split())
            # What nobody claimed in time is offered again: that was about another.
            if ordered_id == run_id:
                return number, heard_ns
        raise BenchmarkError(f"no order within {ORDER_SECONDS:g} s")

    def next_line(self, seconds: float) -> str | None:
        """Return what one of them says next, None after some time."""
        outputs = [each.stdout for each in self._processes if each.stdout]
        ready = select.select(outputs, [], [], seconds)[0]
        # A line at a time, unbuffered: select must see what is left.
        if not ready:
            return None
        text = b""
        while not text.endswith(b"\n"):
            byte = os.read(ready[0].fileno(), 1)
            if not byte:
                raise BenchmarkError("a process with SUB sockets has ended")
            text += byte
        return text.decode().strip()


def by_workers(sizes: Sequence[int], orders: int) -> list[Series]:
    """Order runs of a pool with many workers, from a real server on SQLite."""
    latencies, costs, memories = [], [], []
    for size in allowed(sizes):
        with folder() as path, MeasuredServer(path) as server:
            job, secret = _make(server, size)
            with Crowd(server.ports["broadcast"], size) as crowd:
                _wait_until_calm(server.pid)
                before = cpu_seconds(server.pid)
                took = [_order_ms(server, crowd, job, secret) for _ in range(orders)]
                used = cpu_seconds(server.pid) - before
                latencies.append((size, statistics.median(took)))
                costs.append((size, used * 1000 / orders))
                memories.append((size, resident_mib(server.pid)))
    return [
        Series("workers", "POST run -> order heard", "ms", latencies),
        Series("workers_cpu", "CPU of the server per order", "ms", costs),
        Series("workers_rss", "RSS of the server", "MiB", memories),
    ]


def by_subscribers(sizes: Sequence[int]) -> list[Series]:
    """Send to one of many from a bare XPUB socket: what ZeroMQ alone does."""
    costs = []
    # Not terminated: with some thousand peers that go at once that may never return.
    context = zmq.Context.instance()
    for size in allowed(sizes):
        with ExitStack() as stack:
            end = context.socket(zmq.XPUB)
            stack.callback(end.close, linger=0)
            end.setsockopt(zmq.SNDHWM, 0)
            end.setsockopt(zmq.RCVHWM, 0)
            port = end.bind_to_random_port("tcp://127.0.0.1")
            stack.enter_context(Crowd(port, size))
            topics = []
            while len(topics) < size:
                if not end.poll(READY_SECONDS * 1000):
                    raise BenchmarkError(f"{len(topics)} of {size} have subscribed")
                topics.append(end.recv()[1:])
            began = time.process_time()
            for number in range(SENDS):
                topic = topics[number * 7919 % size]
                end.send_multipart([topic, b'{"action": "ping"}'])
            costs.append((size, (time.process_time() - began) * 1000 / SENDS))
    return [Series("subscribers", "CPU per send, XPUB alone", "ms", costs)]


def _make(server: MeasuredServer, size: int) -> tuple[str, str]:
    """Make the workers in a pool of their own, and a job for it.

    Return the job's URI and the secret that the workers share.
    """
    made = server.make("crowd", size)
    with server.person() as person:
        (template,) = person.get("job_template/")["objects"]
        job = person.post(
            "job/",
            title="crowd",
            job_template=template["resource_uri"],
            worker_pool=f"{API}worker_pool/{made['pool']}/",
            script_content_partial="#!/bin/sh\ntrue\n",
        )
    return API + job, made["secret"]


def _order_ms(server: MeasuredServer, crowd: Crowd, job: str, secret: str) -> float:
    with server.person() as person:
        person.get("worker/?limit=1")
        sent_ns = time.monotonic_ns()
        path = person.post("run/", job=job)
        number, heard_ns = crowd.hear(*ids([path]))
    # Before it is offered to somebody else.
    with Worker(server.url, f"{PREFIX}{number}", secret) as worker:
        now = datetime.now(UTC).isoformat()
        worker.patch(path, enqueue_dts=now)
        worker.patch(path, start_dts=now, pid=1)
        worker.patch(path, return_dts=now, return_success=True)
    return (heard_ns - sent_ns) / 1e6


def _wait_until_calm(pid: int) -> None:
    """Wait until the server has dealt with all that came at once."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        before = cpu_seconds(pid)
        time.sleep(1.0)
        if (cpu_seconds(pid) - before) * 100 < QUIET_PERCENT:
            return
    raise BenchmarkError("the server does not come to rest")
