"""Every endpoint x own worker, other worker, viewer, admin, anonymous and others.

A table: for each caller the statuses of GET list, GET one, POST and PATCH. An object
that exists but is not a worker's own is a 401 to it, and a 404 to a person.
"""

from datetime import timedelta

import pytest
from django.utils import timezone

from job_runner_worker.server import lifecycle
from job_runner_worker.server.models import RunLog
from job_runner_worker.server.notices import RunChanged, RunDue

AT = "2026-11-22T02:25:59.046521+00:00"
CALLERS = ["own", "other", "viewer", "admin", "stranger", "staff", "anonymous"]

#              own    other  viewer admin  strngr staff  anonymous
SEEN = dict(zip(CALLERS, [200, 401, 200, 200, 404, 200, 401], strict=True))
NOT_BY_WORKERS = dict(zip(CALLERS, [401, 401, 200, 200, 404, 200, 401], strict=True))
BY_PEOPLE = dict(zip(CALLERS, [401, 401, 403, 201, 403, 201, 401], strict=True))
BY_WORKER = dict(zip(CALLERS, [202, 401, 403, 403, 404, 403, 401], strict=True))
BY_ADMINS = dict(zip(CALLERS, [401, 401, 403, 202, 404, 202, 401], strict=True))
BY_STAFF = dict(zip(CALLERS, [401, 401, 403, 403, 404, 202, 401], strict=True))
NEW_LOG = dict(zip(CALLERS, [201, 401, 403, 403, 403, 403, 401], strict=True))
NEW_KILL = dict(zip(CALLERS, [201, 401, 403, 201, 403, 201, 401], strict=True))
NOBODY = dict(zip(CALLERS, [405, 405, 405, 405, 405, 405, 401], strict=True))

GET = {
    "group": NOT_BY_WORKERS | {"admin": 404},
    "project": SEEN,
    "worker_pool": SEEN,
    "worker": SEEN,
    "job_template": SEEN,
    "job": SEEN,
    "run": SEEN,
    "run_log": SEEN,
    "kill_request": SEEN,
}
POST = dict.fromkeys(GET, NOBODY) | {
    "job": BY_PEOPLE,
    "run": BY_PEOPLE,
    "run_log": NEW_LOG,
    "kill_request": NEW_KILL,
}
PATCH = dict.fromkeys(GET, NOBODY) | {
    "project": BY_ADMINS,
    "job_template": BY_ADMINS,
    "job": BY_ADMINS,
    "worker_pool": BY_STAFF,
    "worker": BY_WORKER | {"staff": 202},
    "run": BY_WORKER | {"admin": 202, "staff": 202},
    "run_log": BY_WORKER,
    "kill_request": BY_WORKER,
}
CHANGES = {
    **dict.fromkeys(
        ("project", "job_template", "job", "worker_pool"), {"enqueue_is_enabled": False}
    ),
    "worker": {"ping_response_dts": AT},
    "run": {"pid": 4711},
    "run_log": {"content": "more"},
    "kill_request": {"enqueue_dts": AT},
}


class World:
    """A site with one row of each resource, all of the first worker's project."""

    def __init__(self, site):
        self.site = site
        self.callers = {
            "own": site.own,
            "other": site.other,
            "viewer": site.person("viewer"),
            "admin": site.person("admin"),
            "stranger": site.person("stranger"),
            "staff": site.person("staff"),
            "anonymous": site.person("anonymous"),
        }
        self.job = site.job()
        run = site.run(self.job)
        # Scheduled together: both may be held at once.
        self.run_without_log = site.run(self.job, schedule_id=run.schedule_id)
        for each in (run, self.run_without_log):
            lifecycle.claim(each.pk, site.worker, timezone.now())
        log = lifecycle.add_log(run.pk, "some")
        self.rows = {
            "group": self.callers["viewer"].user.groups.get(),
            "project": site.project,
            "worker_pool": site.pool,
            "worker": site.worker,
            "job_template": site.template,
            "job": self.job,
            "run": run,
            "run_log": log,
            "kill_request": lifecycle.request_kill(run.pk),
        }

    def uri(self, resource, row=None):
        return f"/api/v1/{resource}/{(row or self.rows[resource]).pk}/"

    def new(self, resource):
        return {
            "job": {
                "title": "new",
                "script_content_partial": "#!/bin/sh\n",
                "job_template": self.uri("job_template"),
                "worker_pool": self.uri("worker_pool"),
            },
            "run": {"job": self.uri("job")},
            "run_log": {"run": self.uri("run", self.run_without_log), "content": "x"},
            "kill_request": {"run": self.uri("run")},
        }.get(resource, {})


