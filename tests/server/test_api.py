"""What our server answers where an original one has nothing as good."""

import json

import pytest

from job_runner_worker.server import lifecycle
from job_runner_worker.server.models import Job, Run, RunLog, Worker

AT = "2026-11-22T02:25:59.046521+00:00"
LATER = "2026-11-22T02:26:03+00:00"


def uri(row, resource="run"):
    return f"/api/v1/{resource}/{row.pk}/"


@pytest.fixture
def run(site):
    """A run that either worker may claim."""
    site.pool.workers.add(site.other_worker)
    return site.run()


def claim(caller, run):
    return caller.patch(uri(run), enqueue_dts=AT).status


def test_of_two_workers_that_claim_a_run_one_is_told_that_it_has_lost(site, run):
    assert claim(site.own, run) == 202
    assert claim(site.own, run) == 202
    answer = site.other.patch(
        uri(run), enqueue_dts=LATER, worker=uri(site.other_worker, "worker")
    )
    assert answer.status == 409
    assert answer.json == {"error": f"run {run.pk} is held by another worker"}
    assert site.own.get(uri(run)).json["worker"] == uri(site.worker, "worker")


def test_an_end_may_be_repeated_and_not_changed(site, run):
    claim(site.own, run)
    end = {"return_dts": LATER, "return_success": False, "exit_status": 3}

    assert site.own.patch(uri(run), **end).status == 202
    assert site.own.patch(uri(run), **end).status == 202
    for change in ({"return_success": True}, {"exit_status": 4}):
        assert site.own.patch(uri(run), **{**end, **change}).status == 409
    assert site.other.patch(uri(run), **end).status == 409
    assert site.own.patch(uri(run), return_dts=None).status == 409
    assert site.own.patch(uri(run), enqueue_dts=None).status == 409


def test_a_run_shows_its_exit_status_reason_and_host(site, run):
    claim(site.own, run)
    site.own.patch(uri(run), start_dts=AT, pid=7, host="node7")
    site.own.patch(
        uri(run),
        return_dts=LATER,
        return_success=False,
        exit_status=137,
        reason="killed on request",
    )

    shown = site.own.get(uri(run)).json
    assert shown["start_dts"] == AT
    assert (shown["exit_status"], shown["host"]) == (137, "node7")
    assert shown["reason"] == "killed on request"


def test_a_patch_does_all_or_nothing(site, run):
    whole = {"enqueue_dts": AT, "start_dts": AT, "pid": 7}
    end = {"return_dts": LATER, "return_success": True}
    site.run()
    assert site.own.patch(uri(run), **whole, **end).status == 202
    assert Run.objects.get(pk=run.pk).return_success is True

    run = site.run()
    Run.objects.filter(pk=run.pk).update(worker=site.other_worker)
    lost = site.own.patch(uri(run), enqueue_dts=None, **end)
    assert lost.status == 409
    run.refresh_from_db()
    assert run.return_dts is None


def test_a_worker_that_comes_back_may_still_store_the_log_and_its_result(site, run):
    claim(site.own, run)
    lifecycle.fail_unresponsive(run.pk, "silent for 915 s")
    log = site.own.post("/api/v1/run_log/", run=uri(run), content="late")
    path = log.headers["location"].removeprefix("http://server")

    assert log.status == 201
    assert site.own.patch(path, content="later").status == 202
    end = {"return_dts": LATER, "return_success": True, "exit_status": 0}
    assert site.own.patch(uri(run), **end).status == 202
    shown = site.own.get(uri(run)).json
    assert (shown["return_success"], shown["reason"]) == (False, "silent for 915 s")
    assert (shown["late_return_dts"], shown["late_return_success"]) == (LATER, True)
    assert claim(site.own, run) == 409


def test_a_log_loses_only_what_databases_refuse(site, run):
    claim(site.own, run)
    body = rb'{"run": "%s", "content": " a\u0000b\ud800c\ud83d\ude00\r\n "}' % (
        uri(run).encode()
    )
    site.own.send("POST", "/api/v1/run_log/", body=body)

    assert RunLog.objects.get().content == " a\ufffdb\ufffdc\U0001f600\r\n "


