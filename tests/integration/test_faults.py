"""The known faults of the original worker (protocol.md, section 5): ours has none.

The numbers are those of that list; 12 is in test_https.py.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness import read_process
from scene import (
    LIMIT_SECONDS,
    Gate,
    Scene,
    pid_in,
    subscribers,
    wait_for_death,
    wait_for_text,
    working,
)
from waiting import eventually

from job_runner_worker import protocol
from job_runner_worker.testing import FakeApi, Fault, StandInServer

pytestmark = pytest.mark.integration

MEBIBYTE = 1024 * 1024
HTTP_CONNECTIONS = 16
OFFER_TTL_SECONDS = 0.5
THE_CLAIM_BRINGS_THE_JOB = "nothing can be held between the claim and the start"


@pytest.fixture(scope="module", params=["one by one", "batches"])
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("worker")
    with (
        StandInServer(FakeApi(batches=request.param == "batches")) as server,
        working(
            server, folder, concurrent_jobs=2, offer_ttl_seconds=OFFER_TTL_SECONDS
        ) as scene,
    ):
        yield scene


@pytest.fixture(params=["one by one", "batches"])
def server(request: pytest.FixtureRequest) -> Iterator[StandInServer]:
    with StandInServer(FakeApi(batches=request.param == "batches")) as server:
        yield server


def test_1_output_that_is_not_utf_8_is_replaced(scene: Scene) -> None:
    run = scene.run("#!/bin/sh\nprintf 'a\\377\\376b\\000c\\303'")
    assert run["return_success"] is True
    assert scene.api.log(run["id"]) == "a\ufffd\ufffdb\ufffdc\ufffd"


def test_1_a_truncation_never_cuts_a_character(scene: Scene) -> None:
    run = scene.run("#!/bin/sh\nyes € | tr -d '\\n' | head -c 900000")
    assert run["return_success"] is True
    # Of 163840 and 655360 bytes one too many for characters of three.
    assert (
        scene.api.log(run["id"]) == "€" * 54613 + "\n\n[truncated]\n\n" + "€" * 218453
    )


@pytest.mark.parametrize("original", [True, False])
def test_2_a_lost_answer_to_the_log_s_post_loses_nothing(
    tmp_path: Path, original: bool
) -> None:
    api = FakeApi(original=original)
    lost = api.faults.add(Fault("lose_answer", "POST", "/run_log/"))
    with StandInServer(api) as server, working(server, tmp_path) as scene:
        run = scene.run("#!/bin/sh\necho once")
        assert run["return_success"] is True
        assert api.log(run["id"]) == "once\n"
        assert lost.hits == 1
        assert api.count("POST", "/run_log/") == 1
        scene.worker.terminate()
        assert scene.worker.wait(LIMIT_SECONDS) == 0


@pytest.mark.parametrize("status", [401, 404])
def test_3_a_refusal_in_the_clean_up_at_start_stops_nothing(
    server: StandInServer, tmp_path: Path, status: int
) -> None:
    api = server.api
    job_id = api.add_job("#!/bin/sh\necho again")
    claimed = {"enqueue_dts": "2026-01-01T00:00:00Z", "worker": api.worker_uri()}
    run_ids = [api.add_run(job_id, **claimed) for _ in range(3)]
    api.faults.add(
        Fault("status", "PATCH", f"/run/{run_ids[1]}/", times=None, status=status)
    )
    with working(server, tmp_path) as scene:
        others = [run_ids[0], run_ids[2]]
        api.wait_for(
            lambda: all(api.run(each)["enqueue_dts"] is None for each in others),
            "the others to be handed back",
        )
        scene.wait_for_line(f"WARNING run {run_ids[1]}: .*{status}")
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True


def test_4_a_run_of_another_pool_s_job_holds_no_slot(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    with working(server, tmp_path, concurrent_jobs=1) as scene:
        foreign = api.add_run(api.add_job("#!/bin/sh\n", of_another_pool=True))
        server.enqueue(foreign)
        scene.wait_for_line(f"ERROR run {foreign}: .*401.*pool")
        assert scene.run("#!/bin/sh\necho other")["return_success"] is True
        assert "the job cannot be read" in (api.log(foreign) or "")
        assert api.run(foreign)["return_dts"] is None


def test_5_a_drain_finishes_what_is_claimed_and_still_kills(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    if api.takes_batches:
        pytest.skip(THE_CLAIM_BRINGS_THE_JOB)
    slow = api.faults.add(Fault("delay", "GET", "/job/3/", seconds=1))
    with Gate(tmp_path) as gate, working(server, tmp_path, concurrent_jobs=3) as scene:
        running = scene.start(f"#!/bin/sh\n{gate.wait}\necho done")
        stuck = scene.start("#!/bin/sh\nexec sleep 60")
        claimed = server.submit("#!/bin/sh\necho late")
        scene.wait_for_claim(claimed)
        waiting = server.submit("#!/bin/sh\necho never")
        scene.wait_until_heard()
        scene.worker.terminate()
        scene.wait_for_line("stopping when 3 runs")
        refused = server.submit("#!/bin/sh\necho never")
        kill = server.kill(stuck)
        scene.wait_for_kill(kill)
        gate.open()
        assert scene.worker.wait(LIMIT_SECONDS) == 0
    assert slow.hits == 1
    assert [api.run(each)["return_success"] for each in (running, claimed)] == [
        True
    ] * 2
    assert [api.log(each) for each in (running, claimed)] == ["done\n", "late\n"]
    assert api.run(stuck)["exit_status"] == 143
    assert [api.patches_of(each) for each in (waiting, refused)] == [[], []]


def test_6_nothing_is_claimed_that_cannot_be_started(
    scene: Scene, tmp_path: Path
) -> None:
    api, server = scene.api, scene.server
    with Gate(tmp_path) as gate:
        held = [scene.start(f"#!/bin/sh\n{gate.wait}") for _ in range(2)]
        offered = [server.submit("#!/bin/sh\ntrue") for _ in range(4)]
        scene.wait_until_heard()
        ripe = time.monotonic() + OFFER_TTL_SECONDS
        eventually(lambda: time.monotonic() > ripe, "the offers to be too old")
        gate.open(2)
        for run_id in held:
            scene.end_of(run_id)
        scene.wait_until_heard()
    assert scene.run("#!/bin/sh\ntrue")["return_success"] is True
    assert [api.patches_of(run_id) for run_id in offered] == [[]] * 4


def test_7_a_kill_before_there_is_a_pid_is_not_lost(
    scene: Scene, tmp_path: Path
) -> None:
    api, server = scene.api, scene.server
    if api.takes_batches:
        pytest.skip(THE_CLAIM_BRINGS_THE_JOB)
    job_id = api.add_job(f"#!/bin/sh\necho began >{tmp_path}/began")
    held = api.faults.add(Fault("delay", "GET", f"/job/{job_id}/", seconds=0.5))
    run_id = api.add_run(job_id)
    server.enqueue(run_id)
    scene.wait_for_claim(run_id)
    kill = server.kill(run_id)
    run = scene.end_of(run_id)
    scene.wait_for_kill(kill)
    assert (held.hits, run["pid"], run["return_success"]) == (1, None, False)
    assert f"killed on request {kill} before the start" in (api.log(run_id) or "")
    assert not (tmp_path / "began").exists()


def test_7_a_kill_for_a_finished_run_signals_nobody(scene: Scene) -> None:
    api = scene.api
    run = scene.run("#!/bin/sh\ntrue")
    with subprocess.Popen(["sleep", "60"]) as innocent:
        api.change_run(run["id"], pid=innocent.pid)
        kill = scene.server.kill(run["id"])
        scene.wait_for_kill(kill)
        assert innocent.poll() is None
        innocent.kill()
    assert api.kill_request(kill)["enqueue_dts"] is not None


ESCAPE = """\
python3 - <<'END'
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open({path!r}, "w") as file:
            print(os.getpid(), file=file)
        os.execve("/bin/sleep", ["sleep", "60"], {{}})
    os._exit(0)
