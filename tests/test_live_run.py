"""A run in a worker's hands, and the kills that meet it in each state."""

import gevent
import pytest
from gevent.event import Event
from waiting import LIMIT_SECONDS, eventually

from job_runner_worker import live_run
from job_runner_worker.errors import StartError
from job_runner_worker.live_run import START_TRIES, LiveRun
from job_runner_worker.models import TRANSITIONS, Run, RunState
from job_runner_worker.run_folder import Note, RunFolder
from job_runner_worker.testing import FakeExecutor, ScriptedSource

RUN = Run(3, "/api/v1/run/3/", "7", "a title", "#!/bin/sh\nexit 3\n")
SHORT_OF_PROCESSES = StartError("cannot start a process", transient=True)


@pytest.fixture
def folder(tmp_path):
    note = Note(3, "scripted", "boot", "2026-11-22T02:25:59+00:00", 1000, "\x1eend\n")
    return RunFolder.create(tmp_path / "3", note)


@pytest.fixture
def executor():
    return FakeExecutor()


@pytest.fixture
def ends():
    """One entry for each time that the slot was given back."""
    return []


@pytest.fixture
def live(executor, ends):
    return LiveRun(3, ScriptedSource(), executor, lambda: ends.append("free"))


@pytest.fixture
def claimed(live, folder):
    live.claiming(folder)
    folder.update_note(run=RUN)
    live.claimed()
    return live


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr(live_run.backoff, "waits", lambda: iter([0] * START_TRIES))


def is_waiting(greenlet):
    gevent.idle()
    return not greenlet.ready()


# The way of a run


def test_a_run_goes_from_offer_to_report(live, folder, executor, ends):
    states = [live.state]
    live.claiming(folder)
    states.append(live.state)
    folder.update_note(run=RUN)
    live.claimed()
    states.append(live.state)
    execution = live.begin()
    states.append(live.state)
    execution.end(0)
    live.end()
    states.append(live.state)
    live.reported()
    states.append(live.state)
    assert states == [
        RunState.OFFERED,
        RunState.CLAIMING,
        RunState.CLAIMED,
        RunState.RUNNING,
        RunState.ENDED,
        RunState.REPORTED,
    ]
    assert ends == ["free"]


@pytest.mark.parametrize("state", RunState)
def test_no_state_follows_that_the_table_does_not_have(live, state):
    # A run that was only offered.
    if state in TRANSITIONS[RunState.OFFERED]:
        live._move(state)
    else:
        with pytest.raises(AssertionError, match=f"run 3: offered -> {state}"):
            live._move(state)
        assert live.state == RunState.OFFERED


def test_the_slot_is_given_back_once_however_a_run_leaves(claimed, ends):
    claimed.begin().end(0)
    claimed.end()
    claimed.end()
    claimed.forget()
    claimed.release_slot()
    assert ends == ["free"]


def test_the_slot_is_free_when_the_script_ends_also_while_a_report_is_stuck(
    claimed, ends
):
    execution = claimed.begin()
    gevent.idle()
    assert ends == []
    execution.end(0)
    eventually(lambda: ends == ["free"], "the slot is free")
    assert claimed.state == RunState.ENDED


def test_a_run_that_is_not_ours_frees_its_slot(live, folder, ends):
    live.claiming(folder)
    live.forget()
    assert ends == ["free"]


def test_a_script_that_has_begun_is_attached_to_and_not_started(claimed, executor):
    execution = executor.start(RUN, claimed.folder)
    assert claimed.begin() is execution
    assert claimed.begin() is execution
    assert executor.starts == [3]
    assert executor.attaches == [3]


# Failures


def test_a_run_that_has_failed_is_not_started(claimed, executor):
    claimed.folder.fail("interrupted")
    with pytest.raises(StartError, match="interrupted"):
        claimed.begin()
    assert executor.starts == []


def test_a_failure_keeps_its_first_reason_and_time(claimed):
    outcome = claimed.fail("first")
    assert claimed.fail("second") == outcome
    assert outcome.reason == "first"
    assert outcome.exit_status is None


def test_a_start_is_tried_again_where_the_machine_was_short_of_something(
    claimed, executor, no_waits
):
    executor.fail_next(*[SHORT_OF_PROCESSES] * (START_TRIES - 1))
    assert claimed.begin() is executor.executions[3]
    assert len(executor.starts) == START_TRIES


def test_a_start_is_not_tried_for_ever(claimed, executor, no_waits):
    executor.fail_next(*[SHORT_OF_PROCESSES] * START_TRIES)
    with pytest.raises(StartError, match="cannot start a process"):
        claimed.begin()
    assert len(executor.starts) == START_TRIES


@pytest.fixture
def begins_without_an_answer(executor):
    """The script begins, and who asked for it hears that it did not."""
    start = executor.start

    def start_unheard(run, folder):
        start(run, folder)
        (folder.path / "began").write_text("1 1\n")
        raise SHORT_OF_PROCESSES

    executor.start = start_unheard


def test_a_start_that_failed_and_has_begun_all_the_same_is_not_repeated(
    claimed, executor, begins_without_an_answer
):
    assert claimed.begin() is executor.executions[3]
    assert executor.starts == [3]
    assert claimed.state == RunState.RUNNING


