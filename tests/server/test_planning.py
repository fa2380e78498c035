"""Runs that are made by a schedule and by hand; a job is not run twice at once."""

from datetime import UTC, datetime, time, timedelta

import gevent
import pytest
from django.utils import timezone

from job_runner_worker.server import lifecycle, notices, planning
from job_runner_worker.server.models import ExcludedTime, Job, Run, Worker
from job_runner_worker.server.notices import RunChanged, RunDue
from job_runner_worker.server.offers import OfferBook
from job_runner_worker.server.refusals import Conflict, NotAllowed

LIMIT_SECONDS = 20.0
MINUTE = timedelta(minutes=1)


@pytest.fixture
def second(site):
    """Another worker in the first one's pool."""
    found = Worker.objects.create(title="second", api_key="second")
    site.pool.workers.add(found)
    return found


def hourly(site, **values):
    start = datetime(2026, 1, 1, 0, 30, tzinfo=UTC)
    return site.job(
        reschedule_interval=1,
        reschedule_interval_type="HOUR",
        schedule_start_dts=start,
        **values,
    )


def runs_of(job):
    return list(Run.objects.filter(job=job).order_by("pk"))


def is_in_the_next_hour(run):
    return timedelta(0) < run.schedule_dts - timezone.now() <= timedelta(hours=1)


def make_due(job):
    """Let the time of what is planned have come."""
    Run.objects.filter(job=job, enqueue_dts=None).update(
        schedule_dts=timezone.now() - MINUTE
    )


def test_a_schedule_has_one_next_run_however_often_it_is_planned(site, heard):
    job = hourly(site)

    (run,) = planning.plan(job.pk)

    assert planning.plan(job.pk) == []
    planning.sweep()
    assert runs_of(job) == [run]
    assert run.schedule_dts.minute == 30
    assert is_in_the_next_hour(run)
    assert not run.is_manual
    assert heard == [RunChanged(run.pk, "scheduled")]


def test_a_job_without_a_schedule_has_no_next_run(site):
    job = site.job()
    assert planning.plan(job.pk) == []
    assert planning.next_times(job, 5) == []
    planning.sweep()
    assert runs_of(job) == []


def test_a_cron_expression_is_a_schedule_in_the_time_zone_of_the_job(site):
    job = site.job(cron_expression="30 4 * * *", time_zone="Asia/Kathmandu")
    (run,) = planning.plan(job.pk)

    assert f"{run.schedule_dts.astimezone(UTC):%H:%M}" == "22:45"
    assert planning.next_times(job, 5)[0] == run.schedule_dts
    assert len(planning.next_times(job, 5)) == 5


def test_the_next_run_is_made_when_the_one_before_is_offered(site):
    from job_runner_worker.server.planner import Planner

    job = hourly(site)
    (first,) = planning.plan(job.pk)
    planner = Planner()
    planner.start()
    try:
        make_due(job)
        now = timezone.now()
        OfferBook().make(now, {site.worker.api_key})
        with gevent.Timeout(LIMIT_SECONDS):
            while len(runs_of(job)) < 2:
                gevent.sleep(0.01)
    finally:
        planner.close()

    assert runs_of(job)[0] == first
    assert is_in_the_next_hour(runs_of(job)[1])


def test_the_planner_makes_at_its_start_what_is_missing(site):
    from job_runner_worker.server.planner import Planner

    job = hourly(site)
    planner = Planner()
    planner.start()
    try:
        with gevent.Timeout(LIMIT_SECONDS):
            while not runs_of(job):
                gevent.sleep(0.01)
    finally:
        planner.close()


def test_what_was_missed_is_skipped_and_not_piled_up(site):
    job = hourly(site)
    (run,) = planning.plan(job.pk)
    Run.objects.update(schedule_dts=timezone.now() - timedelta(days=3))
    planning.sweep()
    assert runs_of(job) == [run]

    lifecycle.offer({run.pk: site.worker.pk}, timezone.now())
    planning.sweep()

    late, following = runs_of(job)
    assert late == run
    assert is_in_the_next_hour(following)


