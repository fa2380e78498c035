"""Waiting for ZeroMQ sockets: nothing is missed, nothing wakes but what comes."""

import time

import gevent
import pytest
import zmq

from job_runner_worker.zmq_wait import wait_for_input

LONG_SECONDS = 30.0


@pytest.fixture
def pair():
    """Two sockets that are connected, over TCP: libzmq's own thread is in between."""
    context = zmq.Context()
    ours, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    theirs.connect(f"tcp://127.0.0.1:{ours.bind_to_random_port('tcp://127.0.0.1')}")
    yield ours, theirs
    context.destroy(linger=0)


def receive_all(socket):
    found = []
    while True:
        try:
            found.append(socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return found


def test_what_comes_while_somebody_waits_wakes(pair):
    ours, theirs = pair
    waiting = gevent.spawn(wait_for_input, [ours], LONG_SECONDS)
    gevent.sleep(0)
    assert not waiting.ready()
    theirs.send(b"one")

    assert waiting.get(timeout=LONG_SECONDS / 2) == {ours}
    assert receive_all(ours) == [b"one"]


def test_what_has_been_left_is_seen_at_once(pair):
    ours, theirs = pair
    for number in range(3):
        theirs.send(b"%d" % number)
    wait_for_input([ours], LONG_SECONDS)
    first = ours.recv(zmq.NOBLOCK)

    assert wait_for_input([ours], LONG_SECONDS) == {ours}
    assert first == b"0"


def test_every_message_of_many_is_heard_however_they_come(pair):
    ours, theirs = pair
    found = []

    def hear():
        while len(found) < 3000:
            assert wait_for_input([ours], LONG_SECONDS) == {ours}
            found.extend(receive_all(ours))

    hearing = gevent.spawn(hear)
    for number in range(3000):
        theirs.send(b"%d" % number)
        if number % 7 == 0:
            gevent.sleep(0)
    hearing.get(timeout=LONG_SECONDS)

    assert found == [b"%d" % number for number in range(3000)]


def test_where_nothing_comes_the_wait_ends_in_time(pair):
    ours, _ = pair
    began = time.monotonic()

    assert wait_for_input([ours], 0.05) == set()
    assert time.monotonic() >= began + 0.05


def test_a_wait_that_is_given_up_leaves_nothing_behind(pair):
    ours, theirs = pair
    for _ in range(3):
        waiting = gevent.spawn(wait_for_input, [ours], LONG_SECONDS)
        gevent.sleep(0)
        waiting.kill()
    theirs.send(b"later")

    assert wait_for_input([ours], LONG_SECONDS) == {ours}
