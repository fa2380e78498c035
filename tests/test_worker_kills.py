"""Kill requests in the states that no real process can be held in."""

from __future__ import annotations

import logging
from pathlib import Path

import gevent
import pytest
from gevent.event import Event
from in_process import LIMIT_SECONDS, Core, HeldExecutor, HeldReporter, core
from waiting import eventually

from job_runner_worker.errors import ApiError, StartError
from job_runner_worker.kills import noted_order
from job_runner_worker.models import Enqueue, Kill
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.sources.base import Offer
from job_runner_worker.testing import FakeExecutor, ScriptedSource

pytestmark = pytest.mark.usefixtures("greenlet_errors")

KILL = Kill(9, 3)
BEFORE = "killed on request 9 before the start"


def source_with(*run_ids: int) -> ScriptedSource:
    source = ScriptedSource()
    for run_id in run_ids:
        source.add_run(run_id)
    return source


def kill_calls(worker: Core) -> list[tuple[object, ...]]:
    return [call for call in worker.reporter.calls if call[0].startswith("kill_")]


def wait_for_kill(worker: Core, number: int = 9) -> None:
    worker.reporter.wait_for(
        lambda: ("kill_executed", number) in worker.reporter.calls,
        "the execution of the kill",
        LIMIT_SECONDS,
    )
    assert kill_calls(worker) == [("kill_requested", number), ("kill_executed", number)]


def test_a_claimed_run_is_never_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "job_runner_worker")
    executor = HeldExecutor("attach")
    with core(tmp_path, source=source_with(3), executor=executor) as worker:
        reporter = worker.reporter
        worker.say(Enqueue(3))
        executor.reached.wait(LIMIT_SECONDS)
        worker.say(KILL)
        reporter.wait_for(lambda: ("kill_requested", 9) in reporter.calls, "the kill")
        # Nothing of the run is alive, but it has no end yet.
        assert ("kill_executed", 9) not in reporter.calls
        executor.release.set()
        wait_for_kill(worker)
        outcome = reporter.wait_for_finish(3)
        assert (outcome.exit_status, outcome.reason) == (None, BEFORE)
        assert worker.executor.starts == []
    assert "run 3: kill request 9, state claimed" in caplog.text


def test_a_run_that_is_being_started_is_killed_as_soon_as_it_can_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "job_runner_worker")
    executor = HeldExecutor()
    with core(tmp_path, source=source_with(3), executor=executor) as worker:
        worker.say(Enqueue(3))
        executor.reached.wait(LIMIT_SECONDS)
        worker.say(KILL)
        worker.reporter.wait_for(lambda: kill_calls(worker), "the kill")
        executor.release.set()
        outcome = worker.reporter.wait_for_finish(3)
        assert (outcome.exit_status, outcome.reason) == (143, "killed on request 9")
        wait_for_kill(worker)
        assert executor.kills == [(3, "killed on request 9")]
    assert "run 3: kill request 9, state starting" in caplog.text


def test_who_asked_for_a_kill_is_in_its_reason_also_for_the_next_worker(
    tmp_path: Path,
) -> None:
    reason = "killed on request 9 by an admin"
    source, executor = source_with(3), FakeExecutor()
    reporter = HeldReporter("kill_requested")
    with core(tmp_path, source=source, executor=executor, reporter=reporter) as worker:
        worker.say(Enqueue(3))
        executor.wait_for_start(3)
        worker.say(Kill(9, 3, "an admin"))
        assert reporter.wait_for_finish(3).reason == reason
        folder = RunFolder.load(tmp_path / "3")
        assert folder.note.kill_reason == reason
        assert noted_order(folder, 9) == Kill(9, 3, "an admin")
        assert noted_order(folder, 8) == Kill(8, 3)
        worker.stop(drain=False)


def test_a_run_whose_start_fails_under_a_kill_has_that_reason(tmp_path: Path) -> None:
    executor = HeldExecutor()
    executor.fail_next(StartError("no such interpreter"))
    with core(tmp_path, source=source_with(3), executor=executor) as worker:
        worker.say(Enqueue(3))
        executor.reached.wait(LIMIT_SECONDS)
        worker.say(KILL)
        worker.reporter.wait_for(lambda: kill_calls(worker), "the kill")
        executor.release.set()
        assert worker.reporter.wait_for_finish(3).reason == "no such interpreter"
        wait_for_kill(worker)


