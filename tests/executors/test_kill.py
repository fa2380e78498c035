"""A kill ends everything that a run has started, and nothing else."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import gevent
import pytest
from waiting import alive_below, eventually

from job_runner_worker.executors import process_tree
from job_runner_worker.executors.process_tree import (
    is_alive,
    is_stopped,
    send_signal,
)

KILLED, TERMINATED = 128 + signal.SIGKILL, 128 + signal.SIGTERM
DAEMON = "(env -i setsid sleep 60 </dev/null >/dev/null 2>&1 &)"
"""Double-forked, another session and group, no environment, no output, no parent."""
PYTHON = f"#!{sys.executable} -IS\nimport os, signal, time\n"
IGNORES_TERM = "trap '' TERM\n"
SHORT_GRACE_SECONDS = 0.2

# Name: the script after its first line, how many processes to wait for.
TREES = {
    "plain": ("exec sleep 60", 1),
    "background": ("sleep 60 & sleep 60", 3),
    # The script is told before its children: their end is not its own.
    "waits for its children": ("sleep 60 & setsid sleep 60 & wait", 3),
    "setsid": ("setsid sleep 60 & exec sleep 60", 2),
    "nohup": ("nohup sleep 60 >/dev/null & exec sleep 60", 2),
    "double-forked": ("(sleep 60 &); exec sleep 60", 2),
    "daemon": (f"{DAEMON}; sleep 60", 3),
    "stopped": ("sleep 60 & kill -STOP $!; kill -STOP $$", 2),
    "waits for a daemon": (f"mkfifo never; {DAEMON}; read -r _ <never", 2),
    "a hundred": (
        "for i in 1 2 3 4 5 6 7 8 9; do\n"
        "  (for j in 1 2 3 4 5 6 7 8 9 0; do sleep 60 & done; wait) &\n"
        "done; exec sleep 60",
        100,
    ),
}
STUBBORN = {
    "ignores TERM": (f"{IGNORES_TERM}sleep 60 & sleep 60", 3),
    "stubborn daemon": (f"{IGNORES_TERM}{DAEMON}; sleep 60", 3),
    "ignores TERM and is stopped": (
        f"{IGNORES_TERM}sleep 60 & kill -STOP $$; sleep 60",
        2,
    ),
    "restarts what dies": (f"{IGNORES_TERM}while :; do sleep 60; done", 2),
    "keeps forking": (
        f"{IGNORES_TERM}i=0; while [ $i -lt 20000 ]; do (sleep 60 &); i=$((i+1)); done",
        10,
    ),
}
NEW_GROUP = f"""{PYTHON}
if os.fork() == 0:
    os.setpgid(0, 0)
time.sleep(60)
"""
HOPPING = f"""{PYTHON}
signal.signal(signal.SIGTERM, signal.SIG_IGN)
started = time.monotonic()
if os.fork() == 0:
    # Every process lives for a moment only, and has a child before it ends.
    while time.monotonic() - started < 20:
        if os.fork() != 0:
            os._exit(0)
        time.sleep(PAUSE)
time.sleep(60)
"""


SLEEPS_IN_D = f"""{PYTHON}
# Else it may end by this one, once its child has been killed and it is awake again.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.mkfifo("never")
# Whoever spawns sleeps in state D until the child has executed something; it waits.
opening = (os.POSIX_SPAWN_OPEN, 0, "never", os.O_RDONLY, 0)
os.posix_spawn("/bin/true", ["true"], {{}}, file_actions=[opening])
signal.pause()
"""
THOUSAND = f"""{PYTHON}
reader, writer = os.pipe()
for _ in range(10):
    if os.fork() == 0:
        os.setsid()
        for _ in range(100):
            if os.fork() == 0:
                os.write(writer, b"1")
                while True:
                    signal.pause()
        while True:
            signal.pause()
os.close(writer)
count = 0
while count < 1000:
    count += len(os.read(reader, 1000))
print("ready", flush=True)
while True:
    signal.pause()
"""
WITHOUT_MAIN_THREAD = """
import ctypes, threading
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall"""
HANDLES_TERM = f"""{PYTHON}
def end(*_):
    print("ending", flush=True)
    open("go").read()
    print("end", flush=True)
    os._exit(7)
