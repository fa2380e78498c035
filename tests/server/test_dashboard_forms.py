"""Jobs that are made and changed in the dashboard."""

from datetime import time

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from job_runner_worker.server.dashboard.job_forms import JobForm
from job_runner_worker.server.models import Job


@pytest.fixture
def client(site):
    found = Client()
    found.force_login(site.person("admin").user)
    return found


@pytest.fixture
def fields(site):
    return {
        "title": "a new one",
        "script_content_partial": "#!/bin/sh\r\necho hello\r\n",
        "template": site.template.pk,
        "worker_pool": site.pool.pk,
        "schedule_start_dts": "2026-11-22 02:25:59",
        "enqueue_is_enabled": "on",
    }


def test_a_job_is_made_and_run_at_once(site, client, fields):
    answer = client.post("/jobs/new/", {**fields, "run_now": "1"})

    job = Job.objects.get()
    assert answer.headers["Location"] == f"/runs/{job.runs.get().pk}/"
    assert job.script_content_partial == "#!/bin/sh\necho hello\n"
    assert job.runs.get().is_manual


def test_a_job_with_a_schedule_is_planned(site, client, fields):
    answer = client.post(
        "/jobs/new/",
        {
            **fields,
            "reschedule_interval": "2",
            "reschedule_interval_type": "HOUR",
            "excluded_times": "22:00-06:00 backups\n\n12:00 to 13:00",
            "time_zone": "Europe/Amsterdam",
        },
    )

    job = Job.objects.get()
    assert answer.headers["Location"] == f"/jobs/{job.pk}/"
    assert not job.runs.get().is_manual
    assert list(job.excluded.values_list("start_time", "end_time", "note")) == [
        (time(12), time(13), ""),
        (time(22), time(6), "backups"),
    ]


def test_a_job_is_changed_and_planned_anew(site, client, fields):
    client.post("/jobs/new/", {**fields, "cron_expression": "0 4 * * *"})
    job = Job.objects.get()
    form = client.get(f"/jobs/{job.pk}/edit/").content.decode()
    assert 'value="0 4 * * *"' in form
    Job.objects.update(fail_times=2)

    client.post(f"/jobs/{job.pk}/edit/", {**fields, "cron_expression": "0 5 * * *"})

    job.refresh_from_db()
    assert job.runs.get().schedule_dts.hour == 5
    # What is not in the form stays.
    assert job.fail_times == 2


def test_what_is_not_changed_in_the_form_is_not_stored(site, client, fields):
    job = site.job(title="a title", description="as it was")
    job.excluded.create(start_time=time(1), end_time=time(2), note="backups")
    kept = job.excluded.get().pk
    form = JobForm(site.person("staff").user, instance=job)
    posted = {name: form[name].value() or "" for name in form.fields}
    posted = {name: value for name, value in posted.items() if value is not False}
    # Meanwhile a run that fails disables the job.
    Job.objects.update(enqueue_is_enabled=False, fail_times=3)

    with CaptureQueriesContext(connection) as queries:
        client.post(f"/jobs/{job.pk}/edit/", posted)
    assert [each["sql"] for each in queries if "UPDATE" in each["sql"][:6]] == []

    client.post(f"/jobs/{job.pk}/edit/", {**posted, "description": "new"})
    job.refresh_from_db()
    assert (job.title, job.description) == ("a title", "new")
    assert (job.enqueue_is_enabled, job.fail_times) == (False, 3)
    assert job.excluded.get().pk == kept


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("script_content_partial", "echo hello", "The script has no shebang"),
        ("script_content_partial", "#!", "names no interpreter"),
        ("script_content_partial", "#!/bin/sh 'x", "cannot be read"),
        ("script_content_partial", "", "This field is required"),
        (
            "script_content_partial",
            "#!/bin/sh\n# job-runner: timeout=5\n",
            "Line 2 of the script",
        ),
        ("excluded_times", "25:00-26:00", "cannot be read: give lines such as"),
        ("excluded_times", "at night", "cannot be read: give lines such as"),
        ("cron_expression", "every day", "give minute, hour, day of the month"),
        ("time_zone", "Mars/Olympus", "is no time zone"),
        ("reschedule_interval", "5", "an interval has a number and a unit"),
        ("notification_addresses", "nobody", "is no e-mail address"),
        ("title", "x" * 256, "at most 255 characters"),
        ("template", "999", "Select a valid choice"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(client, fields, name, value, said):
    answer = client.post("/jobs/new/", {**fields, name: value})

    page = answer.content.decode()
    assert answer.status_code == 422
    assert said in page.partition('class="field wrong"')[2]
    assert page.index("Not saved.") < page.index(said)
    assert not Job.objects.exists()
    # What was written is still there.
    assert name == "title" or "a new one" in page


def test_a_template_may_give_the_shebang(site, client, fields):
    site.template.body = "#!/bin/sh\n{{ content|safe }}"
    site.template.save()
    client.post("/jobs/new/", {**fields, "script_content_partial": "echo hello"})
    assert Job.objects.get().script_content == "#!/bin/sh\necho hello"


def test_a_template_that_cannot_be_rendered_is_told(site, client, fields):
    site.template.body = "{{ content|add:1|divisibleby:0 }}"
    site.template.save()
    answer = client.post("/jobs/new/", fields)
    assert "It cannot be rendered" in answer.content.decode()


def test_a_job_does_not_follow_itself(site, client, fields):
    parent = site.job(title="parent")
    child = site.job(title="child", parent=parent)
    answer = client.post(f"/jobs/{parent.pk}/edit/", {**fields, "parent": child.pk})
    assert "a job cannot follow itself" in answer.content.decode()