def test_a_run_whose_start_is_repeated_is_not_started_after_a_kill(
    tmp_path: Path,
) -> None:
    executor = FakeExecutor()
    executor.fail_next(*[StartError("no memory", transient=True)] * 3)
    with core(tmp_path, source=source_with(3), executor=executor) as worker:
        worker.say(Enqueue(3))
        eventually(lambda: executor.starts, "the first try")
        worker.say(KILL)
        wait_for_kill(worker)
        assert worker.reporter.wait_for_finish(3).reason == BEFORE
        assert executor.executions == {}


def test_an_execution_is_reported_when_the_tree_is_gone_and_not_before(
    tmp_path: Path,
) -> None:
    with core(tmp_path, source=source_with(3)) as worker:
        worker.say(Enqueue(3))
        execution = worker.executor.wait_for_start(3)
        execution.dies_of_kill = False
        worker.say(KILL)
        worker.reporter.wait_for(lambda: execution.kill_reasons, "the kill")
        worker.reporter.wait_for(lambda: kill_calls(worker), "the first report")
        gevent.idle()
        assert kill_calls(worker) == [("kill_requested", 9)]
        execution.end(137)
        wait_for_kill(worker)


def test_the_kill_does_not_wait_for_its_first_report(tmp_path: Path) -> None:
    reporter = HeldReporter("kill_requested")
    with core(tmp_path, source=source_with(3), reporter=reporter) as worker:
        worker.say(Enqueue(3))
        execution = worker.executor.wait_for_start(3)
        worker.say(KILL)
        reporter.reached.wait(LIMIT_SECONDS)
        eventually(lambda: execution.outcome, "the end of the script")
        reporter.release.set()
        wait_for_kill(worker)


def test_an_ended_run_keeps_its_outcome(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "job_runner_worker")
    reporter = HeldReporter("finished")
    with core(tmp_path, source=source_with(3), reporter=reporter) as worker:
        worker.say(Enqueue(3))
        worker.executor.wait_for_start(3).end()
        reporter.reached.wait(LIMIT_SECONDS)
        worker.say(KILL)
        wait_for_kill(worker)
        reporter.release.set()
        assert reporter.wait_for_finish(3).success
    assert "run 3: kill request 9, state ended" in caplog.text


def test_a_run_that_is_gone_and_an_unknown_one_are_acknowledged(tmp_path: Path) -> None:
    with core(tmp_path, source=source_with(3)) as worker:
        worker.say(Enqueue(3))
        worker.executor.wait_for_start(3).end()
        worker.reporter.wait_for_finish(3)
        worker.wait_until_idle()
        worker.say(KILL, Kill(10, 999))
        for number in (9, 10):
            worker.reporter.wait_for(
                lambda number=number: (  # type: ignore[misc]
                    ("kill_executed", number) in worker.reporter.calls
                ),
                "the acknowledgement",
            )
        assert worker.executor.kills == []


def test_a_waiting_offer_that_somebody_else_took_is_acknowledged(
    tmp_path: Path,
) -> None:
    source = source_with(2, 3)
    with core(tmp_path, source=source, concurrent_jobs=1) as worker:
        worker.say(Enqueue(2))
        execution = worker.executor.wait_for_start(2)
        source.overrides["claim"] = lambda *_: False
        worker.say(Enqueue(3), KILL)
        wait_for_kill(worker)
        assert worker.executor.starts == [2]
        execution.end()
        worker.reporter.wait_for_finish(2)
        assert worker.reporter.calls_for(3) == []


def test_a_kill_of_a_waiting_offer_takes_nobody_s_slot(tmp_path: Path) -> None:
    source = source_with(1, 2, 3, 4)
    with core(tmp_path, source=source, concurrent_jobs=2) as worker:
        worker.say(Enqueue(1), Enqueue(2))
        executions = [worker.executor.wait_for_start(each) for each in (1, 2)]
        worker.say(Enqueue(3), KILL, Enqueue(4))
        assert worker.reporter.wait_for_finish(3).reason == BEFORE
        gevent.idle()
        assert worker.executor.starts == [1, 2]
        executions[0].end()
        worker.executor.wait_for_start(4).end()
        executions[1].end()
        worker.wait_until_idle()
        assert worker.worker.free_slots == 2


def test_an_order_that_cannot_be_read_may_be_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_with(3)
    source.kill_targets[9] = 3
    source.fail_next("kill_target", ApiError("GET kill_request: 404", 404))
    with core(tmp_path, source=source) as worker:
        worker.say(Enqueue(3))
        worker.executor.wait_for_start(3)
        worker.say(Kill(9))
        eventually(lambda: "kill request 9: cannot be read" in caplog.text, "the line")
        assert kill_calls(worker) == []
        worker.say(Kill(9))
        wait_for_kill(worker)


