"""The same eight faults at each of the four doors. docs/doors.rst has them as a table.

A script writes a line into a ledger when it begins, and waits at a gate: so it can be
seen that it ran, and how often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import fill_disk, mounted
from door_scene import CentralServer
from doors import LITTLE_SPACE, Ended, opened, quoted
from harness import WorkerProcess, scripts_in
from scene import Gate
from waiting import eventually

pytestmark = pytest.mark.integration
DOORS = ("broadcast", "channel", "launcher", "cron")
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Any]]:
    """Return what starts the server at its first use."""
    with ExitStack() as stack:
        started: list[CentralServer] = []

        def server() -> CentralServer:
            if not started:
                folder = tmp_path_factory.mktemp("central")
                started.append(stack.enter_context(CentralServer(folder)))
            return started[0]

        yield server


@pytest.fixture(params=DOORS)
def door_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def door(door_name: str, central: Callable[[], Any], tmp_path: Path) -> Iterator[Any]:
    with opened(door_name, central, tmp_path, concurrent_jobs=2) as door:
        yield door


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


def script_of(ledger: Path, gate: Gate) -> str:
    return f"#!/bin/sh\necho began >>{quoted(ledger)}\n{gate.wait}\necho done; exit 3\n"


def wait_for(door: Any, found: Callable[[], Any], what: str) -> Any:
    """Wait for something; in cron mode commands are run meanwhile."""

    def looked() -> Any:
        door.pulse()
        return found()

    return eventually(looked, what, 60.0)


def start(door: Any, script: str) -> str:
    key: str = door.begin(script)
    wait_for(door, lambda: door.has_started(key), f"the start of {key}")
    return key


def end_of(door: Any, key: str) -> Ended:
    found: Ended = wait_for(door, lambda: door.end_of(key), f"the end of {key}")
    return found


def lines_in(ledger: Path) -> int:
    return ledger.read_text().count("began") if ledger.exists() else 0


def test_a_worker_killed_with_9_has_run_everything_once_and_tells_it(
    door: Any, gate: Gate, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    key = start(door, script_of(ledger, gate))
    eventually(lambda: lines_in(ledger), "the script's first line")
    door.crash()
    gate.open()

    assert end_of(door, key) == Ended(False, 3, "done\n")
    assert lines_in(ledger) == 1


def test_an_outage_delays_what_is_told_and_loses_nothing(
    door: Any, gate: Gate, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    key = start(door, script_of(ledger, gate))
    eventually(lambda: lines_in(ledger), "the script's first line")
    door.outage()
    gate.open()
    spool_path = tmp_path / "spool"
    eventually(lambda: not scripts_in(spool_path), "the end of the script")
    door.recover()

    assert end_of(door, key) == Ended(False, 3, "done\n")
    assert lines_in(ledger) == 1


def test_a_restart_leaves_scripts_alone_and_the_next_worker_takes_them_up(
    door: Any, gate: Gate, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    key = start(door, script_of(ledger, gate))
    eventually(lambda: lines_in(ledger), "the script's first line")
    door.restart()
    assert scripts_in(tmp_path / "spool")
    gate.open()

    assert end_of(door, key) == Ended(False, 3, "done\n")
    assert lines_in(ledger) == 1


def test_an_order_that_comes_twice_is_carried_out_once(
    door: Any, gate: Gate, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    keys = door.begin_twice(script_of(ledger, gate))
    for key in keys:
        wait_for(door, lambda key=key: door.has_started(key), f"the start of {key}")
    gate.open(len(keys))

    for key in keys:
        assert end_of(door, key) == Ended(False, 3, "done\n")
    assert lines_in(ledger) == len(set(keys))


def test_a_kill_ends_a_run_that_waits_or_runs_and_leaves_one_that_is_over(
    door: Any, gate: Gate, tmp_path: Path
) -> None:
    ledger, never = tmp_path / "ledger", tmp_path / "never"
    running = [start(door, script_of(ledger, gate)) for _ in range(2)]
    eventually(lambda: lines_in(ledger) == 2, "the scripts' first lines")
    waiting = door.begin(script_of(never, gate))

    assert door.kill(waiting)
    ended = end_of(door, waiting)
    assert (ended.success, ended.exit_status, lines_in(never)) == (False, None, 0)

    assert door.kill(running[0])
    ended = end_of(door, running[0])
    assert (ended.success, ended.exit_status) == (False, 143)
    gate.open()
    over = end_of(door, running[1])
    assert over == Ended(False, 3, "done\n")

    assert not door.kill(running[1])
    assert door.end_of(running[1]) == over
    eventually(lambda: not scripts_in(tmp_path / "spool"), "that nothing is left")


def test_a_full_disk_costs_no_exit_status_and_no_later_run(
    door_name: str, central: Callable[[], Any], tmp_path: Path
) -> None:
    disk = tmp_path / "spool"
    with (
        mounted(disk, "tmpfs", "size=3m,mode=0700"),
        opened(door_name, central, tmp_path, **LITTLE_SPACE) as door,
    ):
        fill_disk(disk, MEGABYTE)
        key = door.begin("#!/bin/sh\nseq 1000000\necho late\nexit 3\n")
        ended = end_of(door, key)
        assert (ended.success, ended.exit_status) == (False, 3)
        (disk / "filler").unlink()

        well = end_of(door, door.begin("#!/bin/sh\necho well\n"))
        assert well == Ended(True, 0, "well\n")


def test_bad_input_is_refused_or_fails_and_the_next_run_is_well(
    door: Any, tmp_path: Path
) -> None:
    door.bad_input()
    bad = end_of(door, door.begin("#!/nonexistent/interpreter\n"))
    assert (bad.success, bad.exit_status) == (False, None)

    well = end_of(door, door.begin("#!/bin/sh\necho well\n"))
    assert well == Ended(True, 0, "well\n")


def test_of_two_that_overlap_on_a_spool_one_works_and_the_other_says_so(
    door: Any, gate: Gate, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    key = start(door, script_of(ledger, gate))
    if door.worker is None:
        # Commands wait for each other, and not for ever for a worker that stays.
        commands = [door.cron.begin("propagate-statuses") for _ in range(3)]
        for command in commands:
            assert command.communicate(timeout=60)[0].startswith("run ")
        assert [command.returncode for command in commands] == [0, 0, 0]
        with WorkerProcess(door.config_path_of_daemon(), leaves_scripts=True) as daemon:
            daemon.wait_for_line("slots")
            short = {"lock_wait_seconds = 5": "lock_wait_seconds = 0.2"}
            refused = door.cron.call_with(short, "launch-scheduled")
            assert refused.status == 75
            assert f"pid {daemon.pid}" in refused.errors
            daemon.interrupt()
            assert daemon.wait() == 0
    else:
        text = door.config_path.read_text()
        other_path = tmp_path / "other.ini"
        lines = [x for x in text.splitlines() if not x.startswith("launcher_bind")]
        if len(lines) < len(text.splitlines()):
            lines.append("launcher_bind = 127.0.0.1:0")
        other_path.write_text("\n".join(lines))
        with WorkerProcess(other_path, leaves_scripts=True) as second:
            assert second.wait() == 75
            assert f"pid {door.worker.pid}" in "\n".join(second.lines)
    gate.open()

    assert end_of(door, key) == Ended(False, 3, "done\n")
    assert lines_in(ledger) == 1
