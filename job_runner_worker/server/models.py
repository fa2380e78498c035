"""What the server knows. Runs are moved from state to state by lifecycle alone.

Source of the fields: protocol.md, section 3; those below "ours" only we have.
"""

from __future__ import annotations

import secrets

from django.contrib.auth.models import Group
from django.db import models
from django.db.models import Q
from django.utils import timezone

from job_runner_worker.server import run_indexes, script_template
from job_runner_worker.server.scheduling import Unit
from job_runner_worker.server.validators import (
    PLAIN_KEY,
    check_addresses,
    check_cron_expression,
    check_job,
    check_time_zone,
)
from job_runner_worker.server.validators import (
    check_template_body as check_template_body,
)

SECRET_BYTES = 32


def new_secret() -> str:
    """Return a random secret."""
    return secrets.token_hex(SECRET_BYTES)


class _Titled(models.Model):
    """What has a title, a description in Markdown and a switch."""

    title = models.CharField(max_length=255)
    description = models.TextField(blank=True, default="")
    enqueue_is_enabled = models.BooleanField(
        default=True, help_text="While this is off, nothing below it is enqueued."
    )

    class Meta:
        abstract = True
        ordering = ("title", "id")

    def __str__(self) -> str:
        return self.title


class _Notified(_Titled):
    """What has people who are told when something goes wrong with it."""

    notification_addresses = models.TextField(
        blank=True,
        default="",
        validators=[check_addresses],
        help_text="One e-mail address a line.",
    )

    class Meta(_Titled.Meta):
        abstract = True


class Worker(_Titled):
    """One daemon, known by its key. Its title, as a rule, is its host's name."""

    api_key = models.CharField(max_length=255, unique=True, validators=[PLAIN_KEY])
    secret = models.CharField(max_length=255, default=new_secret)
    ping_response_dts = models.DateTimeField(null=True, blank=True)
    worker_version = models.CharField(max_length=255, null=True, blank=True)
    concurrent_jobs = models.IntegerField(null=True, blank=True)
    unresponsive_dts = models.DateTimeField(null=True, editable=False)
    """Since when the health check knows that it is silent; see Pulse."""


class WorkerPool(_Notified):
    """Workers that do the same work; one worker may be in several pools."""

    workers = models.ManyToManyField(Worker, blank=True, related_name="worker_pools")
    unresponsive_dts = models.DateTimeField(null=True, editable=False)
    """Since when no worker of it answers; people were told of it."""


class Project(_Notified):
    """Jobs that belong together, and who may see them and who may start them."""

    viewers = models.ManyToManyField(Group, blank=True, related_name="projects_to_view")
    admins = models.ManyToManyField(
        Group, blank=True, related_name="projects_to_administer"
    )
    worker_pools = models.ManyToManyField(
        WorkerPool, blank=True, related_name="projects"
    )


class JobTemplate(_Notified):
    """What is put around the scripts of its jobs."""

    body = models.TextField(
        default="{{ content|safe }}",
        validators=[check_template_body],
        help_text="A Django template; the job's script is {{ content }}.",
    )
    project = models.ForeignKey(
        Project, on_delete=models.PROTECT, related_name="job_templates"
    )


class IntervalType(models.TextChoices):
    """The units of ``reschedule_interval``."""

    MINUTE = Unit.MINUTE, "minutes"
    HOUR = Unit.HOUR, "hours"
    DAY = Unit.DAY, "days"
    MONTH = Unit.MONTH, "months"


class Job(_Notified):
    """What is run: a script, where, when, and what follows it."""

    script_content_partial = models.TextField("script")
    template = models.ForeignKey(
        JobTemplate, on_delete=models.PROTECT, related_name="jobs"
    )
    parent = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="children",
        help_text="The job after whose success this one is run.",
    )
    worker_pool = models.ForeignKey(
        WorkerPool, on_delete=models.PROTECT, related_name="jobs"
    )
    reschedule_interval = models.PositiveIntegerField(null=True, blank=True)
    reschedule_interval_type = models.CharField(
        max_length=6, blank=True, default="", choices=IntervalType.choices
    )
    cron_expression = models.CharField(
        max_length=255,
        blank=True,
        default="",
        validators=[check_cron_expression],
        help_text="Instead of an interval, such as 30 4 * * 1-5.",
    )
    schedule_start_dts = models.DateTimeField(
        "first time",
        default=timezone.now,
        help_text="The intervals are counted from it.",
    )
    time_zone = models.CharField(
        max_length=64,
        blank=True,
        default="",
        validators=[check_time_zone],
        help_text="Such as Europe/Amsterdam; the server's where it is empty.",
    )
    run_on_all_workers = models.BooleanField(
        default=False, help_text="One run on each enabled worker of the pool."
    )
    schedule_children_on_error = models.BooleanField(
        default=False, help_text="Run the children also when this one has failed."
    )
    disable_enqueue_after_fails = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Disable the job when it has failed so many times in a row.",
    )
    host = models.CharField(
        max_length=255,
        blank=True,
        default="",
        help_text="In cron mode only this host starts its runs.",
    )
    fail_times = models.PositiveIntegerField(default=0, editable=False)
    schedule_error = models.TextField(blank=True, default="", editable=False)
    """Why there is no next run, though there should be one."""
    planned_schedule_id = models.BigIntegerField(null=True, editable=False)
    """The latest runs that were made by the schedule; see planning."""

    @property
    def script_content(self) -> str:
        """The script within its template: what a worker runs."""
        return script_template.script_of(
            self.template.body, self.script_content_partial, self.template_id
        )

    def clean(self) -> None:
        """Raise ValidationError where two fields do not go together."""
        check_job(self)


