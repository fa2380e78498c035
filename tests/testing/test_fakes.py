"""The stand-ins for the contracts keep the contracts."""

from datetime import UTC, datetime
from pathlib import Path

import gevent
import pytest

from job_runner_worker.errors import ApiError, StartError
from job_runner_worker.executors.base import Executor
from job_runner_worker.models import Enqueue, Kill, Outcome, Ping, Run
from job_runner_worker.run_folder import Note, RunFolder
from job_runner_worker.sources.base import Holder
from job_runner_worker.testing import (
    FakeExecutor,
    RecordingReporter,
    ScriptedSource,
)

NOW = datetime(2026, 11, 22, 2, 25, 59, tzinfo=UTC)
RUN = Run(3, "/api/v1/run/3/", "3", "a title", "#!/bin/sh\ntrue\n")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    note = Note(3, "scripted", "boot", NOW.isoformat(), 1000, "mark", run=RUN)
    return RunFolder.create(tmp_path / "3", note)


# ScriptedSource


def test_a_source_yields_its_orders_until_it_is_closed() -> None:
    source = ScriptedSource(Enqueue(3), Ping())
    heard = gevent.spawn(lambda: list(source.commands()))
    source.push(Kill(1))
    source.close()
    assert heard.get(timeout=5) == [Enqueue(3), Ping(), Kill(1)]
    assert source.is_closed


def test_a_run_of_nobody_is_claimed_fetched_and_handed_back() -> None:
    source = ScriptedSource()
    run = source.add_run(3, "#!/bin/sh\necho hi\n", title="a title")
    offer = source.look(3)
    assert (offer.holder, offer.ended) == (Holder.NOBODY, False)
    assert source.unfinished() == []
    assert source.claim(offer, NOW)
    assert source.look(3).holder is Holder.THIS_WORKER
    assert source.fetch(offer) == run
    assert [offer.run_id for offer in source.unfinished()] == [3]
    source.hand_back(offer)
    assert source.look(3).holder is Holder.NOBODY
    names = [name for name, _ in source.calls if name != "unfinished"]
    assert names == ["look", "claim", "look", "fetch", "hand_back", "look"]


def test_a_run_of_another_worker_cannot_be_claimed() -> None:
    source = ScriptedSource()
    source.add_run(3, holder=Holder.ANOTHER_WORKER)
    assert not source.claim(source.look(3), NOW)


def test_an_unknown_run_is_a_404() -> None:
    with pytest.raises(ApiError) as raised:
        ScriptedSource().look(99)
    assert (raised.value.status, raised.value.transient) == (404, False)


def test_what_waits_for_the_sender_outlasts_transient_errors_and_a_claim_does_not() -> (
    None
):
    source = ScriptedSource()
    source.add_run(3)
    down = ApiError("down", 503, transient=True)
    for method in ("look", "claim", "fetch"):
        source.fail_next(method, down)
    with pytest.raises(ApiError):
        source.look(3)
    source.fail_next("look", down, down)
    offer = source.look(3, patient=True)
    with pytest.raises(ApiError):
        source.claim(offer, NOW)
    assert source.fetch(offer).id == 3


def test_an_answer_can_be_overridden() -> None:
    source = ScriptedSource()
    source.add_run(3)
    source.overrides["claim"] = lambda offer, at: (offer.run_id, at) != (3, NOW)
    assert not source.claim(source.look(3), NOW)


def test_the_run_of_a_kill_is_in_the_order_or_at_the_sender() -> None:
    source = ScriptedSource()
    source.kill_targets[2] = 4
    assert source.kill_target(Kill(1, 3)) == 3
    assert source.kill_target(Kill(2)) == 4
    assert source.kill_target(Kill(5)) is None
    assert source.calls[-1] == ("kill_target", 5)


def test_what_was_done_and_refused_can_be_waited_for() -> None:
    source = ScriptedSource()
    gevent.spawn(source.done, Ping())
    gevent.spawn(source.refused, Enqueue(3), "draining")
    source.wait_for(lambda: source.done_commands and source.refusals, "both")
    assert source.done_commands == [Ping()]
    assert source.refusals == [(Enqueue(3), "draining")]


# FakeExecutor


