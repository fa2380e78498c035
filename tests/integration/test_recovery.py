"""A worker that finds what an earlier one, killed with SIGKILL, has left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import end_scripts, read_process, scripts_in
from scene import LIMIT_SECONDS, Gate, Scene, run_folders, wait_for_death, working
from waiting import eventually

from job_runner_worker.models import Run
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.spool import Spool
from job_runner_worker.testing import FakeApi, Fault, StandInServer

pytestmark = pytest.mark.integration

CLAIMED_AT = "2026-01-01T00:00:00+00:00"


@pytest.fixture(params=["one by one", "batches"])
def server(request: pytest.FixtureRequest) -> Iterator[StandInServer]:
    with StandInServer(FakeApi(batches=request.param == "batches")) as server:
        yield server


def crash(scene: Scene) -> None:
    scene.worker.kill()
    scene.worker.wait()


def claimed_run(server: StandInServer, script: str) -> int:
    """Return the id of a run that the server has as this worker's."""
    api = server.api
    job_id = api.add_job(script)
    return api.add_run(job_id, enqueue_dts=CLAIMED_AT, worker=api.worker_uri())


def leave_folder(server: StandInServer, folder: Path, run_id: int) -> RunFolder:
    """Leave the folder of a run that has been claimed and has not begun."""
    api = server.api
    spool = Spool(folder / "spool", server.api_base_url, api.api_key)
    spool.open()
    made = spool.create(run_id, "broadcast", CLAIMED_AT, 819200)
    spool.close()
    job_uri = api.run(run_id)["job"]
    job = api.get(job_uri)
    uri = f"/api/v1/run/{run_id}/"
    made.update_note(
        run=Run(run_id, uri, str(job["id"]), job["title"], job["script_content"])
    )
    return made


def claims_of(server: StandInServer, run_id: int) -> int:
    patches = server.api.patches_of(run_id)
    return len([patch for patch in patches if patch.get("enqueue_dts")])


@pytest.mark.parametrize("kind", ["lose_answer", "drop"])
def test_a_claim_without_an_answer_is_sorted_out_by_the_next_worker(
    server: StandInServer, tmp_path: Path, kind: str
) -> None:
    api = server.api
    is_stored = kind == "lose_answer"
    run_id = api.add_run(api.add_job(f"#!/bin/sh\necho x | tee -a {tmp_path}/file"))
    claim = api.faults.add(Fault(kind, "PATCH", f"/run/{run_id}/"))  # type: ignore[arg-type]
    api.faults.add(Fault("drop", "GET", f"/run/{run_id}/", skip=1, times=None))
    with working(server, tmp_path, offer_ttl_seconds=60) as scene:
        server.enqueue(run_id)
        scene.wait_for_line(f"run {run_id}: claim not confirmed")
        crash(scene)
    assert (claim.hits, run_folders(tmp_path / "spool")) == (1, [str(run_id)])
    api.faults.clear()
    with working(server, tmp_path) as scene:
        if not is_stored:
            scene.wait_for_line(f"run {run_id}: the server has taken it back")
            server.enqueue(run_id)
        assert scene.end_of(run_id)["return_success"] is True
    assert (tmp_path / "file").read_text() == "x\n"
    assert api.log(run_id) == "x\n"
    assert claims_of(server, run_id) == (1 if is_stored else 2)


def test_a_run_that_was_claimed_and_had_not_begun_is_started(
    server: StandInServer, tmp_path: Path
) -> None:
    run_id = claimed_run(server, "#!/bin/sh\necho hello")
    leave_folder(server, tmp_path, run_id)
    with working(server, tmp_path) as scene:
        assert scene.end_of(run_id)["return_success"] is True
    assert server.api.log(run_id) == "hello\n"
    assert [list(patch)[0] for patch in server.api.patches_of(run_id)] == [
        "start_dts",
        "return_dts",
    ]


