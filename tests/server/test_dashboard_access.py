"""Every page of the dashboard x everybody who may ask for it."""

import re

import pytest
from django.test import Client
from django.utils import timezone

from job_runner_worker.server import lifecycle

CALLERS = ["viewer", "admin", "stranger", "staff", "anonymous"]

#               viewer admin strngr staff  anonymous (302 is the login)
SEEN = dict(zip(CALLERS, [200, 200, 404, 200, 302], strict=True))
EVERYBODY = dict(zip(CALLERS, [200, 200, 200, 200, 302], strict=True))
ADMINS = dict(zip(CALLERS, [403, 200, 404, 200, 302], strict=True))
DONE_BY_ADMINS = dict(zip(CALLERS, [403, 302, 404, 302, 302], strict=True))
DONE_BY_STAFF = dict(zip(CALLERS, [403, 403, 404, 302, 302], strict=True))

GET = {
    "/": EVERYBODY,
    "/jobs/": EVERYBODY,
    "/jobs/new/": EVERYBODY,
    "/projects/": EVERYBODY,
    "/workers/": EVERYBODY,
    "/jobs/{job}/": SEEN,
    "/jobs/{job}/edit/": ADMINS,
    "/runs/{run}/": SEEN,
    "/runs/{run}/log/": SEEN,
    "/runs/{run}/log.txt": SEEN,
}
POST = {
    "/jobs/{job}/run/": DONE_BY_ADMINS,
    "/jobs/{job}/edit/": DONE_BY_ADMINS,
    "/runs/{run}/kill/": DONE_BY_ADMINS,
    "/runs/{run}/again/": DONE_BY_ADMINS,
    "/switch/job/{job}/": DONE_BY_ADMINS,
    "/switch/template/{template}/": DONE_BY_ADMINS,
    "/switch/project/{project}/": DONE_BY_ADMINS,
    "/switch/pool/{pool}/": DONE_BY_STAFF,
    "/switch/worker/{worker}/": DONE_BY_STAFF,
    "/workers/{worker}/ping/": DONE_BY_STAFF,
}
NOT_THERE = ["/runs/999/", "/jobs/999/", "/runs/9223372036854775808/", "/nothing/"]


class World:
    """A site with a run that goes on, of the first worker's project."""

    def __init__(self, site):
        self.site = site
        self.people = {name: site.person(name).user for name in CALLERS}
        self.job = site.job(title="our job")
        self.run = site.run(self.job)
        lifecycle.claim(self.run.pk, site.worker, timezone.now())
        lifecycle.add_log(self.run.pk, "some output\n")
        self.keys = {
            "job": self.job.pk,
            "run": self.run.pk,
            "template": site.template.pk,
            "project": site.project.pk,
            "pool": site.pool.pk,
            "worker": site.worker.pk,
        }

    def client(self, caller, **options):
        client = Client(**options)
        if self.people[caller] is not None:
            client.force_login(self.people[caller])
        return client

    def job_fields(self, **changes):
        return {
            "title": "our job",
            "script_content_partial": "#!/bin/sh\ntrue\n",
            "template": self.site.template.pk,
            "worker_pool": self.site.pool.pk,
            "schedule_start_dts": "2026-11-22 02:25:59",
            "enqueue_is_enabled": "on",
            **changes,
        }


@pytest.fixture
def world(site):
    return World(site)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("path", GET)
def test_who_sees_which_page(world, path, caller):
    answer = world.client(caller).get(path.format(**world.keys))

    assert answer.status_code == GET[path][caller]
    if caller == "anonymous":
        assert answer.headers["Location"].startswith("/login/?next=")
    if caller == "stranger":
        assert b"our job" not in answer.content
    policy = answer.headers.get("Content-Security-Policy", "")
    assert "script-src 'self'" in policy or answer.status_code in (403, 404)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("path", POST)
def test_who_may_do_what(world, path, caller):
    answer = world.client(caller).post(path.format(**world.keys), world.job_fields())

    assert answer.status_code == POST[path][caller]
    is_done = answer.status_code == 302 and caller != "anonymous"
    assert (world.run.kill_requests.exists()) == (is_done and "kill" in path)
    assert (world.job.runs.count() == 2) == (
        is_done and path.endswith(("/run/", "/again/"))
    )
    for name in ("job", "project", "pool", "worker", "template"):
        row = world.job if name == "job" else getattr(world.site, name)
        row.refresh_from_db()
        assert row.enqueue_is_enabled != (is_done and f"switch/{name}/" in path)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("path", sorted(POST.keys() - GET.keys()))
def test_a_link_alone_changes_nothing(world, path, caller):
    answer = world.client(caller).get(path.format(**world.keys))
    assert answer.status_code == (302 if caller == "anonymous" else 405)


@pytest.mark.parametrize("path", POST)
def test_a_post_needs_the_csrf_token(world, path):
    client = world.client("staff", enforce_csrf_checks=True)
    assert client.post(path.format(**world.keys)).status_code == 403


