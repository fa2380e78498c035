"""When jobs are due: tables of times. Nothing here knows a database."""

from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings, strategies

from job_runner_worker.server.scheduling import (
    Cron,
    Every,
    Excluded,
    Schedule,
    ScheduleError,
    Unit,
    next_time,
    next_times,
    times,
)

AMSTERDAM = ZoneInfo("Europe/Amsterdam")
"""Clocks jump from 02:00 to 03:00 on 29 March 2026, back from 03:00 on 25 October."""
NEW_YORK = ZoneInfo("America/New_York")
UTC_ZONE = ZoneInfo("UTC")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
"""Here they jump half an hour."""


@pytest.fixture(autouse=True)
def empty_tables():
    """Nothing to empty."""


@pytest.fixture(scope="session", autouse=True)
def database():
    """None is needed."""


def local(text, zone=AMSTERDAM):
    return datetime.fromisoformat(text).replace(tzinfo=zone)


def every(number, unit, start, zone=AMSTERDAM, excluded=()):
    return Schedule(Every(number, Unit(unit), local(start, zone)), zone, excluded)


def shown(moments, zone=AMSTERDAM):
    return [f"{each.astimezone(zone):%Y-%m-%d %H:%M %z}" for each in moments]


def later(schedule, after, number=4):
    zone = schedule.zone
    return shown(next_times(schedule, local(after, zone), number), zone)


SPRING = {
    ("DAY", "2026-03-01 02:30"): [
        "2026-03-28 02:30 +0100",
        "2026-03-29 03:30 +0200",
        "2026-03-30 02:30 +0200",
        "2026-03-31 02:30 +0200",
    ],
    ("DAY", "2026-03-01 06:00"): [
        "2026-03-28 06:00 +0100",
        "2026-03-29 06:00 +0200",
        "2026-03-30 06:00 +0200",
        "2026-03-31 06:00 +0200",
    ],
    ("HOUR", "2026-03-28 23:15"): [
        "2026-03-28 23:15 +0100",
        "2026-03-29 00:15 +0100",
        "2026-03-29 01:15 +0100",
        "2026-03-29 03:15 +0200",
    ],
    ("MONTH", "2026-01-29 02:30"): [
        "2026-03-29 03:30 +0200",
        "2026-04-29 02:30 +0200",
        "2026-05-29 02:30 +0200",
        "2026-06-29 02:30 +0200",
    ],
}

AUTUMN = {
    ("DAY", "2026-10-01 02:30"): [
        "2026-10-25 02:30 +0200",
        "2026-10-26 02:30 +0100",
        "2026-10-27 02:30 +0100",
        "2026-10-28 02:30 +0100",
    ],
    ("DAY", "2026-10-01 06:00"): [
        "2026-10-25 06:00 +0100",
        "2026-10-26 06:00 +0100",
        "2026-10-27 06:00 +0100",
        "2026-10-28 06:00 +0100",
    ],
    ("HOUR", "2026-10-25 01:15"): [
        "2026-10-25 01:15 +0200",
        "2026-10-25 02:15 +0200",
        "2026-10-25 02:15 +0100",
        "2026-10-25 03:15 +0100",
    ],
    ("MINUTE", "2026-10-25 02:59"): [
        "2026-10-25 02:59 +0200",
        "2026-10-25 02:00 +0100",
        "2026-10-25 02:01 +0100",
        "2026-10-25 02:02 +0100",
    ],
    ("MONTH", "2026-09-25 02:30"): [
        "2026-10-25 02:30 +0200",
        "2026-11-25 02:30 +0100",
        "2026-12-25 02:30 +0100",
        "2027-01-25 02:30 +0100",
    ],
}


@pytest.mark.parametrize(("unit", "start"), SPRING)
def test_the_time_of_day_survives_the_change_in_spring(unit, start):
    after = "2026-03-28 00:00"
    assert later(every(1, unit, start), after) == SPRING[unit, start]


@pytest.mark.parametrize(("unit", "start"), AUTUMN)
def test_the_time_of_day_survives_the_change_in_autumn(unit, start):
    after = "2026-10-25 00:00"
    assert later(every(1, unit, start), after) == AUTUMN[unit, start]


