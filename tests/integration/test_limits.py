"""Options of scripts and what runs have used, with a real worker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT
from scene import LIMIT_SECONDS, Gate, wait_for_death, working

from job_runner_worker import protocol
from job_runner_worker.testing import StandInServer

pytestmark = pytest.mark.integration


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with StandInServer() as server:
        yield server


def test_the_last_line_of_the_log_says_that_the_time_was_over(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path, run_defaults="timeout_seconds=0.3") as scene:
        run = scene.run("#!/bin/sh\necho hello\nsleep 60\n")
        assert run["reason"] == "killed by the time limit: timeout_seconds=0.3"
        assert (run["exit_status"], run["return_success"]) == (143, False)
        assert (
            scene.api.log(run["id"]) == f"hello\n[job_runner_worker] {run['reason']}\n"
        )


def test_a_time_limit_is_kept_by_the_next_worker(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path, leaves_scripts=True) as scene:
        # Longer than a worker takes to stop, shorter than a test may wait.
        run_id = scene.start(
            "#!/bin/sh\n# job-runner: timeout_seconds=3\nexec sleep 60\n"
        )
        scene.worker.kill()
        scene.worker.wait()
        pid = scene.api.run(run_id)["pid"]
    with working(server, tmp_path) as scene:
        run = scene.end_of(run_id)
        wait_for_death(pid)
    assert run["reason"] == "killed by the time limit: timeout_seconds=3"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nice=-1", "line 2 of the script: nice must be a whole number from 0 to 19"),
        ("pids_max=11", "pids_max=11 is above this worker's ceiling of 10"),
        ("run_as_user=root", "run_as_user=root is not allowed"),
        ("cwd=/no/such/folder", "cwd=/no/such/folder is no folder of this machine"),
    ],
)
def test_what_cannot_be_honoured_is_in_the_log_of_the_run(
    server: StandInServer, tmp_path: Path, line: str, reason: str
) -> None:
    with working(server, tmp_path, run_ceilings="pids_max=10") as scene:
        run = scene.run(f"#!/bin/sh\n# job-runner: {line}\necho never\n")
        log = scene.api.log(run["id"])
    assert run["reason"].startswith(reason)
    assert log == f"[job_runner_worker] {run['reason']}\n"
    assert (run["pid"], run["return_success"]) == (None, False)


def test_what_a_run_has_used_is_in_the_workers_log(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path) as scene:
        run_id = scene.run("#!/bin/sh\necho hello\n")["id"]
        line = scene.wait_for_line(f"run {run_id}: used ")
    expected = (
        r"used \d+\.\d\d s in all, CPU \d+\.\d\d s, peak memory .*, output 6 bytes$"
    )
    assert re.search(expected, line)


def test_the_status_has_a_runs_options_and_what_it_uses(
    server: StandInServer, tmp_path: Path
) -> None:
    lines = "# job-runner: timeout_seconds=3600\n# job-runner: env.TOKEN=hunter2\n"
    with Gate(tmp_path) as gate, working(server, tmp_path) as scene:
        run_id = scene.start(f"#!/bin/sh\n{lines}echo hello\n{gate.wait}\n")
        scene.api.wait_for(
            lambda: scene.api.log(run_id) == "hello\n", "the output", LIMIT_SECONDS
        )
        done = subprocess.run(
            [sys.executable, "-m", "job_runner_worker", "status", "--json"]
            + ["--config-path", str(scene.worker.config_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3 * LIMIT_SECONDS,
            check=True,
        )
        gate.open()
    [run] = json.loads(done.stdout)["runs"]
    assert run["options"] == {"timeout_seconds": "3600", "env.TOKEN": "..."}
    assert run["usage"]["output_bytes"] == 6
    assert run["usage"]["wall_seconds"] > 0
    assert "hunter2" not in done.stdout


def test_an_answer_that_is_too_long_fails_its_run_and_the_next_one_runs(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path, concurrent_jobs=1) as scene:
        run = scene.run("#!/bin/sh\n" + "x" * 9 * 1024 * 1024)
        assert run["return_success"] is False and run["pid"] is None
        said = "the job cannot be read: .*longer than the 8388608 bytes"
        assert re.search(said, scene.api.log(run["id"]) or "")
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True


def test_a_frame_that_is_too_long_is_not_taken_and_orders_go_on(tmp_path: Path) -> None:
    with (
        StandInServer(repeat_seconds=0.5) as server,
        working(server, tmp_path) as scene,
    ):
        topic = protocol.broadcast_topic(server.api.api_key)
        before = peak_kibibytes(scene.worker.pid)
        # libzmq ends the connection; the worker makes a new one.
        server.broadcast([topic, b" " * (64 * protocol.MAX_FRAME_BYTES)])
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True
        assert peak_kibibytes(scene.worker.pid) - before < 32 * 1024


def peak_kibibytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])