def test_a_kill_reaches_a_script_of_whose_start_nobody_had_heard(
    claimed, executor, begins_without_an_answer
):
    execution = claimed.begin()
    gevent.spawn(claimed.kill, "a reason")
    eventually(lambda: execution.outcome, "the end")
    assert execution.outcome.reason == "a reason"


def test_after_the_last_try_no_shim_can_begin(claimed, folder, executor, no_waits):
    executor.fail_next(*[SHORT_OF_PROCESSES] * START_TRIES)
    with pytest.raises(StartError):
        claimed.begin()
    assert folder.shim() is not None
    assert folder.forbid_beginning() is False


def test_a_script_that_cannot_begin_is_not_forbidden_to(claimed, folder, executor):
    executor.fail_next(StartError("no shebang"))
    with pytest.raises(StartError):
        claimed.begin()
    assert folder.shim() is None


def test_a_script_that_cannot_start_is_not_tried_again(claimed, executor):
    executor.fail_next(StartError("no shebang"))
    with pytest.raises(StartError, match="no shebang"):
        claimed.begin()
    assert executor.starts == [3]


# Kills


def test_a_kill_before_the_start_never_starts_the_script(claimed, executor):
    killing = gevent.spawn(claimed.kill, "killed on request 1")
    assert is_waiting(killing)
    with pytest.raises(StartError, match="killed on request 1 before the start"):
        claimed.begin()
    assert executor.starts == []
    assert is_waiting(killing)
    claimed.end()
    killing.get(timeout=LIMIT_SECONDS)


def test_a_kill_of_a_run_that_turns_out_not_to_be_ours_returns(live, folder):
    live.claiming(folder)
    killing = gevent.spawn(live.kill, "a reason")
    assert is_waiting(killing)
    live.forget()
    killing.get(timeout=LIMIT_SECONDS)


def test_a_kill_between_two_tries_to_start_ends_the_tries(
    claimed, executor, monkeypatch
):
    monkeypatch.setattr(live_run.backoff, "waits", lambda: iter([0.001] * START_TRIES))
    executor.fail_next(*[SHORT_OF_PROCESSES] * START_TRIES)
    beginning = gevent.spawn(claimed.begin)
    executor.wait_for(lambda: executor.starts, "the first try")
    gevent.spawn(claimed.kill, "a reason")
    with pytest.raises(StartError, match="a reason before the start"):
        beginning.get(timeout=LIMIT_SECONDS)
    assert len(executor.starts) < START_TRIES
    claimed.end()


def test_a_kill_while_the_script_is_being_started_ends_it(claimed, executor):
    # The answer of the machine takes a moment, and the kill comes within it.
    go = Event()
    start = executor.start

    def start_slowly(run, folder):
        go.wait()
        return start(run, folder)

    executor.start = start_slowly
    beginning = gevent.spawn(claimed.begin)
    gevent.idle()
    assert claimed.state == RunState.STARTING
    killing = gevent.spawn(claimed.kill, "a reason")
    assert is_waiting(killing)
    go.set()
    execution = beginning.get(timeout=LIMIT_SECONDS)
    outcome = execution.wait(LIMIT_SECONDS)
    assert outcome.reason == "a reason"
    killing.get(timeout=LIMIT_SECONDS)


def test_a_kill_of_a_running_script_is_the_executions(claimed, executor):
    claimed.begin()
    claimed.kill("a reason")
    assert executor.kills == [(3, "a reason")]


def test_a_kill_reaches_a_script_that_was_attached_to(claimed, executor):
    executor.start(RUN, claimed.folder)
    assert claimed.attach() is executor.executions[3]
    claimed.kill("a reason")
    assert executor.kills == [(3, "a reason")]


def test_a_kill_of_a_run_that_has_ended_without_a_script_returns(claimed):
    claimed.fail("a reason")
    claimed.end()
    claimed.kill("too late")


def test_a_kill_request_is_in_the_folder_until_it_has_been_carried_out(claimed):
    def noted():
        note = RunFolder.load(claimed.folder.path).note
        return note.kill_requests, note.kill_reason

    claimed.note_kill(1, "killed on request 1")
    claimed.note_kill(2, "killed on request 2")
    assert claimed.kills_under_way == 2
    assert noted() == ((1, 2), "killed on request 2")
    claimed.forget_kill(1)
    claimed.forget_kill(2)
    assert claimed.kills_under_way == 0
    assert noted()[0] == ()


def test_a_kill_request_for_a_run_without_a_folder_is_counted_only(live):
    live.note_kill(1, "a reason")
    assert live.kills_under_way == 1
    live.forget_kill(1)
    assert live.kills_under_way == 0


def test_a_kill_request_after_the_end_is_not_the_reason_of_the_end(claimed):
    claimed.begin().end(0)
    claimed.end()
    claimed.note_kill(1, "too late")
    assert claimed.folder.note.kill_reason == ""
    claimed.forget_kill(1)


# The real thing


def test_a_real_script_is_begun_and_killed(local, ends):
    folder = local.folder("#!/bin/sh\nsleep 60\n")
    source = ScriptedSource()
    executor = local.executor()
    live = LiveRun(folder.run.id, source, executor, lambda: ends.append("free"))
    live.claiming(folder)
    live.claimed()
    execution = live.begin()
    live.kill("a reason")
    live.wait_for_script()
    outcome = execution.wait(0)
    assert (outcome.exit_status, outcome.reason) == (143, "a reason")
    eventually(lambda: ends == ["free"], "the slot is free")
