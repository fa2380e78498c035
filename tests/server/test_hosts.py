"""Runs that are pinned to a host, and what cron mode asks for."""

from datetime import timedelta

import pytest

pytestmark = pytest.mark.usefixtures("database")
LONG_AGO = "2020-01-01T00:00:00Z"


@pytest.fixture
def now():
    from django.utils import timezone

    return timezone.now()


def uri(row, resource="run"):
    return f"/api/v1/{resource}/{row.pk}/"


def listed(caller, query):
    answer = caller.get(f"/api/v1/run/?{query}")
    assert answer.status == 200, answer.body
    return {each["id"] for each in answer.json["objects"]}


def test_runs_of_a_job_are_pinned_to_its_host_unless_they_have_one(site):
    job = site.job(host="node7")
    admin = site.person("admin")
    fields = {"job": uri(job, "job"), "is_manual": True}
    shown = []
    for more in ({}, {"host": "node8"}):
        answer = admin.post("/api/v1/run/", **fields, **more)
        path = answer.headers["location"].removeprefix("http://testserver")
        shown.append(admin.get(path).json["host"])

    assert shown == ["node7", "node8"]
    assert admin.get(uri(job, "job")).json["host"] == "node7"


def test_a_pinned_run_is_broadcast_only_where_it_has_a_worker(site, now):
    from job_runner_worker.server.offers import OfferBook

    pinned = site.run(site.job(host="node7"), at=now)
    with_worker = site.run(site.job(host="node7"), at=now, worker=site.worker)

    offers = OfferBook().make(now, {site.worker.api_key})

    assert [offer.run_id for offer in offers] == [with_worker.pk]
    assert listed(site.own, "state=scheduled&due=yes") == {pinned.pk, with_worker.pk}


def test_a_claim_says_where_and_a_run_that_is_handed_back_stays_there(site, now):
    run = site.run(at=now)
    claim = {"enqueue_dts": str(now), "worker": uri(site.worker, "worker")}

    assert site.own.patch(uri(run), **claim, host="node7").status == 202
    assert site.own.get(uri(run)).json["host"] == "node7"
    assert site.own.patch(uri(run), enqueue_dts=None, start_dts=None).status == 202
    assert site.own.get(uri(run)).json["host"] == "node7"
    assert listed(site.own, "host=node7") == {run.pk}
    assert listed(site.own, "host=node") == set()


def test_only_what_may_be_run_now_is_due(site, now):
    from job_runner_worker.server import planning

    due = site.run(at=now)
    later = site.run(at=now + timedelta(hours=1))
    busy = site.job()
    first, second = site.run(busy, at=now), site.run(busy, at=now)
    claim = {"enqueue_dts": str(now), "worker": uri(site.worker, "worker")}
    assert site.own.patch(uri(first), **claim).status == 202
    disabled = site.run(site.job(enqueue_is_enabled=True), at=now)
    planning.set_enabled(disabled.job, False)

    assert listed(site.own, "state=scheduled&due=yes") == {due.pk}
    everything = {due.pk, later.pk, second.pk, disabled.pk}
    assert everything <= listed(site.own, "state=scheduled")
    site.worker.enqueue_is_enabled = False
    site.worker.save()
    assert listed(site.own, "state=scheduled&due=yes") == set()


def test_runs_are_asked_for_by_the_time_at_which_they_are_due(site, now):
    run = site.run(at=now)

    # As a query has it: a plus would be a space.
    at = (now + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert listed(site.own, f"schedule_dts__lte={at}") == {run.pk}
    assert listed(site.own, f"schedule_dts__lte={LONG_AGO}") == set()
    for wrong in ("soon", "2026-13-01T00:00:00Z", ""):
        answer = site.own.get(f"/api/v1/run/?schedule_dts__lte={wrong}")
        assert answer.status == 400
        assert b"schedule_dts__lte" in answer.body


def test_kill_requests_that_nobody_has_taken_can_be_asked_for(site, now):
    from job_runner_worker.server import lifecycle

    run = site.run(at=now)
    lifecycle.claim(run.pk, site.worker, now)
    taken = lifecycle.request_kill(run.pk)
    lifecycle.kill_enqueued(taken.pk, now)
    waiting = lifecycle.request_kill(run.pk)

    answer = site.own.get("/api/v1/kill_request/?enqueue_dts__isnull=true")

    assert [each["id"] for each in answer.json["objects"]] == [waiting.pk]
    other = site.other.get("/api/v1/kill_request/?enqueue_dts__isnull=true")
    assert other.json["objects"] == []
