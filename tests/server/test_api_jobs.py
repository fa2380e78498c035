"""Jobs by the API: made, changed, scheduled, enabled and disabled; lists in order."""

import pytest

from job_runner_worker.server import planning
from job_runner_worker.server.models import Job, Run


def uri(row, resource="job"):
    return f"/api/v1/{resource}/{row.pk}/"


@pytest.fixture
def admin(site):
    return site.person("admin")


def fields_of(site):
    return {
        "title": "new",
        "script_content_partial": "#!/bin/sh\n",
        "job_template": uri(site.template, "job_template"),
        "worker_pool": uri(site.pool, "worker_pool"),
    }


def made(site, admin, **fields):
    answer = admin.post("/api/v1/job/", **fields_of(site), **fields)
    assert answer.status == 201, answer.body
    return answer.headers["location"].removeprefix("http://testserver")


def change(caller, path, **fields):
    return caller.send("PATCH", path, fields)


def test_a_job_is_made_with_a_schedule_and_has_its_next_run(site, admin):
    path = made(
        site,
        admin,
        cron_expression="30 4 * * 1-5",
        time_zone="Europe/Amsterdam",
        excluded_times=[{"start_time": "12:00", "end_time": "13:30:00"}],
    )

    shown = admin.get(path).json
    assert shown["cron_expression"] == "30 4 * * 1-5"
    assert shown["time_zone"] == "Europe/Amsterdam"
    assert shown["excluded_times"] == [
        {"start_time": "12:00:00", "end_time": "13:30:00", "note": ""}
    ]
    run = Run.objects.get()
    assert run.schedule_dts == planning.next_times(Job.objects.get(), 5)[0]


def test_a_job_is_changed_and_planned_anew_and_what_is_not_named_stays(site, admin):
    path = made(site, admin, cron_expression="30 4 * * *", description="*old*")
    Job.objects.update(fail_times=2)

    assert change(admin, path, cron_expression="15 5 * * *").status == 202
    shown = admin.get(path).json
    assert (shown["description"], shown["fail_times"]) == ("*old*", 2)
    assert Run.objects.get().schedule_dts.minute == 15
    assert change(admin, path, enqueue_is_enabled=False).status == 202
    assert not Run.objects.exists()
    assert change(admin, path, enqueue_is_enabled=True).status == 202
    assert Run.objects.count() == 1