def test_a_number_is_no_text_and_no_truth(site, run):
    for name, value in (
        ("pid", "12"),
        ("pid", True),
        ("return_success", 1),
        ("return_success", "true"),
        ("reason", 5),
        ("start_dts", {}),
    ):
        answer = site.own.patch(uri(run), **{name: value})
        assert answer.status == 400
        assert answer.json["error"].startswith(f"`{name}`: ")


def test_what_is_not_a_workers_to_set_is_ignored(site, run):
    answer = site.own.patch(
        uri(run), job="/api/v1/job/99/", schedule_dts="nonsense", is_manual=True
    )

    assert answer.status == 202
    assert Run.objects.get(pk=run.pk).is_manual is False


def test_a_ping_is_noted(site):
    answer = site.own.patch(
        uri(site.worker, "worker"),
        ping_response_dts=AT,
        worker_version="3.0",
        concurrent_jobs=4,
        title="not mine to choose",
    )
    worker = Worker.objects.get(pk=site.worker.pk)

    assert answer.status == 202
    assert (worker.worker_version, worker.concurrent_jobs) == ("3.0", 4)
    assert worker.ping_response_dts.isoformat() == AT
    assert worker.title == "Worker 1"


def states_of(site, run):
    states = (
        "scheduled",
        "in_queue",
        "started",
        "completed",
        "completed_successful",
        "completed_with_error",
        "last_completed",
    )
    paths = {state: f"/api/v1/run/?state={state}&job={run.job_id}" for state in states}
    lists = {state: site.own.get(path).json["objects"] for state, path in paths.items()}
    return [
        state
        for state, rows in lists.items()
        if run.pk in [each["id"] for each in rows]
    ]


def test_a_run_is_found_by_its_state(site, run):
    assert states_of(site, run) == ["scheduled"]
    claim(site.own, run)
    assert states_of(site, run) == ["in_queue"]
    site.own.patch(uri(run), start_dts=AT)
    assert states_of(site, run) == ["started"]
    site.own.patch(uri(run), return_dts=LATER, return_success=True)
    assert states_of(site, run) == [
        "completed",
        "completed_successful",
        "last_completed",
    ]

    second = site.run(run.job)
    lifecycle.request_kill(second.pk)
    assert states_of(site, run) == ["completed", "completed_successful"]
    assert states_of(site, second) == [
        "completed",
        "completed_with_error",
        "last_completed",
    ]


def test_runs_are_found_by_worker_pool_and_project(site, run):
    claim(site.own, run)
    other = site.run(site.job(other=True))
    staff = site.person("staff")
    for query, found in (
        ("worker__api_key=testworker", [run.pk]),
        ("worker__api_key=nobody", []),
        (f"worker={site.worker.pk}", [run.pk]),
        (f"worker_pool={site.other_pool.pk}", [other.pk]),
        (f"project={site.other_project.pk}", [other.pk]),
        ("unknown=x", [other.pk, run.pk]),
    ):
        rows = staff.get(f"/api/v1/run/?{query}").json["objects"]
        assert [each["id"] for each in rows] == found, query


def test_pages_follow_one_another_as_the_paths_say(site):
    job = site.job()
    runs = [site.run(job).pk for _ in range(5)]
    path, found = "/api/v1/run/?limit=2&worker__api_key=", []
    path = "/api/v1/run/?limit=2&x=a%20b"
    while path:
        page = site.own.get(path).json
        found += [each["id"] for each in page["objects"]]
        path = page["meta"]["next"]
    assert found == sorted(runs, reverse=True)
    assert page["meta"]["previous"] == "/api/v1/run/?x=a%20b&limit=2&offset=2"
    assert site.own.get("/api/v1/run/?limit=0").json["meta"]["limit"] == 1000
    beyond = site.own.get("/api/v1/run/?offset=7").json
    assert (beyond["objects"], beyond["meta"]["total_count"]) == ([], 5)


