"""Workers that fall silent, with a clock of the test's own."""

from datetime import timedelta

import pytest

from job_runner_worker.server import lifecycle

pytestmark = pytest.mark.usefixtures("database")
LIMIT = timedelta(seconds=915)
SECOND = timedelta(seconds=1)


@pytest.fixture
def began():
    from django.utils import timezone

    return timezone.now()


@pytest.fixture
def check(began):
    """Return a function that checks as long after the start as it is told."""
    from job_runner_worker.server.health import HealthCheck

    moment = [began]
    health = HealthCheck(lambda: moment[0])

    def check(after):
        moment[0] = began + after
        return health.check()

    return check


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
    site.worker.ping_response_dts = began + timedelta(seconds=600)
    site.worker.save()

    assert check(LIMIT + SECOND) == []
    assert check(timedelta(seconds=600) + LIMIT) == []
    assert len(check(timedelta(seconds=601) + LIMIT)) == 1


def test_silence_from_before_the_server_started_says_nothing(site, began, check):
    site.worker.ping_response_dts = began - timedelta(days=3)
    site.worker.save()
    claimed(site, began)

    assert check(LIMIT) == []


def test_what_a_silent_worker_does_not_hold_is_left_alone(site, began, check):
    waiting = site.run(at=began)
    ended = claimed(site, began)
    lifecycle.finish(ended.pk, site.worker, began, success=True)

    assert check(2 * LIMIT) == []

    waiting.refresh_from_db()
    assert waiting.return_dts is None


def test_a_run_fails_once(site, began, check):
    claimed(site, began)

    assert len(check(2 * LIMIT)) == 1
    assert check(3 * LIMIT) == []


def test_the_run_that_only_a_silent_worker_may_do_fails_when_it_is_due(
    site, began, check
):
    from job_runner_worker.server import planning

    site.pool.workers.add(site.other_worker)
    site.other_worker.ping_response_dts = began + LIMIT
    site.other_worker.save()
    planning.run_now(site.job(run_on_all_workers=True))
    run = site.worker.runs.get()

    assert check(LIMIT) == []
    assert check(LIMIT + SECOND) == [run.pk]
    run.refresh_from_db()
    assert "testworker does not answer pings" in run.reason
    assert site.other_worker.runs.get().return_dts is None
