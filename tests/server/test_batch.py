"""Many requests in one: each means what it means by itself."""

import json

import pytest
from django.utils import timezone

from job_runner_worker.server import api_batch, lifecycle
from job_runner_worker.server.models import Run, RunLog

AT = "2026-11-22T02:25:59.046521+00:00"
LATER = "2026-11-22T02:26:03+00:00"
END = {"return_dts": LATER, "return_success": True, "exit_status": 0}


def uri(row, resource="run"):
    return f"/api/v1/{resource}/{row.pk}/"


def get(path):
    return {"method": "GET", "path": path}


def patch(row, resource="run", **fields):
    return {"method": "PATCH", "path": uri(row, resource), "body": fields}


def claim(run, at=AT):
    return patch(run, enqueue_dts=at, with_job=True)


def answers(caller, *items):
    answer = caller.post("/api/v1/batch/", items=list(items))
    assert answer.status == 200, answer.body
    return answer.json["answers"]


def statuses(caller, *items):
    return [each["status"] for each in answers(caller, *items)]


USAGE = {
    "wall_seconds": 0.5,
    "cpu_seconds": 0.021,
    "peak_memory_bytes": 12582912,
    "peak_processes": 3,
    "output_bytes": 6,
}


@pytest.mark.parametrize("in_a_batch", [True, False])
def test_an_end_says_what_the_run_has_used(site, in_a_batch):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, timezone.now())
    end = {**END, "usage": USAGE}
    if in_a_batch:
        assert statuses(site.own, patch(run, **end, log="hello\n")) == [202]
    else:
        assert site.own.patch(uri(run), **end).status == 202
    assert site.own.get(uri(run)).json["usage"] == USAGE
    # An end that is repeated stays as it is.
    assert site.own.patch(uri(run), **END).status == 202
    assert site.own.get(uri(run)).json["usage"] == USAGE


def test_what_a_run_has_used_is_also_kept_of_an_end_that_comes_late(site):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, timezone.now())
    lifecycle.fail_unresponsive(run.pk, "worker testworker does not answer pings")
    assert site.own.patch(uri(run), **END, usage=USAGE).status == 202
    assert site.own.get(uri(run)).json["usage"] == USAGE


@pytest.mark.parametrize("wrong", ["3", True, float("nan"), 10**400, [], {}])
def test_no_end_is_refused_for_what_is_no_number_in_its_usage(site, wrong):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, timezone.now())
    end = {**END, "usage": {**USAGE, "cpu_seconds": wrong, "more": 1}}
    assert site.own.patch(uri(run), **end).status == 202
    known = {**USAGE, "cpu_seconds": None}
    assert site.own.get(uri(run)).json["usage"] == known


@pytest.mark.parametrize("end", [END, {**END, "usage": None}])
def test_a_run_whose_worker_does_not_say_has_no_usage(site, end):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, timezone.now())
    assert site.own.patch(uri(run), **end).status == 202
    assert site.own.get(uri(run)).json["usage"] is None


def test_a_worker_is_told_where_batches_go(site):
    (me,) = site.own.get("/api/v1/worker/").json["objects"]
    assert me["batch_uri"] == "/api/v1/batch/"


def test_items_are_done_in_their_order_and_answered_in_it(site):
    run = site.run()
    log = {"run": uri(run), "content": "hello\n"}
    found = answers(
        site.own,
        patch(run, enqueue_dts=AT),
        patch(run, start_dts=AT, pid=7),
        {"method": "POST", "path": "/api/v1/run_log/", "body": log},
        get(uri(run)),
        patch(run, **END),
        get(f"/api/v1/run/?state=completed&worker__api_key={site.own.api_key}"),
    )
    (stored,) = RunLog.objects.all()
    assert [each["status"] for each in found] == [202, 202, 201, 200, 202, 200]
    assert found[2]["location"] == uri(stored, "run_log")
    assert found[3]["body"]["pid"] == 7 and found[3]["body"]["return_dts"] is None
    (listed,) = found[5]["body"]["objects"]
    assert listed["id"] == run.pk and listed["return_success"] is True


