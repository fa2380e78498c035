"""How a worker starts and stops, and which exit status says what."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import WorkerProcess, read_process
from scene import (
    LIMIT_SECONDS,
    SETTINGS,
    Gate,
    run_folders,
    starting,
    subscribers,
    wait_for_text,
    working,
)
from waiting import eventually

from job_runner_worker.testing import FakeApi, Fault, StandInServer

pytestmark = pytest.mark.integration

MARGIN_SECONDS = 5.0


@pytest.fixture(params=["one by one", "batches"])
def server(request: pytest.FixtureRequest) -> Iterator[StandInServer]:
    with StandInServer(FakeApi(batches=request.param == "batches")) as server:
        yield server


def test_TERM_lets_runs_end_and_refuses_new_ones(
    server: StandInServer, tmp_path: Path
) -> None:
    with Gate(tmp_path) as gate, working(server, tmp_path) as scene:
        run_id = scene.start(f"#!/bin/sh\n{gate.wait}\necho done")
        scene.worker.terminate()
        scene.wait_for_line("stopping when 1 runs have ended and are reported")
        refused = server.submit("#!/bin/sh\ntrue")
        scene.wait_for_line(f"run {refused}: offer refused: this worker is stopping")
        scene.wait_until_heard()
        gate.open()
        assert scene.worker.wait(LIMIT_SECONDS) == 0
        assert scene.wait_for_line("stopped")
        # Nobody hears it any more, so an event may be on its way when it is gone.
        server.wait_for_event(LIMIT_SECONDS, event="returned", run_id=run_id)
    assert server.api.run(run_id)["return_success"] is True
    assert server.api.log(run_id) == "done\n"
    assert server.api.count(run_id=refused) == 0
    assert run_folders(tmp_path / "spool") == []


def test_INT_leaves_scripts_to_the_next_worker_and_says_which(
    server: StandInServer, tmp_path: Path
) -> None:
    with Gate(tmp_path) as gate:
        with working(server, tmp_path, leaves_scripts=True) as scene:
            run_id = scene.start(f"#!/bin/sh\n{gate.wait}\necho done")
            scene.worker.interrupt()
            assert scene.worker.wait(LIMIT_SECONDS) == 0
            scene.wait_for_line(f"run {run_id}: left running, the next worker takes it")
        assert read_process(server.api.run(run_id)["pid"]) is not None
        with working(server, tmp_path) as scene:
            gate.open()
            assert scene.end_of(run_id)["return_success"] is True
    assert server.api.log(run_id) == "done\n"


@pytest.mark.parametrize("second", ["terminate", "interrupt"])
def test_a_second_signal_leaves_at_once(
    server: StandInServer, tmp_path: Path, second: str
) -> None:
    with working(server, tmp_path) as scene:
        run_id = scene.start("#!/bin/sh\nexec sleep 60")
        scene.worker.terminate()
        scene.wait_for_line("stopping when 1 runs")
        getattr(scene.worker, second)()
        assert scene.worker.wait(LIMIT_SECONDS) == 0
        scene.wait_for_line(f"run {run_id}: left running")
        assert read_process(server.api.run(run_id)["pid"]) is not None
    assert server.api.run(run_id)["return_dts"] is None


@pytest.mark.parametrize("unreported", ["start_dts", "return_dts"])
def test_a_drain_waits_for_an_api_that_is_down_only_for_a_while(
    server: StandInServer, tmp_path: Path, unreported: str
) -> None:
    api = server.api
    fault = api.faults.add(Fault("drop", "PATCH", body_has=unreported, times=None))
    with working(server, tmp_path, drain_report_seconds=0.5) as scene:
        run_id = server.submit("#!/bin/sh\necho done")
        eventually(lambda: fault.hits, "the report that is lost")
        api.down = True
        path = tmp_path / "spool" / str(run_id) / "exit_status"
        eventually(lambda: path.read_text().strip(), "the end of the script")
        began = time.monotonic()
        scene.worker.terminate()
        assert scene.worker.wait(LIMIT_SECONDS) == 0
        assert 0.5 <= time.monotonic() - began < 0.5 + MARGIN_SECONDS
        scene.wait_for_line(f"run {run_id}: left ended, the next worker takes it up")
    assert run_folders(tmp_path / "spool") == [str(run_id)]
    api.down = False
    api.faults.clear()
    with working(server, tmp_path) as scene:
        assert scene.end_of(run_id)["return_success"] is True
    assert api.log(run_id) == "done\n"


def test_a_drain_waits_for_scripts_as_long_as_they_run(
    server: StandInServer, tmp_path: Path
) -> None:
    with (
        Gate(tmp_path) as gate,
        working(server, tmp_path, drain_report_seconds=0.1) as scene,
    ):
        run_id = scene.start(f"#!/bin/sh\n{gate.wait}")
        scene.worker.terminate()
        scene.wait_for_line("stopping when 1 runs")
        late = time.monotonic() + 0.4
        eventually(lambda: time.monotonic() > late, "more than drain_report_seconds")
        gate.open()
        assert scene.worker.wait(LIMIT_SECONDS) == 0
        assert server.api.run(run_id)["return_success"] is True


def test_a_clean_stop_leaves_the_lock_and_spool_json(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path) as scene:
        stuck = scene.start("#!/bin/sh\nmkdir -p $TMPDIR/x; chmod 0 $TMPDIR; sleep 60")
        for script in ("true", "false", "kill -9 $$"):
            scene.run(f"#!/bin/sh\n{script}")
        server.kill(stuck)
        scene.end_of(stuck)
        scene.worker.terminate()
        assert scene.worker.wait(LIMIT_SECONDS) == 0
    left = sorted(path.name for path in (tmp_path / "spool").iterdir())
    assert left == ["lock", "spool.json"]


def test_a_second_worker_says_who_holds_the_spool(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path) as scene:
        with WorkerProcess(scene.worker.config_path, leaves_scripts=True) as second:
            assert second.wait(LIMIT_SECONDS) == 75
            second.wait_for_line(f"spool.* is in use by .*pid {scene.worker.pid}\\b")
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True


def test_the_spool_is_free_after_a_crash(server: StandInServer, tmp_path: Path) -> None:
    for _ in range(2):
        with working(server, tmp_path) as scene:
            assert scene.run("#!/bin/sh\ntrue")["return_success"] is True
            scene.worker.kill()
            scene.worker.wait()


def test_a_spool_of_another_server_is_refused(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path) as scene:
        scene.worker.terminate()
        assert scene.worker.wait(LIMIT_SECONDS) == 0
    with StandInServer() as other, starting(other, tmp_path) as scene:
        assert scene.worker.wait(LIMIT_SECONDS) == 78
        scene.wait_for_line("spool.* belongs to api_key 'testworker' at")
        assert other.api.count() == 0


@pytest.mark.parametrize(
    "settings",
    [{"concurrent_jobs": "0"}, {"no_such_option": "1"}, {"secret": None}],
)
def test_a_bad_configuration_starts_nothing(
    server: StandInServer, tmp_path: Path, settings: dict[str, str | None]
) -> None:
    config_path = server.write_config(tmp_path, **{**SETTINGS, **settings})
    with WorkerProcess(config_path) as worker:
        assert worker.wait(LIMIT_SECONDS) == 78
        name = next(iter(settings))
        worker.wait_for_line(f"^job_runner_worker: {re.escape(str(config_path))}: .*")
        assert [name in line for line in worker.lines] == [True]
    assert not (tmp_path / "spool").exists()
    assert server.api.count() == 0


def test_a_wrong_secret_is_said_at_once(server: StandInServer, tmp_path: Path) -> None:
    with starting(server, tmp_path, secret="wrong") as scene:
        assert scene.worker.wait(LIMIT_SECONDS) == 77
        scene.wait_for_line("^job_runner_worker: GET .*/worker/.* 401")
        eventually(lambda: subscribers(server) == 0, "no subscription")


def test_a_worker_waits_for_an_api_that_is_down_at_its_start(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    api.down = True
    orphan = api.add_run(
        api.add_job("#!/bin/sh\ntrue"),
        enqueue_dts="2026-01-01T00:00:00Z",
        worker=api.worker_uri(),
    )
    with working(server, tmp_path) as scene:
        scene.wait_for_line("WARNING API does not answer, trying until it does")
        api.down = False
        scene.wait_for_line("INFO API answers again after")
        scene.wait_for_line(f"run {orphan}: had been interrupted, offered again")
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True
        warnings = [line for line in scene.worker.lines if "WARNING API" in line]
        assert len(warnings) == 1


def test_a_worker_can_be_stopped_while_the_api_is_down(
    server: StandInServer, tmp_path: Path
) -> None:
    server.api.down = True
    with working(server, tmp_path, drain_report_seconds=0.2) as scene:
        scene.wait_for_line("WARNING API does not answer")
        scene.worker.terminate()
        assert scene.worker.wait(LIMIT_SECONDS) == 0


def test_scripts_know_their_run_and_not_the_worker_s_secrets(
    server: StandInServer, tmp_path: Path
) -> None:
    env = {"PASSWORD": "hush", "LC_ALL": "C.UTF-8", "LANG": "verysecret"}
    path = tmp_path / "environment"
    with working(server, tmp_path, env=env) as scene:
        job_id = server.api.add_job(f"#!/bin/sh\nenv >{path}", "a title")
        run_id = server.api.add_run(job_id)
        server.enqueue(run_id)
        scene.end_of(run_id)
        scene.wait_until_gone(run_id)
    found = dict(line.split("=", 1) for line in wait_for_text(path).splitlines())
    assert found["JOB_RUNNER_RUN_ID"] == str(run_id)
    assert found["JOB_RUNNER_JOB_ID"] == str(job_id)
    assert found["JOB_RUNNER_JOB_TITLE"] == "a title"
    assert found["JOB_RUNNER_WORKER"] == "testworker"
    assert found["LC_ALL"] == "C.UTF-8"
    assert found["PATH"] == os.environ["PATH"]
    assert "PASSWORD" not in found
    assert "verysecret" not in str(found)
    assert not Path(found["TMPDIR"]).exists()