@pytest.mark.parametrize(
    ("number", "unit", "start", "after", "expected"),
    [
        # Seconds stay, too.
        (15, "MINUTE", "2026-01-01 00:05:30", "2026-01-01 00:20:30", "00:35:30"),
        (15, "MINUTE", "2026-01-01 00:05:30", "2026-01-01 00:20:29", "00:20:30"),
        (7, "HOUR", "2026-01-01 01:00", "2026-01-01 08:00", "15:00:00"),
        # Whatever was missed is skipped.
        (10, "MINUTE", "2020-01-01 00:00", "2026-06-01 12:03", "12:10:00"),
        # The first time is the start itself.
        (1, "DAY", "2026-06-01 12:00", "2026-01-01 00:00", "12:00:00"),
    ],
)
def test_the_next_time_is_later_and_a_whole_number_of_steps_from_the_start(
    number, unit, start, after, expected
):
    schedule = every(number, unit, start, UTC_ZONE)
    assert f"{next_time(schedule, local(after, UTC_ZONE)):%H:%M:%S}" == expected


MONTH_ENDS = {
    (1, "2026-01-31 04:00", "2026-02-01"): ["02-28", "03-31", "04-30", "05-31"],
    (1, "2026-01-30 04:00", "2026-02-01"): ["02-28", "03-30", "04-30", "05-30"],
    (1, "2027-12-31 04:00", "2028-01-01"): ["01-31", "02-29", "03-31", "04-30"],
    (2, "2026-12-31 04:00", "2027-01-01"): ["02-28", "04-30", "06-30", "08-31"],
    (12, "2024-02-29 04:00", "2025-01-01"): ["02-28", "02-28", "02-28", "02-29"],
    (5, "2026-10-31 04:00", "2026-11-01"): ["03-31", "08-31", "01-31", "06-30"],
}


@pytest.mark.parametrize(("number", "start", "after"), MONTH_ENDS)
def test_the_day_comes_back_after_a_shorter_month(number, start, after):
    found = next_times(every(number, "MONTH", start), local(after), 4)

    expected = MONTH_ENDS[number, start, after]
    assert [f"{each.astimezone(AMSTERDAM):%m-%d}" for each in found] == expected
    assert {each.astimezone(AMSTERDAM).hour for each in found} == {4}


def test_days_go_over_the_29th_of_february():
    schedule = every(2, "DAY", "2028-02-27 12:00")
    assert later(schedule, "2028-02-27 12:00", 2) == [
        "2028-02-29 12:00 +0100",
        "2028-03-02 12:00 +0100",
    ]


@pytest.mark.parametrize(
    ("zone", "start", "after", "expected"),
    [
        (NEW_YORK, "2026-03-01 02:30", "2026-03-07 12:00", "2026-03-08 03:30 -0400"),
        (NEW_YORK, "2026-10-01 01:30", "2026-10-31 12:00", "2026-11-01 01:30 -0400"),
        (LORD_HOWE, "2026-09-01 02:15", "2026-10-03 12:00", "2026-10-04 02:45 +1100"),
        (LORD_HOWE, "2026-03-01 01:45", "2026-04-04 12:00", "2026-04-05 01:45 +1100"),
    ],
)
def test_each_zone_has_its_own_change(zone, start, after, expected):
    assert later(every(1, "DAY", start, zone), after, 1) == [expected]


def test_a_zone_that_skips_a_day_skips_no_run():
    apia = ZoneInfo("Pacific/Apia")  # had no 30 December 2011
    schedule = every(1, "DAY", "2011-12-01 10:00", apia)
    found = next_times(schedule, local("2011-12-29 00:00", apia), 3)

    assert [f"{each.astimezone(apia):%d %H:%M}" for each in found] == [
        "29 10:00",
        "31 10:00",
        "01 10:00",
    ]


NIGHT = Excluded(time(22), time(6))
NOON = Excluded(time(12), time(13, 30))


@pytest.mark.parametrize(
    ("excluded", "after", "expected"),
    [
        ((NOON,), "2026-06-01 11:00", ["11:30", "14:00", "14:30"]),
        ((NIGHT,), "2026-06-01 21:00", ["21:30", "06:30", "07:00"]),
        ((NIGHT,), "2026-06-01 03:00", ["06:30", "07:00", "07:30"]),
        ((NIGHT, NOON), "2026-06-01 11:30", ["14:00", "14:30", "15:00"]),
        ((), "2026-06-01 11:30", ["12:00", "12:30", "13:00"]),
    ],
)
@pytest.mark.parametrize("kind", ["every", "cron"])
def test_nothing_is_due_at_an_excluded_time_of_day(kind, excluded, after, expected):
    schedule = (
        every(30, "MINUTE", "2026-01-01 00:00", excluded=excluded)
        if kind == "every"
        else Schedule(Cron("*/30 * * * *"), AMSTERDAM, excluded)
    )
    found = next_times(schedule, local(after), 3)

    assert [f"{each.astimezone(AMSTERDAM):%H:%M}" for each in found] == expected


