"""The broadcaster with real sockets and a real database, in one gevent loop."""

import json
from datetime import timedelta

import gevent
import pytest
import zmq.green as zmq

from job_runner_worker import protocol
from job_runner_worker.errors import ConfigError
from job_runner_worker.server import lifecycle

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.integration]
LIMIT_SECONDS = 8.0


class Listener:
    """A worker's ear; ``heard`` waits for what comes next."""

    def __init__(self, port, api_key):
        self.topic = protocol.broadcast_topic(api_key)
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.subscribe(self.topic)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def heard(self, limit_seconds=LIMIT_SECONDS):
        with gevent.Timeout(limit_seconds, TimeoutError("nothing was sent")):
            topic, body = self.socket.recv_multipart()
        assert topic == self.topic
        return json.loads(body)

    def hears_nothing(self, for_seconds=0.3):
        return not self.socket.poll(for_seconds * 1000)

    def close(self):
        self.socket.close(linger=0)
        self.context.term()


PING = {"action": "ping"}


@pytest.fixture
def now():
    from django.utils import timezone

    return timezone.now()


@pytest.fixture
def broadcaster():
    from job_runner_worker.server.broadcaster import Broadcaster

    found = Broadcaster("127.0.0.1", 0)
    found.start()
    yield found
    found.close()


@pytest.fixture
def listen(broadcaster):
    listeners = []

    def listen(api_key="testworker"):
        listeners.append(Listener(broadcaster.port, api_key))
        return listeners[-1]

    yield listen
    for listener in listeners:
        listener.close()


@pytest.fixture
def quick(monkeypatch):
    """Offers and orders are repeated after a fraction of the usual time."""
    from job_runner_worker.server import broadcaster, offers

    monkeypatch.setattr(broadcaster, "REPEAT_SECONDS", 0.3)
    monkeypatch.setattr(offers, "_OFFER", timedelta(seconds=0.3))


def enqueue(run):
    return {"action": "enqueue", "run_id": run.pk}


def test_who_subscribes_is_pinged_and_offered_what_waits(site, listen):
    run = site.run()

    worker = listen()

    assert worker.heard() == PING
    assert worker.heard() == enqueue(run)


def test_who_hears_the_first_ping_hears_what_is_offered_from_then_on(
    site, broadcaster, listen, monkeypatch
):
    """Another broadcaster may offer at once: that must not count as lost."""
    done = []
    drop, send = broadcaster._book.drop, broadcaster._send

    def noted_drop(api_key):
        drop(api_key)
        done.append("what was offered before is dropped")

    def noted_send(command, api_key):
        done.append("pinged")
        send(command, api_key)

    monkeypatch.setattr(broadcaster._book, "drop", noted_drop)
    monkeypatch.setattr(broadcaster, "_send", noted_send)

    assert listen().heard() == PING

    assert done == ["what was offered before is dropped", "pinged"]


def test_who_is_asked_for_is_pinged_at_once_and_nobody_else(site, listen):
    from job_runner_worker.server import notices

    asked, other = listen(), listen("worker2")
    assert (asked.heard(), other.heard()) == (PING, PING)

    notices.publish(notices.PingRequested("testworker"))
    notices.publish(notices.PingRequested("nobody"))

    assert asked.heard(1.0) == PING
    assert other.hears_nothing()


def test_a_run_is_offered_as_soon_as_it_is_due(site, listen):
    worker = listen()
    assert worker.heard() == PING

    run = site.run()

    assert worker.heard(1.0) == enqueue(run)


def test_a_run_of_the_future_is_offered_at_its_time(site, listen, now):
    from django.utils import timezone

    worker = listen()
    assert worker.heard() == PING

    run = site.run(at=now + timedelta(seconds=1))

    assert worker.heard() == enqueue(run)
    late = (timezone.now() - run.schedule_dts).total_seconds()
    assert 0 <= late < 0.5


def test_an_offer_is_repeated_until_the_run_is_claimed(site, listen, now, quick):
    worker = listen()
    run = site.run()
    assert worker.heard() == PING
    assert [worker.heard() for _ in range(3)] == [enqueue(run)] * 3

    lifecycle.claim(run.pk, site.worker, now)

    assert worker.hears_nothing(0.7)


def test_another_worker_is_asked_when_one_does_not_claim(site, listen, quick):
    site.pool.workers.add(site.other_worker)
    both = [listen("testworker"), listen("worker2")]
    assert [each.heard() for each in both] == [PING, PING]

    run = site.run()

    assert [each.heard() for each in both] == [enqueue(run)] * 2


def test_a_kill_order_names_the_run_and_is_repeated_until_it_is_taken(
    site, listen, now, quick
):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, now)
    worker = listen()
    assert worker.heard() == PING

    kill = lifecycle.request_kill(run.pk, "an admin")

    order = {"action": "kill", "kill_request_id": kill.pk, "run_id": run.pk}
    order["requested_by"] = "an admin"
    assert [worker.heard() for _ in range(3)] == [order] * 3
    lifecycle.kill_enqueued(kill.pk, now)
    assert worker.hears_nothing(0.7)


def test_a_kill_order_that_nobody_heard_is_sent_to_who_comes_back(site, listen, now):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, now)
    kill = lifecycle.request_kill(run.pk)

    worker = listen()

    assert worker.heard() == PING
    assert worker.heard(2.0)["kill_request_id"] == kill.pk


def test_a_kill_request_for_an_ended_run_is_done_and_not_sent(site, listen, now):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, now)
    kill = lifecycle.request_kill(run.pk)
    lifecycle.finish(run.pk, site.worker, now, success=True)

    worker = listen()

    assert worker.heard() == PING
    assert worker.hears_nothing()
    kill.refresh_from_db()
    assert kill.execute_dts is not None


def test_everybody_who_listens_is_pinged_from_time_to_time(site, listen, broadcaster):
    worker = listen()
    assert worker.heard() == PING

    broadcaster._next_ping = 0.0
    broadcaster._wake.set()

    assert worker.heard() == PING
    assert worker.hears_nothing()


def test_who_goes_is_offered_nothing_any_more(site, listen, broadcaster):
    worker = listen()
    assert worker.heard() == PING
    worker.socket.close(linger=0)
    with gevent.Timeout(LIMIT_SECONDS):
        while broadcaster.listening:
            gevent.sleep(0.01)

    run = site.run()

    assert listen().heard() == PING
    run.refresh_from_db()
    assert run.worker is None


def test_while_the_database_is_away_the_broadcaster_waits_for_it(
    site, listen, broadcaster, monkeypatch
):
    from django.db import OperationalError

    from job_runner_worker.server import broadcaster as module

    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    make, failures = broadcaster._book.make, iter("12")

    def fails_at_first(*arguments):
        if next(failures, None):
            raise OperationalError("gone")
        return make(*arguments)

    monkeypatch.setattr(broadcaster._book, "make", fails_at_first)
    run = site.run()

    worker = listen()

    assert worker.heard() == PING
    assert worker.heard() == enqueue(run)


def test_a_port_that_is_taken_is_told_with_its_option(broadcaster):
    from job_runner_worker.server.broadcaster import Broadcaster

    second = Broadcaster("127.0.0.1", broadcaster.port)

    with pytest.raises(ConfigError, match=f"{broadcaster.port}.*--broadcast-port"):
        second.start()
    second.close()
