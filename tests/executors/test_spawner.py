"""The helper process that forks shims: it comes back, goes away and leaks nothing."""

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import alive_below, eventually, spawn_helpers

from job_runner_worker.errors import StartError
from job_runner_worker.executors import spawner as spawner_module
from job_runner_worker.executors.process_tree import identify, is_alive, send_signal
from job_runner_worker.executors.spawner import Spawner

ROOT = Path(__file__).resolve().parents[2]
LONG = ["/bin/sleep", "60"]


@pytest.fixture
def spawner():
    others = spawn_helpers()
    made = Spawner()
    made.start()
    made.helper = lambda: (spawn_helpers() - others).pop()
    yield made
    made.close()
    assert spawn_helpers() == others


@pytest.fixture
def folder(local):
    made = local.folder("#!/bin/true\n")
    made.prepare(b"#!/bin/true\n")
    return made


def spawn(spawner, folder, argv=LONG, **environment):
    """Start something in a run folder, as the shim is."""
    spawned = spawner.spawn(folder.path, argv, environment)
    pid = spawned.process.pid
    os.close(spawned.order)
    os.close(spawned.begun)

    def is_there():
        return any(process.pid == pid for process in alive_below(folder.path))

    eventually(lambda: is_there() or identify(pid) is None, "it is in its folder")
    return pid


def spawn_sleep(spawner, folder, **environment):
    """Start what sleeps, as the shim is, and return once it does."""
    pid = spawn(spawner, folder, LONG, **environment)
    path = Path(f"/proc/{pid}/comm")
    eventually(lambda: path.read_text() == "sleep\n", "exec")
    return pid


def descriptors(pid="self"):
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_shim_leads_a_session_of_its_own_and_is_a_child_of_the_helper(
    spawner, folder
):
    pid = spawn(spawner, folder)
    eventually(lambda: os.getsid(pid) == os.getpgid(pid) == pid, "its own session")
    assert psutil.Process(pid).ppid() == spawner.helper().pid


def test_a_shim_is_told_by_pid_and_start_from_any_later_process(spawner, folder):
    spawned = spawner.spawn(folder.path, LONG, {})
    os.close(spawned.order)
    os.close(spawned.begun)
    assert identify(spawned.process.pid) == spawned.process


def test_a_shim_begins_with_no_signal_blocked_ignored_or_handled(spawner, folder):
    pid = spawn_sleep(spawner, folder)
    status = Path(f"/proc/{pid}/status").read_text()
    masks = re.findall(r"^(Sig(?:Blk|Ign|Cgt)):\t0{16}$", status, re.MULTILINE)
    assert masks == ["SigBlk", "SigIgn", "SigCgt"]


def test_shims_get_what_their_own_request_says(spawner, folder):
    for value in ("one", "two", "two", "one", "\udcff = 'ü'"):
        pid = spawn_sleep(spawner, folder, VALUE=value)
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert environment == os.fsencode(f"VALUE={value}\0")


def test_orphans_become_children_of_the_shim(spawner, folder):
    pid = spawn(spawner, folder, ["/bin/sh", "-c", "(sleep 60 &); exec sleep 60"])
    eventually(lambda: len(psutil.Process(pid).children()) == 1, "the orphan")


def test_the_shim_finds_the_bell_and_its_pipes_open_and_nothing_else(spawner, folder):
    pid = spawn_sleep(spawner, folder)
    path = Path(f"/proc/{pid}/fd")
    links = {int(name): os.readlink(path / name) for name in os.listdir(path)}
    assert sorted(links) == [0, 1, 2, 3, 4, 5, 6, 9]
    assert {links[0], links[1], links[2]} == {"/dev/null"}
    assert links[3] == str(folder.bell_path)
    assert links[4] == links[5]
    assert all(links[number].startswith("pipe:") for number in (4, 6, 9))
    assert len({links[number] for number in (4, 6, 9)}) == 3


def test_a_helper_that_was_killed_is_started_again(spawner, folder):
    first = spawner.helper()
    assert spawn(spawner, folder)
    send_signal(first, signal.SIGKILL)
    eventually(lambda: not is_alive(first), "the helper is dead")
    pid = spawn(spawner, folder)
    assert spawner.helper() != first
    assert identify(pid) is not None
    assert len(alive_below(folder.path)) == 2


