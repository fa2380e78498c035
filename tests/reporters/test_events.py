"""Events leave together, in their order, and none is kept back at the end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import gevent
import pytest
import zmq.green as zmq

from job_runner_worker import protocol
from job_runner_worker.models import EventKind, Run
from job_runner_worker.reporters.events import EventReporter

NOW = datetime(2026, 11, 27, tzinfo=UTC)
PATIENCE_SECONDS = 10.0
MANY = range(1, 101)


@pytest.fixture
def hub() -> Iterator[Any]:
    """A subscriber to all events, where a reporter may connect."""
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind("tcp://127.0.0.1:*")
        yield socket


@pytest.fixture
def reporter(hub: Any) -> Iterator[EventReporter]:
    """A reporter of which the hub has heard something: nothing is lost any more."""
    made = EventReporter(hub.getsockopt(zmq.LAST_ENDPOINT).decode(), 0)
    made.open()
    with gevent.Timeout(PATIENCE_SECONDS):
        while not hub.poll(20):
            made.kill_requested(1, NOW)
    # Whatever of these is still under way comes before the rest.
    yield made
    made.close()


def run(number: int) -> Run:
    return Run(number, f"/api/v1/run/{number}/", "1", "a job", "#!/bin/sh\n")


def heard(hub: Any, count: int) -> list[tuple[str, int]]:
    """Return what is heard of runs, so many events."""
    found: list[tuple[str, int]] = []
    with gevent.Timeout(PATIENCE_SECONDS):
        while len(found) < count:
            event = protocol.decode_event(hub.recv_multipart())
            if event.kind is EventKind.RUN:
                found.append((event.event, event.id))
    return found


def test_events_of_one_moment_arrive_in_the_order_in_which_they_happened(
    hub: Any, reporter: EventReporter
) -> None:
    for number in MANY:
        reporter.enqueued(run(number), NOW)
        reporter.started(run(number), 1, NOW)
    expected = [(step, each) for each in MANY for step in ("enqueued", "started")]
    assert heard(hub, len(expected)) == expected


def test_what_is_published_last_leaves_with_the_worker(
    hub: Any, reporter: EventReporter
) -> None:
    reporter.started(run(7), 1, NOW)
    reporter.close()
    assert heard(hub, 1) == [("started", 7)]
