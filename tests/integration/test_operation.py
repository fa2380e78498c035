"""An operator's commands, with a real worker and without one."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT
from scene import LIMIT_SECONDS, Gate, Scene, run_folders, working
from waiting import eventually

from job_runner_worker.testing import Fault, StandInServer

pytestmark = pytest.mark.integration


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with StandInServer() as server:
        yield server


def command(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "job_runner_worker", *words, "--config-path", config],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * LIMIT_SECONDS,
        check=False,
    )


def status(scene: Scene) -> dict[str, Any]:
    done = command(scene.worker.config_path, "status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_status_of_a_live_worker_and_then_of_its_spool(
    server: StandInServer, tmp_path: Path
) -> None:
    # A spool path of more than the 107 bytes of a socket's name.
    spool = tmp_path / ("deep" * 30) / "spool"
    with (
        Gate(tmp_path) as gate,
        working(server, tmp_path, spool_path=spool, leaves_scripts=True) as scene,
    ):
        run_id = scene.start(f"#!/bin/sh\necho hello\n{gate.wait}")
        found = status(scene)
        assert stat.S_IMODE((spool / "control").stat().st_mode) == 0o600
        assert found["worker"]["pid"] == scene.worker.pid
        assert found["slots"]["busy"] == 1
        assert found["contacts"]["API"]["age_seconds"] < LIMIT_SECONDS
        assert found["contacts"]["broadcaster"] is not None
        (run,) = found["runs"]
        assert (run["run"], run["state"]) == (run_id, "running")
        table = command(scene.worker.config_path, "status").stdout
        assert "1 of " in table
        assert "running" in table
        scene.worker.kill()
        scene.worker.wait()
        found = status(scene)
        assert found["worker"] is None
        assert [each["state"] for each in found["runs"]] == ["running"]
        gate.open()
        eventually(
            lambda: (
                [due["report"] for due in status(scene)["runs"][0]["due"]]
                == ["log", "end"]
            ),
            "the end of the script",
        )
        assert run_folders(spool) == [str(run_id)]
    with working(server, tmp_path, spool_path=spool) as scene:
        assert scene.end_of(run_id)["return_success"] is True


def test_a_paused_worker_claims_nothing_until_it_is_resumed_also_after_a_restart(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path) as scene:
        assert command(scene.worker.config_path, "pause").returncode == 0
        waiting = server.submit("#!/bin/sh\ntrue")
        scene.wait_for_line(f"run {waiting}: offer refused: paused")
        scene.wait_for_line("no new run is claimed: paused since")
        assert status(scene)["paused"] is not None
        scene.worker.terminate()
        scene.worker.wait(LIMIT_SECONDS)
    with working(server, tmp_path) as scene:
        server.enqueue(waiting)
        scene.wait_for_line(f"run {waiting}: offer refused: paused")
        scene.wait_until_heard()
        assert server.api.patches_of(waiting) == []
        assert command(scene.worker.config_path, "resume").returncode == 0
        server.enqueue(waiting)
        assert scene.end_of(waiting)["return_success"] is True
        assert status(scene)["paused"] is None


def test_a_worker_without_space_claims_nothing_and_says_so(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path, spool_min_free_bytes=10**15 - 1) as scene:
        run_id = server.submit("#!/bin/sh\ntrue")
        scene.wait_for_line("no new run is claimed: .* bytes left")
        scene.wait_for_line(f"run {run_id}: offer refused: spool_path is short")
        assert status(scene)["short_of_space"]["min_free_bytes"] == 10**15 - 1
    assert server.api.patches_of(run_id) == []


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "without"])
def test_what_the_server_refused_is_listed_and_told_again_on_a_retry(
    server: StandInServer, tmp_path: Path, is_live: bool
) -> None:
    api = server.api
    with working(server, tmp_path) as scene:
        config = scene.worker.config_path
        api.faults.add(
            Fault("status", "PATCH", body_has='"return_dts"', status=404, times=1)
        )
        run_id = server.submit("#!/bin/sh\necho hello")
        scene.wait_for_line(f"moved to .*failed/{run_id}")
        found = status(scene)
        assert found["given_up"] == {"reports refused": 1, "folders set aside": 1}
        listed = command(config, "failed", "list").stdout
        assert f"run {run_id} " in listed
        assert "finished (rest)" in listed
        unknown = command(config, "failed", "retry", "999")
        assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
        if is_live:
            assert command(config, "failed", "retry", str(run_id)).returncode == 0
            assert scene.end_of(run_id)["return_success"] is True
            scene.wait_until_gone(run_id)
        else:
            scene.worker.terminate()
            scene.worker.wait(LIMIT_SECONDS)
    if not is_live:
        assert command(config, "failed", "retry", "--all").returncode == 0
        with working(server, tmp_path) as scene:
            assert scene.end_of(run_id)["return_success"] is True
    assert api.log(run_id) == "hello\n"
    assert json.loads(command(config, "failed", "list", "--json").stdout) == []


def test_a_set_aside_run_is_not_begun_again_and_is_discarded_only_with_yes(
    server: StandInServer, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    refusal = Fault("status", "PATCH", body_has='"return_dts"', status=404, times=1)
    with working(server, tmp_path) as scene:
        server.api.faults.add(refusal)
        run_id = server.submit(f"#!/bin/sh\necho begun >>{marks}")
        scene.wait_for_line(f"moved to .*failed/{run_id}")
        scene.worker.terminate()
        scene.worker.wait(LIMIT_SECONDS)
    with working(server, tmp_path) as scene:
        scene.wait_for_line(f"run {run_id}: open on the server, its folder is in")
        config = scene.worker.config_path
        assert command(config, "failed", "discard", "--all").returncode == 1
        assert len(status(scene)["failed"]) == 1
        assert command(config, "failed", "discard", "--all", "--yes").returncode == 0
        assert status(scene)["failed"] == []
    assert marks.read_text() == "begun\n"


def test_a_new_secret_and_a_restart_lose_no_report(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    with Gate(tmp_path) as gate:
        with working(server, tmp_path) as scene:
            run_id = scene.start(f"#!/bin/sh\n{gate.wait}\necho hello")
            api.faults.add(Fault("status", status=401, times=None))
            gate.open()
            scene.wait_for_line(f"run {run_id}: 'logged' is refused")
            scene.wait_for_line(f"run {run_id}: 'finished' is refused")
            (run,) = status(scene)["runs"]
            assert [due["report"] for due in run["due"]] == ["log", "end"]
            scene.worker.interrupt()
            scene.worker.wait(LIMIT_SECONDS)
        api.faults.clear()
        with working(server, tmp_path) as scene:
            assert scene.end_of(run_id)["return_success"] is True
    assert api.log(run_id) == "hello\n"


def test_a_silent_client_is_dropped_and_nonsense_is_answered(
    server: StandInServer, tmp_path: Path
) -> None:
    def talk(content: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LIMIT_SECONDS)
            folder = os.open(tmp_path / "spool", os.O_PATH)
            client.connect(f"/proc/self/fd/{folder}/control")
            os.close(folder)
            client.sendall(content)
            return client.recv(1000)

    with working(server, tmp_path) as scene:
        assert talk(b"") == b""
        assert b"JSON object" in talk(b"nonsense\n")
        assert b"does not know" in talk(b'{"command": "dance"}\n')
        assert status(scene)["runs"] == []


def test_a_worker_that_does_not_answer_is_one_line_and_75(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path) as scene:
        (tmp_path / "spool" / "control").unlink()
        done = command(scene.worker.config_path, "status")
        assert (done.returncode, done.stdout) == (75, "")
        assert done.stderr.count("\n") == 1
        assert f"pid {scene.worker.pid} holds" in done.stderr


def test_a_run_that_another_host_claimed_with_our_key_is_said_once(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    with working(server, tmp_path) as scene:
        # Before that it would be a run of ours that was interrupted.
        api.wait_for(
            lambda: api.count("GET", "state=started"), "the start", LIMIT_SECONDS
        )
        scene.wait_until_heard()
        run_id = api.add_run(
            api.add_job("#!/bin/sh\ntrue"),
            enqueue_dts="2026-01-01T00:00:00+00:00",
            worker=api.worker_uri(),
        )
        server.enqueue(run_id)
        scene.wait_for_line(f"ERROR run {run_id}: has been claimed with our api_key")
        server.enqueue(run_id)
        scene.wait_until_heard()
        assert [each["run"] for each in status(scene)["claimed_elsewhere"]] == [run_id]
    assert len([x for x in scene.lines_about(run_id) if "our api_key" in x]) == 1