def test_a_helper_that_is_killed_again_and_again_is_a_start_failure_for_now(
    monkeypatch, tmp_path
):
    dying = tmp_path / "dying.py"
    dying.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(spawner_module, "_HELPER", dying)
    spawner = Spawner()
    try:
        with pytest.raises(StartError, match="was killed") as failure:
            spawner.spawn(tmp_path, LONG, {})
    finally:
        spawner.close()
    assert failure.value.transient


def test_a_helper_that_ends_takes_no_shim_with_it(folder):
    spawner = Spawner()
    pid = spawn(spawner, folder)
    spawner.close()
    assert identify(pid) is not None


def test_the_helper_ends_when_the_spawner_is_closed(folder):
    spawner = Spawner()
    before = descriptors()
    others = spawn_helpers()
    spawner.start()
    [helper] = spawn_helpers() - others
    spawner.close()
    assert not is_alive(helper)
    assert not psutil.pid_exists(helper.pid)
    assert descriptors() == before
    spawner.close()


def test_the_helper_ends_with_its_worker():
    code = """
from job_runner_worker.executors.spawner import Spawner
spawner = Spawner()
spawner.start()
print("started", flush=True)
input()
"""
    worker = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with worker:
        assert worker.stdout.readline() == b"started\n"
        [helper] = eventually(lambda: spawn_helpers(worker.pid), "the helper is there")
        worker.kill()
    eventually(lambda: not is_alive(helper), "the helper has ended")


def test_a_signal_to_the_terminals_group_does_not_end_the_helper(spawner, folder):
    helper = spawner.helper()
    # An answer says that it has set its signals.
    spawn(spawner, folder, ["/bin/true"])
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"):
        send_signal(helper, signal.Signals[name])
    spawn(spawner, folder, ["/bin/true"])
    assert spawner.helper() == helper


def test_fifty_spawns_leave_no_zombie_and_no_descriptor(spawner, folder):
    spawn(spawner, folder, ["/bin/true"])
    helper = spawner.helper().pid
    before = descriptors(), descriptors(helper)
    for _ in range(50):
        spawn(spawner, folder, ["/bin/true"])
    eventually(lambda: not alive_below(folder.path), "all have ended")
    # The kernel reaps them: the helper has no children, not even dead ones.
    eventually(lambda: not psutil.Process(helper).children(), "nobody is left")
    assert (descriptors(), descriptors(helper)) == before


def test_without_a_run_folder_a_start_fails_and_the_next_one_does_not(
    spawner, folder, local
):
    helper = spawner.helper()
    with pytest.raises(StartError, match="No such file") as failure:
        spawner.spawn(local.spool_path / "gone", LONG, {})
    assert failure.value.transient
    assert spawn(spawner, folder)
    assert spawner.helper() == helper


def test_a_machine_without_descriptors_fails_a_start_and_not_the_next_one(
    spawner, folder
):
    spawn(spawner, folder, ["/bin/true"])
    helper = spawner.helper().pid
    before = descriptors(helper)
    limits = resource.prlimit(helper, resource.RLIMIT_NOFILE)
    # The bell can be opened, the pipe can not.
    resource.prlimit(helper, resource.RLIMIT_NOFILE, (5, limits[1]))
    with pytest.raises(StartError, match="Too many open files"):
        spawn(spawner, folder)
    resource.prlimit(helper, resource.RLIMIT_NOFILE, limits)
    assert descriptors(helper) == before
    pid = spawn(spawner, folder)
    assert os.readlink(f"/proc/{pid}/fd/3") == str(folder.bell_path)


def test_an_environment_too_large_for_a_message_is_a_start_failure(spawner, folder):
    with pytest.raises(StartError, match="Message too long"):
        spawn(spawner, folder, LARGE="x" * 8_000_000)
    assert spawn(spawner, folder)


def test_a_failed_start_leaves_no_descriptor_in_the_worker(local):
    others = spawn_helpers()
    executor = local.executor()
    [helper] = spawn_helpers() - others
    assert local.start("#!/bin/true\n", executor).end().success
    folder = local.folder("#!/bin/true\n")
    folder.files.close()
    before = descriptors()
    resource.prlimit(helper.pid, resource.RLIMIT_NOFILE, (5, 5))
    for _ in range(3):
        with pytest.raises(StartError, match="Too many open files") as failure:
            executor.start(folder.run, folder)
        assert failure.value.transient
    assert descriptors() == before
