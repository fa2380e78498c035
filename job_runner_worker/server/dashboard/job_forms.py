"""The form of a job: made by pasting a script, or changed."""

from __future__ import annotations

import re
from datetime import time
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from job_runner_worker import run_options, shebang_line
from job_runner_worker.errors import StartError
from job_runner_worker.server import job_changes, planning, script_template
from job_runner_worker.server.api_auth import administered, visible
from job_runner_worker.server.dashboard.access import changeable, page
from job_runner_worker.server.models import Job, JobTemplate, WorkerPool
from job_runner_worker.server.refusals import NotAllowed

DEFAULT = "default"
_EXCLUDED = re.compile(
    r"(?P<start>\d\d?:\d\d)\s*(?:-|–|to)\s*(?P<end>\d\d?:\d\d)(?:\s+(?P<note>.*))?"
)
MAX_NOTE = 255


class JobForm(forms.ModelForm):
    """What people may say of a job."""

    excluded_times = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 2, "placeholder": "22:00-06:00 backups"}),
        help_text="One range of the day a line, both ends included, and a note.",
    )

    class Meta:
        """In the order in which they are asked for."""

        model = Job
        fields = (
            "title",
            "script_content_partial",
            "template",
            "worker_pool",
            "description",
            "reschedule_interval",
            "reschedule_interval_type",
            "cron_expression",
            "time_zone",
            "schedule_start_dts",
            "parent",
            "schedule_children_on_error",
            "run_on_all_workers",
            "disable_enqueue_after_fails",
            "notification_addresses",
            "enqueue_is_enabled",
        )
        labels = {
            "script_content_partial": "Script",
            "enqueue_is_enabled": "Enabled",
            "reschedule_interval": "Every",
            "reschedule_interval_type": "Unit",
            "cron_expression": "Or cron expression",
            "schedule_children_on_error": "Its children are run also when it fails",
            "run_on_all_workers": "Run on every worker of the pool",
            "disable_enqueue_after_fails": "Disable after so many failures in a row",
            "notification_addresses": "Mail to",
            "parent": "Run after",
        }
        widgets = {
            "description": forms.Textarea(attrs={"rows": 3}),
            "notification_addresses": forms.Textarea(attrs={"rows": 2}),
            "script_content_partial": forms.Textarea(
                attrs={
                    "rows": 14,
                    "spellcheck": "false",
                    "autocapitalize": "off",
                    "autocomplete": "off",
                    "placeholder": "#!/bin/sh\necho hello",
                    "data-script": "",
                }
            ),
        }
        help_texts = {
            "description": "Markdown.",
            "enqueue_is_enabled": "",
            "time_zone": "Such as Europe/Amsterdam; the server's where it is empty.",
        }

    def __init__(self, person: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        script: Any = self.fields["script_content_partial"]
        script.strip = False
        start: Any = self.fields["schedule_start_dts"]
        start.show_hidden_initial = False
        templates = administered(JobTemplate, person).select_related("project")
        parents = administered(Job, person).only("title").order_by("title", "id")
        if self.instance.pk:
            # There is a button for it; a run that ends may have disabled it meanwhile.
            del self.fields["enqueue_is_enabled"]
            parents = parents.exclude(pk=self.instance.pk)
            ranges = self.instance.excluded.all()
            self.initial["excluded_times"] = "\n".join(
                f"{each.start_time:%H:%M}-{each.end_time:%H:%M} {each.note}".rstrip()
                for each in ranges
            )
        pools = visible(WorkerPool, person)
        for name, rows in (
            ("template", templates.order_by("project__title", "title", "id")),
            ("worker_pool", pools.order_by("title", "id")),
            ("parent", parents),
        ):
            field: Any = self.fields[name]
            field.queryset = rows
        chosen: Any = self.fields["template"]
        chosen.label_from_instance = lambda row: f"{row.project} / {row}"
        for name in ("template", "worker_pool"):
            self._choose_first(name)

    def _choose_first(self, name: str) -> None:
        """Choose the only one, or the one called default."""
        field: Any = self.fields[name]
        field.empty_label = None
        if not self.instance.pk and name not in self.initial:
            rows = list(field.queryset[:2])
            plain = field.queryset.filter(title=DEFAULT).first()
            if plain is not None or len(rows) == 1:
                self.initial[name] = (plain or rows[0]).pk

    def clean_script_content_partial(self) -> str:
        """Return the script; browsers send each line's end as CR LF."""
        script: str = self.cleaned_data["script_content_partial"]
        return script.replace("\r", "")

    def clean_excluded_times(self) -> list[dict[str, Any]]:
        """Return the rows that the lines stand for."""
        lines = self.cleaned_data["excluded_times"].splitlines()
        return [_range(line.strip()) for line in lines if line.strip()]

    def clean(self) -> dict[str, Any]:
        """Check what a worker would: the script as it is with its template."""
        values: dict[str, Any] = super().clean() or self.cleaned_data
        template, script = values.get("template"), values.get("script_content_partial")
        if template is not None and script is not None:
            try:
                whole = script_template.render(template.body, script).replace("\r", "")
                shebang_line.words_of(whole.encode("utf-8", "replace"))
                run_options.of_script(whole)
            except StartError as error:
                self.add_error("script_content_partial", _sentence(str(error)))
            except Exception as error:  # a template may raise anything
                self.add_error("template", f"It cannot be rendered: {error}")
        return values

    def values(self) -> dict[str, Any]:
        """Return what is to be stored: of a job that is there, what was changed.

        Somebody else, or a run that ends, may change it at the same time.
        """
        wanted = set(self.changed_data) if self.instance.pk else set(self.fields)
        found = {
            name: self.cleaned_data[name] for name in self.Meta.fields if name in wanted
        }
        if "excluded_times" in wanted:
            found["excluded"] = self.cleaned_data["excluded_times"]
        return found


def _range(line: str) -> dict[str, Any]:
    match = _EXCLUDED.fullmatch(line)
    try:
        if match is None:
            raise ValueError
        return {
            "start_time": _time(match["start"]),
            "end_time": _time(match["end"]),
            "note": (match["note"] or "")[:MAX_NOTE],
        }
    except ValueError:
        raise ValidationError(
            f"{line!r} cannot be read: give lines such as 22:00-06:00 backups"
        ) from None


def _time(text: str) -> time:
    hours, minutes = text.split(":")
    return time(int(hours), int(minutes))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


@page
@require_http_methods(["GET", "HEAD", "POST"])
def create(request: HttpRequest) -> HttpResponse:
    """Make a job of a script."""
    return _edit(request, Job())


@page
@require_http_methods(["GET", "HEAD", "POST"])
def edit(request: HttpRequest, job_id: int) -> HttpResponse:
    """Change a job."""
    rows = Job.objects.select_related("template__project", "worker_pool")
    return _edit(request, changeable(rows, request.user, job_id))


def _edit(request: HttpRequest, job: Job) -> HttpResponse:
    is_new = job.pk is None
    posted = request.POST if request.method == "POST" else None
    form = JobForm(request.user, posted, instance=job)
    status = 200
    if posted is not None:
        if form.is_valid():
            try:
                job_changes.store(job, form.values(), request.user)
            except NotAllowed as error:
                form.add_error(None, _sentence(str(error)))
            else:
                return _stored(request, job, is_new)
        status = 422
    context = {
        "tab": "jobs",
        "form": form,
        "job": None if is_new else job,
        "may_create": bool(form.fields["template"].queryset.exists()),
    }
    return render(request, "dashboard/job_form.html", context, status=status)


def _stored(request: HttpRequest, job: Job, is_new: bool) -> HttpResponse:
    if is_new and "run_now" in request.POST:
        return redirect("run", planning.run_now(job).pk)
    return redirect("job", job.pk)
