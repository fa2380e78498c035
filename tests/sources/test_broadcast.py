"""A broadcaster that sends faster than anybody can hear."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import gevent
import pytest
import zmq
from waiting import LIMIT_SECONDS, eventually

from job_runner_worker import protocol
from job_runner_worker.models import Command, Enqueue, Kill, Ping
from job_runner_worker.sources import broadcast
from job_runner_worker.sources.broadcast import BroadcastOptions, BroadcastSource

pytestmark = pytest.mark.integration
KEY = "testworker"
FLOOD = 20_000


class Broadcaster:
    """A publisher on a port of its own, which knows who listens."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"tcp://127.0.0.1:{port}"
        self.subscriptions = 0

    def send(self, *commands: Command) -> None:
        for command in commands:
            self._socket.send_multipart(protocol.encode_command(command, KEY))

    def count_subscriptions(self) -> int:
        while self._socket.poll(0):
            begins = self._socket.recv()[:1] == b"\1"
            self.subscriptions += begins
        return self.subscriptions

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def broadcaster() -> Iterator[Broadcaster]:
    broadcaster = Broadcaster()
    yield broadcaster
    broadcaster.close()


@pytest.fixture
def source(broadcaster: Broadcaster) -> Iterator[BroadcastSource]:
    options = BroadcastOptions(broadcaster.address, KEY, 0, 600)
    source = BroadcastSource(options, claims=None)  # type: ignore[arg-type]
    yield source
    source.close()


@pytest.fixture
def heard(broadcaster: Broadcaster, source: BroadcastSource) -> Iterator[list[Command]]:
    heard: list[Command] = []

    def listen() -> None:
        for command in source.commands():
            heard.append(command)

    listening = gevent.spawn(listen)
    eventually(lambda: broadcaster.count_subscriptions() == 1, "the subscription")
    yield heard
    listening.kill()


def flood(broadcaster: Broadcaster) -> None:
    """Send from a thread: the source's greenlet has to keep up with it."""
    offers = [Enqueue(number + 1) for number in range(FLOOD)]
    thread = threading.Thread(target=broadcaster.send, args=offers)
    thread.start()
    thread.join(LIMIT_SECONDS)
    assert not thread.is_alive()


def test_a_flood_is_heard_in_order_and_others_have_their_turn(
    broadcaster: Broadcaster, heard: list[Command]
) -> None:
    flood(broadcaster)
    broadcaster.send(Ping())
    while not heard:
        gevent.sleep(0)
    assert len(heard) < FLOOD
    eventually(lambda: Ping() in heard, "the ping behind the flood")
    assert heard == [*(Enqueue(number + 1) for number in range(FLOOD)), Ping()]


def test_a_flood_without_a_pause_is_dropped_and_what_comes_later_is_heard(
    broadcaster: Broadcaster,
    heard: list[Command],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(broadcast, "BATCH_MESSAGES", 10)
    monkeypatch.setattr(broadcast, "MAX_BACKLOG_MESSAGES", 100)
    with caplog.at_level(logging.ERROR):
        flood(broadcaster)
        eventually(lambda: broadcaster.count_subscriptions() > 1, "a new subscription")
    assert "what waits is dropped" in caplog.text
    assert len(heard) < FLOOD
    broadcaster.send(Kill(7, 3))
    eventually(lambda: Kill(7, 3) in heard, "the order behind the flood")