def test_a_worker_sees_of_a_job_what_an_original_server_shows(site, admin):
    path = made(site, admin)
    ours = set(admin.get(path).json) - set(site.own.get(path).json)

    assert ours == {
        "cron_expression",
        "schedule_start_dts",
        "time_zone",
        "excluded_times",
        "fail_times",
        "schedule_error",
    }


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"cron_expression": "* * * *"}, "cron_expression"),
        ({"time_zone": "Europe/Atlantis"}, "time_zone"),
        ({"time_zone": "../../etc/passwd"}, "time_zone"),
        ({"reschedule_interval": 5}, "reschedule_interval"),
        ({"reschedule_interval_type": "DAY"}, "reschedule_interval"),
        (
            {
                "reschedule_interval": 5,
                "reschedule_interval_type": "DAY",
                "cron_expression": "* * * * *",
            },
            "cron_expression",
        ),
        ({"excluded_times": [{"start_time": "12:00"}]}, "excluded_times"),
        ({"excluded_times": [{"start_time": 5, "end_time": 6}]}, "excluded_times"),
        ({"excluded_times": "12:00"}, "excluded_times"),
        ({"notification_addresses": "me@example.com\nyou"}, "notification_addresses"),
        ({"schedule_start_dts": "soon"}, "schedule_start_dts"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_is_wrong_with_a_job_is_named(site, admin, method, fields, name):
    if method == "POST":
        answer = admin.post("/api/v1/job/", **fields_of(site), **fields)
    else:
        answer = change(admin, uri(site.job()), **fields)

    assert answer.status == 400
    assert answer.json["error"].startswith(f"`{name}`: ")


def test_a_job_cannot_follow_itself(site, admin):
    first = site.job()
    second = site.job(parent=first)

    for job, parent in ((first, first), (first, second)):
        answer = change(admin, uri(job), parent=uri(parent))
        assert answer.status == 400
        assert answer.json["error"].startswith("`parent`: ")


def test_a_job_does_not_get_what_is_not_its_admins(site, admin):
    job = site.job()
    for name, row in (
        ("job_template", site.other_template),
        ("worker_pool", site.other_pool),
        ("parent", site.job(other=True)),
    ):
        path = uri(row, "job" if name == "parent" else name)
        answer = change(admin, uri(job), **{name: path})
        assert answer.status == 403, name
        assert "is not yours to use" in answer.json["error"]


def test_a_start_at_the_ends_of_the_calendar_breaks_nothing(site, admin):
    for start in ("0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"):
        for unit in ("MINUTE", "HOUR", "DAY", "MONTH"):
            made(
                site,
                admin,
                reschedule_interval=2**31 - 1,
                reschedule_interval_type=unit,
                schedule_start_dts=start,
                time_zone="Asia/Tokyo",
            )


@pytest.mark.parametrize("name", ["project", "job_template"])
def test_what_is_above_a_job_is_disabled_by_its_admins(site, admin, name):
    row = {"project": site.project, "job_template": site.template}[name]
    made(site, admin, cron_expression="30 4 * * *")

    assert change(admin, uri(row, name), enqueue_is_enabled=False).status == 202
    assert admin.get(uri(row, name)).json["enqueue_is_enabled"] is False
    assert not Run.objects.exists()
    assert change(admin, uri(row, name), enqueue_is_enabled="no").status == 400


@pytest.mark.parametrize("name", ["worker", "worker_pool"])
def test_what_projects_share_is_disabled_by_staff(site, admin, name):
    row = {"worker": site.worker, "worker_pool": site.pool}[name]
    staff = site.person("staff")

    assert change(admin, uri(row, name), enqueue_is_enabled=False).status == 403
    assert change(staff, uri(row, name), enqueue_is_enabled=False).status == 202
    row.refresh_from_db()
    assert row.enqueue_is_enabled is False


def test_a_worker_does_not_enable_itself(site):
    planning.set_enabled(site.worker, False)
    site.own.patch(uri(site.worker, "worker"), enqueue_is_enabled=True)

    site.worker.refresh_from_db()
    assert site.worker.enqueue_is_enabled is False


def test_a_list_has_the_order_that_is_asked_for(site, admin):
    from datetime import timedelta

    from django.utils import timezone

    now = timezone.now()
    late, early = site.run(at=now), site.run(at=now - timedelta(hours=1))

    def ids(order):
        rows = admin.get(f"/api/v1/run/?order_by={order}&limit=5").json["objects"]
        return [each["id"] for each in rows]

    assert ids("schedule_dts") == [early.pk, late.pk]
    assert ids("-schedule_dts") == [late.pk, early.pk]
    assert ids("id") == [late.pk, early.pk]
    assert ids("") == [early.pk, late.pk]
    answer = admin.get("/api/v1/run/?order_by=secret")
    assert answer.status == 400
    assert answer.json["error"].startswith("`order_by`: is one of id, schedule_dts")


def test_jobs_and_runs_are_found_by_project_and_schedule(site, admin):
    job = site.job()
    run, _ = site.run(job), site.run(site.job())
    for path, found in (
        (f"run/?schedule_id={run.schedule_id}", [run.pk]),
        (f"job/?project={site.project.pk}&title=x", []),
        (f"job/?project={site.project.pk}&order_by=id", [job.pk, job.pk + 1]),
        (f"job/?project={site.other_project.pk}", []),
    ):
        rows = admin.get(f"/api/v1/{path}").json["objects"]
        assert [each["id"] for each in rows] == found, path
