"""Workers that fall silent, with a clock of the test's own."""

from datetime import timedelta

import pytest

from job_runner_worker.server import lifecycle
from job_runner_worker.server.health import HealthCheck

pytestmark = pytest.mark.usefixtures("database")
LIMIT = timedelta(seconds=915)
SECOND = timedelta(seconds=1)


@pytest.fixture
def began():
    from django.utils import timezone

    return timezone.now()


@pytest.fixture
def check(site):
    """Return a function that checks as long after the start as it is told."""
    clock = [0.0]
    health = HealthCheck(lambda: clock[0])
    health.check()

    def check(after):
        clock[0] = after.total_seconds()
        return health.check()

    return check


def answers(worker, at):
    worker.ping_response_dts = at
    worker.save()


def claimed(site, at):
    run = site.run(at=at)
    lifecycle.claim(run.pk, site.worker, at)
    return run


def test_the_runs_of_a_silent_worker_fail(site, began, check, heard):
    from job_runner_worker.server.notices import RunChanged

    queued, started = claimed(site, began), claimed(site, began)
    lifecycle.start(started.pk, site.worker, began, pid=7)
    heard.clear()

    assert sorted(check(LIMIT + SECOND)) == sorted([queued.pk, started.pk])

    for run in (queued, started):
        run.refresh_from_db()
        assert run.return_success is False
        assert "testworker does not answer pings" in run.reason
        assert RunChanged(run.pk, "returned") in heard


def test_a_worker_that_answers_keeps_its_runs(site, began, check):
    claimed(site, began)
    answers(site.worker, began)
    assert check(timedelta(seconds=600)) == []

    assert check(LIMIT + SECOND) == []
    assert check(timedelta(seconds=600) + LIMIT) == []
    assert len(check(timedelta(seconds=601) + LIMIT)) == 1


def test_silence_from_before_the_server_started_says_nothing(site, began, check):
    answers(site.worker, began - timedelta(days=3))
    claimed(site, began)

    assert check(LIMIT) == []


@pytest.mark.parametrize("hours", [-1, 1, 24 * 3650])
def test_a_worker_s_clock_and_the_server_s_may_be_wrong_and_jump(
    site, began, check, monkeypatch, hours
):
    from django.utils import timezone

    claimed(site, began)
    wrong = began + timedelta(hours=hours)
    for minutes in range(5, 60, 5):
        # The worker's clock is wrong, and once it is put right.
        answers(site.worker, (wrong if minutes < 30 else began) + minutes * 60 * SECOND)
        assert check(minutes * 60 * SECOND) == []
    monkeypatch.setattr(timezone, "now", lambda: wrong)
    assert check(55 * 60 * SECOND + LIMIT) == []
    assert len(check(55 * 60 * SECOND + LIMIT + SECOND)) == 1


def test_what_a_silent_worker_does_not_hold_is_left_alone(site, began, check):
    waiting = site.run(at=began)
    ended = claimed(site, began)
    lifecycle.finish(ended.pk, site.worker, began, success=True)

    assert check(2 * LIMIT) == []

    waiting.refresh_from_db()
    assert waiting.return_dts is None


def test_a_silent_worker_is_noted_until_it_has_answered(site, began, check):
    def is_noted():
        site.worker.refresh_from_db()
        return site.worker.unresponsive_dts is not None

    answers(site.worker, began)
    check(SECOND)
    check(LIMIT)
    assert not is_noted()
    check(LIMIT + 2 * SECOND)
    assert is_noted()
    # A server that has just started has heard nobody yet.
    HealthCheck().check()
    assert is_noted()
    answers(site.worker, began + SECOND)
    check(LIMIT + 3 * SECOND)
    assert not is_noted()


def test_a_run_fails_once(site, began, check):
    claimed(site, began)

    assert len(check(2 * LIMIT)) == 1
    assert check(3 * LIMIT) == []


def test_the_run_that_only_a_silent_worker_may_do_fails_when_it_is_due(
    site, began, check
):
    from job_runner_worker.server import planning

    site.pool.workers.add(site.other_worker)
    planning.run_now(site.job(run_on_all_workers=True))
    run = site.worker.runs.get()

    answers(site.other_worker, began)
    assert check(LIMIT) == []
    assert check(LIMIT + SECOND) == [run.pk]
    run.refresh_from_db()
    assert "testworker does not answer pings" in run.reason
    assert site.other_worker.runs.get().return_dts is None
