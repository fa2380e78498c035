"""Dates, durations and signs in the dashboard's templates."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from django import template
from django.template.loader import get_template
from django.templatetags.static import static
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from job_runner_worker.server.dashboard import markdown as descriptions
from job_runner_worker.server.dashboard.run_words import (
    Look,
    in_words,
    look_of,
)

register = template.Library()


@register.simple_tag
@lru_cache
def sign(name: str) -> SafeString:
    """Return a small drawing out of icons.svg; what it says stands beside it."""
    return format_html(
        '<svg class="sign" aria-hidden="true" focusable="false">'
        '<use href="{}#{}"></use></svg>',
        static("dashboard/icons.svg"),
        name,
    )


@register.simple_tag
@lru_cache
def state(look: Look) -> SafeString:
    """Return a state as sign and word."""
    return format_html(
        '<span class="state {}">{} {}</span>', look.name, sign(look.name), look.words
    )


@register.filter
def moment(value: datetime | None) -> SafeString | str:
    """Return a date, as short as it may be, with all of it in its title."""
    if value is None:
        return ""
    return _moment(value, _today())


def _today() -> date:
    """Return the date where the server is; a page asks a hundred times."""
    return datetime.now(timezone.get_default_timezone()).date()


@lru_cache(maxsize=4096)
def _moment(value: datetime, today: date) -> SafeString:
    local = timezone.localtime(value)
    if local.date() == today:
        text = f"{local:%H:%M:%S}"
    elif local.year == today.year:
        text = f"{local:%b} {local.day}, {local:%H:%M}"
    else:
        text = f"{local:%Y-%m-%d %H:%M}"
    whole = f"{local:%Y-%m-%d %H:%M:%S %Z}"
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', value.isoformat(), whole, text
    )


@register.filter
def duration(value: timedelta | float | None) -> str:
    """Return a duration in words."""
    if value is None:
        return ""
    return in_words(value.total_seconds() if isinstance(value, timedelta) else value)


@register.simple_tag
def ticking(since: datetime | None) -> SafeString | str:
    """Return the time since a date, which counts on in the browser."""
    if since is None:
        return ""
    seconds = max((timezone.now() - since).total_seconds(), 0.0)
    return format_html(
        '<span class="ticking" data-seconds="{}">{}</span>',
        f"{seconds:.1f}",
        in_words(max(round(seconds), 1)),
    )


@register.filter
def unlocalized(value: float) -> str:
    """Return a number as HTML and programs read it."""
    return (
        f"{value:.3f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else (str(value))
    )


@register.simple_tag
def elapsed(row: Any) -> SafeString:
    """Return how long a run goes on and how long is usual; before, when it is due."""
    run = row.run
    if run.start_dts is None:
        if run.enqueue_dts is None:
            return format_html(
                '<span class="faint">due</span> {}', moment(run.schedule_dts)
            )
        return format_html('<span class="faint">{}</span>', "not started")
    bar = of_usual = ""
    if row.expected:
        usual = duration(row.usual_seconds)
        bar = format_html(
            '<progress max="{}" value="{}" aria-label="Elapsed of the usual {}">'
            "</progress> ",
            unlocalized(row.expected),
            unlocalized(row.duration.total_seconds()),
            usual,
        )
        longer = ", longer than usual" if row.is_overdue else ""
        of_usual = format_html(' <span class="faint">of {}{}</span>', usual, longer)
    kind = "overdue" if row.is_overdue else ""
    since = ticking(run.start_dts)
    return format_html('{}<span class="{}">{}</span>{}', bar, kind, since, of_usual)


class _Named(NamedTuple):
    """What a run is and belongs to, as the first cells of its row show it."""

    pk: int
    job_id: int
    job_title: str
    project_title: str
    worker_id: int | None
    worker_title: str | None


@register.simple_tag
def going_row(row: Any, of_job: bool) -> SafeString:
    """Return the row of a run that a worker has."""
    return format_html(
        '<tr>{}<td class="elapsed">{}</td><td class="when">{}</td></tr>',
        _cells_of(row, of_job),
        elapsed(row),
        moment(row.run.start_dts or row.run.enqueue_dts),
    )


@register.simple_tag
def waiting_row(row: Any, of_job: bool) -> SafeString:
    """Return the row of a run that nobody has."""
    by_hand = format_html(' <span class="faint">{}</span>', "by hand")
    return format_html(
        '<tr>{}<td class="when">{}{}</td></tr>',
        _cells_of(row, of_job),
        moment(row.run.schedule_dts),
        by_hand if row.run.is_manual else "",
    )


def _cells_of(row: Any, of_job: bool) -> SafeString:
    shown = _Named(*(getattr(row.run, name) for name in _Named._fields))
    return _named_cells(shown, row.look, bool(of_job))


@lru_cache(maxsize=4096)
def _named_cells(run: _Named, look: Look, of_job: bool) -> SafeString:
    """While a run goes on these stay the same, whenever they are shown."""
    context = {"run": run, "look": look, "of_job": of_job}
    return get_template("dashboard/_named_cells.html").render(context)


class _Ended(NamedTuple):
    """All that is shown of a run that has ended."""

    pk: int
    job_id: int
    job_title: str
    project_title: str
    worker_title: str | None
    start_dts: datetime
    return_dts: datetime
    return_success: bool
    exit_status: int | None
    reason: str
    late_return_dts: datetime | None


@register.simple_tag
def ended_row(row: Any, of_job: bool) -> SafeString:
    """Return the row of a run that has ended; it is the same whenever it is shown."""
    shown = _Ended(*(getattr(row.run, name) for name in _Ended._fields))
    return _ended_row(shown, bool(of_job), _today())


@lru_cache(maxsize=4096)
def _ended_row(run: _Ended, of_job: bool, today: date) -> SafeString:
    """``today`` is how dates are shown."""
    took = run.return_dts - run.start_dts
    context = {
        "run": run,
        "look": look_of(run, run.return_dts),
        "duration": max(took, timedelta()),
        "of_job": of_job,
    }
    return get_template("dashboard/_ended_row.html").render(context)


@register.filter
def markdown(text: str) -> SafeString:
    """Return the HTML of a description."""
    return descriptions.render(text)


@register.simple_tag(takes_context=True)
def query(context: Any, **changes: Any) -> str:
    """Return the page's query with other values; None takes a name out."""
    found = context["request"].GET.copy()
    for name, value in changes.items():
        found.pop(name, None)
        if value is not None:
            found[name] = value
    text: str = found.urlencode()
    return f"?{text}" if text else "?"