class ExcludedTime(models.Model):
    """Times of day, in the job's time zone, at which its schedule has no run."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="excluded")
    start_time = models.TimeField()
    end_time = models.TimeField(help_text="Included; it may be on the next day.")
    note = models.CharField(max_length=255, blank=True, default="")

    class Meta:
        """As they are in a day."""

        ordering = ("start_time", "id")

    def __str__(self) -> str:
        return f"{self.start_time:%H:%M} to {self.end_time:%H:%M}"


class Run(models.Model):
    """One execution of a job."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="runs")
    worker = models.ForeignKey(
        Worker,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="runs",
        help_text="Who has claimed it, or had before it was handed back.",
    )
    schedule_dts = models.DateTimeField(default=timezone.now)
    enqueue_dts = models.DateTimeField(null=True, blank=True)
    start_dts = models.DateTimeField(null=True, blank=True)
    return_dts = models.DateTimeField(null=True, blank=True)
    return_success = models.BooleanField(null=True, blank=True)
    pid = models.BigIntegerField(null=True, blank=True)
    is_manual = models.BooleanField(default=False)
    schedule_children = models.BooleanField(default=True)
    schedule_id = models.BigIntegerField(
        null=True, blank=True, help_text="The same for runs scheduled together."
    )

    # ours
    exit_status = models.IntegerField(null=True, blank=True)
    reason = models.TextField(blank=True, default="")
    usage = models.JSONField(null=True, blank=True, help_text="See models.Usage.")
    host = models.CharField(max_length=255, blank=True, default="")
    ended_by_server = models.BooleanField(default=False)
    late_return_dts = models.DateTimeField(null=True, blank=True)
    late_return_success = models.BooleanField(null=True, blank=True)
    late_exit_status = models.IntegerField(null=True, blank=True)
    offered_to = models.ForeignKey(
        Worker, null=True, blank=True, on_delete=models.SET_NULL, related_name="offers"
    )
    offered_dts = models.DateTimeField(null=True, blank=True)

    class Meta:
        """The latest first."""

        ordering = ("-id",)
        constraints = (
            models.CheckConstraint(
                name="run_starts_after_it_is_enqueued",
                condition=Q(start_dts=None) | Q(enqueue_dts__isnull=False),
            ),
            models.CheckConstraint(
                name="run_ends_after_it_started_with_a_result",
                condition=Q(return_dts=None, return_success=None)
                | Q(
                    return_dts__isnull=False,
                    return_success__isnull=False,
                    start_dts__isnull=False,
                ),
            ),
        )
        indexes = run_indexes.ALL

    def __str__(self) -> str:
        return f"run {self.pk}"


class RunLog(models.Model):
    """What a run has printed."""

    run = models.OneToOneField(Run, on_delete=models.CASCADE, related_name="run_log")
    content = models.TextField(blank=True, default="")

    class Meta:
        """The latest first."""

        ordering = ("-id",)

    def __str__(self) -> str:
        return f"log of run {self.run_id}"


class KillRequest(models.Model):
    """Asks the worker that holds a run to kill it."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="kill_requests")
    requested_by = models.CharField(max_length=150, blank=True, default="")
    schedule_dts = models.DateTimeField(default=timezone.now)
    enqueue_dts = models.DateTimeField(null=True, blank=True)
    execute_dts = models.DateTimeField(null=True, blank=True)

    class Meta:
        """The latest first."""

        ordering = ("-id",)
        constraints = (
            models.CheckConstraint(
                name="kill_is_executed_after_it_is_enqueued",
                condition=Q(execute_dts=None) | Q(enqueue_dts__isnull=False),
            ),
        )
        indexes = (
            models.Index(
                name="kill_request_waiting",
                fields=["schedule_dts"],
                condition=Q(enqueue_dts=None),
            ),
        )

    def __str__(self) -> str:
        return f"kill request {self.pk} for run {self.run_id}"
