"""Greenlets that are stopped between two turns."""

import gevent
import pytest
from gevent.event import Event

from job_runner_worker.server import turns
from job_runner_worker.server.turns import Turns

LIMIT_SECONDS = 10.0


@pytest.fixture
def database():
    """Nothing here needs one."""


@pytest.fixture
def empty_tables():
    """Nor its tables."""


class Work:
    """A greenlet that is in a turn until it may go on."""

    def __init__(self):
        self.turns = Turns()
        self.begun, self.may_go_on = Event(), Event()
        self.done = []
        self.greenlet = gevent.spawn(self.run)
        assert self.begun.wait(LIMIT_SECONDS)

    def run(self):
        while True:
            with self.turns:
                self.begun.set()
                self.may_go_on.wait()
                self.done.append("a turn")
            gevent.sleep(0)


def test_a_turn_under_way_is_the_last_and_comes_to_its_end():
    work = Work()
    ending = gevent.spawn(work.turns.end, work.greenlet)
    gevent.sleep(0)
    assert not work.greenlet.dead

    work.may_go_on.set()
    ending.join(LIMIT_SECONDS)

    assert work.greenlet.dead
    assert work.done == ["a turn"]


def test_a_turn_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(turns, "STOP_SECONDS", 0.01)
    work = Work()

    work.turns.end(work.greenlet)

    assert work.greenlet.dead
    assert work.done == []