def test_a_list_takes_the_same_number_of_queries_however_long_it_is(site):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    staff = site.person("staff")
    for path in ("job", "run", "run_log", "project", "worker_pool"):
        counts = []
        for _ in range(2):
            run = site.run()
            lifecycle.store_log(run.pk, "x")
            site.make_project(site.worker)
            with CaptureQueriesContext(
                connection,
            ) as queries:
                assert staff.get(f"/api/v1/{path}/").status == 200
            # The session is written anew for each request of this caller.
            counts.append([each["sql"] for each in queries if "SELECT" in each["sql"]])
        assert len(counts[0]) == len(counts[1]), path


def test_a_list_of_logs_and_runs_does_not_read_what_it_does_not_show(site):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    run = site.run()
    lifecycle.store_log(run.pk, "x")
    with CaptureQueriesContext(connection) as queries:
        site.own.get("/api/v1/run/")
    assert not any('"content"' in each["sql"] for each in queries)


def test_a_kill_request_is_taken_and_done(site, run):
    claim(site.own, run)
    admin = site.person("admin")
    made = admin.post("/api/v1/kill_request/", run=uri(run))
    path = made.headers["location"].removeprefix("http://testserver")

    assert made.status == 201
    assert site.own.get(path).json["enqueue_dts"] is None
    assert site.own.patch(path, enqueue_dts=AT).status == 202
    assert site.own.patch(path, enqueue_dts=LATER, execute_dts=LATER).status == 202
    shown = site.own.get(path).json
    assert (shown["enqueue_dts"], shown["execute_dts"]) == (AT, LATER)
    assert shown["run"] == uri(run)
    site.own.patch(uri(run), return_dts=LATER, return_success=False)
    assert admin.post("/api/v1/kill_request/", run=uri(run)).status == 409


def test_a_job_is_made_and_run(site):
    admin = site.person("admin")
    fields = {
        "title": "new",
        "script_content_partial": "#!/bin/sh\necho 'a' && echo <b>\n",
        "job_template": uri(site.template, "job_template"),
        "worker_pool": uri(site.pool, "worker_pool"),
    }
    job = admin.post("/api/v1/job/", **fields).headers["location"]
    job = job.removeprefix("http://testserver")
    made = admin.post("/api/v1/run/", job=job, is_manual=True)
    path = made.headers["location"].removeprefix("http://testserver")

    assert made.status == 201
    assert site.own.get(path).json["job"] == job
    shown = site.own.get(job).json
    assert shown["script_content"] == fields["script_content_partial"]


def test_a_run_of_a_disabled_job_is_made_by_hand_only(site):
    admin = site.person("admin")
    job = uri(site.job(enqueue_is_enabled=False), "job")

    answer = admin.post("/api/v1/run/", job=job)
    assert answer.status == 403
    assert "is disabled" in answer.json["error"]
    assert admin.post("/api/v1/run/", job=job, is_manual=True).status == 201


def test_a_template_wraps_the_script(site):
    site.template.body = "#!/bin/sh\nset -e\n{{ content|safe }}\necho done"
    site.template.save()
    job = site.job("echo 'a' && true")

    shown = site.own.get(uri(job, "job")).json
    assert shown["script_content"] == "#!/bin/sh\nset -e\necho 'a' && true\necho done"
    assert shown["script_content_partial"] == "echo 'a' && true"


def test_a_template_that_is_broken_gives_a_script_that_says_so(site):
    site.template.body = "{% if %}"
    site.template.save()
    script = site.own.get(uri(site.job(), "job")).json["script_content"]

    assert script.startswith("#!/bin/sh\n")
    assert f"job template {site.template.pk}" in script
    assert script.endswith("exit 1\n")


def test_a_child_is_named_by_its_parent(site):
    parent = site.job()
    child = site.job(parent=parent)

    assert site.own.get(uri(parent, "job")).json["children"] == [uri(child, "job")]
    assert site.own.get(uri(child, "job")).json["parent"] == uri(parent, "job")
    assert Job.objects.get(pk=child.pk).parent == parent


def test_a_busy_database_asks_to_be_tried_again(site, run, monkeypatch):
    from django.db import OperationalError

    def locked(*_):
        raise OperationalError("database is locked")

    monkeypatch.setattr(lifecycle, "claim", locked)
    answer = site.own.patch(uri(run), enqueue_dts=AT)

    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert json.loads(answer.body) == {"error": "database is locked"}
