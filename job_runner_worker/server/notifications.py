"""Mail: a run has failed, a job has no next run, a pool has no worker that answers.

Who is told: the addresses of job, template, project and pool. A mail is written in the
transaction of what it tells, and waits until that is through; a greenlet sends it, so
that nobody waits for a mail server. What is not sent when the process ends is lost.
"""

from __future__ import annotations

import logging
import smtplib
from collections import deque
from functools import partial
from typing import Any

import gevent
import gevent.event
from django.core.mail import EmailMessage, get_connection
from django.db import transaction

from job_runner_worker.server.models import Job, Run, WorkerPool
from job_runner_worker.server.validators import addresses_in

MAX_WAITING = 1000
"""Of more that wait for a mail server, the oldest are not sent."""
RETRY_SECONDS = 60.0
_REFUSED = (
    smtplib.SMTPRecipientsRefused,
    smtplib.SMTPSenderRefused,
    smtplib.SMTPDataError,
    ValueError,
)
"""What another try does not mend, such as an address that nobody has."""
_outbox: deque[EmailMessage] = deque(maxlen=MAX_WAITING)
_wake = gevent.event.Event()
_log = logging.getLogger(__name__)


def run_failed(run: Run, is_disabled: bool = False) -> None:
    """Tell that a run has failed, and whether its job is disabled now."""
    run = Run.objects.select_related("worker").get(pk=run.pk)
    lines = [
        f"Run {run.pk} of job {run.job.title!r} has failed.",
        "",
        f"worker:      {run.worker.title if run.worker else 'none'}",
        f"due:         {run.schedule_dts:%Y-%m-%d %H:%M:%S} UTC",
        f"ended:       {run.return_dts:%Y-%m-%d %H:%M:%S} UTC",
        f"exit status: {'unknown' if run.exit_status is None else run.exit_status}",
        f"reason:      {run.reason or 'none was given'}",
    ]
    if is_disabled:
        lines += ["", "It has failed too often in a row: the job is disabled now."]
    _post(_addresses(run.job), f"run {run.pk} of {run.job.title} has failed", lines)


def reschedule_failed(job: Job) -> None:
    """Tell that a job has a schedule and no next run (``job.schedule_error``)."""
    lines = [
        f"Job {job.title!r} has no next run: {job.schedule_error}.",
        "",
        "Change its schedule, its excluded times or its worker pool.",
    ]
    _post(_addresses(job), f"{job.title} has no next run", lines)


def pool_unresponsive(pool: WorkerPool) -> None:
    """Tell that no worker of a pool answers."""
    addresses = addresses_in(pool.notification_addresses)
    for project in pool.projects.all():
        addresses += addresses_in(project.notification_addresses)
    waiting = Run.objects.filter(
        job__worker_pool=pool, enqueue_dts=None, return_dts=None
    )
    lines = [
        f"No worker of the pool {pool.title!r} answers.",
        "",
        f"Runs that wait for it: {waiting.count()}",
    ]
    _post(addresses, f"no worker of {pool.title} answers", lines)


class Mailer:
    """Sends what there is to send, from `start` to `close`."""

    def __init__(self) -> None:
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._is_down = False

    def start(self) -> None:
        """Send from now on."""
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """Send no more."""
        if self._greenlet is not None:
            self._greenlet.kill()

    def send_waiting(self) -> bool:
        """Send all mail that waits; return False where the mail server is away.

        That is logged once, until it is back.
        """
        while _outbox:
            message = _outbox[0]
            try:
                # Another connection each time: a message keeps a broken one.
                message.connection = get_connection()
                message.send()
            except _REFUSED as error:
                _log.error("mail %r is refused: %s", message.subject, error)
            except (OSError, smtplib.SMTPException) as error:
                if not self._is_down:
                    _log.error("mail waits, the mail server is away: %s", error)
                self._is_down = True
                return False
            else:
                self._is_down = False
            # While it was sent, more may have come and pushed it out.
            if _outbox and _outbox[0] is message:
                _outbox.popleft()
        return True

    def _run(self) -> None:
        while True:
            _wake.clear()
            is_done = False
            try:
                is_done = self.send_waiting()
            except Exception:
                _log.exception("mail: trying again")
            if is_done:
                _wake.wait()
            else:
                gevent.sleep(RETRY_SECONDS)


def _addresses(job: Job) -> list[str]:
    template, pool = job.template, job.worker_pool
    return [
        address
        for owner in (job, template, template.project, pool)
        for address in addresses_in(owner.notification_addresses)
    ]


def _post(addresses: list[str], subject: str, lines: list[str]) -> None:
    to = list(dict.fromkeys(addresses))
    if not to:
        return
    subject = " ".join(f"[Job-Runner] {subject}".split())
    message = EmailMessage(subject=subject, body="\n".join(lines) + "\n", to=to)
    transaction.on_commit(partial(_put, message))


def _put(message: Any) -> None:
    _outbox.append(message)
    _wake.set()
