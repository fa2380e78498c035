"""What may stand in the fields that people fill in; ValidationError says what not."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator, validate_email
from django.template import TemplateSyntaxError

from job_runner_worker.server import script_template
from job_runner_worker.server.scheduling import Cron, ScheduleError

PLAIN_KEY = RegexValidator(
    r"\A[!-~]+\Z", "A key is made of plain ASCII characters without blanks."
)


def check_template_body(body: str) -> None:
    """Raise ValidationError where a template's body cannot be rendered."""
    try:
        script_template.compiled(body)
    except TemplateSyntaxError as error:
        raise ValidationError(f"no valid template: {error}") from error


def check_addresses(text: str) -> None:
    """Raise ValidationError where a line is no e-mail address."""
    for address in addresses_in(text):
        try:
            validate_email(address)
        except ValidationError:
            raise ValidationError(f"{address!r} is no e-mail address") from None


def addresses_in(text: str) -> list[str]:
    """Return the addresses in a text of one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_time_zone(name: str) -> None:
    """Raise ValidationError where there is no such time zone."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValidationError(
            f"{name!r} is no time zone: give a name such as Europe/Amsterdam"
        ) from None


def check_cron_expression(expression: str) -> None:
    """Raise ValidationError where an expression cannot be read."""
    try:
        Cron(expression)
    except ScheduleError as error:
        raise ValidationError(str(error)) from None


def check_job(job: Any) -> None:
    """Raise ValidationError where two fields of a job do not go together."""
    if bool(job.reschedule_interval) != bool(job.reschedule_interval_type):
        raise ValidationError(
            {"reschedule_interval": "an interval has a number and a unit"}
        )
    if job.reschedule_interval and job.cron_expression:
        message = "a job has an interval or a cron expression, not both"
        raise ValidationError({"cron_expression": message})
    ancestor, seen = job.parent, {job.pk} - {None}
    while ancestor is not None:
        if ancestor.pk in seen:
            message = "a job cannot follow itself, nor one that follows it"
            raise ValidationError({"parent": message})
        seen.add(ancestor.pk)
        ancestor = ancestor.parent
