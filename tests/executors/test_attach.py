"""The next worker takes up what an earlier one has left, at whatever moment."""

import fcntl
import os
import signal
from contextlib import contextmanager

import gevent
import pytest
from conftest import Script
from waiting import LIMIT_SECONDS, alive_below, eventually, spawn_helpers

from job_runner_worker.errors import StartError
from job_runner_worker.executors.local_execution import SHIM_LOST
from job_runner_worker.executors.process_tree import is_alive, send_signal
from job_runner_worker.run_folder import RunFolder


def waits(then=""):
    """Return a script that prints its pid and waits for `let_go`."""
    return f"#!/bin/sh\necho $$\nmkfifo go; read -r _ <go; echo end\n{then}\nexit 3\n"


@contextmanager
def held_before_it_has_a_pid(local, folder):
    """Start a script and hold it between `began` and `pid` until the context is left.

    By a lease: the kernel lets nobody open the file for writing while it is held. The
    spawn helper stands still until only the shim will do that.
    """
    others = spawn_helpers()
    executor = local.executor()
    [helper] = spawn_helpers() - others
    send_signal(helper, signal.SIGSTOP)
    starting = gevent.spawn(local.begin, folder, executor)
    eventually(folder.bell_path.exists, "the folder is prepared")
    descriptor = os.open(folder.path / "pid", os.O_RDONLY)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    # The kernel's word that somebody wants it; the default one would end this process.
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    try:
        send_signal(helper, signal.SIGCONT)
        eventually(folder.shim, "it has begun")
        yield starting
        assert folder.script_process() is None
    finally:
        os.close(descriptor)


@pytest.fixture
def left(local):
    """Starts a script and leaves it: its worker is gone."""

    def start(text):
        executor = local.executor()
        script = local.start(text, executor)
        executor.close()
        return script

    return start


@pytest.fixture
def attach(local):
    """Takes up a script as the next worker does: from its folder alone."""

    def attach_to(folder, **options):
        loaded = RunFolder.load(folder.path)
        return Script(loaded, local.executor(**options).attach(loaded.run, loaded))

    return attach_to


def test_a_closed_executor_leaves_its_scripts_running(left):
    script = left(waits())
    assert script.execution.wait(0) is None
    assert is_alive(script.folder.script_process().script)


def test_a_run_that_has_not_begun_is_not_attached_to(local):
    folder = local.folder("#!/bin/true\n")
    assert local.executor().attach(folder.run, folder) is None
    folder.prepare(b"#!/bin/true\n")
    assert local.executor().attach(folder.run, folder) is None


def test_a_running_script_is_taken_up_with_its_pid_its_start_and_its_end(left, attach):
    before = left(waits())
    script = attach(before.folder)
    assert script.execution.native_id == before.execution.native_id
    assert script.execution.started_at == before.execution.started_at
    assert script.execution.wait(0) is None
    script.let_go()
    outcome = script.end()
    assert (outcome.exit_status, outcome.reason) == (3, "")
    assert outcome.returned_at == script.folder.ended_at() > script.execution.started_at
    assert script.log == f"{script.execution.native_id}\nend\n"


def test_a_script_that_ended_meanwhile_has_its_outcome_and_the_time_of_its_end(
    left, attach
):
    before = left(waits())
    before.let_go()
    eventually(lambda: not alive_below(before.folder.path), "the shim is gone")
    ended_at = before.folder.ended_at()
    script = attach(before.folder)
    outcome = script.end()
    assert (outcome.exit_status, outcome.reason) == (3, "")
    assert outcome.returned_at == ended_at
    assert script.execution.native_id == before.execution.native_id
    assert script.log == f"{script.execution.native_id}\nend\n"


def test_a_script_that_ended_meanwhile_and_left_a_talker_has_its_outcome(left, attach):
    before = left(waits("yes | head -c 50000000 &"))
    before.let_go()
    size = before.folder.output.size
    eventually(lambda: size() > 50_000_000, "the child has printed")
    script = attach(before.folder)
    assert script.end().exit_status == 3
    assert len(script.log) < 50_000


