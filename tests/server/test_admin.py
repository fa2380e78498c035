"""Django's admin: every model, and runs that cannot be edited."""

import re

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from job_runner_worker.server import lifecycle, planning
from job_runner_worker.server.models import (
    Job,
    JobTemplate,
    KillRequest,
    Project,
    Run,
    RunLog,
    Worker,
    WorkerPool,
)

EDITED = [Project, WorkerPool, Worker, JobTemplate, Job]
LOOKED_AT = [Run, RunLog, KillRequest]


@pytest.fixture
def client():
    browser = Client()
    browser.force_login(User.objects.create_superuser("root"))
    return browser


@pytest.fixture
def run(site):
    found = site.run()
    lifecycle.claim(found.pk, site.worker, timezone.now())
    lifecycle.add_log(found.pk, "<b>a log</b>")
    lifecycle.request_kill(found.pk)
    return found


def path_of(model, rest=""):
    return f"/admin/server/{model._meta.model_name}/{rest}"


@pytest.mark.parametrize("model", EDITED + LOOKED_AT)
def test_every_model_has_a_list_with_search_and_filters(client, run, model):
    options = admin.site._registry[model]
    page = client.get(path_of(model), {"q": "1"})

    assert page.status_code == 200
    assert options.search_fields
    assert options.list_filter


@pytest.mark.parametrize("model", EDITED + LOOKED_AT)
def test_every_row_has_a_page(client, run, model):
    row = model.objects.first()
    page = client.get(path_of(model, f"{row.pk}/change/"))

    assert page.status_code == 200
    assert b"<b>a log" not in page.content


@pytest.mark.parametrize("model", EDITED)
def test_what_people_keep_is_edited(client, run, model):
    assert client.get(path_of(model, "add/")).status_code == 200
    assert (
        b'name="_save"'
        in client.get(path_of(model, f"{model.objects.first().pk}/change/")).content
    )


@pytest.mark.parametrize("model", LOOKED_AT)
def test_what_lifecycle_moves_is_looked_at(client, run, model):
    row = model.objects.first()
    change = path_of(model, f"{row.pk}/change/")

    assert client.get(path_of(model, "add/")).status_code == 403
    assert b'name="_save"' not in client.get(change).content
    assert client.post(change, {"return_success": "true"}).status_code == 403


def test_a_new_worker_has_a_secret(client):
    page = client.get(path_of(Worker, "add/")).content

    assert re.search(rb'name="secret" value="[0-9a-f]{64}"', page)


def test_a_template_that_cannot_be_rendered_is_refused(client, site):
    fields = {"title": "t", "body": "{% if %}", "project": site.project.pk}
    page = client.post(path_of(JobTemplate, "add/"), fields)

    assert b"no valid template" in page.content
    assert JobTemplate.objects.filter(title="t").count() == 0


def act(client, model, action, row):
    fields = {"action": action, "_selected_action": [row.pk]}
    return client.post(path_of(model), fields, follow=True)


def test_a_job_is_run_from_its_list(client, site):
    job = site.job(enqueue_is_enabled=False)
    page = act(client, Job, "run_now", job)

    assert b"is scheduled" in page.content
    assert Run.objects.get().is_manual


def test_a_run_is_killed_from_its_list(client, site):
    run = site.run()
    assert b"is asked to be killed" in act(client, Run, "kill", run).content
    assert Run.objects.get().return_success is False
    assert b"has ended" in act(client, Run, "kill", run).content


def test_the_admin_has_its_looks(client):
    page = client.get("/static/admin/css/base.css")
    assert page.status_code == 200
    assert b"".join(page.streaming_content)
    page.close()


def test_the_first_page_leads_to_the_admin(client):
    assert client.get("/", follow=True).status_code == 200


@pytest.mark.parametrize("model", EDITED)
def test_what_has_a_switch_is_enabled_and_disabled_from_its_list(client, site, model):
    site.job(cron_expression="30 4 * * *")
    row = model.objects.filter(title__in=(site.project, site.pool, "a job")).first()
    row = row or model.objects.first()

    act(client, model, "disable", row)
    assert not model.objects.get(pk=row.pk).enqueue_is_enabled
    act(client, model, "enable", row)
    assert model.objects.get(pk=row.pk).enqueue_is_enabled


def test_a_schedule_is_edited_with_its_excluded_times_and_planned(client, site):
    fields = {
        "title": "nightly",
        "script_content_partial": "#!/bin/sh\n",
        "template": site.template.pk,
        "worker_pool": site.pool.pk,
        "enqueue_is_enabled": "on",
        "reschedule_interval": "1",
        "reschedule_interval_type": "HOUR",
        "schedule_start_dts_0": "2026-01-01",
        "schedule_start_dts_1": "00:30:00",
        "time_zone": "Europe/Amsterdam",
        "excluded-TOTAL_FORMS": "1",
        "excluded-INITIAL_FORMS": "0",
        "excluded-0-start_time": "00:00",
        "excluded-0-end_time": "12:00",
    }
    page = client.post(path_of(Job, "add/"), fields)

    assert page.status_code == 302, re.findall(rb"errorlist.*", page.content)
    job = Job.objects.get()
    assert job.excluded.count() == 1
    run = Run.objects.get(job=job)
    assert run.schedule_dts.minute == 30
    change = client.get(path_of(Job, f"{job.pk}/change/")).content.decode()
    assert change.count(":30, ") == 4

    Job.objects.update(cron_expression="x")
    assert b"cron expression" in client.get(path_of(Job, f"{job.pk}/change/")).content


def test_a_schedule_that_cannot_be_read_is_refused(client, site):
    page = client.post(
        path_of(Job, "add/"),
        {"cron_expression": "* *", "time_zone": "Nowhere", "reschedule_interval": "1"},
    ).content

    assert b"is no time zone" in page
    assert b"give minute, hour" in page


def test_a_job_is_run_without_its_children_from_its_list(client, site):
    act(client, Job, "run_now_without_children", site.job())
    assert Run.objects.get().schedule_children is False


def test_a_job_for_all_workers_of_a_pool_without_any_is_not_run(client, site):
    planning.set_enabled(site.worker, False)
    page = act(client, Job, "run_now", site.job(run_on_all_workers=True))

    assert b"no enabled worker" in page.content
