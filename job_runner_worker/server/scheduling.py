"""When a job is due: pure calculation with time zones, and nothing else.

Minutes and hours are time that passes. Days and months are counted on the calendar of
the job's time zone: the time of day stays when the clocks change, and the day of the
month comes back after a shorter month. Every time is counted from the schedule's
start, so that neither a gap in the clocks nor a short month moves those after it. A
time that the clocks leave out is as much later as they jump; of one that they show
twice the first counts. Cron expressions are read as Debian's cron does it.
"""

from __future__ import annotations

import calendar
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from itertools import count, islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from job_runner_worker.errors import JobRunnerError

CRON_FIELDS = 5
MAX_EXCLUDED = 2 * 24 * 60
"""So many times one after the other are on no time of day that is not excluded."""


class ScheduleError(JobRunnerError):
    """A schedule that cannot be read, or has no time."""


class Unit(StrEnum):
    """What is counted between two times."""

    MINUTE = "MINUTE"
    HOUR = "HOUR"
    DAY = "DAY"
    MONTH = "MONTH"


@dataclass(frozen=True, slots=True)
class Excluded:
    """Local times of day at which nothing is due, both ends included.

    Where the end is before the start, midnight is between them.
    """

    start: time
    end: time

    def covers(self, moment: time) -> bool:
        """Return whether a time of day is one of these."""
        if self.start <= self.end:
            return self.start <= moment <= self.end
        return moment >= self.start or moment <= self.end


@dataclass(frozen=True, slots=True)
class Every:
    """A number of units, from a start on."""

    number: int
    unit: Unit
    start: datetime


@dataclass(frozen=True, slots=True)
class Cron:
    """Five fields: minute, hour, day of the month, month, day of the week."""

    expression: str

    def __post_init__(self) -> None:
        _cron(self.expression, datetime(2000, 1, 1, tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is due when, in which time zone."""

    rule: Every | Cron
    zone: ZoneInfo
    excluded: tuple[Excluded, ...] = ()


def next_time(schedule: Schedule, after: datetime) -> datetime:
    """Return the first time later than ``after``, in UTC.

    Raises ScheduleError where there is none.
    """
    for found in times(schedule, after):
        return found
    raise ScheduleError("the schedule has no time that is not excluded")


def next_times(schedule: Schedule, after: datetime, number: int) -> list[datetime]:
    """Return the first times later than ``after``, in UTC; fewer where it ends."""
    return list(islice(times(schedule, after), number))


def times(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """Yield all times later than ``after``, in UTC."""
    excluded = 0
    try:
        for moment in _candidates(schedule, after):
            local = moment.astimezone(schedule.zone).time()
            if any(each.covers(local) for each in schedule.excluded):
                excluded += 1
                if excluded > MAX_EXCLUDED:
                    return
                continue
            excluded = 0
            yield moment
    except (OverflowError, ValueError):
        return  # the end of the calendar


def _candidates(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    rule = schedule.rule
    if isinstance(rule, Cron):
        local = after.astimezone(schedule.zone)
        return (each.astimezone(UTC) for each in _cron(rule.expression, local))
    if rule.unit in (Unit.MINUTE, Unit.HOUR):
        return _elapsed(rule, after)
    return _on_calendar(rule, schedule.zone, after)


def _cron(expression: str, after: datetime) -> CronSim:
    try:
        if len(expression.split()) != CRON_FIELDS:
            raise CronSimError("Wrong number of fields")
        return CronSim(expression, after)
    except CronSimError as error:
        raise ScheduleError(
            f"cron expression {expression!r}: {error}: give minute, hour, day of the "
            "month, month and day of the week, such as '30 4 * * 1-5'"
        ) from error


def _elapsed(rule: Every, after: datetime) -> Iterator[datetime]:
    minutes = rule.number * (60 if rule.unit == Unit.HOUR else 1)
    step, start = timedelta(minutes=minutes), rule.start.astimezone(UTC)
    first = max(0, math.floor((after - start) / step) + 1)
    return (moment for k in count(first) if (moment := start + k * step) > after)


def _on_calendar(rule: Every, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    start = rule.start.astimezone(zone)
    local = after.astimezone(zone)
    if rule.unit == Unit.DAY:
        passed = (local.date() - start.date()).days
    else:
        passed = (local.year - start.year) * 12 + local.month - start.month
    # One before: what the clocks have moved may be on the day before or after.
    for k in count(max(0, passed // rule.number - 1)):
        moment = _step(start, k * rule.number, rule.unit).astimezone(UTC)
        if moment > after:
            yield moment
            # A zone may skip a day: what was due then is due with the next.
            after = moment


def _step(start: datetime, number: int, unit: Unit) -> datetime:
    """Return a local time so many days or months later; the clock shows the same."""
    if not number:
        return start
    # Of a time that the clocks show twice the first; of none, by the offset before.
    plain = start.replace(fold=0)
    if unit == Unit.DAY:
        return plain + timedelta(days=number)
    years, month = divmod(plain.month - 1 + number, 12)
    year, month = plain.year + years, month + 1
    day = min(plain.day, calendar.monthrange(year, month)[1])
    return plain.replace(year=year, month=month, day=day)