@pytest.fixture
def world(site):
    return World(site)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("resource", sorted(GET))
def test_who_may_do_what(world, resource, caller):
    send = world.callers[caller].send
    listed = send("GET", f"/api/v1/{resource}/")
    ids = [each["id"] for each in listed.json["objects"]] if listed.body else []
    found = {
        "list": listed.status,
        "in list": world.rows[resource].pk in ids,
        "GET": send("GET", world.uri(resource)).status,
        "PATCH": send("PATCH", world.uri(resource), CHANGES.get(resource, {})).status,
        "POST": send("POST", f"/api/v1/{resource}/", world.new(resource)).status,
    }

    assert found == {
        "list": 401 if caller == "anonymous" else 200,
        "in list": GET[resource][caller] == 200,
        "GET": GET[resource][caller],
        "PATCH": PATCH[resource][caller],
        "POST": POST[resource][caller],
    }


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("resource", sorted(GET))
def test_nobody_deletes_or_replaces_anything(world, resource, caller):
    send = world.callers[caller].send
    refused = 401 if caller == "anonymous" else 405
    for path in (f"/api/v1/{resource}/", world.uri(resource)):
        for method in ("DELETE", "PUT"):
            assert send(method, path, {}).status == refused, (method, path)
    assert (
        type(world.rows[resource]).objects.filter(pk=world.rows[resource].pk).exists()
    )


@pytest.mark.parametrize("caller", CALLERS)
def test_the_description_for_programs_is_for_everybody(world, caller):
    answer = world.callers[caller].send("GET", "/api/v1/openapi.json")
    assert answer.status == 200


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("path", ["", "run/schema/"])
def test_the_descriptions_are_for_those_who_are_known(world, caller, path):
    status = world.callers[caller].send("GET", f"/api/v1/{path}").status
    assert status == (401 if caller == "anonymous" else 200)


@pytest.mark.parametrize("caller", ["own", "admin", "viewer", "staff"])
def test_nobody_is_shown_a_secret(world, caller):
    answer = world.callers[caller].send("GET", world.uri("worker"))
    assert b"secret" not in answer.body


def test_a_worker_finds_itself_alone(world):
    for caller, worker in (
        ("own", world.site.worker),
        ("other", world.site.other_worker),
    ):
        found = world.callers[caller].get("/api/v1/worker/").json["objects"]
        assert [each["id"] for each in found] == [worker.pk]


def test_a_worker_keeps_its_run_when_the_job_moves_to_another_pool(world):
    job = world.job
    job.worker_pool = world.site.other_pool
    job.save()
    own = world.callers["own"]

    assert own.get(world.uri("job")).status == 200
    end = {"return_dts": AT, "return_success": True}
    assert own.patch(world.uri("run"), **end).status == 202
    assert own.get(world.uri("run")).status == 200


def test_an_admin_of_one_project_is_nobody_in_another(world):
    site = world.site
    admin = world.callers["admin"]
    job = site.job(other=True)
    run = site.run(job)

    assert admin.get(world.uri("job", job)).status == 404
    assert admin.post("/api/v1/run/", job=world.uri("job", job)).status == 403
    assert admin.post("/api/v1/kill_request/", run=world.uri("run", run)).status == 403
    for name, row in (
        ("job_template", site.other_template),
        ("worker_pool", site.other_pool),
        ("parent", job),
    ):
        fields = world.new("job") | {
            name: world.uri("job" if name == "parent" else name, row)
        }
        assert admin.post("/api/v1/job/", **fields).status == 403, name