@pytest.mark.parametrize("path", NOT_THERE)
def test_what_is_not_there_is_a_404(world, path):
    assert world.client("staff").get(path).status_code == 404


@pytest.mark.parametrize("caller", ["viewer", "admin", "staff"])
def test_buttons_are_shown_to_those_who_may_press_them(world, caller):
    client = world.client(caller)
    run = client.get(f"/runs/{world.run.pk}/").content.decode()
    job = client.get(f"/jobs/{world.job.pk}/").content.decode()
    workers = client.get("/workers/").content.decode()
    projects = client.get("/projects/").content.decode()

    may = caller != "viewer"
    assert ("/kill/" in run, "/again/" in run) == (may, may)
    assert ("/run/" in job, "/switch/job/" in job, "/edit/" in job) == (may,) * 3
    assert ("/switch/worker/" in workers) == (caller == "staff")
    switches = (f"/switch/project/{world.site.project.pk}/" in projects,)
    switches += (f"/switch/template/{world.site.template.pk}/" in projects,)
    assert switches == (may,) * 2
    others = f"/switch/project/{world.site.other_project.pk}/"
    assert (others in projects) == (caller == "staff")


def test_a_person_sees_no_row_of_another_project(world):
    site = world.site
    other = site.job(title="their job", other=True)
    run = site.run(other)
    site.job(title="their child", other=True, parent=world.job)
    for caller in ("viewer", "admin"):
        client = world.client(caller)
        for path in ("/", "/jobs/", "/workers/", f"/jobs/{world.job.pk}/"):
            text = client.get(path).content.decode()
            for foreign in ("their", "pool of Worker 2", "worker2", "of Worker 2"):
                assert foreign not in text, (caller, path)
        for path in (f"/?job={other.pk}", f"/?worker={site.other_worker.pk}"):
            assert "their" not in client.get(path).content.decode()
        assert client.get(f"/runs/{run.pk}/").status_code == 404


@pytest.mark.parametrize("name", ["template", "worker_pool", "parent"])
def test_a_job_is_not_made_of_what_belongs_to_others(world, name):
    site = world.site
    other = site.job(title="their job", other=True)
    row = {"template": site.other_template, "worker_pool": site.other_pool}
    fields = world.job_fields(**{name: row.get(name, other).pk})

    answer = world.client("admin").post("/jobs/new/", fields)

    assert answer.status_code == 422
    assert "Select a valid choice" in answer.content.decode()


def test_a_viewer_is_told_that_there_is_nowhere_to_put_a_job(world):
    client = world.client("viewer")
    assert "nowhere to put a job" in client.get("/jobs/new/").content.decode()
    answer = client.post("/jobs/new/", world.job_fields())
    assert answer.status_code == 422
    assert world.site.template.jobs.count() == 1


def test_pages_have_no_script_or_style_within_them(world):
    world.run.refresh_from_db()
    client = world.client("staff")
    paths = [path.format(**world.keys) for path in GET if "log" not in path]
    for path in [*paths, "/login/", "/nothing/"]:
        text = client.get(path).content.decode()
        assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", text)


def test_everybody_logs_in_at_one_place(world):
    person = world.people["viewer"]
    person.set_password("a long password")
    person.save()
    client = Client(enforce_csrf_checks=True)
    client.get("/login/?next=/jobs/")
    fields = {
        "username": person.username,
        "password": "a long password",
        "next": "/jobs/",
        "csrfmiddlewaretoken": client.cookies["csrftoken"].value,
    }

    wrong = client.post("/login/", {**fields, "password": "another"})
    assert wrong.status_code == 200
    assert "correct username and password" in wrong.content.decode()
    assert client.post("/login/", fields).headers["Location"] == "/jobs/"
    fields["csrfmiddlewaretoken"] = client.cookies["csrftoken"].value
    elsewhere = client.post("/login/", {**fields, "next": "https://example.com/"})
    assert elsewhere.headers["Location"] == "/"
    assert client.get("/").status_code == 200
    assert client.get("/logout/").status_code == 405
    token = client.cookies["csrftoken"].value
    client.post("/logout/", {"csrfmiddlewaretoken": token})
    assert client.get("/").status_code == 302


def test_the_admin_asks_for_the_same_login(world):
    answer = world.client("viewer").get("/admin/", follow=True)
    assert answer.redirect_chain[-1][0].startswith("/login/?next=%2Fadmin")
    assert "may not see that page" in answer.content.decode()


def test_who_has_guessed_too_often_is_told_to_wait(world):
    from job_runner_worker.server.django_settings import LOGIN_FAILURES

    client = Client()
    wrong = {"username": "viewer", "password": "guessed"}
    for _ in range(LOGIN_FAILURES):
        answer = client.post("/login/", wrong)

    assert answer.status_code == 429
    assert "Too many wrong passwords" in answer.content.decode()
    assert "15 min after" in answer.content.decode()