def test_a_script_whose_shim_was_killed_meanwhile_has_failed_and_is_ended(left, attach):
    before = left(waits())
    before.wait_for_members(1)
    os.kill(before.shim_pid, signal.SIGKILL)
    eventually(lambda: not is_alive(before.folder.shim()), "the shim is dead")
    assert before.members()
    script = attach(before.folder)
    outcome = script.end()
    assert (outcome.exit_status, outcome.reason) == (None, SHIM_LOST)
    assert not script.members()
    # And so it stays.
    assert RunFolder.load(script.folder.path).failure() == outcome
    assert attach(script.folder).end() == outcome


def test_a_script_between_began_and_its_pid_is_waited_for(local, attach):
    folder = local.folder(waits())
    with held_before_it_has_a_pid(local, folder) as starting:
        attaching = gevent.spawn(attach, folder)
        gevent.idle()
        assert not attaching.ready()
    script = attaching.get(timeout=LIMIT_SECONDS)
    assert script.execution.native_id == folder.script_process().script.pid
    script.let_go()
    assert script.end().exit_status == 3
    assert starting.get(timeout=LIMIT_SECONDS).end().exit_status == 3


def test_a_script_whose_shim_dies_before_it_has_a_pid_has_failed(local, attach):
    folder = local.folder(waits())
    with held_before_it_has_a_pid(local, folder) as starting:
        os.killpg(folder.shim().pid, signal.SIGKILL)
        script = starting.get(timeout=LIMIT_SECONDS)
        outcome = script.end()
    assert script.execution.native_id is None
    assert (outcome.exit_status, outcome.reason) == (None, SHIM_LOST)
    again = attach(folder)
    assert again.execution.native_id is None
    assert again.end() == outcome


def test_a_began_for_whose_content_there_was_no_room_counts(local, attach):
    folder = local.folder(waits())
    folder.prepare(folder.run.script.encode())
    (folder.path / "began").touch()
    script = attach(folder)
    assert script.execution.native_id is None
    assert script.end().exit_status is None
    execution = local.executor().start(folder.run, folder)
    assert execution.wait(LIMIT_SECONDS).exit_status is None
    assert script.log == ""


def test_leftovers_are_treated_as_configured_at_the_start(local, attach):
    # The shim stops itself for whoever is to end them.
    executor = local.executor(kill_leftovers=True)
    before = local.start(waits("sleep 60 &"), executor)
    executor.close()
    before.let_go()
    eventually(lambda: before.folder.exit_status() is not None, "the script has ended")
    script = attach(before.folder, kill_leftovers=False)
    assert script.end().exit_status == 3
    eventually(lambda: not alive_below(script.folder.path), "nobody is left")


def test_a_kill_that_the_last_worker_began_is_the_reason_of_the_end(left, attach):
    before = left("#!/bin/sh\nsleep 60\n")
    before.wait_for_members(1)
    before.folder.update_note(kill_reason="killed on request 4")
    os.kill(before.execution.native_id, signal.SIGTERM)
    outcome = attach(before.folder).end()
    assert (outcome.exit_status, outcome.reason) == (143, "killed on request 4")


def test_attaching_leaves_no_descriptor_open(left, attach):
    script = left(waits())
    taken_up = attach(script.folder)
    script.let_go()
    taken_up.end()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert attach(script.folder).end().exit_status == 3
    # An executor that is open has its helper, and a watch for outputs.
    assert len(os.listdir("/proc/self/fd")) <= before + 6


def test_a_start_in_a_folder_that_cannot_be_written_is_a_start_failure(local):
    folder = local.folder(waits())
    (folder.path / "work").write_text("in the way")
    with pytest.raises(StartError, match="cannot write the run folder"):
        local.executor().start(folder.run, folder)
    assert folder.shim() is None
