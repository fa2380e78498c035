"""What the end of a run brings about."""

import pytest
from django.utils import timezone

from job_runner_worker.server import lifecycle, planning
from job_runner_worker.server.models import Job, Run, Worker


@pytest.fixture
def family(site):
    site.parent = site.job(title="parent")
    site.child = site.job(title="child", parent=site.parent)
    return site


def end(site, run, is_success=True, worker=None):
    now = timezone.now()
    worker = worker or site.worker
    lifecycle.claim(run.pk, worker, now)
    lifecycle.finish(run.pk, worker, now, is_success, 0 if is_success else 1)


def children(site):
    return Run.objects.filter(job=site.child).count()


def test_children_are_run_after_success(family):
    end(family, family.run(family.parent))

    run = Run.objects.get(job=family.child)
    assert not run.is_manual
    assert run.schedule_children


def test_children_are_not_run_after_a_failure_unless_that_is_set(family):
    end(family, family.run(family.parent), is_success=False)
    assert children(family) == 0

    Job.objects.filter(pk=family.parent.pk).update(schedule_children_on_error=True)
    end(family, family.run(family.parent), is_success=False)
    assert children(family) == 1


def test_children_are_run_after_a_run_by_hand_with_them_and_not_without(family):
    end(family, planning.run_now(family.parent, with_children=False))
    assert children(family) == 0
    end(family, planning.run_now(family.parent))
    assert children(family) == 1


@pytest.mark.parametrize("owner", ["child", "pool", "template", "project"])
def test_a_child_that_is_disabled_is_not_run(family, owner):
    run = planning.run_now(family.parent)
    planning.set_enabled(getattr(family, owner), False)
    end(family, run)

    assert children(family) == 0


def test_a_child_that_waits_already_is_run_once(family):
    for _ in range(3):
        end(family, family.run(family.parent))
    assert children(family) == 1


def test_an_end_that_is_repeated_has_one_consequence(family):
    run = family.run(family.parent)
    end(family, run)
    Run.objects.filter(job=family.child).delete()
    at = Run.objects.get(pk=run.pk).return_dts
    lifecycle.finish(run.pk, family.worker, at, True, 0)

    assert children(family) == 0


@pytest.fixture
def on_both(family):
    """The parent's runs on the two workers of the pool."""
    family.second = Worker.objects.create(title="second", api_key="second")
    family.pool.workers.add(family.second)
    Job.objects.filter(pk=family.parent.pk).update(run_on_all_workers=True)
    family.parent.refresh_from_db()
    planning.run_now(family.parent)
    return list(Run.objects.filter(job=family.parent).order_by("pk"))


def test_children_are_run_after_the_last_of_several_runs(family, on_both):
    first, last = on_both
    end(family, first, worker=first.worker)
    assert children(family) == 0
    end(family, last, worker=last.worker)
    assert children(family) == 1


def test_one_failure_of_several_runs_is_a_failure(family, on_both):
    first, last = on_both
    end(family, first, is_success=False, worker=first.worker)
    end(family, last, worker=last.worker)

    assert children(family) == 0
    family.parent.refresh_from_db()
    assert family.parent.fail_times == 1


def test_a_job_is_disabled_after_so_many_failures_in_a_row(site):
    job = site.job(
        disable_enqueue_after_fails=2,
        reschedule_interval=1,
        reschedule_interval_type="DAY",
    )

    for is_success, fail_times, is_enabled in (
        (False, 1, True),
        (True, 0, True),
        (False, 1, True),
        (False, 0, False),
    ):
        planning.plan(job.pk)
        end(site, planning.run_now(job), is_success)
        job.refresh_from_db()
        assert (job.fail_times, job.enqueue_is_enabled) == (fail_times, is_enabled)
    assert not Run.objects.filter(job=job, enqueue_dts=None).exists()

    planning.set_enabled(job, True)
    end(site, planning.run_now(job), is_success=False)
    job.refresh_from_db()
    assert job.enqueue_is_enabled


def test_a_job_without_a_limit_is_never_disabled(site):
    job = site.job(disable_enqueue_after_fails=0)
    for _ in range(3):
        end(site, site.run(job), is_success=False)

    job.refresh_from_db()
    assert (job.fail_times, job.enqueue_is_enabled) == (3, True)


def test_a_run_that_the_server_fails_is_a_failure(family):
    Job.objects.filter(pk=family.parent.pk).update(schedule_children_on_error=True)
    run = family.run(family.parent)
    lifecycle.claim(run.pk, family.worker, timezone.now())
    lifecycle.fail_unresponsive(run.pk, "silent")

    family.parent.refresh_from_db()
    assert family.parent.fail_times == 1
    assert children(family) == 1
