"""What a kill request does in every state of its run (docs/kills.rst has the table).

The states that no real process can be held in are in tests/test_worker_kills.py.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import read_process
from scene import LIMIT_SECONDS, Gate, Scene, pid_in, wait_for_death, working
from waiting import eventually

from job_runner_worker import protocol
from job_runner_worker.models import Kill
from job_runner_worker.testing import FakeApi, Fault, StandInServer

pytestmark = pytest.mark.integration

SLEEP = "#!/bin/sh\nexec sleep 60"
UNKNOWN_ID = 1_000_001
NOT_IN_HAND = "is not in hand here, nobody was signalled"


@pytest.fixture(scope="module", params=["one by one", "batches"])
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("worker")
    with (
        StandInServer(FakeApi(batches=request.param == "batches")) as server,
        working(server, folder, concurrent_jobs=2, offer_ttl_seconds=60) as scene,
    ):
        yield scene


@pytest.fixture(params=[False, True], ids=["original's order", "order with run_id"])
def with_run_id(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@contextmanager
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that nobody may signal; it is checked at the end."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        assert process.poll() is None, "an innocent process was signalled"
        process.kill()


def check_reports(scene: Scene, kill: int) -> None:
    """Wait for both steps of a kill; each has been PATCHed and published once."""
    scene.wait_for_kill(kill)
    scene.server.wait_for_event(LIMIT_SECONDS, event="executed", kill_request_id=kill)
    patches = scene.api.requests_like("PATCH", f"/kill_request/{kill}/$")
    stored = [each for each in patches if each.carried_out]
    assert [list(each.body) for each in stored] == [["enqueue_dts"], ["execute_dts"]]
    found = scene.server.events
    events = [each["event"] for each in found if each.get("kill_request_id") == kill]
    assert events == ["enqueued", "executed"]


def check_never_started(scene: Scene, run_id: int, kill: int) -> None:
    run = scene.end_of(run_id)
    assert (run["pid"], run["return_success"]) == (None, False)
    assert run["start_dts"] is not None
    assert run["reason"] == f"killed on request {kill} before the start"
    assert scene.api.log(run_id) == f"[job_runner_worker] {run['reason']}\n"
    check_line(scene, f"INFO run {run_id}: failed, no exit status: {run['reason']}")


def check_line(scene: Scene, line: str) -> None:
    scene.wait_for_line(f"Z {re.escape(line)}$")


def test_an_offered_run_that_is_killed_is_claimed_and_never_started(
    scene: Scene, tmp_path: Path, with_run_id: bool
) -> None:
    with Gate(tmp_path) as gate:
        held = [scene.start(f"#!/bin/sh\n{gate.wait}") for _ in range(2)]
        offered = scene.server.submit(f"#!/bin/sh\necho >{tmp_path}/began")
        scene.wait_until_heard()
        kill = scene.server.kill(offered, with_run_id=with_run_id)
        check_reports(scene, kill)
        check_never_started(scene, offered, kill)
        check_line(scene, f"INFO run {offered}: kill request {kill}, state offered")
        gate.open(2)
        assert all(scene.end_of(run_id)["return_success"] for run_id in held)
    assert not (tmp_path / "began").exists()


@pytest.mark.parametrize("held", ["claim", "job"])
def test_a_run_that_is_killed_while_it_is_claimed_is_never_started(
    scene: Scene, tmp_path: Path, held: str, with_run_id: bool
) -> None:
    api = scene.api
    if held == "job" and api.takes_batches:
        pytest.skip("the claim brings the job: it is not asked for")
    job_id = api.add_job(f"#!/bin/sh\necho >{tmp_path}/began")
    run_id = api.add_run(job_id)
    what = {
        "claim": ("PATCH", f"/run/{run_id}/", "enqueue_dts"),
        "job": ("GET", f"/job/{job_id}/", ""),
    }[held]
    fault = api.faults.add(Fault("drop", *what, times=None))
    scene.server.enqueue(run_id)
    eventually(lambda: fault.hits, "the request that is held")
    kill = scene.server.kill(run_id, with_run_id=with_run_id)
    scene.wait_for_line(f"run {run_id}: kill request {kill}, state claiming")
    api.faults.clear()
    check_reports(scene, kill)
    check_never_started(scene, run_id, kill)
    assert not (tmp_path / "began").exists()


def test_a_running_run_is_killed_with_its_tree(
    scene: Scene, tmp_path: Path, with_run_id: bool
) -> None:
    run_id = scene.start(
        f"#!/bin/sh\necho output\nsetsid sleep 60 &\necho $! >{tmp_path}/pid\nwait"
    )
    child = pid_in(tmp_path / "pid")
    kill = scene.server.kill(run_id, with_run_id=with_run_id)
    check_reports(scene, kill)
    assert read_process(child) is None
    run = scene.end_of(run_id)
    assert (run["exit_status"], run["return_success"]) == (143, False)
    assert run["reason"] == f"killed on request {kill}"
    assert scene.api.log(run_id) == f"output\n[job_runner_worker] {run['reason']}\n"
    check_line(scene, f"INFO run {run_id}: kill request {kill}, state running")
    check_line(scene, f"INFO run {run_id}: failed, exit status 143: {run['reason']}")


def test_a_script_that_ignores_TERM_is_killed_after_the_grace(
    scene: Scene, tmp_path: Path
) -> None:
    pid_path = tmp_path / "pid"
    run_id = scene.start(
        f"#!/bin/sh\ntrap '' TERM\necho $$ >{pid_path}\n"
        "while true; do sleep 60 & wait; done"
    )
    pid = pid_in(pid_path)
    kill = scene.server.kill(run_id)
    check_reports(scene, kill)
    assert read_process(pid) is None
    assert scene.end_of(run_id)["exit_status"] == 137


def test_the_pid_in_the_api_is_never_trusted(scene: Scene, with_run_id: bool) -> None:
    run_id = scene.start(SLEEP)
    script = scene.api.run(run_id)["pid"]
    with innocent() as process:
        scene.api.change_run(run_id, pid=process.pid)
        kill = scene.server.kill(run_id, with_run_id=with_run_id)
        check_reports(scene, kill)
    assert read_process(script) is None
    assert scene.end_of(run_id)["return_success"] is False


def test_an_ended_run_that_is_being_reported_stays_as_it_ended(
    scene: Scene, with_run_id: bool
) -> None:
    fault = Fault("drop", "PATCH", body_has="return_dts", times=None)
    scene.api.faults.add(fault)
    run_id = scene.server.submit("#!/bin/sh\necho done")
    eventually(lambda: fault.hits, "the last report")
    with innocent() as process:
        scene.api.change_run(run_id, pid=process.pid)
        kill = scene.server.kill(run_id, with_run_id=with_run_id)
        check_reports(scene, kill)
        assert scene.api.run(run_id)["return_dts"] is None
        scene.api.faults.clear()
        run = scene.end_of(run_id)
    assert (run["return_success"], run["reason"]) == (True, "")
    assert scene.api.log(run_id) == "done\n"
    check_line(scene, f"INFO run {run_id}: kill request {kill}, state ended")


def test_a_run_that_is_gone_is_left_alone(scene: Scene, with_run_id: bool) -> None:
    run_id = scene.run("#!/bin/sh\ntrue")["id"]
    scene.wait_until_gone(run_id)
    before = scene.api.run(run_id), scene.api.log(run_id)
    with innocent() as process:
        scene.api.change_run(run_id, pid=process.pid)
        kill = scene.server.kill(run_id, with_run_id=with_run_id)
        check_reports(scene, kill)
    scene.api.change_run(run_id, pid=before[0]["pid"])
    assert (scene.api.run(run_id), scene.api.log(run_id)) == before
    check_line(scene, f"INFO run {run_id}: kill request {kill}: {NOT_IN_HAND}")


def test_an_unknown_run_is_acknowledged(scene: Scene, with_run_id: bool) -> None:
    kill = scene.server.kill(UNKNOWN_ID, with_run_id=with_run_id)
    check_reports(scene, kill)
    assert scene.api.count("PATCH", f"/run/{UNKNOWN_ID}/") == 0
    check_line(scene, f"INFO run {UNKNOWN_ID}: kill request {kill}: {NOT_IN_HAND}")


def test_the_run_of_another_worker_is_left_alone(
    scene: Scene, with_run_id: bool
) -> None:
    api, others_key = scene.api, f"other-{with_run_id}"
    api.add_worker(others_key, "othersecret")
    with innocent() as process:
        run_id = api.add_run(
            api.add_job(SLEEP),
            worker=api.worker_uri(others_key),
            enqueue_dts="2026-01-01T00:00:00Z",
            start_dts="2026-01-01T00:00:01Z",
            pid=process.pid,
        )
        kill = scene.server.kill(run_id, with_run_id=with_run_id)
        check_reports(scene, kill)
    assert api.patches_of(run_id) == []
    check_line(scene, f"INFO run {run_id}: kill request {kill}: {NOT_IN_HAND}")


def test_an_unknown_kill_request_changes_nothing(scene: Scene) -> None:
    order = Kill(UNKNOWN_ID)
    scene.server.broadcast(protocol.encode_command(order, scene.api.api_key))
    scene.wait_for_line(f"WARNING kill request {UNKNOWN_ID}: cannot be read: .*404")
    assert scene.api.count("PATCH", f"/kill_request/{UNKNOWN_ID}/") == 0


def test_a_request_that_has_been_taken_is_not_taken_again(scene: Scene) -> None:
    api, server = scene.api, scene.server
    run_id = scene.start(SLEEP)
    kill = api.add_kill_request(run_id)
    api.patch(f"kill_request/{kill}/", {"enqueue_dts": "2026-01-01T00:00:00Z"})
    server.broadcast(protocol.encode_command(Kill(kill), api.api_key))
    scene.wait_for_line(f"kill request {kill}: has been taken care of")
    assert api.count("PATCH", f"/kill_request/{kill}/") == 1
    assert read_process(api.run(run_id)["pid"]) is not None
    assert [each for each in server.events if each.get("kill_request_id") == kill] == []
    check_reports(scene, server.kill(run_id))


def test_a_repeated_order_is_carried_out_once(scene: Scene) -> None:
    run_id = scene.start(SLEEP)
    kill = scene.server.kill(run_id)
    again = protocol.encode_command(Kill(kill), scene.api.api_key)
    for _ in range(20):
        scene.server.broadcast(again)
    check_reports(scene, kill)
    scene.server.broadcast(again)
    scene.wait_until_heard()
    check_reports(scene, kill)
    assert scene.api.count("GET", f"/kill_request/{kill}/") == 1


def test_two_requests_for_one_run_are_both_answered(scene: Scene) -> None:
    run_id = scene.start(SLEEP)
    kills = [scene.server.kill(run_id) for _ in range(2)]
    for kill in kills:
        check_reports(scene, kill)
    assert scene.end_of(run_id)["exit_status"] == 143


def test_an_order_with_run_id_needs_no_answer_from_the_api(scene: Scene) -> None:
    run_id = scene.start(SLEEP)
    script = scene.api.run(run_id)["pid"]
    scene.api.down = True
    try:
        kill = scene.server.kill(run_id, with_run_id=True)
        wait_for_death(script)
    finally:
        scene.api.down = False
    check_reports(scene, kill)
    run = scene.end_of(run_id)
    assert (run["exit_status"], run["reason"]) == (143, f"killed on request {kill}")


def test_an_original_s_order_is_carried_out_when_the_api_is_back(scene: Scene) -> None:
    run_id = scene.start(SLEEP)
    before = scene.api.count("GET", "/kill_request/")
    scene.api.down = True
    try:
        kill = scene.server.kill(run_id)
        scene.api.wait_for(
            lambda: scene.api.count("GET", "/kill_request/") > before, "the question"
        )
    finally:
        scene.api.down = False
    check_reports(scene, kill)
    assert scene.end_of(run_id)["exit_status"] == 143


def test_kills_are_carried_out_while_the_worker_drains(
    tmp_path: Path, with_run_id: bool
) -> None:
    with StandInServer() as server, working(server, tmp_path) as scene:
        run_id = scene.start(SLEEP)
        gone = scene.run("#!/bin/sh\ntrue")["id"]
        scene.worker.terminate()
        scene.wait_for_line(r"stopping when \d runs have ended")
        check_reports(scene, server.kill(gone, with_run_id=with_run_id))
        kill = server.kill(run_id, with_run_id=with_run_id)
        assert scene.worker.wait(LIMIT_SECONDS) == 0
        check_reports(scene, kill)
        assert scene.end_of(run_id)["exit_status"] == 143
