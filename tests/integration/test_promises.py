"""What docs/reliability.rst promises and no other test shows in one piece."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from harness import WorkerProcess, scripts_in
from scene import (
    LIMIT_SECONDS,
    SETTINGS,
    Gate,
    Scene,
    run_folders,
    wait_for_death,
    wait_for_text,
    working,
)
from waiting import eventually

from job_runner_worker.testing import FakeApi, Fault, StandInServer

pytestmark = pytest.mark.integration
NEXT_VERSION = (
    "from gevent import monkey; monkey.patch_all(); import sys, job_runner_worker;"
    "job_runner_worker.__version__ = '99.0'; from job_runner_worker import cli;"
    "sys.exit(cli.main())"
)
ATTACH_SECONDS = 1.0


@pytest.fixture(params=["one by one", "batches"])
def server(request: pytest.FixtureRequest) -> Iterator[StandInServer]:
    with StandInServer(
        FakeApi(original=False, batches=request.param == "batches")
    ) as server:
        yield server


def crash(scene: Scene) -> None:
    scene.worker.kill()
    scene.worker.wait()


def moment(line: str) -> datetime:
    """Return when a line was logged."""
    return datetime.fromisoformat(line.split()[0])


def test_at_most_once_also_when_a_running_run_is_handed_back_and_offered_again(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    file = tmp_path / "file"
    with Gate(tmp_path) as gate, working(server, tmp_path) as scene:
        run_id = scene.start(f"#!/bin/sh\necho x >>{file}\n{gate.wait}")
        wait_for_text(file)
        # As another host does that was given the same key.
        api.change_run(run_id, enqueue_dts=None, start_dts=None)
        server.enqueue(run_id)
        scene.wait_until_heard()
        gate.open()
        assert scene.end_of(run_id)["return_success"] is True
        scene.wait_until_gone(run_id)
        server.enqueue(run_id)
        scene.wait_until_heard()
        scene.wait_for_line(f"WARNING run {run_id}: had been handed back")
    assert file.read_text() == "x\n"


def test_at_most_once_a_script_whose_shim_was_killed_has_failed_and_says_so(
    server: StandInServer, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    with working(server, tmp_path) as scene:
        script = f"#!/bin/sh\necho x >>{file}\necho begun\nexec sleep 60"
        run_id = scene.start(script)
        wait_for_text(file)
        shim, *others = sorted(
            scripts_in(scene.worker.spool_path), key=lambda each: each.start_ticks
        )
        shim.kill()
        run = scene.end_of(run_id)
        wait_for_death(*(process.pid for process in others))
        server.enqueue(run_id)
        scene.wait_until_heard()
    assert (run["return_success"], run["exit_status"]) == (False, None)
    assert "shim was killed" in run["reason"]
    assert run["reason"] in (server.api.log(run_id) or "")
    assert file.read_text() == "x\n"


def test_the_end_arrives_however_often_the_worker_dies_while_the_server_is_away(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    with Gate(tmp_path) as gate:
        with working(server, tmp_path, leaves_scripts=True) as scene:
            run_id = scene.start(f"#!/bin/sh\necho one\n{gate.wait}\necho two\nexit 3")
            api.down = True
            crash(scene)
        gate.open()
        status = tmp_path / "spool" / str(run_id) / "exit_status"
        wait_for_text(status, r"^3\n")
        ended_at = datetime.fromtimestamp(status.stat().st_mtime, UTC)
        for _ in range(2):
            with working(server, tmp_path, leaves_scripts=True) as scene:
                scene.wait_for_line("API does not answer")
                crash(scene)
        api.down = False
        with working(server, tmp_path) as scene:
            run = scene.end_of(run_id)
            scene.wait_until_gone(run_id)
    assert (run["return_success"], run["exit_status"]) == (False, 3)
    assert api.log(run_id) == "one\ntwo\n"
    (end,) = [patch for patch in api.patches_of(run_id) if "return_dts" in patch]
    assert datetime.fromisoformat(end["return_dts"]) == ended_at


@pytest.mark.parametrize(
    ("how", "program"),
    [("kill", ()), ("interrupt", ()), ("kill", ("-c", NEXT_VERSION))],
    ids=["kill -9", "INT", "upgrade"],
)
def test_scripts_outlive_the_worker_and_the_next_attaches_within_a_second(
    server: StandInServer, tmp_path: Path, how: str, program: Sequence[str]
) -> None:
    api = server.api
    with Gate(tmp_path) as gate:
        with working(server, tmp_path, leaves_scripts=True) as scene:
            script = f"#!/bin/sh\necho one\n{gate.wait}\necho two\n{gate.wait}"
            run_id = scene.start(script)
            api.wait_for(lambda: api.log(run_id), "the log", LIMIT_SECONDS)
            getattr(scene.worker, how)()
            scene.worker.wait()
        config_path = server.write_config(tmp_path, **SETTINGS)
        words = {"program": program} if program else {}
        with WorkerProcess(config_path, **words) as worker:
            began = worker.wait_for_line(r"\d slots", LIMIT_SECONDS)
            again = worker.wait_for_line(f"run {run_id}: running", LIMIT_SECONDS)
            assert ("99.0" in began) == bool(program)
            gate.open()
            api.wait_for(
                lambda: api.log(run_id) == "one\ntwo\n", "the live log", LIMIT_SECONDS
            )
            assert api.run(run_id)["return_dts"] is None
            gate.open()
            assert server.wait_for_end(run_id, LIMIT_SECONDS)["return_success"]
    assert (moment(again) - moment(began)).total_seconds() < ATTACH_SECONDS


def test_a_folder_of_a_later_format_is_set_aside_and_harms_nobody(
    server: StandInServer, tmp_path: Path
) -> None:
    with Gate(tmp_path) as gate:
        with working(server, tmp_path, leaves_scripts=True) as scene:
            script = f"#!/bin/sh\n{gate.wait}\necho x >>{tmp_path}/file"
            later, same = scene.start(script), scene.start(script)
            crash(scene)
        note = tmp_path / "spool" / str(later) / "run.json"
        whole, *changes = note.read_text().splitlines(keepends=True)
        content = json.loads(whole)
        later_format = {**content, "format": content["format"] + 1}
        note.write_text(json.dumps(later_format) + "\n" + "".join(changes))
        with working(server, tmp_path) as scene:
            scene.wait_for_line(f"ERROR .*/{later}/run.json .*format .*moved to")
            gate.open(2)
            assert scene.end_of(same)["return_success"] is True
            # Nobody knows here how it ends; but it does.
            wait_for_text(tmp_path / "file", r"x\nx\n")
    assert run_folders(tmp_path / "spool" / "failed") == [str(later)]


def stored_patches(api: FakeApi, run_id: int) -> list[object]:
    asked = api.requests_like("PATCH", rf"/run/{run_id}/$")
    return [each.body for each in asked if each.carried_out]


def test_a_final_state_is_final_whatever_is_ordered_afterwards(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    with working(server, tmp_path) as scene:
        run_id = scene.run("#!/bin/sh\necho said\nexit 4")["id"]
        scene.wait_until_gone(run_id)
        row, patches = api.run(run_id), api.patches_of(run_id)
        stored = stored_patches(api, run_id)
        assert "return_dts" in stored[-1]
        for _ in range(3):
            server.enqueue(run_id)
        scene.wait_for_kill(server.kill(run_id))
        scene.wait_for_kill(server.kill(run_id, with_run_id=True))
        scene.wait_until_heard()
        crash(scene)
    with working(server, tmp_path) as scene:
        server.enqueue(run_id)
        scene.wait_until_heard()
    assert api.run(run_id) == row
    # Our own server is asked by the claim whether a run may be claimed; it may not.
    assert stored_patches(api, run_id) == stored
    later = api.patches_of(run_id)[len(patches) :]
    assert [patch for patch in later if "with_job" not in patch] == []
    assert api.takes_batches or later == []
    assert api.log(run_id) == "said\n"


def test_nothing_silent_a_result_that_is_refused_is_said_once_and_kept(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    with Gate(tmp_path) as gate, working(server, tmp_path) as scene:
        run_id = scene.start(f"#!/bin/sh\necho said\n{gate.wait}")
        api.faults.add(
            Fault("status", "PATCH", f"/run/{run_id}/", times=None, status=403)
        )
        gate.open()
        failed = tmp_path / "spool" / "failed"
        kept = eventually(lambda: [*failed.glob("*/output")], "what is kept")
        assert kept[0].read_bytes().startswith(b"said\n")
        assert (failed / str(run_id) / "exit_status").read_text().strip() == "0"
        scene.wait_for_line(f"ERROR run {run_id}: .*moved to {failed}/{run_id}: mend")
        errors = [line for line in scene.lines_about(run_id) if "ERROR" in line]
    # One says what was refused, one where it is kept and what to do.
    assert [bool(re.search("refused|moved to", line)) for line in errors] == [True] * 2
