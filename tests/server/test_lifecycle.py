"""The steps of a run: who may take them, when, and what is told of them."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from job_runner_worker.server import lifecycle
from job_runner_worker.server.lifecycle import Conflict, NotAllowed, Unknown
from job_runner_worker.server.models import KillRequest, Run
from job_runner_worker.server.notices import KillRequested, RunChanged, RunDue

AT = datetime(2026, 11, 22, 2, 25, 59, 46521, tzinfo=UTC)
LATER = AT + timedelta(seconds=3)


def started_run(site):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, AT)
    lifecycle.start(run.pk, site.worker, AT, 4711)
    return run


def fresh(run):
    return Run.objects.get(pk=run.pk)


def test_a_run_goes_from_scheduled_to_completed(site, heard):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, AT)
    lifecycle.start(run.pk, site.worker, AT, 4711, "node7")
    lifecycle.finish(run.pk, site.worker, LATER, False, 3, "killed")

    run = fresh(run)
    assert (run.worker, run.enqueue_dts, run.start_dts) == (site.worker, AT, AT)
    assert (run.pid, run.host) == (4711, "node7")
    assert (run.return_dts, run.return_success) == (LATER, False)
    assert (run.exit_status, run.reason) == (3, "killed")
    assert heard == [
        RunChanged(run.pk, "scheduled"),
        RunDue(run.pk),
        RunChanged(run.pk, "enqueued", by_worker=True),
        RunChanged(run.pk, "started", by_worker=True),
        RunChanged(run.pk, "returned", by_worker=True),
    ]


def test_a_run_of_the_future_is_not_due(site, heard):
    at = timezone.now() + timedelta(hours=1)
    run = site.run(at=at)

    assert run.schedule_dts == at
    assert heard == [RunChanged(run.pk, "scheduled")]


def test_nothing_is_told_of_what_is_rolled_back(site, heard):
    run = site.run()
    heard.clear()
    with pytest.raises(Conflict), transaction.atomic():
        lifecycle.claim(run.pk, site.worker, AT)
        raise Conflict("changed my mind")

    assert heard == []
    assert fresh(run).enqueue_dts is None


def test_a_listener_that_raises_keeps_nobody_else_from_a_notice(site, heard, caplog):
    from job_runner_worker.server import notices

    def broken(notice):
        raise ValueError(notice)

    notices._listeners.insert(0, broken)
    try:
        site.run()
    finally:
        notices.unsubscribe(broken)

    assert len(heard) == 2
    assert "was not heard" in caplog.text


def test_a_run_has_its_own_id_for_schedule_id_unless_it_is_one_of_several(site):
    first = site.run()
    second = site.run(first.job, schedule_id=first.schedule_id, worker=site.worker)

    assert first.schedule_id == first.pk
    assert second.schedule_id == first.pk
    assert second.worker == site.worker


@pytest.mark.parametrize("owner", ["job", "template", "project", "pool"])
def test_what_is_disabled_is_run_by_hand_only(site, owner):
    job = site.job()
    row = {"job": job, "template": job.template}.get(owner) or getattr(site, owner)
    row.enqueue_is_enabled = False
    row.save()
    job = type(job).objects.get(pk=job.pk)

    with pytest.raises(NotAllowed, match="is disabled"):
        lifecycle.schedule(job)
    assert lifecycle.schedule(job, is_manual=True).is_manual


def test_of_two_workers_that_claim_a_run_one_has_it(site):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, AT)

    with pytest.raises(Conflict, match="held by another worker"):
        lifecycle.claim(run.pk, site.other_worker, LATER)
    assert fresh(run).worker == site.worker


def test_a_worker_may_repeat_its_claim_and_the_first_date_stays(site, heard):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, AT)
    heard.clear()
    lifecycle.claim(run.pk, site.worker, LATER)

    assert fresh(run).enqueue_dts == AT
    assert heard == []


def test_a_run_that_has_ended_is_claimed_by_nobody(site):
    run = started_run(site)
    lifecycle.finish(run.pk, site.worker, LATER, True, 0)

    for worker in (site.worker, site.other_worker):
        with pytest.raises(Conflict, match="has ended"):
            lifecycle.claim(run.pk, worker, LATER)


def test_an_offer_is_noted_while_the_run_waits(site):
    run = site.run()

    assert lifecycle.offer({run.pk: site.worker.pk}, AT) == {run.pk}
    assert (fresh(run).offered_to, fresh(run).offered_dts) == (site.worker, AT)
    lifecycle.claim(run.pk, site.worker, AT)
    assert not lifecycle.offer({run.pk: site.other_worker.pk}, LATER)
    assert fresh(run).offered_to == site.worker


def test_a_run_that_is_handed_back_waits_again_and_remembers_its_worker(site, heard):
    run = started_run(site)
    heard.clear()
    lifecycle.reset(run.pk, site.worker)

    run = fresh(run)
    assert (run.enqueue_dts, run.start_dts, run.pid) == (None, None, None)
    assert run.worker == site.worker
    assert heard == [RunChanged(run.pk, "reset", by_worker=True), RunDue(run.pk)]
    lifecycle.reset(run.pk, site.worker)
    lifecycle.claim(run.pk, site.worker, LATER)


def test_only_its_worker_hands_a_run_back_and_only_before_its_end(site):
    run = started_run(site)
    with pytest.raises(Conflict, match="another worker"):
        lifecycle.reset(run.pk, site.other_worker)
    lifecycle.finish(run.pk, site.worker, LATER, True, 0)
    with pytest.raises(Conflict, match="has ended"):
        lifecycle.reset(run.pk, site.worker)


def test_a_run_that_is_to_be_killed_ends_when_it_is_handed_back(site, heard):
    run = started_run(site)
    kill_request = lifecycle.request_kill(run.pk)
    heard.clear()
    lifecycle.reset(run.pk, site.worker)

    run = fresh(run)
    assert run.return_success is False
    assert run.reason == lifecycle.KILLED_UNCLAIMED
    kill_request.refresh_from_db()
    assert kill_request.execute_dts is not None
    assert heard == [RunChanged(run.pk, "returned")]


def test_a_start_may_come_in_two_parts_and_the_first_date_stays(site):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, AT)
    lifecycle.start(run.pk, site.worker, AT)
    lifecycle.start(run.pk, site.worker, pid=4711)
    lifecycle.start(run.pk, site.worker, LATER)

    assert (fresh(run).start_dts, fresh(run).pid) == (AT, 4711)


def test_a_run_is_started_by_the_worker_that_claimed_it(site):
    run = site.run()
    with pytest.raises(Conflict, match="not claimed"):
        lifecycle.start(run.pk, site.worker, AT)
    lifecycle.claim(run.pk, site.worker, AT)
    with pytest.raises(Conflict, match="another worker"):
        lifecycle.start(run.pk, site.other_worker, AT)


def test_a_run_may_end_without_a_start(site):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, AT)
    lifecycle.finish(run.pk, site.worker, LATER, False)

    assert (fresh(run).start_dts, fresh(run).pid) == (LATER, None)


def test_a_run_that_has_ended_stays_ended(site, heard):
    run = started_run(site)
    lifecycle.finish(run.pk, site.worker, LATER, True, 0)
    heard.clear()
    lifecycle.finish(run.pk, site.worker, LATER, True, 0)

    with pytest.raises(Conflict, match="has ended"):
        lifecycle.finish(run.pk, site.worker, LATER, False, 1)
    with pytest.raises(Conflict, match="has ended"):
        lifecycle.finish(run.pk, site.other_worker, LATER, True, 0)
    with pytest.raises(Conflict, match="has ended"):
        lifecycle.start(run.pk, site.worker, LATER, 1)
    assert fresh(run).return_success is True
    assert heard == []


def test_a_run_is_ended_by_the_worker_that_holds_it(site):
    run = site.run()
    with pytest.raises(Conflict, match="not claimed"):
        lifecycle.finish(run.pk, site.worker, AT, True, 0)
    lifecycle.claim(run.pk, site.worker, AT)
    with pytest.raises(Conflict, match="another worker"):
        lifecycle.finish(run.pk, site.other_worker, AT, True, 0)


def test_the_real_result_is_kept_beside_the_one_of_the_health_check(site, heard):
    run = started_run(site)
    heard.clear()

    assert lifecycle.fail_unresponsive(run.pk, "silent for 915 s")
    assert heard == [RunChanged(run.pk, "returned")]
    lifecycle.store_log(run.pk, "it went well")
    lifecycle.finish(run.pk, site.worker, LATER, True, 0)
    lifecycle.finish(run.pk, site.worker, LATER, True, 0)
    with pytest.raises(Conflict):
        lifecycle.finish(run.pk, site.worker, LATER, False, 1)

    run = fresh(run)
    assert (run.return_success, run.reason) == (False, "silent for 915 s")
    assert (run.late_return_dts, run.late_return_success) == (LATER, True)
    assert (run.late_exit_status, run.exit_status) == (0, None)
    assert run.run_log.content == "it went well"


def test_the_health_check_fails_only_what_a_worker_holds(site):
    run = site.run()
    assert not lifecycle.fail_unresponsive(run.pk, "silent")
    lifecycle.claim(run.pk, site.worker, AT)
    assert lifecycle.fail_unresponsive(run.pk, "silent")
    assert not lifecycle.fail_unresponsive(run.pk, "silent")
    assert fresh(run).start_dts is not None


def test_a_run_that_nobody_holds_is_killed_at_once(site, heard):
    run = site.run()
    heard.clear()
    kill_request = lifecycle.request_kill(run.pk)

    run = fresh(run)
    assert (run.return_success, run.worker) == (False, None)
    assert run.reason == "killed before it was claimed"
    assert None not in (run.enqueue_dts, run.start_dts, run.return_dts)
    assert None not in (kill_request.enqueue_dts, kill_request.execute_dts)
    assert heard == [RunChanged(run.pk, "returned")]
    with pytest.raises(Conflict, match="has ended"):
        lifecycle.request_kill(run.pk)


def test_a_kill_request_is_made_once_until_the_worker_has_heard_of_it(site, heard):
    run = started_run(site)
    heard.clear()
    first = lifecycle.request_kill(run.pk)
    assert lifecycle.request_kill(run.pk) == first
    assert heard == [KillRequested(first.pk), KillRequested(first.pk)]

    lifecycle.kill_enqueued(first.pk, AT)
    lifecycle.kill_enqueued(first.pk, LATER)
    assert lifecycle.request_kill(run.pk) != first
    lifecycle.kill_executed(first.pk, LATER)
    first.refresh_from_db()
    assert (first.enqueue_dts, first.execute_dts) == (AT, LATER)


def test_a_run_has_one_log(site):
    run = started_run(site)
    lifecycle.add_log(run.pk, "one")
    with pytest.raises(Conflict, match="has a log"):
        lifecycle.add_log(run.pk, "two")
    lifecycle.store_log(run.pk, "three")

    assert fresh(run).run_log.content == "three"


def test_the_log_of_a_run_that_its_worker_ended_stays(site):
    run = started_run(site)
    lifecycle.store_log(run.pk, "all of it")
    lifecycle.finish(run.pk, site.worker, LATER, True, 0)

    with pytest.raises(Conflict, match="has ended"):
        lifecycle.store_log(run.pk, "more")


@pytest.mark.parametrize(
    "step",
    [
        lambda site: lifecycle.claim(77, site.worker, AT),
        lambda site: lifecycle.reset(77, site.worker),
        lambda site: lifecycle.start(77, site.worker, AT),
        lambda site: lifecycle.finish(77, site.worker, AT, True),
        lambda site: lifecycle.request_kill(77),
        lambda site: lifecycle.kill_enqueued(77, AT),
        lambda site: lifecycle.kill_executed(77, AT),
        lambda site: lifecycle.add_log(77, ""),
        lambda site: lifecycle.store_log(77, ""),
    ],
)
def test_what_does_not_exist_is_unknown(site, step):
    KillRequest.objects.all().delete()
    Run.objects.all().delete()
    with pytest.raises(Unknown, match="77"):
        step(site)


def test_a_run_for_one_worker_is_claimed_by_no_other_of_its_pool(site):
    site.pool.workers.add(site.other_worker)
    run = site.run(worker=site.worker)

    with pytest.raises(Conflict, match="is for another worker"):
        lifecycle.claim(run.pk, site.other_worker, AT)
    lifecycle.claim(run.pk, site.worker, AT)
    # Also when it has been handed back.
    lifecycle.reset(run.pk, site.worker)
    with pytest.raises(Conflict, match="is for another worker"):
        lifecycle.claim(run.pk, site.other_worker, AT)
    lifecycle.claim(run.pk, site.worker, AT)
