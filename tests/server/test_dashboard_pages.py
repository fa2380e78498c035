"""What the pages of the dashboard say, and what they cost the database."""

import html
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from job_runner_worker.server import lifecycle
from job_runner_worker.server.health import HealthCheck
from job_runner_worker.server.models import Job, KillRequest, Run, Worker
from job_runner_worker.server.pulse import SILENCE_SECONDS


@pytest.fixture
def client(site):
    found = Client()
    found.force_login(site.person("staff").user)
    return found


@pytest.fixture
def viewer(site):
    found = Client()
    found.force_login(site.person("viewer").user)
    return found


@pytest.fixture
def now():
    return timezone.now()


def ended(site, job, at, seconds=1.0, *, success=True, **values):
    return Run.objects.create(
        job=job,
        worker=site.worker,
        schedule_dts=at - timedelta(seconds=seconds),
        enqueue_dts=at - timedelta(seconds=seconds),
        start_dts=at - timedelta(seconds=seconds),
        return_dts=at,
        return_success=success,
        **values,
    )


def text_of(answer):
    """What a person reads, on one line."""
    main = answer.content.decode().partition("<main")[2]
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", main)).split())


def run_ids(answer):
    return [int(each) for each in re.findall(r'/runs/(\d+)/">#', text(answer))]


def text(answer):
    return answer.content.decode()


def test_a_new_server_tells_what_to_do(client):
    found = text_of(client.get("/"))
    assert "Nothing here yet" in found
    assert "Paste a script" in found
    assert "No jobs yet" in text_of(client.get("/jobs/"))


def test_runs_are_shown_by_what_becomes_of_them(site, client, now):
    job = site.job(title="nightly")
    for seconds in (100, 60, 80):
        ended(site, job, now - timedelta(hours=1), seconds)
    ended(site, job, now, success=False, exit_status=7, reason="exit status 7")
    ended(site, job, now, success=False, reason="killed on request")
    site.run(site.job(title="for later"), at=now + timedelta(hours=1))
    site.run(site.job(title="waits"))
    going = site.run(job)
    lifecycle.claim(going.pk, site.worker, now)
    queued = text_of(client.get("/"))
    lifecycle.start(going.pk, site.worker, now - timedelta(seconds=30), 1)
    found = text_of(client.get("/"))

    assert re.search(r"queued #\d+ nightly .* not started", queued)
    assert re.search(r"running #\d+ nightly .* 3\d s of 1 min 20 s", found)
    assert re.search(r"waiting #\d+ waits", found)
    assert re.search(r"scheduled #\d+ for later", found)
    assert re.search(r"succeeded #\d+ nightly", found)
    assert re.search(r"failed #\d+ nightly .* exit status 7", found)
    assert re.search(r"killed #\d+ nightly .* killed on request", found)
    assert "2 failed in 24 h" in found


def test_a_run_that_takes_much_longer_than_usual_is_told(site, client, now):
    job = site.job()
    ended(site, job, now, 20)
    run = site.run(job)
    lifecycle.claim(run.pk, site.worker, now)
    lifecycle.start(run.pk, site.worker, now - timedelta(seconds=50), 1)

    for path in ("/", f"/runs/{run.pk}/"):
        assert "of 20 s, longer than usual" in text_of(client.get(path))


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", {"ours", "theirs", "failed"}),
        ("project={project}", {"ours", "failed"}),
        ("pool={other_pool}", {"theirs"}),
        ("worker={worker}", {"ours", "failed", "theirs"}),
        ("worker={other_worker}", set()),
        ("job={job}", {"ours"}),
        ("text=THEIR", {"theirs"}),
        ("text=%00", {"ours", "theirs", "failed"}),
        ("state=completed_with_error", {"failed"}),
        ("state=completed_successful&text=s", {"ours", "theirs"}),
        ("state=started", set()),
        (
            "state=nonsense&project=x&job=-1&before=x&after=1",
            {"ours", "theirs", "failed"},
        ),
        ("project=99999999999999999999", {"ours", "theirs", "failed"}),
        ("before=1e300,5", {"ours", "theirs", "failed"}),
    ],
)
def test_the_url_says_which_runs_are_shown(site, client, now, query, shown):
    jobs = {
        "ours": site.job(title="ours"),
        "theirs": site.job(title="theirs", other=True),
        "failed": site.job(title="failed one"),
    }
    runs = {
        name: ended(site, job, now, success=name != "failed")
        for name, job in jobs.items()
    }
    query = query.format(
        project=site.project.pk,
        other_pool=site.other_pool.pk,
        worker=site.worker.pk,
        other_worker=site.other_worker.pk,
        job=jobs["ours"].pk,
    )

    found = set(run_ids(client.get(f"/?{query}")))

    assert {name for name, run in runs.items() if run.pk in found} == shown