def test_a_run_ends_when_the_test_says_so(folder: RunFolder) -> None:
    executor: Executor = FakeExecutor()
    execution = executor.start(RUN, folder)
    assert execution.wait(0) is None
    assert execution.native_id is not None
    gevent.spawn(execution.end, 3)  # type: ignore[attr-defined]
    outcome = execution.wait()
    assert outcome is not None
    assert (outcome.exit_status, outcome.reason) == (3, "")


def test_what_a_run_prints_is_in_its_folder(folder: RunFolder) -> None:
    execution = FakeExecutor().start(RUN, folder)
    execution.print("one\n")
    execution.print(b"two\n")
    size = folder.output.size()
    assert folder.output.read_log(size, complete=True) == "one\ntwo\n"


def test_a_kill_ends_the_run_and_gives_the_reason_once(folder: RunFolder) -> None:
    executor = FakeExecutor()
    execution = executor.start(RUN, folder)
    execution.kill("killed")
    execution.kill("killed again")
    outcome = execution.wait()
    assert outcome is not None
    assert (outcome.exit_status, outcome.reason) == (143, "killed")
    assert executor.kills == [(3, "killed"), (3, "killed again")]


def test_a_kill_leaves_a_run_that_has_ended_alone(folder: RunFolder) -> None:
    execution = FakeExecutor().start(RUN, folder)
    execution.end()
    execution.kill("too late")
    outcome = execution.wait()
    assert outcome is not None
    assert outcome.success


def test_a_kill_can_be_slow(folder: RunFolder) -> None:
    execution = FakeExecutor().start(RUN, folder)
    execution.dies_of_kill = False
    killer = gevent.spawn(execution.kill, "killed")
    gevent.idle()
    assert not killer.dead
    execution.end(137)
    killer.join(5)
    assert execution.outcome is not None
    assert execution.outcome.reason == "killed"


def test_a_start_can_fail_and_the_next_one_succeeds(folder: RunFolder) -> None:
    executor = FakeExecutor()
    executor.fail_next(StartError("no such interpreter"))
    with pytest.raises(StartError):
        executor.start(RUN, folder)
    executor.start(RUN, folder)
    assert executor.starts == [3, 3]


def test_a_second_worker_attaches_to_what_the_first_one_started(
    folder: RunFolder,
) -> None:
    executor = FakeExecutor()
    assert executor.attach(RUN, folder) is None
    gevent.spawn(executor.start, RUN, folder)
    execution = executor.wait_for_start(3)
    executor.close()
    assert executor.attach(RUN, folder) is execution


# RecordingReporter


def test_every_call_is_kept_in_order() -> None:
    reporter = RecordingReporter(acknowledges=False)
    outcome = Outcome(0, "", NOW)
    reporter.enqueued(RUN, NOW)
    reporter.started(RUN, 7, NOW)
    reporter.pinged(NOW)
    reporter.logged(RUN, "hi", final=True)
    reporter.kill_requested(3, NOW)
    reporter.kill_executed(3, NOW)
    reporter.finished(RUN, outcome)
    assert not reporter.acknowledges
    assert reporter.calls_for(3) == [
        ("enqueued", 3),
        ("started", 3, 7),
        ("logged", 3, "hi", True),
        ("finished", 3, outcome),
    ]
    assert reporter.names_for(3) == ["enqueued", "started", "logged", "finished"]
    assert ("kill_executed", 3) in reporter.calls
    assert reporter.moments[("started", 3, 7)] == NOW


def test_a_reporter_fails_as_often_as_it_is_told() -> None:
    reporter = RecordingReporter()
    reporter.fail_next(2)
    for _ in range(2):
        with pytest.raises(ApiError, match="down"):
            reporter.pinged(NOW)
    reporter.pinged(NOW)
    assert reporter.failed_calls == [("pinged",), ("pinged",)]
    assert reporter.calls == [("pinged",)]


def test_the_end_of_a_run_can_be_waited_for() -> None:
    reporter = RecordingReporter()
    outcome = Outcome(0, "", NOW)
    gevent.spawn(reporter.finished, RUN, outcome)
    assert reporter.wait_for_finish(3) is outcome


def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(AssertionError, match="the end of run 3"):
        RecordingReporter().wait_for_finish(3, timeout_seconds=0.01)
