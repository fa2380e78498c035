"""The worker between stand-ins: starts, reports, pings, and what it begins with."""

from __future__ import annotations

import logging
from pathlib import Path

import gevent
import pytest
from in_process import (
    LIMIT_SECONDS,
    HeldReporter,
    core,
    make_worker,
    open_spool,
)

from job_runner_worker.errors import ApiError, StartError
from job_runner_worker.models import Enqueue, Ping
from job_runner_worker.testing import FakeExecutor, RecordingReporter, ScriptedSource

DOWN = ApiError("down", 503, transient=True)
UNSURE = ApiError("no answer", transient=True)
REFUSED = ApiError("refused", 403)
pytestmark = pytest.mark.usefixtures("greenlet_errors")


def source_with(*run_ids: int) -> ScriptedSource:
    source = ScriptedSource()
    for run_id in run_ids:
        source.add_run(run_id)
    return source


def test_a_start_is_tried_again_where_the_machine_is_short_of_something(
    tmp_path: Path,
) -> None:
    executor = FakeExecutor()
    executor.fail_next(StartError("no memory", transient=True))
    with core(tmp_path, source=source_with(3), executor=executor) as worker:
        worker.say(Enqueue(3))
        executor.wait_for_start(3).end()
        assert worker.reporter.wait_for_finish(3).success
        assert executor.starts == [3, 3]


def test_a_script_begins_while_somebody_is_still_told_of_its_claim(
    tmp_path: Path,
) -> None:
    reporter = HeldReporter("enqueued")
    with core(tmp_path, source=source_with(3), reporter=reporter) as worker:
        worker.say(Enqueue(3))
        script = worker.executor.wait_for_start(3)
        reporter.reached.wait(LIMIT_SECONDS)
        assert reporter.names_for(3) == []
        reporter.release.set()
        script.end()
        reporter.wait_for_finish(3)
        assert reporter.names_for(3) == ["enqueued", "started", "logged", "finished"]


def test_a_start_that_is_wrong_is_not_tried_again(tmp_path: Path) -> None:
    executor = FakeExecutor()
    executor.fail_next(StartError("no such interpreter"))
    with core(tmp_path, source=source_with(3), executor=executor) as worker:
        worker.say(Enqueue(3))
        assert worker.reporter.wait_for_finish(3).reason == "no such interpreter"
        assert executor.starts == [3]
        line = "[job_runner_worker] no such interpreter\n"
        assert ("logged", 3, line, True) in worker.reporter.calls


def test_an_error_in_one_run_is_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    executor = FakeExecutor()
    executor._failures.append(RuntimeError("a bug"))  # type: ignore[arg-type]
    with core(
        tmp_path, source=source_with(3, 4), executor=executor, concurrent_jobs=1
    ) as worker:
        worker.say(Enqueue(3), Enqueue(4))
        executor.wait_for_start(4).end()
        worker.reporter.wait_for_finish(4)
        worker.wait_until_idle()
        assert worker.folders() == ["failed"]
        (failed,) = worker.spool.failed.entries()
    assert (failed.name, failed.run_id) == ("3", 3)
    assert "a fault of this worker: RuntimeError('a bug')" in failed.reason
    assert "failed retry 3" in caplog.text


@pytest.mark.parametrize("step", ["started", "finished"])
def test_a_slot_is_free_when_the_script_has_ended_though_a_report_is_stuck(
    tmp_path: Path, step: str
) -> None:
    reporter = HeldReporter(step)
    with core(
        tmp_path, source=source_with(3, 4), reporter=reporter, concurrent_jobs=1
    ) as worker:
        worker.say(Enqueue(3), Enqueue(4))
        worker.executor.wait_for_start(3).end()
        worker.executor.wait_for_start(4).end()
        reporter.release.set()
        for run_id in (3, 4):
            reporter.wait_for_finish(run_id)


def test_what_a_reporter_refused_is_kept_for_the_operator(tmp_path: Path) -> None:
    with core(tmp_path, source=source_with(3)) as worker:
        worker.reporter.fail_next(1, REFUSED)
        worker.say(Enqueue(3))
        worker.executor.wait_for_start(3).end()
        worker.reporter.wait_for_finish(3)
        worker.wait_until_idle()
        assert worker.folders() == ["failed"]
        assert (tmp_path / "failed" / "3" / "run.json").exists()


def test_a_ping_is_answered_once_at_a_time(tmp_path: Path) -> None:
    reporter = HeldReporter("pinged")
    with core(tmp_path, reporter=reporter) as worker:
        worker.say(Ping(), Ping(), Ping())
        reporter.release.set()
        reporter.wait_for(lambda: reporter.calls, "the answer")
        worker.say(Ping())
        reporter.wait_for(lambda: len(reporter.calls) == 2, "the second answer")
        assert worker.source.done_commands[0] == Ping()


def test_a_refused_ping_does_not_keep_the_next_from_being_answered(
    tmp_path: Path,
) -> None:
    with core(tmp_path) as worker:
        worker.reporter.fail_next(1, REFUSED)
        worker.say(Ping())
        worker.reporter.wait_for(lambda: worker.reporter.failed_calls, "the refusal")
        worker.say(Ping())
        worker.reporter.wait_for(lambda: worker.reporter.calls, "the answer")


def test_a_key_that_is_not_accepted_stops_the_worker(tmp_path: Path) -> None:
    source = ScriptedSource()
    source.fail_next("unfinished", ApiError("GET worker: 401", 401))
    with core(tmp_path, source=source) as worker:
        worker.wait_for_stop()
        assert isinstance(worker.error, ApiError)
        assert worker.error.status == 401
        assert source.is_closed
        assert not worker.executor.is_open


def test_interrupted_runs_that_cannot_be_asked_for_are_no_reason_to_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_with(3)
    source.fail_next("unfinished", ApiError("GET run: 404", 404))
    with core(tmp_path, source=source) as worker:
        worker.say(Enqueue(3))
        worker.executor.wait_for_start(3).end()
        worker.reporter.wait_for_finish(3)
        assert not worker.worker._taken_since_start
    assert "interrupted runs cannot be asked for" in caplog.text


def test_a_folder_whose_source_is_gone_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "job_runner_worker")
    spool = open_spool(tmp_path)
    spool.create(7, "carrier pigeon", "2026-01-01T00:00:00+00:00", 1000)
    spool.close()
    with core(tmp_path) as worker:
        worker.wait_until_idle()
        assert worker.folders() == ["7"]
    assert "run 7: its source 'carrier pigeon' is not configured" in caplog.text


def test_runs_of_two_sources_are_each_asked_for_at_their_own(tmp_path: Path) -> None:
    sources = [source_with(3), source_with(4)]
    sources[1].name = "second"
    executor, reporter = FakeExecutor(), RecordingReporter()
    spool = open_spool(tmp_path)
    worker = make_worker(spool, sources, executor, [reporter])
    running = gevent.spawn(worker.run)
    for source, run_id in zip(sources, (3, 4), strict=True):
        source.push(Enqueue(run_id))
        executor.wait_for_start(run_id).end()
        reporter.wait_for_finish(run_id)
        assert ("claim", run_id) in source.calls
    worker.stop(drain=True)
    running.get(timeout=LIMIT_SECONDS)
    spool.close()
    assert [source.is_closed for source in sources] == [True, True]