def test_a_refusal_is_an_item_s_own_and_nothing_of_that_item_is_stored(site):
    others = site.run(site.job(other=True))
    run, second = site.run(), site.run()
    run_id = run.pk
    found = answers(
        site.own,
        patch(run, enqueue_dts=AT),
        patch(others, enqueue_dts=AT),
        patch(run, **END, pid="seven"),
        patch(run, pid=5, return_dts=LATER),
        {"method": "POST", "path": "/api/v1/run/", "body": {}},
        {"method": "PATCH", "path": "/api/v1/run/", "body": {}},
        get("/api/v1/run/999999/"),
        get("/api/v1/nothing/"),
        get("/api/v1/batch/"),
        {"method": "PATCH", "path": uri(run), "body": [1]},
        patch(second, enqueue_dts=AT),
    )
    assert [each["status"] for each in found] == [
        *(202, 401, 400, 400, 401, 405, 404, 404, 404, 400, 202)
    ]
    assert "`pid`" in found[2]["body"]["error"]
    stored = Run.objects.get(pk=run_id)
    assert stored.return_dts is None and stored.pid is None
    assert Run.objects.get(pk=second.pk).worker_id == site.worker.pk


def test_what_breaks_in_one_item_is_taken_back_and_harms_no_other(site, monkeypatch):
    runs = [site.run(), site.run(), site.run()]
    start = lifecycle.start

    def broken(run_id, *arguments):
        start(run_id, *arguments)
        if run_id == runs[1].pk:
            raise RuntimeError("broken")

    monkeypatch.setattr(lifecycle, "start", broken)
    items = [patch(run, enqueue_dts=AT, start_dts=AT) for run in runs]

    assert statuses(site.own, *items) == [202, 500, 202]
    claimed = [Run.objects.get(pk=run.pk).enqueue_dts for run in runs]
    assert [each is not None for each in claimed] == [True, False, True]


def test_notices_are_sent_of_what_was_stored_only(site, heard):
    run, second = site.run(), site.run()
    heard.clear()
    bad = patch(second, enqueue_dts=AT, start_dts=AT, return_success=True)
    assert statuses(site.own, bad, patch(run, enqueue_dts=AT)) == [400, 202]

    assert [(each.run_id, each.event) for each in heard] == [(run.pk, "enqueued")]


def test_a_claim_with_job_is_answered_with_the_script_in_its_template(site):
    site.template.body = "#!/bin/sh\nset -e\n{{ content }}"
    site.template.save()
    run = site.run(site.job("echo ü\n", title="a title"))
    (answer,) = answers(site.own, claim(run))

    assert answer["status"] == 202
    assert answer["body"] == {
        "run_log": None,
        "job": {
            "resource_uri": uri(run.job, "job"),
            "title": "a title",
            "script_content": "#!/bin/sh\nset -e\necho ü\n",
        },
    }


def test_a_claim_with_job_names_the_log_that_is_there(site):
    run = site.run()
    log = RunLog.objects.create(run=run, content="of another time")
    (answer,) = answers(site.own, claim(run))

    assert answer["body"]["run_log"] == uri(log, "run_log")


def test_a_claim_with_job_may_be_repeated_but_not_made_twice_with_one_key(site):
    run = site.run()
    assert statuses(site.own, claim(run), claim(run), claim(run, LATER)) == [
        *(202, 202, 409)
    ]
    assert site.own.patch(uri(run), enqueue_dts=LATER).status == 202
    assert Run.objects.get(pk=run.pk).enqueue_dts.isoformat() == AT


def test_a_lost_claim_with_job_says_nothing_of_the_job(site):
    site.pool.workers.add(site.other_worker)
    run = site.run()
    answers(site.other, claim(run))
    (answer,) = answers(site.own, claim(run, LATER))

    assert answer["status"] == 409 and set(answer["body"]) == {"error"}


def test_log_and_end_are_stored_both_or_neither(site):
    run = site.run()
    answers(site.own, claim(run))
    assert statuses(site.other, patch(run, **END, log="theirs")) == [401]
    assert statuses(site.own, patch(run, return_dts=LATER, log="half")) == [400]
    assert not RunLog.objects.exists()
    assert statuses(site.own, patch(run, **END, log="whole\0")) == [202]
    assert RunLog.objects.get(run=run).content == "whole\N{REPLACEMENT CHARACTER}"
    assert Run.objects.get(pk=run.pk).return_success is True