def test_a_job_that_takes_longer_than_its_interval_waits_for_itself(site, heard):
    now = timezone.now()
    job = hourly(site)
    (first,) = planning.plan(job.pk)
    make_due(job)
    lifecycle.claim(first.pk, site.worker, now)
    (second,) = planning.plan(job.pk)
    make_due(job)
    book, listening = OfferBook(), {site.worker.api_key}

    assert book.make(now, listening) == []
    with pytest.raises(Conflict, match="waits for another run of its job"):
        lifecycle.claim(second.pk, site.worker, now)
    planning.sweep()
    assert len(runs_of(job)) == 2

    heard.clear()
    lifecycle.finish(first.pk, site.worker, now, True, 0)
    assert RunDue(second.pk) in heard
    assert [offer.run_id for offer in book.make(now, listening)] == [second.pk]


def test_of_two_waiting_runs_of_a_job_one_is_offered(site):
    now = timezone.now()
    job = site.job()
    first, other = (site.run(job, at=now), site.run(job, at=now))
    third = site.run(at=now)
    book, listening = OfferBook(), {site.worker.api_key}

    offered = [offer.run_id for offer in book.make(now, listening)]

    assert offered == [first.pk, third.pk]
    assert book.make(now, listening) == []
    lifecycle.claim(first.pk, site.worker, now)
    book.forget(first.pk)
    assert book.make(now, listening) == []
    lifecycle.finish(first.pk, site.worker, now, True)
    assert [offer.run_id for offer in book.make(now, listening)] == [other.pk]


OWNERS = ["job", "template", "project", "pool"]


@pytest.mark.parametrize("owner", OWNERS)
def test_what_is_disabled_has_no_next_run_until_it_is_enabled(site, heard, owner):
    job = hourly(site)
    row = {"job": job, "template": job.template}.get(owner) or getattr(site, owner)
    (run,) = planning.plan(job.pk)
    make_due(job)

    planning.set_enabled(row, False)
    assert runs_of(job) == []
    assert RunChanged(run.pk, "withdrawn") in heard
    planning.sweep()
    assert runs_of(job) == []

    planning.set_enabled(row, True)
    (run,) = runs_of(job)
    assert is_in_the_next_hour(run)


@pytest.mark.parametrize("owner", OWNERS)
def test_a_change_that_nobody_told_of_is_found(site, owner):
    job = hourly(site)
    row = {"job": job, "template": job.template}.get(owner) or getattr(site, owner)
    planning.plan(job.pk)
    type(row).objects.filter(pk=row.pk).update(enqueue_is_enabled=False)

    planning.sweep()
    assert runs_of(job) == []
    type(row).objects.filter(pk=row.pk).update(enqueue_is_enabled=True)
    planning.sweep()
    assert len(runs_of(job)) == 1


def test_another_schedule_moves_the_next_run(site):
    job = hourly(site)
    planning.plan(job.pk)
    Job.objects.filter(pk=job.pk).update(
        reschedule_interval=None,
        reschedule_interval_type="",
        cron_expression="15 5 * * *",
    )

    planning.replan(job)

    (run,) = runs_of(job)
    assert f"{run.schedule_dts.astimezone(UTC):%H:%M}" == "05:15"


def test_a_run_that_was_offered_is_not_taken_back(site):
    job = hourly(site)
    (run,) = planning.plan(job.pk)
    lifecycle.offer({run.pk: site.worker.pk}, timezone.now())

    planning.set_enabled(job, False)

    assert runs_of(job) == [run]


def test_runs_by_hand_and_of_parents_are_not_taken_back(site):
    job = hourly(site)
    planning.plan(job.pk)
    by_hand, child = planning.run_now(job), site.run(job)

    planning.set_enabled(job, False)

    assert runs_of(job) == [by_hand, child]