def test_a_viewer_who_is_an_admin_of_nothing_is_told_so(world):
    answer = world.callers["viewer"].post("/api/v1/run/", job=world.uri("job"))
    assert answer.json == {"error": "this job is not yours to start"}


def test_a_log_is_written_by_the_worker_that_holds_the_run(world):
    site = world.site
    site.pool.workers.add(site.other_worker)
    other = world.callers["other"]

    assert other.get(world.uri("run_log")).status == 200
    assert other.patch(world.uri("run_log"), content="mine").status == 409
    fields = world.new("run_log")
    assert other.post("/api/v1/run_log/", **fields).status == 409
    assert RunLog.objects.get().content == "some"


def test_a_session_needs_a_csrf_token(world):
    from django.test import Client

    client = Client(enforce_csrf_checks=True)
    client.force_login(world.callers["admin"].user)
    fields = {"job": world.uri("job")}
    found = client.post("/api/v1/run/", fields, content_type="application/json")

    assert found.status_code == 403
    assert "CSRF" in found.json()["error"]

    client.cookies["csrftoken"] = "a" * 32
    found = client.post(
        "/api/v1/run/",
        fields,
        content_type="application/json",
        headers={"X-CSRFToken": "a" * 32},
    )
    assert found.status_code == 201


def test_a_person_who_has_left_has_no_session(world):
    admin = world.callers["admin"]
    admin.user.is_active = False
    admin.user.save()

    assert admin.get("/api/v1/run/").status == 401


def test_who_administers_a_job_moves_a_run_that_waits(site, heard):
    admin = site.person("admin")
    run = site.run(at=timezone.now() + timedelta(days=1))
    path = f"/api/v1/run/{run.pk}/"
    heard.clear()

    assert admin.send("PATCH", path, {"schedule_dts": AT}).status == 202
    assert admin.get(path).json["schedule_dts"] == AT
    assert heard == [RunChanged(run.pk, "scheduled"), RunDue(run.pk)]
    assert admin.send("PATCH", path, {"schedule_children": False}).status == 202
    assert admin.get(path).json["schedule_children"] is False
    wrong = admin.send("PATCH", path, {"schedule_dts": "soon"})
    assert wrong.status == 400
    # What a worker says of a run is not for people to say.
    fields = {"enqueue_dts": AT, "return_dts": AT, "return_success": True}
    assert admin.send("PATCH", path, fields).status == 202
    assert admin.get(path).json["enqueue_dts"] is None

    lifecycle.claim(run.pk, site.worker, timezone.now())
    late = admin.send("PATCH", path, {"schedule_dts": AT})
    assert late.status == 409
    assert late.json["error"] == f"run {run.pk} does not wait any more"


def test_a_worker_does_not_say_when_a_run_is_due(site):
    run = site.run()
    path = f"/api/v1/run/{run.pk}/"
    before = site.own.get(path).json["schedule_dts"]
    assert site.own.patch(path, schedule_dts=AT).status == 202
    assert site.own.get(path).json["schedule_dts"] == before


def test_a_run_may_be_for_one_worker_of_its_jobs_pool_and_for_no_other(site):
    admin = site.person("admin")
    job = f"/api/v1/job/{site.job().pk}/"
    own, other = (
        f"/api/v1/worker/{each.pk}/" for each in (site.worker, site.other_worker)
    )

    made = admin.post("/api/v1/run/", job=job, worker=own)
    assert made.status == 201
    path = made.headers["location"].removeprefix("http://testserver")
    assert admin.get(path).json["worker"] == own
    refused = admin.post("/api/v1/run/", job=job, worker=other)
    assert refused.status == 400
    assert refused.json["error"].startswith("`worker`: ")
    assert site.own.patch(path, enqueue_dts=AT).status == 202
