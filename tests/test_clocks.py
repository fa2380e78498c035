"""A wall clock that jumps changes nothing but the dates that are reported after it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import gevent
import pytest
from in_process import core

from job_runner_worker.models import Enqueue, Kill
from job_runner_worker.testing import ScriptedSource

LIMIT_SECONDS = 20.0
SLACK = timedelta(seconds=LIMIT_SECONDS)
pytestmark = pytest.mark.usefixtures("greenlet_errors")


class WallClock:
    """The time of day, for every module of the package and for `time.time`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset = timedelta()
        clock, real_time = self, time.time

        class Jumping(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:
                return datetime.now(tz) + clock.offset

        monkeypatch.setattr(
            time, "time", lambda: real_time() + clock.offset.total_seconds()
        )
        self.patched = [
            name
            for name, module in sys.modules.items()
            if name.startswith("job_runner_worker.")
            and getattr(module, "datetime", None) is datetime
        ]
        for name in self.patched:
            monkeypatch.setattr(sys.modules[name], "datetime", Jumping)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    return WallClock(monkeypatch)


@pytest.fixture(params=[1, -1, 24 * 3650], ids=["forwards", "back", "ten years"])
def jump(request: pytest.FixtureRequest, clock: WallClock) -> Callable[[], None]:
    def jump() -> None:
        clock.offset = timedelta(hours=request.param)

    return jump


@pytest.fixture
def source() -> Iterator[ScriptedSource]:
    source = ScriptedSource()
    for run_id in (3, 4):
        source.add_run(run_id)
    yield source


def test_every_module_that_tells_dates_has_the_clock_that_jumps(
    clock: WallClock,
) -> None:
    found = {name.removeprefix("job_runner_worker.") for name in clock.patched}
    assert {"worker", "acceptance", "run_folder", "kills", "testing.fakes"} <= found


def test_an_offer_waits_and_a_log_is_sent_over_a_jump(
    tmp_path: Path, source: ScriptedSource, jump: Callable[[], None]
) -> None:
    with core(
        tmp_path, source=source, concurrent_jobs=1, offer_ttl_seconds=LIMIT_SECONDS
    ) as worker:
        worker.say(Enqueue(3), Enqueue(4))
        first = worker.executor.wait_for_start(3, LIMIT_SECONDS)
        jump()
        first.print("after the jump")
        worker.reporter.wait_for(
            lambda: ("logged", 3, "after the jump", False) in worker.reporter.calls,
            "the live log",
            LIMIT_SECONDS,
        )
        first.end()
        worker.executor.wait_for_start(4, LIMIT_SECONDS).end()
        assert worker.reporter.wait_for_finish(4, LIMIT_SECONDS).success
        worker.wait_until_idle()


def test_an_offer_runs_out_in_its_time_over_a_jump(
    tmp_path: Path, source: ScriptedSource, jump: Callable[[], None]
) -> None:
    with core(
        tmp_path, source=source, concurrent_jobs=1, offer_ttl_seconds=0.05
    ) as worker:
        worker.say(Enqueue(3))
        first = worker.executor.wait_for_start(3, LIMIT_SECONDS)
        jump()
        worker.say(Enqueue(4))
        late = time.monotonic() + 0.06
        with gevent.Timeout(LIMIT_SECONDS):
            while time.monotonic() < late:
                gevent.sleep(0.01)
        first.end()
        worker.reporter.wait_for_finish(3, LIMIT_SECONDS)
        worker.wait_until_idle()
        assert worker.executor.starts == [3]


def test_a_drain_waits_its_time_and_a_kill_ends_it_over_a_jump(
    tmp_path: Path, source: ScriptedSource, jump: Callable[[], None]
) -> None:
    with core(tmp_path, source=source, drain_report_seconds=LIMIT_SECONDS) as worker:
        worker.say(Enqueue(3))
        worker.executor.wait_for_start(3, LIMIT_SECONDS)
        worker.worker.stop(drain=True)
        gevent.sleep(0)
        jump()
        worker.say(Kill(7, 3))
        worker.wait_for_stop()
        names = {call[0] for call in worker.reporter.calls}
        assert {"finished", "kill_executed"} <= names
        assert worker.folders() == []


def test_a_run_that_began_before_a_jump_reports_the_dates_of_its_own_moments(
    tmp_path: Path, source: ScriptedSource, jump: Callable[[], None], clock: WallClock
) -> None:
    before = datetime.now(UTC)
    with core(tmp_path, source=source) as worker:
        worker.say(Enqueue(3))
        execution = worker.executor.wait_for_start(3, LIMIT_SECONDS)
        worker.reporter.wait_for(
            lambda: "started" in worker.reporter.names_for(3), "the start"
        )
        jump()
        execution.end()
        worker.reporter.wait_for_finish(3, LIMIT_SECONDS)
        moments: dict[Any, datetime] = worker.reporter.moments
        at = {call[0]: moment for call, moment in moments.items()}
    assert abs(at["enqueued"] - before) < SLACK
    assert abs(at["started"] - before) < SLACK
    assert abs(at["finished"] - before - clock.offset) < SLACK
    assert all(moment.tzinfo is not None for moment in at.values())
