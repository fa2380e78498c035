"""Mail, to a mail server of the test's own on loopback."""

import logging
import socketserver
import threading

import gevent
import pytest
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from job_runner_worker.errors import ConfigError
from job_runner_worker.server import django_settings, lifecycle, notifications, planning
from job_runner_worker.server.models import Job

LIMIT_SECONDS = 20


class MailServer(socketserver.ThreadingTCPServer):
    """Takes mail, and refuses who is called nobody."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self):
        self.mails = []
        self.has_mail = threading.Event()
        super().__init__(("127.0.0.1", 0), Session)


class Session(socketserver.StreamRequestHandler):
    timeout = LIMIT_SECONDS

    def answer(self, text):
        self.wfile.write(text.encode() + b"\r\n")

    def handle(self):
        self.answer("220 here")
        for line in self.rfile:
            word = line[:4].upper()
            if word == b"DATA":
                self.answer("354 go on")
                self.take()
            elif b"nobody@" in line and word == b"RCPT":
                self.answer("550 no such user")
            elif word == b"QUIT":
                self.answer("221 bye")
                return
            else:
                self.answer("250 fine")

    def take(self):
        lines = iter(self.rfile.readline, b".\r\n")
        self.server.mails.append(b"".join(lines).decode())
        self.server.has_mail.set()
        self.answer("250 taken")


@pytest.fixture(autouse=True)
def empty_outbox():
    notifications._outbox.clear()
    yield
    notifications._outbox.clear()


def mail_settings(port):
    url = f"smtp://127.0.0.1:{port}"
    return override_settings(**django_settings.mail(url, "jobs@example.com"))


@pytest.fixture
def server():
    with MailServer() as found:
        thread = threading.Thread(
            target=found.serve_forever, kwargs={"poll_interval": 0.02}
        )
        thread.start()
        with mail_settings(found.server_address[1]):
            yield found
        found.shutdown()
        thread.join(LIMIT_SECONDS)


def told(row, address):
    row.notification_addresses = address
    row.save()


@pytest.fixture
def addressed(site):
    """The site; each owner has an address, and one of them is there twice."""
    told(site.project, "project@example.com\n\n  both@example.com ")
    told(site.template, "template@example.com")
    told(site.pool, "pool@example.com\nboth@example.com")
    return site


def fail(site, job, exit_status=3):
    now = timezone.now()
    run = site.run(job)
    lifecycle.claim(run.pk, site.worker, now)
    lifecycle.finish(run.pk, site.worker, now, False, exit_status, "no disk")
    return run


def sent():
    return [
        (each.subject, sorted(each.to), each.body) for each in notifications._outbox
    ]


def test_the_addresses_of_job_template_pool_and_project_hear_of_a_failed_run(
    addressed,
):
    run = fail(addressed, addressed.job(notification_addresses="job@example.com"))

    ((subject, to, body),) = sent()
    assert subject == f"[Job-Runner] run {run.pk} of a job has failed"
    assert [each.partition("@")[0] for each in to] == [
        "both",
        "job",
        "pool",
        "project",
        "template",
    ]
    assert "exit status: 3" in body
    assert "reason:      no disk" in body
    assert "worker:      Worker 1" in body


def test_a_success_is_no_news(addressed):
    now = timezone.now()
    run = addressed.run()
    lifecycle.claim(run.pk, addressed.worker, now)
    lifecycle.finish(run.pk, addressed.worker, now, True, 0)

    assert sent() == []


def test_a_mail_says_that_the_job_is_disabled_now(addressed):
    fail(addressed, addressed.job(disable_enqueue_after_fails=1))

    assert "the job is disabled now" in sent()[0][2]


def test_nobody_is_told_where_nobody_wants_to_be(site):
    fail(site, site.job())
    assert sent() == []


def test_people_hear_once_of_a_job_without_a_next_run(addressed):
    job = addressed.job(cron_expression="0 12 * * *", time_zone="UTC")
    job.excluded.create(start_time="11:00", end_time="13:00")
    planning.plan(job.pk)
    planning.sweep()
    planning.plan(job.pk)

    ((subject, _, body),) = sent()
    assert subject == "[Job-Runner] a job has no next run"
    assert "no time that is not excluded" in body


def test_nothing_is_sent_of_what_is_rolled_back(addressed):
    with pytest.raises(KeyError), transaction.atomic():
        fail(addressed, addressed.job())
        raise KeyError

    assert sent() == []


def test_a_title_cannot_add_to_the_head_of_a_mail(addressed):
    job = addressed.job(title="x\nBcc: all@example.com")
    fail(addressed, job)

    assert "\n" not in sent()[0][0]


def test_mail_reaches_the_mail_server(addressed, server):
    mailer = notifications.Mailer()
    mailer.start()
    try:
        fail(addressed, addressed.job())
        with gevent.Timeout(LIMIT_SECONDS):
            while not server.has_mail.is_set():
                gevent.sleep(0.01)
    finally:
        mailer.close()

    (mail,) = server.mails
    assert "From: jobs@example.com" in mail
    assert "project@example.com" in mail
    assert "has failed" in mail


def test_what_the_mail_server_refuses_keeps_nothing_else_back(site, server, caplog):
    told(site.pool, "nobody@example.com")
    fail(site, site.job())
    told(site.pool, "somebody@example.com")
    fail(site, Job.objects.get())

    assert notifications.Mailer().send_waiting()
    assert len(server.mails) == 1
    assert "is refused" in caplog.text
    assert sent() == []


def test_a_mail_server_that_is_away_is_logged_once_and_the_mail_waits(
    addressed, server, caplog
):
    mailer = notifications.Mailer()
    caplog.set_level(logging.ERROR)
    with mail_settings(1):
        for _ in range(3):
            fail(addressed, addressed.job())
            assert not mailer.send_waiting()
    assert caplog.text.count("the mail server is away") == 1
    assert len(sent()) == 3

    assert mailer.send_waiting()
    assert len(server.mails) == 3


def test_the_oldest_mail_gives_way(addressed, monkeypatch):
    from collections import deque

    monkeypatch.setattr(notifications, "_outbox", deque(maxlen=2))
    runs = [fail(addressed, addressed.job()) for _ in range(3)]

    assert [
        f"run {run.pk} " in subject
        for run, (subject, _, _) in zip(runs[1:], sent(), strict=True)
    ] == [True, True]


def test_a_pool_without_a_worker_that_answers_is_told_once_until_it_recovers(addressed):
    from job_runner_worker.server.health import HealthCheck

    clock = [0.0]
    health = HealthCheck(lambda: clock[0])
    addressed.other_pool.workers.clear()
    assert health.check_pools() == []

    clock[0] = 916.0
    assert health.check_pools() == [addressed.pool]
    assert health.check_pools() == []
    # A server that is started again does not tell it again.
    again = HealthCheck(lambda: clock[0])
    assert again.check_pools() == []
    ((subject, to, body),) = sent()
    assert subject == "[Job-Runner] no worker of pool of Worker 1 answers"
    assert to == ["both@example.com", "pool@example.com", "project@example.com"]
    assert "Runs that wait for it: 0" in body

    addressed.worker.ping_response_dts = timezone.now()
    addressed.worker.save()
    assert health.check_pools() == []
    addressed.pool.refresh_from_db()
    assert addressed.pool.unresponsive_dts is None
    clock[0] += 1000
    assert health.check_pools() == [addressed.pool]
    assert len(sent()) == 2


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail", ("mail", 25, "", "", False, False)),
        ("smtps://a:b%40c@mail", ("mail", 465, "a", "b@c", True, False)),
        ("smtp+starttls://mail:26", ("mail", 26, "", "", False, True)),
    ],
)
def test_a_mail_server_is_named_by_a_url(url, expected):
    found = django_settings.mail(url, "jobs@example.com")
    names = ("HOST", "PORT", "HOST_USER", "HOST_PASSWORD", "USE_SSL", "USE_TLS")
    assert tuple(found[f"EMAIL_{name}"] for name in names) == expected
    assert found["EMAIL_BACKEND"].endswith("smtp.EmailBackend")


@pytest.mark.parametrize("url", ["mail", "http://mail", "smtp://", "smtp://mail:x"])
def test_a_url_of_no_mail_server_is_refused(url):
    with pytest.raises(ConfigError, match="--mail"):
        django_settings.mail(url, "jobs@example.com")


def test_without_a_mail_server_mail_is_printed(addressed, capsys):
    with override_settings(**django_settings.mail(None, "jobs@example.com")):
        fail(addressed, addressed.job())
        assert notifications.Mailer().send_waiting()

    assert "From: jobs@example.com" in capsys.readouterr().out
