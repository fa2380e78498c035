"""Old runs are deleted in the night."""

import argparse
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import gevent
import pytest
from django.utils import timezone

from job_runner_worker.server import lifecycle, retention, upkeep
from job_runner_worker.server.models import Run

DAY = timedelta(days=1)
AMSTERDAM = ZoneInfo("Europe/Amsterdam")


def ended(site, job, days_ago):
    at = timezone.now() - days_ago * DAY
    run = site.run(job, at=at)
    lifecycle.claim(run.pk, site.worker, at)
    lifecycle.finish(run.pk, site.worker, at, True, 0)
    return run


def options(*words):
    parser = argparse.ArgumentParser()
    upkeep.add_retention(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("now", "seconds"),
    [
        (datetime(2026, 7, 1, 2, 0, tzinfo=AMSTERDAM), 3600),
        (datetime(2026, 7, 1, 3, 0, tzinfo=AMSTERDAM), 24 * 3600),
        (datetime(2026, 7, 1, 4, 0, tzinfo=AMSTERDAM), 23 * 3600),
        # The clocks change at 2 in the morning: forward, then back.
        (datetime(2026, 3, 28, 4, 0, tzinfo=AMSTERDAM), 22 * 3600),
        (datetime(2026, 10, 24, 4, 0, tzinfo=AMSTERDAM), 24 * 3600),
    ],
)
def test_the_next_night_is_at_three_by_the_clock_on_the_wall(now, seconds):
    assert retention.seconds_until_night(now) == seconds


def test_what_is_deleted_by_default_is_old_and_not_among_the_latest(site, monkeypatch):
    monkeypatch.setattr(upkeep, "NIGHTLY_KEEP_RUNS", 2)
    job = site.job()
    runs = [ended(site, job, days) for days in (1, 170, 190, 200)]

    assert retention.of(options()).prune() == 2
    assert set(Run.objects.all()) == set(runs[:2])


def test_options_say_what_is_kept_in_the_night(site):
    job = site.job()
    for days in (1, 6, 8, 9):
        ended(site, job, days)
    words = ["--older-than=7", "--keep-runs=3"]

    assert upkeep.retention_words(options(*words)) == words
    assert retention.of(options(*words)).prune() == 1


def test_it_happens_by_itself_and_again(site, monkeypatch):
    monkeypatch.setattr(retention, "seconds_until_night", lambda now: 0.01)
    nightly = retention.of(options("--older-than=7", "--keep-runs=0"))
    nightly.start()
    try:
        for _ in range(2):
            ended(site, site.job(), 8)
            with gevent.Timeout(8):
                while Run.objects.exists():
                    gevent.sleep(0.01)
    finally:
        nightly.close()


def test_it_can_be_switched_off(monkeypatch):
    assert upkeep.retention_words(options("--no-prune")) == ["--no-prune"]
    nightly = retention.of(options("--no-prune"))
    nightly.start()
    assert nightly._greenlet is None
    nightly.close()
