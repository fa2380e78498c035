"""Cron mode: two commands, each one pass, and scripts that nobody stays with."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from door_scene import SETTINGS, CentralServer, Cron
from harness import WorkerProcess, read_process, scripts_in
from scene import Gate
from waiting import eventually

from job_runner_worker.testing import Fault, StandInServer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CentralServer]:
    with CentralServer(tmp_path_factory.mktemp("central")) as server:
        yield server


@pytest.fixture
def cron(server: CentralServer, tmp_path: Path) -> Iterator[Cron]:
    with Cron(server.config(tmp_path, broadcast="no", concurrent_jobs=2)) as cron:
        yield cron


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


def kill_all(server: CentralServer, *run_ids: int) -> None:
    for run_id in run_ids:
        server.kill(run_id)


def test_a_run_is_started_by_one_command_and_ended_by_the_other(
    server: CentralServer, cron: Cron
) -> None:
    run_id = server.submit("#!/bin/sh\necho from a crontab\n")

    (line,) = cron.launch().lines
    started = server.run(run_id)
    assert line == f"run {run_id}: started, pid {started['pid']}"
    assert started["host"] == socket.getfqdn()
    cron.wait_for_exit_status(run_id)
    assert server.run(run_id)["return_dts"] is None

    assert cron.propagate().lines == [f"run {run_id}: succeeded, exit status 0"]
    assert server.run(run_id)["return_success"] is True
    assert server.log_of(run_id) == "from a crontab\n"
    assert cron.run_folders() == []
    assert cron.propagate().lines == cron.launch().lines == []
    assert server.worker()["ping_response_dts"] is not None


def test_nothing_of_a_command_stays_but_scripts_under_their_shims(
    server: CentralServer, cron: Cron, gate: Gate
) -> None:
    run_id = server.submit(f"#!/bin/sh\n{gate.wait}\n")
    process = cron.begin("launch-scheduled")
    # Its output is read to the end: nobody else has it open.
    assert process.communicate(timeout=60)[0].startswith(f"run {run_id}: started")

    (session,) = {each.session for each in scripts_in(cron.spool_path)}
    assert session != os.getsid(0)
    alive = [read_process(int(path.name)) for path in Path("/proc").glob("[0-9]*")]
    assert [each for each in alive if each and each.parent == process.pid] == []
    assert [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"spawn_helper" in _read(path)
        and _read(path.with_name("environ")) == _read(Path("/proc/self/environ"))
    ] == []
    gate.open()
    cron.wait_for_exit_status(run_id)
    cron.propagate()
    assert server.run(run_id)["return_success"] is True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_so_many_are_started_as_there_are_slots_the_first_due_first(
    server: CentralServer, cron: Cron, gate: Gate
) -> None:
    script = f"#!/bin/sh\n{gate.wait}\n"
    late, first = server.submit(script), server.submit(script)
    early = server.submit(script, schedule_dts="2020-01-01T00:00:00Z")
    future = server.submit(script, schedule_dts="2100-01-01T00:00:00Z")

    lines = cron.launch().lines
    assert [line.partition(", pid")[0] for line in lines] == [
        f"run {early}: started",
        f"run {late}: started",
        f"run {first}: skipped: every slot is taken",
    ]
    assert set(cron.propagate().lines) == {
        f"run {early}: is running",
        f"run {late}: is running",
    }
    gate.open()
    eventually(
        lambda: len({each.session for each in scripts_in(cron.spool_path)}) == 1,
        "the end of one of two",
    )
    assert cron.launch().lines[0].startswith(f"run {first}: started")
    gate.open(2)
    eventually(lambda: not scripts_in(cron.spool_path), "the end of all")
    assert len(cron.propagate("--threads", "8").lines) == 3
    assert server.run(future)["enqueue_dts"] is None
    kill_all(server, future)


def test_a_run_that_cannot_start_has_failed_and_the_pass_goes_on(
    server: CentralServer, cron: Cron
) -> None:
    bad = server.submit("#!/nonexistent/interpreter\n")
    good = server.submit("#!/bin/sh\n")

    lines = cron.launch().lines

    assert lines[0].startswith(f"run {bad}: failed: ")
    assert lines[1].startswith(f"run {good}: started")
    ended = server.run(bad)
    assert (ended["return_success"], ended["pid"]) == (False, None)
    assert "/nonexistent/interpreter" in server.log_of(bad)
    cron.wait_for_exit_status(good)
    cron.propagate()


def test_a_pinned_run_is_started_on_the_host_of_that_very_name(
    server: CentralServer, cron: Cron
) -> None:
    here = server.submit("#!/bin/sh\n", host=socket.getfqdn())
    node = server.submit("#!/bin/sh\n", host="Node7.example.com")

    assert cron.launch("--host", "node7.example.com").lines == []
    assert cron.launch("--host", "Node7").lines == []
    (line,) = cron.launch("--host", "Node7.example.com").lines
    assert line.startswith(f"run {node}: started")
    (line,) = cron.launch().lines
    assert line.startswith(f"run {here}: started")
    for run_id in (here, node):
        cron.wait_for_exit_status(run_id)
    assert len(cron.propagate().lines) == 2


def test_what_another_host_has_claimed_with_the_same_key_is_left_alone(
    server: CentralServer, cron: Cron, gate: Gate, tmp_path: Path
) -> None:
    run_id = server.submit(f"#!/bin/sh\n{gate.wait}\n")
    cron.launch("--host", "another.example.com")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    with Cron(server.config(elsewhere, broadcast="no")) as other:
        assert other.propagate().lines == []
    found = server.run(run_id)
    assert found["enqueue_dts"] and not found["return_dts"]
    gate.open()
    cron.wait_for_exit_status(run_id)
    assert cron.propagate().lines == [f"run {run_id}: succeeded, exit status 0"]


def test_one_run_may_be_named_whenever_and_wherever_it_is_due(
    server: CentralServer, cron: Cron
) -> None:
    at = {"schedule_dts": "2100-01-01T00:00:00Z", "host": "elsewhere"}
    run_id, other = server.submit("#!/bin/sh\n", **at), server.submit("#!/bin/sh\n")

    (line,) = cron.launch("--run", str(run_id)).lines
    assert line.startswith(f"run {run_id}: started")
    again = cron.call("launch-scheduled", "--run", str(run_id))
    assert again.status == 1
    assert f"run {run_id} does not wait for this worker" in again.errors
    assert cron.call("launch-scheduled", "--run", "999999").status == 1
    both = cron.call("launch-scheduled", "--run", str(other), "--host", "a")
    assert (both.status, both.lines) == (2, [])
    assert server.run(other)["enqueue_dts"] is None
    cron.wait_for_exit_status(run_id)
    cron.propagate()
    kill_all(server, other)


def test_a_kill_is_carried_out_by_the_next_pass(
    server: CentralServer, cron: Cron, gate: Gate
) -> None:
    run_id = server.submit(f"#!/bin/sh\necho on\n{gate.wait}\n")
    cron.launch()
    number = server.kill(run_id)

    (line,) = cron.propagate().lines

    assert line.startswith(f"run {run_id}: failed, exit status 143")
    assert server.wait_for_kill(number)["enqueue_dts"] is not None
    assert server.log_of(run_id).startswith("on\n")
    assert scripts_in(cron.spool_path) == []


def test_a_time_limit_is_kept_by_the_next_pass_also_in_an_outage(
    server: CentralServer, cron: Cron, gate: Gate
) -> None:
    script = f"#!/bin/sh\n# job-runner: timeout_seconds=1\n{gate.wait}\n"
    run_id = server.submit(script)
    cron.launch()
    eventually(lambda: scripts_in(cron.spool_path), "the script")
    time_is_over = time.monotonic() + 1
    eventually(lambda: time.monotonic() > time_is_over, "the end of its time")
    server.stop()
    try:
        passed = cron.call("propagate-statuses")
        assert passed.status == 1
        assert passed.errors.rstrip().endswith("the next pass goes on")
        assert scripts_in(cron.spool_path) == []
    finally:
        server.start()
    assert cron.propagate().lines == [
        f"run {run_id}: failed, exit status 143: killed by the time limit:"
        " timeout_seconds=1"
    ]


def test_the_log_is_sent_while_a_script_runs(
    server: CentralServer, cron: Cron, gate: Gate
) -> None:
    run_id = server.submit(f"#!/bin/sh\necho so far\n{gate.wait}\necho done\n")
    cron.launch()
    output = cron.spool_path / str(run_id) / "output"
    eventually(lambda: "so far" in output.read_text(), "the output")

    assert cron.propagate().lines == [f"run {run_id}: is running"]
    assert server.log_of(run_id) == "so far\n"
    gate.open()
    cron.wait_for_exit_status(run_id)
    cron.propagate()
    assert server.log_of(run_id) == "so far\ndone\n"


def test_what_is_paused_or_disabled_is_not_started(
    server: CentralServer, cron: Cron
) -> None:
    run_id = server.submit("#!/bin/sh\n")
    disabled = server.submit("#!/bin/sh\n", is_manual=False)
    job = server.run(disabled)["job"]
    server.person.api.patch(job, {"enqueue_is_enabled": False})
    cron.propagate()
    assert cron.call("pause").status == 0

    assert cron.launch().lines == [f"run {run_id}: skipped: paused"]
    assert cron.call("resume").status == 0
    (line,) = cron.launch().lines
    assert line.startswith(f"run {run_id}: started")
    cron.wait_for_exit_status(run_id)
    cron.propagate()


def test_a_command_that_waits_for_the_lock_too_long_ends_with_75(
    server: CentralServer, cron: Cron, gate: Gate, tmp_path: Path
) -> None:
    path = server.config(tmp_path)  # broadcast = yes
    with WorkerProcess(path) as daemon:
        daemon.wait_for_line("slots")
        changes = {"lock_wait_seconds = 5": "lock_wait_seconds = 0.3"}
        for command in ("launch-scheduled", "propagate-statuses"):
            passed = cron.call_with(changes, command)
            assert (passed.status, passed.lines) == (75, [])
            assert f"in use by the worker with pid {daemon.pid}" in passed.errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("propagate-statuses", "--threads", "0"), "from 1 to 1000"),
        (("propagate-statuses", "--threads", "-3"), "from 1 to 1000"),
        (("propagate-statuses", "--threads", "x"), "from 1 to 1000"),
        (("launch-scheduled", "--run", "0"), "no number of a run"),
        (("launch-scheduled", "--host", ""), "argument --host: it is empty"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    cron: Cron, words: tuple[str, ...], said: str
) -> None:
    passed = cron.call(*words)
    assert passed.status == 2
    assert said in passed.errors
    assert "Traceback" not in passed.errors


@pytest.fixture
def original() -> Iterator[StandInServer]:
    with StandInServer() as original:
        yield original


@pytest.fixture
def own_cron(original: StandInServer, tmp_path: Path) -> Iterator[Cron]:
    path = original.write_config(tmp_path, **{**SETTINGS, "concurrent_jobs": 20})
    with Cron(path) as cron:
        yield cron


def test_an_original_server_is_asked_for_runs_and_kills_that_it_cannot_filter(
    original: StandInServer, own_cron: Cron, gate: Gate
) -> None:
    api = original.api
    run_id = api.add_run(api.add_job(f"#!/bin/sh\n{gate.wait}\n"))
    own_cron.launch()
    api.faults.add(Fault("status", "GET", "isnull", times=None, status=400))
    number = api.add_kill_request(run_id)

    (line,) = own_cron.propagate().lines

    assert line.startswith(f"run {run_id}: failed, exit status 143")
    assert api.kill_request(number)["execute_dts"] is not None


def test_runs_of_other_workers_are_never_touched(
    original: StandInServer, own_cron: Cron
) -> None:
    api = original.api
    api.add_worker("another", "secret")
    run_id = api.add_run(api.add_job("#!/bin/sh\n"))
    at = datetime(2026, 1, 1, tzinfo=UTC)
    api.change_run(run_id, worker=api.worker_uri("another"), enqueue_dts=at)

    assert own_cron.launch().lines == own_cron.propagate().lines == []
    assert api.patches_of(run_id) == []


def test_threads_are_requests_side_by_side(
    original: StandInServer, own_cron: Cron
) -> None:
    api = original.api
    run_ids = [api.add_run(api.add_job("#!/bin/sh\n")) for _ in range(8)]
    own_cron.launch()
    for run_id in run_ids:
        own_cron.wait_for_exit_status(run_id)
    slow = Fault("delay", "PATCH", "/run/", "return_dts", times=None, seconds=1.5)
    api.faults.add(slow)

    began = time.monotonic()
    lines = own_cron.propagate("--threads", "8").lines
    seconds = time.monotonic() - began

    assert len(lines) == slow.hits == 8
    assert seconds < 8 * 1.5
    assert re.match(r"run \d+: succeeded", lines[0])