os.wait()
END
"""


def test_8_a_double_forked_child_dies_of_a_kill(scene: Scene, tmp_path: Path) -> None:
    script = "#!/bin/sh\n" + ESCAPE.format(path=str(tmp_path / "pid"))
    run_id = scene.start(f"{script}exec sleep 60")
    child = pid_in(tmp_path / "pid")
    kill = scene.server.kill(run_id)
    scene.wait_for_kill(kill)
    assert read_process(child) is None
    assert scene.end_of(run_id)["exit_status"] == 143


def test_8_a_double_forked_child_does_not_hold_the_run(
    scene: Scene, tmp_path: Path
) -> None:
    script = "#!/bin/sh\n" + ESCAPE.format(path=str(tmp_path / "pid"))
    run = scene.run(f"{script}echo mine")
    child = read_process(pid_in(tmp_path / "pid"))
    assert child is not None
    child.kill()
    assert run["return_success"] is True
    assert scene.api.log(run["id"]) == "mine\n"


def test_9_a_script_whose_worker_was_killed_goes_on_and_is_taken_up(
    server: StandInServer, tmp_path: Path
) -> None:
    with Gate(tmp_path) as gate:
        script = f"#!/bin/sh\necho one\n{gate.wait}\necho two\necho x >>{tmp_path}/file"
        with working(server, tmp_path, leaves_scripts=True) as scene:
            run_id = scene.start(script)
            pid = server.api.run(run_id)["pid"]
            scene.worker.kill()
            scene.worker.wait()
        assert read_process(pid) is not None
        gate.open()
        wait_for_death(pid)
        with working(server, tmp_path) as scene:
            run = scene.end_of(run_id)
    assert wait_for_text(tmp_path / "file") == "x\n"
    assert (run["pid"], run["exit_status"], run["return_success"]) == (pid, 0, True)
    assert server.api.log(run_id) == "one\ntwo\n"
    # The answer may have met nobody; then the same is said again.
    starts = {patch.get("start_dts") for patch in server.api.patches_of(run_id)}
    assert len(starts - {None}) == 1


def test_10_a_thousand_errors_leak_nothing_and_lose_nothing(scene: Scene) -> None:
    server, topic = scene.server, protocol.broadcast_topic("testworker")
    nonsense = [
        [topic],
        [topic, b"{"],
        [topic, b'{"action": "dance"}'],
        [topic, b'{"action": "enqueue", "run_id": "../3"}'],
        [topic, b'{"action": "ping"}', b"more"],
        [topic, b'{"action": "enqueue", "run_id": 1000001}'],
        [topic, b'{"action": "kill", "kill_request_id": 1000001}'],
    ]
    ignored = len([line for line in scene.worker.lines if "broadcast ignored" in line])
    counts = []
    for _ in range(2):
        run_ids = []
        for number in range(500):
            server.broadcast(nonsense[number % len(nonsense)])
            if number % 100 == 0:
                run_ids.append(server.submit("#!/bin/sh\ntrue"))
                scene.end_of(run_ids[-1])
        assert all(scene.end_of(run_id)["return_success"] for run_id in run_ids)
        scene.wait_until_heard()
        counts.append(len(_connections(scene, server.ports.api)))
        assert subscribers(server) == 1
        assert len(_connections(scene, server.ports.broadcast)) == 1
    assert max(counts) <= HTTP_CONNECTIONS
    lines = [line for line in scene.worker.lines if "broadcast ignored" in line]
    assert len(lines) - ignored > 700


def _connections(scene: Scene, port: int) -> list[object]:
    found = psutil.Process(scene.worker.pid).net_connections("tcp")
    return [each for each in found if each.raddr and each.raddr.port == port]


def test_11_an_output_of_100_mb_is_not_held_in_memory(scene: Scene) -> None:
    scene.run("#!/bin/sh\nyes 0123456789abcdef | head -c 2000000")
    before = _peak_bytes(scene.worker.pid)
    run = scene.run("#!/bin/sh\nyes 0123456789abcdef | head -c 100000000")
    grown = _peak_bytes(scene.worker.pid) - before
    assert run["return_success"] is True
    assert len(scene.api.log(run["id"]) or "") == 819200 + 15
    assert grown < 8 * MEBIBYTE


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024