os.mkfifo("go")
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    signal.pause()
"""


def kill(script, reason="killed on request 1"):
    """Kill, and check what holds after every kill."""
    script.execution.kill(reason)
    assert not script.members()
    outcome = script.end()
    assert outcome.reason == reason
    assert not outcome.success
    eventually(lambda: not alive_below(script.folder.path), "shim and relay are gone")
    own_cgroup = script.folder.note.cgroup
    if own_cgroup:
        eventually(lambda: not Path(own_cgroup).exists(), "the cgroup is removed")
    return outcome


@pytest.mark.parametrize("name", TREES)
def test_a_kill_ends_the_whole_tree(tracked, name):
    text, count = TREES[name]
    script = tracked.start(f"#!/bin/sh\n{text}\n")
    script.wait_for_members(count)
    assert kill(script).exit_status == TERMINATED


@pytest.mark.parametrize("name", STUBBORN)
def test_who_does_not_end_within_the_grace_is_killed(tracked, name):
    text, count = STUBBORN[name]
    script = tracked.start(
        f"#!/bin/sh\n{text}\n", kill_grace_seconds=SHORT_GRACE_SECONDS
    )
    script.wait_for_members(count)
    assert kill(script).exit_status == KILLED


def test_a_kill_ends_a_program_that_goes_on_without_its_main_thread(tracked):
    number = {"x86_64": 60, "aarch64": 93}.get(os.uname().machine)
    if number is None:
        pytest.skip("the number of exit(2) is not known for this machine: add it here")
    script = tracked.start(f"{PYTHON}{WITHOUT_MAIN_THREAD}({number}, 0)\n")
    pid = script.execution.native_id
    stat = Path(f"/proc/{pid}/stat")
    eventually(lambda: " Z " in stat.read_text(), "it looks like a zombie")
    assert kill(script).exit_status == TERMINATED


def test_a_kill_ends_a_process_in_uninterruptible_sleep_that_can_be_killed(tracked):
    script = tracked.start(SLEEPS_IN_D, kill_grace_seconds=SHORT_GRACE_SECONDS)
    # Only with its child: Python itself may sleep so for a moment while it starts.
    script.wait_for_members(2)
    stat = Path(f"/proc/{script.execution.native_id}/stat")
    eventually(lambda: ") D " in stat.read_text(), "it sleeps uninterruptibly")
    assert kill(script).exit_status == KILLED


def test_a_kill_ends_a_tree_of_a_thousand_processes(tracked):
    script = tracked.start(THOUSAND)
    script.wait_for_output("ready")
    assert len(script.members()) == 1011
    assert kill(script).exit_status == TERMINATED


def test_a_kill_ends_children_in_another_process_group(tracked):
    script = tracked.start(NEW_GROUP)
    eventually(
        lambda: len({os.getpgid(pid) for pid in script.members()}) == 2, "two groups"
    )
    assert kill(script).exit_status == TERMINATED


@pytest.mark.parametrize("pause_seconds", [0.002, 0])
def test_a_kill_ends_a_child_that_hops_from_process_to_process(
    tracked, monkeypatch, pause_seconds
):
    monkeypatch.setattr(process_tree, "_LAST_RESORT_SECONDS", 0.5)
    text = HOPPING.replace("PAUSE", str(pause_seconds))
    script = tracked.start(text, kill_grace_seconds=SHORT_GRACE_SECONDS)
    seen = set()
    eventually(lambda: seen.update(script.members()) or len(seen) > 3, "it hops")
    # The last resort may have cost the exit status.
    assert kill(script).exit_status in (KILLED, None)


def test_a_daemon_of_another_run_lives_on(tracked):
    executor = tracked.executor()
    other = tracked.start(f"#!/bin/sh\n{DAEMON}\n", executor)
    running = tracked.start(f"#!/bin/sh\n{DAEMON}; sleep 60\n", executor)
    killed = tracked.start(f"#!/bin/sh\n{DAEMON}; sleep 60\n", executor)
    other.end()
    running.wait_for_members(3)
    killed.wait_for_members(3)
    [daemon] = other.members()
    kill(killed)
    assert other.members() == {daemon}
    assert len(running.members()) == 3
    assert running.execution.wait(0) is None


def test_a_kill_of_a_run_that_has_ended_signals_nobody(tracked):
    script, outcome = tracked.run(f"#!/bin/sh\n{DAEMON}\nsleep 60 &\nexit 3\n")
    left = script.members()
    assert len(left) == 2
    script.execution.kill("too late")
    assert script.members() == left
    assert script.execution.wait(0) == outcome
    assert (outcome.exit_status, outcome.reason) == (3, "")


def test_two_kills_at_once_end_the_run_once_with_the_first_reason(tracked):
    script = tracked.start(
        f"#!/bin/sh\n{IGNORES_TERM}sleep 60 & sleep 60\n",
        kill_grace_seconds=SHORT_GRACE_SECONDS,
    )
    script.wait_for_members(3)
    kills = [gevent.spawn(script.execution.kill, reason) for reason in ("one", "two")]
    for greenlet in kills:
        greenlet.get(timeout=20)
        assert not script.members()
    outcome = script.end()
    assert (outcome.exit_status, outcome.reason) == (KILLED, "one")


def test_a_script_that_handles_the_polite_signal_is_given_its_time(tracked):
    script = tracked.start(HANDLES_TERM)
    script.wait_for_output("ready")
    killing = gevent.spawn(script.execution.kill, "a reason")
    script.wait_for_output("ending")
    assert not killing.ready()
    script.let_go()
    killing.get(timeout=20)
    outcome = script.end()
    assert (outcome.exit_status, outcome.reason) == (7, "a reason")
    assert script.log == "ready\nending\nend\n"


def test_what_was_printed_before_a_kill_is_in_the_log(tracked):
    script = tracked.start("#!/bin/sh\nseq 1000\nexec sleep 60\n")
    script.wait_for_output("1000")
    kill(script)
    assert script.log == "".join(f"{number}\n" for number in range(1, 1001))


def test_a_kill_after_a_kill_that_came_too_late_for_the_script_keeps_its_end(tracked):
    # The script has ended, its shim has not yet said so.
    script = tracked.start("#!/bin/sh\nmkfifo go; read -r _ <go; exit 5\n")
    shim = script.folder.shim()
    script.wait_for_members(1)
    send_signal(shim, signal.SIGSTOP)
    eventually(lambda: is_stopped(shim), "the shim is stopped")
    script.let_go()
    eventually(lambda: not script.members(), "the script has ended")
    script.execution.kill("too late")
    outcome = script.end()
    assert (outcome.exit_status, outcome.reason) == (5, "")


def test_the_next_worker_takes_up_a_run_that_was_left_in_the_middle_of_a_kill(tracked):
    executor = tracked.executor()
    script = tracked.start("#!/bin/sh\nmkfifo go; read -r _ <go; exit 5\n", executor)
    shim = script.folder.shim()
    executor.close()
    # What a kill does first; then this worker dies.
    send_signal(shim, signal.SIGSTOP)
    eventually(lambda: is_stopped(shim), "the shim is stopped")
    own_cgroup = script.folder.note.cgroup
    if own_cgroup:
        Path(own_cgroup, "cgroup.freeze").write_text("1")
    again = tracked.executor().attach(script.folder.run, script.folder)
    script.let_go()
    script = replace(script, execution=again)
    assert script.end().exit_status == 5


def test_the_next_worker_ends_whom_a_kill_cut_short_has_spared(tracked):
    executor = tracked.executor()
    script = tracked.start("#!/bin/sh\nsleep 60\nexit 5\n", executor)
    script.wait_for_members(2)
    shim, main = script.folder.shim(), script.folder.script_process().script
    script.folder.update_note(kill_requests=(1,), kill_reason="a reason")
    executor.close()
    # A kill stops the shim and begins with the oldest; then this worker dies.
    send_signal(shim, signal.SIGSTOP)
    eventually(lambda: is_stopped(shim), "the shim is stopped")
    send_signal(main, signal.SIGTERM)
    eventually(lambda: not is_alive(main), "the script's end")
    assert len(script.members()) == 1
    again = tracked.executor().attach(script.folder.run, script.folder)
    outcome = replace(script, execution=again).end()
    assert (outcome.exit_status, outcome.reason) == (TERMINATED, "a reason")
    assert not script.members()


def test_a_kill_by_the_next_worker_ends_the_tree(tracked):
    executor = tracked.executor()
    script = tracked.start(f"#!/bin/sh\n{DAEMON}; sleep 60\n", executor)
    script.wait_for_members(3)
    executor.close()
    again = tracked.executor().attach(script.folder.run, script.folder)
    assert kill(replace(script, execution=again)).exit_status == TERMINATED


def test_a_kill_ends_what_a_killed_shim_has_left_in_its_cgroup(contained):
    script = contained.start(f"#!/bin/sh\n{DAEMON}; sleep 60\n")
    script.wait_for_members(3)
    os.kill(script.shim_pid, signal.SIGKILL)
    outcome = script.end()
    assert not script.members()
    assert outcome.exit_status is None


def test_a_kill_with_many_runs_ends_only_one(tracked):
    executor = tracked.executor()
    scripts = [
        tracked.start("#!/bin/sh\nsleep 60 & sleep 60\n", executor) for _ in range(8)
    ]
    for script in scripts:
        script.wait_for_members(3)
    kill(scripts.pop(3))
    for script in scripts:
        assert len(script.members()) == 3
        assert is_alive(script.folder.shim())
    killing = [gevent.spawn(script.execution.kill, "all") for script in scripts]
    gevent.joinall(killing, timeout=20, raise_error=True)
    assert not any(script.members() for script in scripts)