@pytest.mark.parametrize(
    ("moment", "is_excluded"),
    [
        (time(22), True),
        (time(6), True),
        (time(6, 0, 1), False),
        (time(21, 59), False),
        (time(0), True),
    ],
)
def test_both_ends_are_excluded_and_midnight_may_be_between(moment, is_excluded):
    assert NIGHT.covers(moment) is is_excluded


ALL_DAY = Excluded(time(0), time(23, 59, 59, 999999))


@pytest.mark.parametrize(
    "schedule",
    [
        every(1, "MINUTE", "2026-01-01 00:00", excluded=(ALL_DAY,)),
        every(1, "DAY", "2026-01-01 12:30", excluded=(NOON,)),
        Schedule(Cron("15 12 * * *"), AMSTERDAM, (NOON,)),
        every(2**31, "MONTH", "2026-01-01 12:30"),
        every(2**31, "DAY", "2026-01-01 12:30"),
        every(2**31, "HOUR", "2026-01-01 12:30"),
        Schedule(Cron("* * */20 * 1L"), AMSTERDAM, (ALL_DAY,)),
    ],
)
def test_a_schedule_without_a_time_says_so(schedule):
    with pytest.raises(ScheduleError, match="no time"):
        next_time(schedule, local("2026-06-01 00:00"))
    assert next_times(schedule, local("2026-06-01 00:00"), 5) == []


CRON = {
    ("30 4 * * 1-5", "2026-06-05 05:00"): ["2026-06-08 04:30 +0200"],
    ("0 0 29 2 *", "2026-01-01 00:00"): ["2028-02-29 00:00 +0100"],
    ("0 0 31 * *", "2026-04-01 00:00"): ["2026-05-31 00:00 +0200"],
    ("0 0 L * *", "2028-02-01 00:00"): ["2028-02-29 00:00 +0100"],
    # As Debian's cron: at once after the gap, and once where the clocks go back.
    ("30 2 * * *", "2026-03-28 12:00"): [
        "2026-03-29 03:00 +0200",
        "2026-03-30 02:30 +0200",
    ],
    ("30 2 * * *", "2026-10-24 12:00"): [
        "2026-10-25 02:30 +0200",
        "2026-10-26 02:30 +0100",
    ],
    # What runs every hour runs every hour.
    ("30 * * * *", "2026-10-25 02:00"): [
        "2026-10-25 02:30 +0200",
        "2026-10-25 02:30 +0100",
        "2026-10-25 03:30 +0100",
    ],
    ("30 * * * *", "2026-03-29 01:00"): [
        "2026-03-29 01:30 +0100",
        "2026-03-29 03:30 +0200",
    ],
}


@pytest.mark.parametrize(("expression", "after"), CRON)
def test_a_cron_expression_is_read_as_debians_cron_reads_it(expression, after):
    expected = CRON[expression, after]
    schedule = Schedule(Cron(expression), AMSTERDAM)

    assert later(schedule, after, len(expected)) == expected


@pytest.mark.parametrize(
    "expression", ["", "@daily", "* * * *", "* * * * * *", "61 * * * *", "é * * * *"]
)
def test_an_expression_that_cannot_be_read_is_named(expression):
    with pytest.raises(ScheduleError, match="cron expression '.*give minute, hour"):
        Cron(expression)


@settings(max_examples=300, deadline=None)
@given(
    number=strategies.integers(1, 100),
    unit=strategies.sampled_from(Unit),
    zone=strategies.sampled_from([AMSTERDAM, NEW_YORK, LORD_HOWE, UTC_ZONE]),
    start=strategies.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
    waited=strategies.timedeltas(timedelta(days=-400), timedelta(days=4000)),
)
def test_times_are_in_order_and_none_is_left_out(number, unit, zone, start, waited):
    schedule = Schedule(Every(number, unit, start.replace(tzinfo=zone)), zone)
    after = start.replace(tzinfo=UTC) + waited
    found = next_times(schedule, after, 4)

    assert after < found[0]
    assert all(one < other for one, other in pairwise(found))
    for one, other in pairwise(found):
        assert next_time(schedule, one) == other
        assert next_time(schedule, other - timedelta(microseconds=1)) == other
    if unit in (Unit.DAY, Unit.MONTH):
        shift = {each.astimezone(zone).time() for each in found}
        assert start.time() in shift


def test_the_next_time_of_an_old_schedule_is_found_at_once():
    schedule = every(1, "MINUTE", "1970-01-01 00:00")
    found = times(schedule, local("2026-06-01 00:00"))

    assert shown([next(found)]) == ["2026-06-01 00:01 +0200"]
