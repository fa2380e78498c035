"""How the worker lets go: in order, at once, and with something left to report."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from in_process import LIMIT_SECONDS, HeldReporter, core
from waiting import eventually

from job_runner_worker.errors import ApiError
from job_runner_worker.models import Enqueue, Ping
from job_runner_worker.sources.base import Holder
from job_runner_worker.testing import FakeExecutor, RecordingReporter, ScriptedSource

pytestmark = pytest.mark.usefixtures("greenlet_errors")


def source_with(*run_ids: int) -> ScriptedSource:
    source = ScriptedSource()
    for run_id in run_ids:
        source.add_run(run_id)
    return source


def test_a_drain_refuses_offers_and_ends_when_the_runs_have(tmp_path: Path) -> None:
    with core(tmp_path, source=source_with(3, 4)) as worker:
        worker.say(Enqueue(3))
        execution = worker.executor.wait_for_start(3)
        worker.worker.stop(drain=True)
        eventually(lambda: worker.worker.admission.is_stopping, "the drain")
        worker.say(Enqueue(4), Ping())
        worker.reporter.wait_for(
            lambda: ("pinged",) in worker.reporter.calls, "the answer to a ping"
        )
        assert worker.source.refusals == [(Enqueue(4), "stopping")]
        assert not worker.running.dead
        execution.end()
        worker.wait_for_stop()
        assert worker.reporter.names_for(3)[-1] == "finished"
        assert ("look", 4) not in worker.source.calls
        assert worker.folders() == []


def test_a_drain_forgets_the_offers_that_wait(tmp_path: Path) -> None:
    with core(tmp_path, source=source_with(3, 4), concurrent_jobs=1) as worker:
        worker.say(Enqueue(3), Enqueue(4))
        execution = worker.executor.wait_for_start(3)
        worker.worker.stop(drain=True)
        eventually(lambda: worker.worker.admission.is_stopping, "the drain")
        execution.end()
        worker.wait_for_stop()
        assert worker.executor.starts == [3]


def test_an_idle_worker_drains_at_once(tmp_path: Path) -> None:
    with core(tmp_path) as worker:
        worker.stop()
        assert worker.error is None


def test_whatever_was_opened_is_closed_the_sources_last(tmp_path: Path) -> None:
    closed: list[str] = []

    class Source(ScriptedSource):
        def close(self) -> None:
            closed.append("source")
            super().close()

    class Executor(FakeExecutor):
        def close(self) -> None:
            closed.append("executor")
            super().close()

    class Reporter(RecordingReporter):
        def close(self) -> None:
            closed.append("reporter")
            super().close()

    with core(
        tmp_path, source=Source(), executor=Executor(), reporter=Reporter()
    ) as worker:
        assert worker.executor.is_open
        assert worker.reporter.is_open
        worker.stop()
    assert closed == ["executor", "reporter", "source"]


def test_leaving_takes_no_notice_of_scripts_and_the_next_worker_attaches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "job_runner_worker")
    source, executor = source_with(3), FakeExecutor()
    with core(tmp_path, source=source, executor=executor) as worker:
        worker.say(Enqueue(3))
        execution = executor.wait_for_start(3)
        worker.reporter.wait_for(
            lambda: len(worker.reporter.calls) == 2, "the report of the start"
        )
        worker.stop(drain=False)
        assert worker.folders() == ["3"]
        assert worker.reporter.names_for(3) == ["enqueued", "started"]
    assert "run 3: left running, the next worker takes it up" in caplog.text
    # The shim writes this; a folder without it is one whose script has not begun.
    (tmp_path / "3" / "began").write_text("1 1")
    source = source_with(3)
    source.runs[3].holder = Holder.THIS_WORKER
    with core(tmp_path, source=source, executor=executor) as worker:
        execution.end()
        assert worker.reporter.wait_for_finish(3).success
        worker.wait_until_idle()
        assert executor.starts == [3]
        assert "started" not in worker.reporter.names_for(3)
        assert ("claim", 3) not in source.calls
        assert worker.folders() == []


@pytest.mark.parametrize("second_drain", [True, False])
def test_a_second_stop_leaves_at_once(tmp_path: Path, second_drain: bool) -> None:
    with core(tmp_path, source=source_with(3)) as worker:
        worker.say(Enqueue(3))
        worker.executor.wait_for_start(3)
        worker.worker.stop(drain=True)
        eventually(lambda: worker.worker.admission.is_stopping, "the drain")
        worker.stop(drain=second_drain)
        assert worker.folders() == ["3"]


@pytest.mark.parametrize("step", ["started", "finished"])
def test_a_drain_waits_for_a_stuck_report_only_for_a_while(
    tmp_path: Path, step: str
) -> None:
    reporter = HeldReporter(step)
    with core(
        tmp_path, source=source_with(3), reporter=reporter, drain_report_seconds=0.05
    ) as worker:
        worker.say(Enqueue(3))
        worker.executor.wait_for_start(3).end()
        reporter.reached.wait(LIMIT_SECONDS)
        began = time.monotonic()
        worker.stop()
        assert time.monotonic() - began < LIMIT_SECONDS / 2
        assert worker.folders() == ["3"]


def test_a_drain_waits_for_a_claim_whose_answer_is_due_only_for_a_while(
    tmp_path: Path,
) -> None:
    source = source_with(3)
    source.fail_next("claim", *[ApiError("down", transient=True)] * 99)
    source.fail_next("look", *[])
    with core(tmp_path, source=source, drain_report_seconds=0.05) as worker:
        worker.say(Enqueue(3))
        eventually(lambda: ("claim", 3) in source.calls, "the claim")
        worker.stop()
        assert worker.executor.starts == []
        assert worker.folders() == ["3"]


def test_a_drain_waits_for_a_script_however_long_it_takes(tmp_path: Path) -> None:
    with core(tmp_path, source=source_with(3), drain_report_seconds=0) as worker:
        worker.say(Enqueue(3))
        execution = worker.executor.wait_for_start(3)
        worker.worker.stop(drain=True)
        late = time.monotonic() + 0.1
        eventually(lambda: time.monotonic() > late, "a moment")
        assert not worker.running.dead
        execution.end()
        worker.wait_for_stop()