def test_an_end_with_log_replaces_the_log_that_is_there(site):
    run = site.run()
    answers(site.own, claim(run))
    RunLog.objects.create(run=run, content="some")
    assert statuses(site.own, patch(run, **END, log="all")) == [202]
    assert RunLog.objects.get(run=run).content == "all"


def test_an_end_with_log_may_be_repeated_and_not_changed(site):
    run = site.run()
    log = "the log"
    items = [claim(run), patch(run, **END, log=log), patch(run, **END, log=log)]
    assert statuses(site.own, *items) == [202, 202, 202]
    assert statuses(site.own, patch(run, **END, log="another")) == [409]
    assert RunLog.objects.get(run=run).content == log


def test_a_log_of_an_ended_run_may_be_repeated_and_not_changed(site):
    run = site.run()
    answers(site.own, claim(run), patch(run, **END, log="the log"))
    stored = RunLog.objects.get(run=run)
    assert statuses(
        site.own,
        patch(stored, "run_log", content="the log"),
        patch(stored, "run_log", content="another"),
    ) == [202, 409]


def test_an_end_with_log_of_a_run_that_the_server_has_failed_is_kept(site):
    run = site.run()
    answers(site.own, claim(run))
    assert lifecycle.fail_unresponsive(run.pk, "silent")
    assert statuses(site.own, patch(run, **END, log="late")) == [202]
    stored = Run.objects.get(pk=run.pk)
    assert (stored.return_success, stored.late_return_success) == (False, True)
    assert stored.run_log.content == "late"


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (None, "is a list of"),
        ([], "is a list of"),
        ([get("/api/v1/run/1/")] * (api_batch.MAX_ITEMS + 1), "is a list of"),
        ([1], "each is a JSON object"),
        ([{"path": "/api/v1/run/1/"}], "`method` is one of"),
        ([{"method": "DELETE", "path": "/api/v1/run/1/"}], "`method` is one of"),
        ([{"method": ["GET"], "path": "/api/v1/run/1/"}], "`method` is one of"),
        ([{"method": "GET", "path": 1}], "`path` is a text"),
    ],
)
def test_a_batch_that_is_none_is_refused_and_nothing_of_it_is_done(site, items, said):
    run = site.run()
    if isinstance(items, list) and 0 < len(items) < api_batch.MAX_ITEMS:
        items = [patch(run, enqueue_dts=AT), *items]
    answer = site.own.post("/api/v1/batch/", items=items)

    assert answer.status == 400 and said in answer.json["error"]
    assert Run.objects.get(pk=run.pk).enqueue_dts is None


def test_only_workers_send_batches(site):
    item = get(uri(site.run()))
    for role, status in (("staff", 403), ("admin", 403), ("anonymous", 401)):
        answer = site.person(role).post("/api/v1/batch/", items=[item])
        assert answer.status == status
    body = json.dumps({"items": [item]}).encode()
    unsigned = site.wire.send("POST", "/api/v1/batch/", body)
    assert unsigned.status == 401
    assert site.own.get("/api/v1/batch/").status == 405


def test_more_than_a_worker_reads_is_not_answered_at_once(site, monkeypatch):
    monkeypatch.setattr(api_batch, "MAX_ANSWERS_BYTES", 6000)
    job = site.job("#!/bin/sh\n" + "#" * 2000)
    run = site.run(job)
    found = answers(site.own, get(uri(job, "job")), claim(run), get(uri(job, "job")))

    assert [each["status"] for each in found] == [200, 202, 413]
    assert "body" not in found[1] and "body" not in found[2]
    assert Run.objects.get(pk=run.pk).worker_id == site.worker.pk


def test_a_large_batch_is_done_in_several_transactions(site):
    runs = [site.run() for _ in range(api_batch.ITEMS_PER_TRANSACTION * 2 + 1)]
    found = statuses(site.own, *[claim(run) for run in runs])
    assert found == [202] * len(runs)
    assert not Run.objects.filter(enqueue_dts=None).exists()
