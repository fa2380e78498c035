"""A spool that is full, cannot be written any more, or is gone: while scripts run.

FAULT_OUTPUT_MEGABYTES (default 400; `make faults` sets 1000) is how much the script
prints whose output must not fill the disk. A worker that looked once a second would let
400 MB pass at once; the limit leaves room for a machine that is busy with other tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from conftest import NO_MOUNT, fill_disk, mounted
from scene import (
    LIMIT_SECONDS,
    Gate,
    Scene,
    starting,
    wait_for_death,
    wait_for_text,
    working,
)
from waiting import eventually

from job_runner_worker.testing import StandInServer

OUTPUT_MEGABYTES = int(os.environ.get("FAULT_OUTPUT_MEGABYTES", "400"))
MEGABYTE = 1024 * 1024
MOST_DISK_BYTES = 150 * MEGABYTE
MOST_RSS_BYTES = 16 * MEGABYTE
# What is tested is what happens when there is less than the usual limit allows.
working_on_little = partial(working, spool_min_free_bytes=0)
starting_on_little = partial(starting, spool_min_free_bytes=0)


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with StandInServer() as server:
        yield server


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The spool's path, on a disk of 2 MiB."""
    path = tmp_path / "spool"
    with mounted(path, "tmpfs", "size=2m,mode=0700"):
        yield path