def test_what_has_ended_is_paged_there_and_back(site, client, now):
    job = site.job()
    # Some end at the same moment: none is lost or shown twice.
    runs = [
        ended(site, job, now - timedelta(minutes=number // 3)) for number in range(100)
    ]
    pages, way = [], "/"
    while way:
        answer = client.get(way)
        pages.append(run_ids(answer))
        older = re.search(r'rel="next" href="([^"]*)"', text(answer))
        way = older and "/" + html.unescape(older[1])
    newer = re.search(r'rel="prev" href="([^"]*)"', text(answer))
    back = run_ids(client.get("/" + html.unescape(newer[1])))

    assert sorted(sum(pages, [])) == sorted(run.pk for run in runs)
    assert [len(page) for page in pages] == [40, 40, 20]
    assert back == pages[1]


def grow(site, number, now):
    """More of everything that a page may show."""
    parent = None
    for each in range(number):
        worker = Worker.objects.create(title=f"w{each}", api_key=f"key{number}-{each}")
        site.pool.workers.add(worker)
        site.make_project(worker)
        parent = site.job(
            title=f"job {number} {each}",
            parent=parent if each % 3 else None,
            reschedule_interval=5,
            reschedule_interval_type="MINUTE",
        )
        parent.excluded.create(start_time="01:00", end_time="02:00")
        site.run(parent, at=now + timedelta(hours=1))
        ended(site, parent, now, success=bool(each % 2))
        going = site.run(parent)
        lifecycle.claim(going.pk, site.worker, now)
        lifecycle.start(going.pk, site.worker, now, each)


def queries(client, path):
    client.get(path)
    with CaptureQueriesContext(connection) as found:
        assert client.get(path).status_code == 200
    return len(found)


@pytest.mark.parametrize("who", ["client", "viewer"])
@pytest.mark.parametrize(
    "path",
    ["/", "/?state=completed", "/?text=job", "/jobs/", "/projects/", "/workers/"],
)
def test_more_rows_take_no_more_queries(request, site, now, who, path):
    caller = request.getfixturevalue(who)
    grow(site, 2, now)
    few = queries(caller, path)
    grow(site, 8, now)

    assert queries(caller, path) == few
    assert few <= 16


@pytest.mark.parametrize("path", ["/jobs/{job}/", "/runs/{run}/"])
def test_more_history_takes_no_more_queries(site, client, now, path):
    job = site.job()
    run = ended(site, job, now)
    path = path.format(job=job.pk, run=run.pk)
    few = queries(client, path)
    for number in range(60):
        ended(site, job, now - timedelta(minutes=number), number)
    for number in range(8):
        KillRequest.objects.create(run=run, requested_by=f"person {number}")

    assert queries(client, path) == few


def test_a_run_is_told_from_its_schedule_to_its_end(site, client, now):
    run = site.run()
    assert "not yet" in text_of(client.get(f"/runs/{run.pk}/"))
    lifecycle.claim(run.pk, site.worker, now + timedelta(seconds=2))
    lifecycle.start(run.pk, site.worker, now + timedelta(seconds=3), 4711, "node7")
    lifecycle.request_kill(run.pk, "ada")
    found = text_of(client.get(f"/runs/{run.pk}/"))
    assert "4711" in found
    assert "Worker 1 on node7" in found
    assert "Kill asked for by ada" in found
    assert "the worker has not heard it yet" in found

    lifecycle.fail_unresponsive(run.pk, "worker testworker does not answer pings")
    lifecycle.finish(run.pk, site.worker, now, True, 0)
    found = text_of(client.get(f"/runs/{run.pk}/"))
    assert "does not answer pings (said by the server)" in found
    assert "The worker came back" in found
    assert "success, exit status 0" in found


def test_a_run_tells_what_it_has_used(site, client, now):
    run = ended(site, site.job(), now)
    assert "Used" not in text_of(client.get(f"/runs/{run.pk}/"))
    usage = {"cpu_seconds": 0.021, "peak_memory_bytes": 12582912, "peak_processes": 3}
    Run.objects.filter(pk=run.pk).update(usage=usage)
    shown = "Used 0.02 s CPU, 12 MiB at most, 3 processes at most"
    assert shown in text_of(client.get(f"/runs/{run.pk}/"))


def test_a_run_that_has_ended_is_not_killed_and_the_page_says_so(site, client, now):
    run = ended(site, site.job(), now)
    assert "Kill…" not in text_of(client.get(f"/runs/{run.pk}/"))
    answer = client.post(f"/runs/{run.pk}/kill/", follow=True)
    assert f"Nothing to kill: run {run.pk} has ended" in text_of(answer)


def test_a_job_tells_its_next_five_times_in_its_time_zone(site, client):
    job = site.job(cron_expression="0 6 * * *", time_zone="Asia/Tokyo")
    found = text_of(client.get(f"/jobs/{job.pk}/"))
    assert "cron 0 6 * * * in Asia/Tokyo" in found
    assert len(re.findall(r"\w{3} \d{4}-\d\d-\d\d 06:00", found)) == 5
    run = site.run(job, at=timezone.now() + timedelta(days=400))
    due = rf"scheduled #{run.pk} any due {run.schedule_dts:%Y-%m-%d}"
    assert re.search(due, text_of(client.get(f"/jobs/{job.pk}/")))


def test_a_job_whose_schedule_cannot_be_read_says_why(site, client):
    job = site.job(cron_expression="never ever")
    found = client.get(f"/jobs/{job.pk}/")
    assert "No next run: cron expression 'never ever'" in text_of(found)
    assert client.get("/jobs/").status_code == 200


def test_a_job_tells_what_above_it_is_disabled(site, client):
    job = site.job()
    site.project.enqueue_is_enabled = False
    site.project.save()
    found = client.get(f"/jobs/{job.pk}/")
    assert f"project {site.project} is disabled" in text_of(found)

    client.post(
        f"/switch/project/{site.project.pk}/",
        {"enabled": "1", "back": "https://example.com/"},
    )
    site.project.refresh_from_db()
    assert site.project.enqueue_is_enabled


@pytest.mark.parametrize("kind", ["project", "template"])
def test_a_project_and_a_template_are_disabled_and_enabled_where_they_are_listed(
    site, client, kind
):
    site.job()
    row = getattr(site, kind)
    path = f"/switch/{kind}/{row.pk}/"
    assert f"{site.template.title} 1 enabled" in text_of(client.get("/projects/"))
    for word, value in (("Disable", "0"), ("Enable", "1")):
        fields = re.search(
            rf'action="{path}">(.*?)</form>', text(client.get("/projects/"))
        )
        assert f'name="enabled" value="{value}"' in fields[1]
        assert re.sub("<[^>]*>", "", fields[1]) == f"{word} {kind} {row.title}"
        answer = client.post(path, {"enabled": value, "back": "/projects/"})
        assert answer.headers["Location"] == "/projects/"
        row.refresh_from_db()
        assert row.enqueue_is_enabled == (value == "1")


@pytest.mark.parametrize("back", ["https://example.com/", "//example.com/", ""])
def test_nobody_is_sent_to_another_server(site, client, back):
    job = site.job()
    answer = client.post(f"/switch/job/{job.pk}/", {"enabled": "1", "back": back})
    assert answer.headers["Location"] == "/"


def test_a_chain_is_drawn_from_its_first_job_on(site, client):
    first = site.job(title="first")
    second = site.job(title="second", parent=first, schedule_children_on_error=True)
    third = site.job(title="a third with a very long title", parent=second)
    other = site.job(title="beside", parent=first, enqueue_is_enabled=False)
    found = text(client.get(f"/jobs/{second.pk}/"))

    drawn = re.findall(r'<a href="/jobs/(\d+)/"[^>]*><title>', found)
    assert {int(each) for each in drawn} == {first.pk, second.pk, third.pk, other.pk}
    assert found.count('class="line') == 3
    assert found.count('class="line also') == 1
    assert "beside, disabled" in found
    assert "a third with a very lo" not in re.sub("<title>.*?</title>", "", found)
    alone = site.job(title="alone")
    assert "Chain" not in text_of(client.get(f"/jobs/{alone.pk}/"))


def test_a_chain_that_is_a_ring_or_huge_is_drawn_all_the_same(site, client):
    first = site.job(title="first")
    second = site.job(title="second", parent=first)
    Job.objects.filter(pk=first.pk).update(parent=second)
    assert client.get(f"/jobs/{first.pk}/").status_code == 200

    root = site.job(title="root")
    for number in range(70):
        site.job(title=f"child {number}", parent=root)
    assert "more jobs than are drawn" in text_of(client.get(f"/jobs/{root.pk}/"))


def test_a_history_tells_success_and_durations(site, client, now):
    job = site.job()
    for number in range(4):
        at = now - timedelta(hours=number)
        ended(site, job, at, 10 * number + 10, success=number != 0)
    found = client.get(f"/jobs/{job.pk}/")

    assert "75 % success of the last 4 runs, usually 30 s" in text_of(found)
    heights = re.findall(r'class="bar (\w+)"[^>]*height="(\d+)"', text(found))
    assert heights == [
        ("succeeded", "72"),
        ("succeeded", "54"),
        ("succeeded", "36"),
        ("failed", "18"),
    ]


@pytest.mark.parametrize(
    ("description", "shown"),
    [
        ("**bold**", "<strong>bold</strong>"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("[x](javascript:alert)", "[x](javascript:alert)"),
        ("[x](data:text/html,x)", "[x](data:text/html,x)"),
        ("![x](https://example.com/x.png)", "!<a href="),
        ("[x](https://example.com/)", 'rel="noopener noreferrer nofollow"'),
    ],
)
def test_a_description_is_markdown_that_does_no_harm(site, client, description, shown):
    job = site.job(description=description)
    found = text(client.get(f"/jobs/{job.pk}/"))
    found = found.partition('class="description"')[2].partition("columns")[0]
    assert shown in found
    assert "<img" not in found


def test_workers_tell_whether_they_answer_and_how_busy_they_are(site, client, now):
    clock = [0.0]
    health = HealthCheck(lambda: clock[0])
    Worker.objects.filter(pk=site.other_worker.pk).update(
        ping_response_dts=now, concurrent_jobs=2
    )
    health.check()
    # Its clock is a day late, and it answers.
    Worker.objects.filter(pk=site.worker.pk).update(
        ping_response_dts=now - timedelta(days=1),
        worker_version="3.0.0",
        concurrent_jobs=4,
    )
    clock[0] = SILENCE_SECONDS + 1
    health.check()
    lifecycle.claim(site.run().pk, site.worker, now)
    site.run(site.job(title="waits"))
    found = text_of(client.get("/workers/"))

    assert re.search(r"responsive Worker 1 testworker 1 of 4 slots show 3\.0\.0", found)
    assert re.search(r"not responsive Worker 2 worker2 0 of 2 slots", found)
    assert "pool of Worker 1 1 waiting" in found
    assert "1 of 2 workers responsive" in text_of(client.get("/"))
    Worker.objects.update(ping_response_dts=None)
    assert "never heard" in text_of(client.get("/workers/"))