def test_a_schedule_without_a_time_says_so_once_and_no_more_when_it_is_mended(site):
    job = hourly(site)
    excluded = ExcludedTime.objects.create(
        job=job, start_time=time(0), end_time=time(23, 59, 59)
    )
    planning.plan(job.pk)
    planning.sweep()

    job.refresh_from_db()
    assert runs_of(job) == []
    assert "no time that is not excluded" in job.schedule_error
    excluded.delete()
    planning.replan(job)
    job.refresh_from_db()
    assert job.schedule_error == ""
    assert len(runs_of(job)) == 1


def test_a_run_by_hand_is_of_a_disabled_job_too_with_or_without_children(site):
    job = site.job(enqueue_is_enabled=False)

    run = planning.run_now(job, with_children=False)
    assert (run.is_manual, run.schedule_children) == (True, False)
    assert planning.run_now(job).schedule_children
    now = timezone.now()
    offers = OfferBook().make(now, {site.worker.api_key})
    assert [offer.run_id for offer in offers] == [run.pk]


def test_a_job_for_all_workers_has_a_run_for_each_enabled_one(site, second):
    off = Worker.objects.create(title="off", api_key="off", enqueue_is_enabled=False)
    site.pool.workers.add(off)
    job = hourly(site, run_on_all_workers=True)

    runs = planning.plan(job.pk)

    assert {run.worker for run in runs} == {site.worker, second}
    assert {run.schedule_id for run in runs} == {runs[0].pk}
    planning.sweep()
    assert runs_of(job) == runs
    now = timezone.now()
    make_due(job)
    offers = OfferBook().make(now, {each.api_key: now for each in (second, off)})
    assert [offer.api_key for offer in offers] == ["second"]
    for run in runs:
        lifecycle.claim(run.pk, run.worker, now)


def test_a_worker_that_is_disabled_has_no_planned_run_any_more(site, second):
    job = hourly(site, run_on_all_workers=True)
    planning.plan(job.pk)

    planning.set_enabled(second, False)
    assert [run.worker for run in runs_of(job)] == [site.worker]
    planning.set_enabled(second, True)
    assert {run.worker for run in runs_of(job)} == {site.worker, second}


def test_runs_for_a_worker_that_is_away_do_not_pile_up(site, second):
    job = hourly(site, run_on_all_workers=True)
    for _ in range(3):
        planning.plan(job.pk)
        for run in Run.objects.filter(worker=site.worker, enqueue_dts=None):
            lifecycle.claim(run.pk, site.worker, timezone.now())
            lifecycle.finish(run.pk, site.worker, timezone.now(), True)

    assert Run.objects.filter(worker=second).count() == 1
    assert Run.objects.filter(worker=site.worker).count() > 2


def test_a_pool_without_an_enabled_worker_has_nothing_for_all_workers(site):
    job = hourly(site, run_on_all_workers=True)
    planning.set_enabled(site.worker, False)

    with pytest.raises(NotAllowed, match="no enabled worker"):
        planning.run_now(job)
    planning.plan(job.pk)
    job.refresh_from_db()
    assert "no enabled worker" in job.schedule_error


def test_a_plan_that_is_killed_before_its_time_is_followed_by_the_next(site):
    job = hourly(site)
    (run,) = planning.plan(job.pk)
    lifecycle.request_kill(run.pk)

    assert len(runs_of(job)) == 2


def test_an_unknown_job_has_no_plan(site):
    assert planning.plan(77) == []


def test_only_offers_of_planned_runs_wake_the_planner(site):
    from job_runner_worker.server.planner import Planner

    planner = Planner()
    planner._hear_notice(notices.RunChanged(7, "started"))
    assert not planner._wake.is_set()
    planner._hear_notice(notices.RunOffered(7))
    assert planner._wake.is_set()