def remove_while_it_is_written(path: Path) -> None:
    """Remove a spool though a shim may make a file in it meanwhile."""

    def is_gone() -> bool:
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()

    eventually(is_gone, f"the removal of {path}")


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Let nothing be written to a disk, as the kernel does after an error.

    Files that a shim has open for writing do not keep it from happening there; here
    they do, so scripts that run are only possible with a disk that is bound anew.
    """
    bind = ["mount", "--bind", path, path]
    if subprocess.run(bind, capture_output=True).returncode != 0:
        pytest.skip(NO_MOUNT)
    remount = ["mount", "-o", "remount,ro,bind", path]
    assert subprocess.run(remount, capture_output=True).returncode == 0
    try:
        yield
    finally:
        eventually(
            lambda: (
                subprocess.run(["umount", path], capture_output=True).returncode == 0
            ),
            f"{path} can be written again",
        )


def test_a_script_that_fills_the_disk_keeps_its_status_and_its_log_says_what_is_missing(
    server: StandInServer, tmp_path: Path, disk: Path
) -> None:
    script = "#!/bin/sh\nseq 1000000\necho late\nexit 3\n"
    with working_on_little(server, tmp_path, max_log_bytes=10_000_000) as scene:
        fill_disk(disk, MEGABYTE)
        run = scene.run(script)
        assert (run["return_success"], run["exit_status"]) == (False, 3)
        _assert_incomplete(scene, run["id"])
        scene.wait_for_line(f"WARNING run {run['id']}: what the script printed last")
        scene.wait_until_gone(run["id"])
        assert scene.run("#!/bin/sh\necho well")["return_success"] is True


def test_a_run_offered_to_a_full_disk_is_not_claimed_and_the_worker_goes_on(
    server: StandInServer, tmp_path: Path, disk: Path
) -> None:
    with working_on_little(server, tmp_path) as scene:
        fill_disk(disk)
        run_id = server.submit("#!/bin/sh\necho hello")
        scene.wait_for_line(
            f"run {run_id}: let go: the spool is not usable: .*No space"
        )
        scene.wait_until_heard()
        assert server.api.patches_of(run_id) == []
        (disk / "filler").unlink()
        server.enqueue(run_id)
        assert scene.end_of(run_id)["return_success"] is True
        assert server.api.log(run_id) == "hello\n"


def test_ends_on_a_full_disk_arrive_once_from_the_next_worker_when_the_api_is_back(
    server: StandInServer, tmp_path: Path, disk: Path
) -> None:
    with Gate(tmp_path) as gate:
        with working_on_little(server, tmp_path, leaves_scripts=True) as scene:
            run_id = scene.start(f"#!/bin/sh\n{gate.wait}\necho done; exit 3")
            fill_disk(disk)
            server.api.down = True
            gate.open()
            status = disk / str(run_id) / "exit_status"
            assert wait_for_text(status, r"\d").split() == ["3"]
            scene.worker.kill()
            scene.worker.wait()
        with starting_on_little(server, tmp_path) as scene:
            scene.wait_for_line("API does not answer")
            server.api.down = False
            assert scene.end_of(run_id)["exit_status"] == 3
            (disk / "filler").unlink()
            scene.wait_until_gone(run_id)
            assert scene.run("#!/bin/sh\ntrue")["return_success"] is True
    requests = server.api.requests_like("PATCH", run_id=run_id)
    stored = [request.body for request in requests if request.carried_out]
    assert len([fields for fields in stored if "return_dts" in fields]) == 1


def test_runs_end_on_a_spool_that_has_become_read_only(
    server: StandInServer, tmp_path: Path, disk: Path
) -> None:
    with Gate(tmp_path) as gate, working_on_little(server, tmp_path) as scene:
        run_id = scene.start(f"#!/bin/sh\n{gate.wait}\necho done; exit 3")
        with read_only(disk):
            gate.open()
            assert scene.end_of(run_id)["exit_status"] == 3
            assert server.api.log(run_id) == "done\n"
            # A folder that is held is that of the disk below: there it may be noted
            # what has been reported.
            scene.wait_for_line(f"run {run_id}: let go: the spool is not usable")
            refused = server.submit("#!/bin/sh\ntrue")
            scene.wait_for_line(f"run {refused}: let go: the spool is not usable")
            assert server.api.patches_of(refused) == []
        server.enqueue(refused)
        assert scene.end_of(refused)["return_success"] is True
        # What could not be noted and removed costs the next worker a question.
        scene.worker.terminate()
        assert scene.worker.wait(LIMIT_SECONDS) == 0
        reports = server.api.patches_of(run_id)
    with working_on_little(server, tmp_path) as scene:
        scene.wait_for_line(f"run {run_id}: had been reported before the restart")
        scene.wait_until_gone(run_id)
    assert server.api.patches_of(run_id) == reports


@pytest.mark.parametrize("ending", ["exit", "kill"])
def test_a_run_whose_spool_is_removed_keeps_its_status_and_can_be_killed(
    server: StandInServer, tmp_path: Path, ending: str
) -> None:
    with Gate(tmp_path) as gate, working_on_little(server, tmp_path) as scene:
        run_id = scene.start(f"#!/bin/sh\necho a\n{gate.wait}\necho b; exit 3")
        pid = scene.api.run(run_id)["pid"]
        # It has a pid a moment before it is in its folder.
        scene.api.wait_for(
            lambda: server.api.log(run_id) == "a\n", "the log", LIMIT_SECONDS
        )
        remove_while_it_is_written(tmp_path / "spool")
        if ending == "exit":
            gate.open()
        else:
            scene.wait_for_kill(server.kill(run_id))
            wait_for_death(pid)
        run = scene.end_of(run_id)
        status = {"exit": 3, "kill": 128 + signal.SIGTERM}[ending]
        assert (run["return_success"], run["exit_status"]) == (False, status)
        _assert_incomplete(scene, run_id)
        lost = server.submit("#!/bin/sh\ntrue")
        scene.wait_for_line(f"run {lost}: let go: the spool is not usable")
        assert server.api.patches_of(lost) == []
        (tmp_path / "spool").mkdir(mode=0o700)
        server.enqueue(lost)
        assert scene.end_of(lost)["return_success"] is True
        assert [line for line in scene.worker.lines if "Traceback" in line] == []


def test_what_a_script_prints_after_a_silence_takes_little_disk_and_memory(
    server: StandInServer, tmp_path: Path
) -> None:
    with Gate(tmp_path) as gate, working_on_little(server, tmp_path) as scene:
        run_id = scene.start(
            f"#!/bin/sh\necho first\n{gate.wait}\n"
            f"yes 0123456789 | head -c {OUTPUT_MEGABYTES}000000\n"
        )
        server.api.wait_for(
            lambda: server.api.log(run_id) == "first\n", "the log", LIMIT_SECONDS
        )
        worker = psutil.Process(scene.worker.pid)
        rss_before = worker.memory_info().rss
        output = tmp_path / "spool" / str(run_id) / "output"
        most_disk = most_rss = 0

        def has_ended() -> bool:
            nonlocal most_disk, most_rss
            with suppress(FileNotFoundError):
                most_disk = max(most_disk, output.stat().st_blocks * 512)
            most_rss = max(most_rss, worker.memory_info().rss)
            return server.api.run(run_id)["return_dts"] is not None

        gate.open()
        eventually(has_ended, "the end")
        print(f"at most {most_disk} bytes of disk, {most_rss - rss_before} of memory")
        assert 0 < most_disk < MOST_DISK_BYTES
        assert most_rss - rss_before < MOST_RSS_BYTES
        log = server.api.log(run_id)
        assert log is not None
        assert log.startswith("first\n0123456789\n")


def _assert_incomplete(scene: Scene, run_id: int) -> None:
    log = scene.api.log(run_id)
    assert log is not None
    assert "[job_runner_worker] what the script printed last may be missing" in log