def test_a_running_script_s_log_goes_on_in_the_log_that_is_there(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    with Gate(tmp_path) as gate:
        script = f"#!/bin/sh\necho one\n{gate.wait}\necho two\n{gate.wait}\necho three"
        with working(server, tmp_path, leaves_scripts=True) as scene:
            run_id = scene.start(script)
            api.wait_for(lambda: api.log(run_id), "the log", LIMIT_SECONDS)
            crash(scene)
        gate.open()
        with working(server, tmp_path) as scene:
            api.wait_for(
                lambda: api.log(run_id) == "one\ntwo\n", "the live log", LIMIT_SECONDS
            )
            gate.open()
            assert scene.end_of(run_id)["return_success"] is True
    assert api.log(run_id) == "one\ntwo\nthree\n"
    assert api.count("POST", "/run_log/") == 1


@pytest.mark.parametrize("unreported", ["start_dts", "return_dts"])
def test_a_run_that_ended_unheard_is_reported(
    server: StandInServer, tmp_path: Path, unreported: str
) -> None:
    api = server.api
    fault = api.faults.add(Fault("drop", "PATCH", body_has=unreported, times=None))
    with working(server, tmp_path) as scene:
        run_id = server.submit("#!/bin/sh\necho done\nexit 3")
        eventually(lambda: fault.hits, "the report")
        exit_status = tmp_path / "spool" / str(run_id) / "exit_status"
        eventually(lambda: exit_status.read_text().strip(), "the end of the script")
        crash(scene)
    api.faults.clear()
    with working(server, tmp_path) as scene:
        run = scene.end_of(run_id)
        scene.wait_until_gone(run_id)
    assert (run["exit_status"], run["return_success"]) == (3, False)
    assert api.log(run_id) == "done\n"
    stored = [
        list(each.body)[0]
        for each in api.requests_like("PATCH", f"/run/{run_id}/$")
        if each.carried_out
    ]
    assert stored == ["enqueue_dts", "start_dts", "return_dts"]


def test_an_end_that_the_server_has_is_not_sent_again(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    api.faults.add(Fault("lose_answer", "PATCH", body_has="return_dts"))
    with working(server, tmp_path) as scene:
        # The run is looked at once before its claim, and then never again.
        api.faults.add(Fault("drop", "GET", "/run/1/", skip=1, times=None))
        run_id = server.submit("#!/bin/sh\necho done")
        scene.end_of(run_id)
        crash(scene)
    assert run_folders(tmp_path / "spool") == [str(run_id)]
    api.faults.clear()
    before = len(api.patches_of(run_id)), api.count("POST", "/run_log/")
    with working(server, tmp_path) as scene:
        scene.wait_for_line(f"INFO run {run_id}: had been reported before the restart")
        scene.wait_until_gone(run_id)
        scene.worker.terminate()
        assert scene.worker.wait(LIMIT_SECONDS) == 0
    assert (len(api.patches_of(run_id)), api.count("POST", "/run_log/")) == before


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_run_that_another_worker_was_given_is_kept_for_the_operator(
    server: StandInServer, tmp_path: Path, has_begun: bool
) -> None:
    api = server.api
    api.add_worker("other", "othersecret")
    with Gate(tmp_path) as gate:
        script = f"#!/bin/sh\necho mine\n{gate.wait}"
        if has_begun:
            with working(server, tmp_path, leaves_scripts=True) as scene:
                run_id = scene.start(script)
                crash(scene)
        else:
            run_id = claimed_run(server, script)
            leave_folder(server, tmp_path, run_id)
        api.change_run(run_id, worker=api.worker_uri("other"))
        before = api.patches_of(run_id)
        gate.open()
        with working(server, tmp_path) as scene:
            scene.wait_for_line(f"ERROR run {run_id}: .*another worker; moved to")
    assert run_folders(tmp_path / "spool") == ["failed"]
    assert run_folders(tmp_path / "spool" / "failed") == [str(run_id)]
    assert api.patches_of(run_id) == before


@pytest.mark.parametrize("ended", [True, False])
def test_a_claim_that_never_arrived_leaves_nothing_when_another_has_the_run(
    server: StandInServer, tmp_path: Path, ended: bool
) -> None:
    api = server.api
    api.add_worker("other", "othersecret")
    run_id = api.add_run(api.add_job("#!/bin/sh\n"))
    spool = Spool(tmp_path / "spool", server.api_base_url, api.api_key)
    spool.open()
    spool.create(run_id, "broadcast", CLAIMED_AT, 819200)
    spool.close()
    # As a server of ours ends a run that is killed before anybody claims it.
    holder = (
        {"return_dts": CLAIMED_AT} if ended else {"worker": api.worker_uri("other")}
    )
    api.change_run(run_id, enqueue_dts=CLAIMED_AT, **holder)
    with working(server, tmp_path) as scene:
        scene.wait_until_gone(run_id)
        assert scene.run("#!/bin/sh\n")["return_success"] is True
        assert not [line for line in scene.worker.lines if " ERROR " in line]
    assert not (tmp_path / "spool" / "failed").exists()
    assert api.patches_of(run_id) == []


def test_a_running_run_that_the_server_took_back_is_claimed_again(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    with Gate(tmp_path) as gate:
        with working(server, tmp_path, leaves_scripts=True) as scene:
            run_id = scene.start(f"#!/bin/sh\n{gate.wait}\necho x >>{tmp_path}/file")
            crash(scene)
        api.change_run(run_id, enqueue_dts=None, start_dts=None)
        with working(server, tmp_path) as scene:
            scene.wait_for_claim(run_id)
            server.enqueue(run_id)
            gate.open()
            assert scene.end_of(run_id)["return_success"] is True
    assert (tmp_path / "file").read_text() == "x\n"


@pytest.mark.parametrize("interrupted_runs", ["reschedule", "fail"])
def test_a_run_that_a_reboot_cut_short_becomes_what_is_configured(
    server: StandInServer, tmp_path: Path, interrupted_runs: str
) -> None:
    api = server.api
    script = f"#!/bin/sh\necho begun\n[ -e {tmp_path}/calm ] || exec sleep 60"
    with working(server, tmp_path) as scene:
        run_id = scene.start(script)
        api.wait_for(lambda: api.log(run_id), "the log", LIMIT_SECONDS)
        crash(scene)
        end_scripts(scene.worker.spool_path)
    (tmp_path / "calm").touch()
    # As a loss of power leaves it: no exit status, and the boot of another day.
    folder = tmp_path / "spool" / str(run_id)
    (folder / "exit_status").write_text("    ")
    with (folder / "run.json").open("a") as file:
        file.write(f"\n{json.dumps({'boot_id': 'another'})}")
    with working(server, tmp_path, interrupted_runs=interrupted_runs) as scene:
        if interrupted_runs == "reschedule":
            scene.wait_for_line(f"WARNING run {run_id}: .*interrupted, offered again")
            back = {"enqueue_dts": None, "start_dts": None}
            assert api.patches_of(run_id)[-1] == back
            scene.wait_until_gone(run_id)
            server.enqueue(run_id)
            assert scene.end_of(run_id)["return_success"] is True
            assert api.log(run_id) == "begun\n"
        else:
            run = scene.end_of(run_id)
            assert (run["return_success"], run["exit_status"]) == (False, None)
            assert "rebooted" in run["reason"]
            log = api.log(run_id)
            assert log == f"begun\n[job_runner_worker] {run['reason']}\n"


def test_a_run_whose_processes_were_killed_has_failed(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path) as scene:
        run_id = scene.start("#!/bin/sh\necho begun\nexec sleep 60")
        crash(scene)
        doomed = scripts_in(scene.worker.spool_path)
        # The shim first, so that nobody is left to write an exit status.
        for process in sorted(doomed, key=lambda each: each.start_ticks):
            process.kill()
        wait_for_death(*(process.pid for process in doomed))
    with working(server, tmp_path) as scene:
        run = scene.end_of(run_id)
    assert (run["return_success"], run["exit_status"]) == (False, None)
    assert "shim was killed" in run["reason"]


def test_a_torn_note_is_set_aside_and_the_others_are_taken_up(
    server: StandInServer, tmp_path: Path
) -> None:
    torn, whole = (claimed_run(server, "#!/bin/sh\ntrue") for _ in range(2))
    for run_id in (torn, whole):
        leave_folder(server, tmp_path, run_id)
    path = tmp_path / "spool" / str(torn) / "run.json"
    path.write_bytes(path.read_bytes()[:100])
    with working(server, tmp_path, interrupted_runs="fail") as scene:
        assert scene.end_of(whole)["return_success"] is True
        scene.wait_for_line(f"ERROR .*/{torn}/run.json cannot be read.*; moved to")
        # The server has it as this worker's, so it gets an end all the same.
        assert scene.end_of(torn)["return_success"] is False
    assert run_folders(tmp_path / "spool" / "failed") == [str(torn)]


def test_a_kill_that_was_under_way_is_finished(
    server: StandInServer, tmp_path: Path
) -> None:
    script = "#!/bin/sh\ntrap '' TERM\necho deaf\nwhile true; do sleep 60 & wait; done"
    settings = {"kill_grace_seconds": 60, "leaves_scripts": True}
    with working(server, tmp_path, **settings) as scene:  # type: ignore[arg-type]
        run_id = scene.start(script)
        script_pid = server.api.run(run_id)["pid"]
        server.api.wait_for(lambda: server.api.log(run_id), "the trap", LIMIT_SECONDS)
        kill = server.kill(run_id)
        scene.wait_for_line(f"run {run_id}: kill request {kill}, state running")
        server.wait_for_event(event="enqueued", kill_request_id=kill)
        crash(scene)
    assert read_process(script_pid) is not None
    with working(server, tmp_path) as scene:
        scene.wait_for_kill(kill)
        assert read_process(script_pid) is None
        run = scene.end_of(run_id)
    assert (run["exit_status"], run["reason"]) == (137, f"killed on request {kill}")


def test_a_run_can_be_killed_after_a_restart_while_the_api_is_down(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path, leaves_scripts=True) as scene:
        run_id = scene.start("#!/bin/sh\nexec sleep 60")
        script_pid = server.api.run(run_id)["pid"]
        crash(scene)
    server.api.down = True
    with working(server, tmp_path) as scene:
        kill = server.kill(run_id, with_run_id=True)
        wait_for_death(script_pid)
        server.api.down = False
        scene.wait_for_kill(kill)
        assert scene.end_of(run_id)["exit_status"] == 143