def test_a_request_that_was_taken_care_of_changes_nothing(tmp_path: Path) -> None:
    source = source_with(3)
    source.overrides["kill_target"] = lambda order: None
    with core(tmp_path, source=source) as worker:
        worker.say(Enqueue(3))
        execution = worker.executor.wait_for_start(3)
        worker.say(Kill(9))
        source.wait_for(lambda: Kill(9) in source.done_commands, "the order's end")
        assert kill_calls(worker) == []
        assert execution.kill_reasons == []


def test_a_repeated_order_is_carried_out_once(tmp_path: Path) -> None:
    with core(tmp_path, source=source_with(3)) as worker:
        worker.say(Enqueue(3))
        worker.executor.wait_for_start(3)
        worker.say(*[KILL] * 5)
        wait_for_kill(worker)
        worker.reporter.wait_for_finish(3)
        worker.say(*[KILL] * 5)
        wait_for_kill(worker)
        assert worker.source.calls.count(("kill_target", 9)) == 1


def test_a_drain_waits_for_the_report_of_a_kill(tmp_path: Path) -> None:
    reporter = HeldReporter("kill_executed")
    with core(tmp_path, source=source_with(3), reporter=reporter) as worker:
        worker.say(Enqueue(3))
        worker.executor.wait_for_start(3)
        worker.worker.stop(drain=True)
        worker.say(KILL)
        reporter.reached.wait(LIMIT_SECONDS)
        assert not worker.running.dead
        reporter.release.set()
        worker.wait_for_stop()
        assert ("kill_executed", 9) in reporter.calls
        assert worker.folders() == []


def test_a_kill_that_was_not_reported_is_finished_by_the_next_worker(
    tmp_path: Path,
) -> None:
    source, executor = source_with(3), FakeExecutor()
    reporter = HeldReporter("kill_requested")
    with core(tmp_path, source=source, executor=executor, reporter=reporter) as worker:
        worker.say(Enqueue(3))
        executor.wait_for_start(3)
        worker.say(KILL)
        assert reporter.wait_for_finish(3).reason == "killed on request 9"
        worker.stop(drain=False)
    (tmp_path / "3" / "began").write_text("1 1")
    again = source_with(3)
    again.runs[3].holder = source.runs[3].holder
    with core(tmp_path, source=again, executor=executor) as worker:
        wait_for_kill(worker)
        worker.wait_until_idle()
        assert worker.reporter.names_for(3) == []
        assert worker.folders() == []


def test_a_kill_is_not_acknowledged_before_a_folder_remembers_it(
    tmp_path: Path,
) -> None:
    source, asked, answer = source_with(3), Event(), Event()

    def look_slowly(run_id: int) -> Offer:
        asked.set()
        answer.wait()
        del source.overrides["look"]
        return source.look(run_id)

    source.overrides["look"] = look_slowly
    reporter = HeldReporter("kill_requested")
    with core(tmp_path, source=source, reporter=reporter) as worker:
        worker.say(Enqueue(3))
        asked.wait(LIMIT_SECONDS)
        worker.say(KILL)
        assert not reporter.reached.is_set()
        answer.set()
        reporter.reached.wait(LIMIT_SECONDS)
        assert RunFolder.load(tmp_path / "3").note.kill_requests == (9,)
        reporter.release.set()
        assert reporter.wait_for_finish(3).reason == BEFORE
        wait_for_kill(worker)


@pytest.mark.parametrize("run", ["unknown", "ended"])
@pytest.mark.parametrize("held", ["kill_requested", "kill_executed"])
def test_a_kill_that_no_folder_remembers_is_finished_by_the_next_worker(
    tmp_path: Path, held: str, run: str
) -> None:
    source, executor = source_with(3), FakeExecutor()
    reporter = HeldReporter("finished", held)
    with core(tmp_path, source=source, executor=executor, reporter=reporter) as worker:
        if run == "ended":
            worker.say(Enqueue(3))
            executor.wait_for_start(3).end()
            reporter.reached.wait(LIMIT_SECONDS)
            reporter.reached.clear()
        worker.say(KILL)
        reporter.reached.wait(LIMIT_SECONDS)
        worker.stop(drain=False)
    if run == "ended":
        (tmp_path / "3" / "began").write_text("1 1")
        (tmp_path / "3" / "exit_status").write_text("0")
    again = source_with(3)
    again.runs[3].holder = source.runs[3].holder
    with core(tmp_path, source=again, executor=executor) as worker:
        wait_for_kill(worker)
        worker.wait_until_idle()
        if run == "ended":
            assert worker.reporter.wait_for_finish(3).success
        assert worker.folders() == []
