"""Who belongs to a run, and that nobody else is ever signalled."""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import another_user
from waiting import eventually

from job_runner_worker.executors.process_tree import (
    ProcessTree,
    identify,
    is_alive,
    is_stopped,
    send_signal,
)
from job_runner_worker.run_folder import ProcessId

PARENT_AND_FIVE = """#!/bin/sh
(sleep 60 &)
setsid sleep 60 &
sh -c 'sleep 60 & sleep 60' &
sleep 60
"""


@pytest.fixture
def sleeper():
    """A process that leads a session of its own, as a shim does; it blocks USR1."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        yield identify(process.pid)
        process.kill()


def pending(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("ShdPnd:")[1].split()[0], 16)


def reused(process):
    """Return a process that is dead and whose pid this one has got since."""
    return replace(process, start_ticks=process.start_ticks - 1)


def tree_of(script):
    shim, process = script.folder.shim(), script.folder.script_process()
    own_cgroup = script.folder.note.cgroup
    path = Path(own_cgroup) if own_cgroup else None
    return ProcessTree(shim, process.relay_pid, path)


# One process


def test_a_process_is_its_pid_and_its_start(sleeper):
    started = psutil.Process(sleeper.pid).create_time() - psutil.boot_time()
    assert sleeper.start_ticks / os.sysconf("SC_CLK_TCK") == pytest.approx(started)
    assert is_alive(sleeper)
    assert not is_alive(reused(sleeper))


def test_whoever_got_the_pid_of_a_dead_process_is_not_signalled(sleeper):
    # It blocks this one, so that the kernel says for ever whether it was sent.
    send_signal(reused(sleeper), signal.SIGUSR1)
    assert pending(sleeper) == 0
    send_signal(sleeper, signal.SIGUSR1)
    assert pending(sleeper) == 1 << (signal.SIGUSR1 - 1)


def test_the_process_itself_is_signalled(sleeper):
    send_signal(sleeper, signal.SIGSTOP)
    eventually(lambda: is_stopped(sleeper), "it is stopped")
    send_signal(sleeper, signal.SIGKILL)
    eventually(lambda: not is_alive(sleeper), "it is dead")


def test_a_zombie_is_dead(sleeper):
    os.kill(sleeper.pid, signal.SIGKILL)
    # Not reaped: its parent, this process, does not look.
    state = eventually(
        lambda: " Z " in Path(f"/proc/{sleeper.pid}/stat").read_text(), "a zombie"
    )
    assert state
    assert identify(sleeper.pid) is None
    assert not is_alive(sleeper)
    send_signal(sleeper, signal.SIGKILL)


def test_a_name_with_spaces_and_parentheses_is_no_obstacle(tmp_path):
    command = tmp_path / "a) Z (b"
    command.symlink_to("/bin/sleep")
    with subprocess.Popen([command, "60"]) as process:
        # Popen returns when the program has been executed.
        assert "a) Z (b" in Path(f"/proc/{process.pid}/stat").read_text()
        assert identify(process.pid) is not None
        process.kill()


@pytest.mark.parametrize("pid", [0, 2**22 + 1])
def test_a_process_that_cannot_be_is_dead_and_may_be_signalled(pid):
    nobody = ProcessId(pid, 0)
    assert identify(pid) is None
    assert not is_alive(nobody)
    send_signal(nobody, signal.SIGKILL)
    tree = ProcessTree(nobody, 0)
    assert tree.members() == set()
    assert tree.kill(0) is False


# A tree


def test_the_tree_of_a_reused_pid_is_empty(sleeper):
    tree = ProcessTree(reused(sleeper), 0)
    assert tree.members() == set()
    assert tree.kill(0) is False
    assert is_alive(sleeper)


def test_the_fast_and_the_exact_way_find_the_same(tracked):
    script = tracked.start(PARENT_AND_FIVE)
    eventually(lambda: len(script.members()) == 7, "seven processes")
    tree = tree_of(script)
    exact = tree.members()
    assert exact == tree.members(exact=False)
    assert {process.pid for process in exact} == script.members()


def test_the_rest_of_a_session_is_found_without_its_shim(local):
    script = local.start("#!/bin/sh\nsleep 60 &\nsleep 60\n")
    script.wait_for_members(3)
    tree = tree_of(script)
    before = tree.members()
    assert len(before) == 3
    # Without a watcher that ends them.
    script.execution.let_go()
    os.kill(script.shim_pid, signal.SIGKILL)
    eventually(lambda: not is_alive(script.folder.shim()), "the shim is dead")
    assert tree.members() == before
    assert tree.kill(0) is True
    assert not script.members()


def test_a_kill_stops_the_shim_meanwhile_and_continues_it(local):
    script = local.start("#!/bin/sh\ntrap '' TERM\necho now\nsleep 60\n")
    script.wait_for_output("now")
    shim, process = script.folder.shim(), script.folder.script_process()
    was_stopped = []

    def sleep(seconds):
        eventually(lambda: is_stopped(shim), "the shim is stopped")
        was_stopped.append(True)

    assert ProcessTree(shim, process.relay_pid, sleep=sleep).kill(0) is True
    assert was_stopped
    assert script.end().exit_status == 137


def test_a_kill_tells_whether_there_was_anybody(local):
    script = local.start("#!/bin/sh\nsleep 60\n")
    tree = tree_of(script)
    assert tree.kill(1) is True
    assert tree.kill(1) is False


def test_another_users_processes_do_not_hold_a_kill_for_ever(local, caplog):
    # As after `sudo` in a script: the worker may not signal it.
    script = local.start(PARENT_AND_FIVE)
    eventually(lambda: len(script.members()) == 7, "seven processes")
    tree = tree_of(script)
    with another_user():
        tree.kill(0.1)
    assert len(script.members()) == 7
    assert len(caplog.messages) == 7
    assert "another user's" in caplog.text


def test_another_users_processes_in_a_cgroup_are_killed_by_the_kernel(contained):
    script = contained.start(PARENT_AND_FIVE)
    eventually(lambda: len(script.members()) == 7, "seven processes")
    tree = tree_of(script)
    with another_user(Path(script.folder.note.cgroup) / "cgroup.kill"):
        tree.kill(0.1)
    assert not script.members()
    assert script.end().exit_status is None
