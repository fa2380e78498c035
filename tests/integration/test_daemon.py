"""What a server sees of an ordinary worker, and what its log says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from scene import LIMIT_SECONDS, Gate, Scene, run_folders, working
from waiting import eventually

from job_runner_worker import __version__, protocol
from job_runner_worker.testing import FakeApi, Ports, StandInServer

pytestmark = pytest.mark.integration

SECRET = "verysecret"
SCRIPT_MARK = "a-word-of-the-script"
SHORT_RUN_REQUESTS = 6


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("worker")
    with StandInServer() as server, working(server, folder) as scene:
        yield scene


def test_a_ping_is_answered_with_time_version_and_slots(scene: Scene) -> None:
    scene.wait_until_heard()
    worker = scene.api.worker()
    assert worker["ping_response_dts"] is not None
    assert (worker["worker_version"], worker["concurrent_jobs"]) == (__version__, 4)
    assert not [each for each in scene.server.events if "ping" in str(each)]


def test_events_tell_what_becomes_of_a_run(scene: Scene) -> None:
    run_id = scene.run("#!/bin/sh\ntrue")["id"]
    scene.server.wait_for_event(LIMIT_SECONDS, event="returned", run_id=run_id)
    found = [each for each in scene.server.events if each.get("run_id") == run_id]
    assert found == [
        {"kind": "run", "event": event, "run_id": run_id}
        for event in ("enqueued", "started", "returned")
    ]
    assert scene.server.bad_events == []


def test_start_and_pid_come_in_one_patch_and_the_pid_is_the_script_s(
    scene: Scene,
) -> None:
    run = scene.run("#!/bin/sh\necho $$")
    starts = [each for each in scene.api.patches_of(run["id"]) if "pid" in each]
    assert [sorted(each) for each in starts] == [["pid", "start_dts"]]
    assert scene.api.log(run["id"]) == f"{run['pid']}\n"


def test_dates_have_an_offset_and_are_in_order(scene: Scene) -> None:
    run = scene.run("#!/bin/sh\ntrue")
    names = ("enqueue_dts", "start_dts", "return_dts")
    patches = scene.api.patches_of(run["id"])
    dates = [
        datetime.fromisoformat(each[n]) for each, n in zip(patches, names, strict=True)
    ]
    assert all(date.tzinfo is not None for date in dates)
    assert dates == sorted(dates)


def test_the_log_grows_while_the_script_runs(scene: Scene, tmp_path: Path) -> None:
    api = scene.api
    with Gate(tmp_path) as gate:
        script = f"#!/bin/sh\necho one\n{gate.wait}\necho two\n{gate.wait}\necho three"
        run_id = scene.server.submit(script)
        for content in ("one\n", "one\ntwo\n"):
            api.wait_for(
                lambda content=content: (  # type: ignore[misc]
                    api.run(run_id)["run_log"] and api.log(run_id) == content
                ),
                f"the log {content!r}",
                LIMIT_SECONDS,
            )
            assert api.run(run_id)["return_dts"] is None
            gate.open()
        scene.end_of(run_id)
    assert api.log(run_id) == "one\ntwo\nthree\n"
    logs = [each for each in api.requests_like(run_id=run_id) if "log" in each.path]
    assert [each.method for each in logs] == ["POST", "PATCH", "PATCH"]


def test_a_quiet_script_s_log_is_sent_once(scene: Scene) -> None:
    run = scene.run("#!/bin/sh\necho hello\nsleep 0.35")
    logs = [each for each in scene.api.requests_like(run_id=run["id"])]
    contents = [each.body["content"] for each in logs if "log" in each.path]
    assert set(contents) == {"hello\n"}
    # While it runs, and in the end: what stands there is known to be all.
    assert len(contents) <= 2


def test_a_run_without_output_has_an_empty_log(scene: Scene) -> None:
    run = scene.run("#!/bin/sh\nexit 3")
    assert scene.api.log(run["id"]) == ""
    assert (run["return_success"], run["exit_status"], run["reason"]) == (False, 3, "")


def test_a_long_output_keeps_its_first_20_and_last_80_percent(scene: Scene) -> None:
    run = scene.run("#!/bin/sh\nseq -w 1000000 | head -c 3000000")
    output = "".join(f"{number:07}\n" for number in range(1, 375001))
    expected = output[:163840] + "\n\n[truncated]\n\n" + output[-655360:]
    assert scene.api.log(run["id"]) == expected


def test_an_output_of_exactly_the_limit_is_whole(scene: Scene) -> None:
    run = scene.run("#!/bin/sh\nhead -c 819200 /dev/zero | tr '\\0' x")
    assert scene.api.log(run["id"]) == "x" * 819200


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo no shebang", "#!"),
        ("#!/no/such/interpreter\n", "/no/such/interpreter"),
        ("#!\n", "shebang"),
    ],
)
def test_a_script_that_cannot_be_started_says_why(
    scene: Scene, script: str, reason: str
) -> None:
    run = scene.run(script)
    assert (run["return_success"], run["pid"]) == (False, None)
    assert run["start_dts"] is not None
    assert reason in run["reason"]
    assert run["reason"] in (scene.api.log(run["id"]) or "")


def test_the_final_patch_is_the_last_request_about_a_run(scene: Scene) -> None:
    run = scene.run("#!/bin/sh\necho hello\nexit 7")
    scene.wait_until_gone(run["id"])
    scene.wait_until_heard()
    *_, last = scene.api.requests_like(run_id=run["id"])
    assert last.method == "PATCH"
    assert last.body.pop("return_dts") is not None
    assert last.body == {"return_success": False, "exit_status": 7, "reason": ""}


def test_a_short_run_takes_six_requests(scene: Scene) -> None:
    run_ids = [scene.run("#!/bin/sh\necho hello")["id"] for _ in range(3)]
    for run_id in run_ids:
        found = [f"{r.method} {r.path}" for r in scene.api.requests_like(run_id=run_id)]
        assert len(found) == SHORT_RUN_REQUESTS, found


def test_concurrent_jobs_is_respected(tmp_path: Path) -> None:
    with (
        StandInServer(repeat_seconds=0.1) as server,
        Gate(tmp_path) as gate,
        working(server, tmp_path, concurrent_jobs=3) as scene,
    ):
        api = server.api
        job_id = api.add_job(f"#!/bin/sh\n{gate.wait}")
        run_ids = [api.add_run(job_id) for _ in range(8)]
        most = []
        for ended in range(8):
            expected = min(3, 8 - ended)
            api.wait_for(
                lambda expected=expected: len(api.runs("started")) == expected,  # type: ignore[misc]
                f"{expected} runs at once",
                LIMIT_SECONDS,
            )
            scene.wait_until_heard()
            most.append(len(api.runs("started")) + len(api.runs("in_queue")))
            gate.open()
            api.wait_for(
                lambda ended=ended: len(api.runs("completed")) == ended + 1,  # type: ignore[misc]
                "the next end",
                LIMIT_SECONDS,
            )
        assert max(most) == 3
        assert all(api.run(run_id)["return_success"] for run_id in run_ids)


def test_another_worker_s_orders_are_ignored_though_the_prefix_fits(
    scene: Scene,
) -> None:
    api, others_key = scene.api, "testworker2"
    run_id = api.add_run(api.add_job("#!/bin/sh\ntrue"))
    for command in ({"action": "enqueue", "run_id": run_id}, {"action": "ping"}):
        topic = protocol.broadcast_topic(others_key)
        scene.server.broadcast([topic, str(command).replace("'", '"').encode()])
    pings = api.count("PATCH", r"/worker/\d+/$")
    scene.wait_until_heard()
    assert api.count("PATCH", r"/worker/\d+/$") == pings + 1
    assert api.count(run_id=run_id) == 0


def test_the_log_has_one_line_for_each_thing_that_happened(scene: Scene) -> None:
    run = scene.run("#!/bin/sh\nexit 2")
    scene.wait_for_line(f"run {run['id']}: used ")
    *lines, usage = scene.lines_about(run["id"])
    assert lines == [
        f"INFO run {run['id']}: claimed",
        f"INFO run {run['id']}: running, pid {run['pid']}",
        f"INFO run {run['id']}: failed, exit status 2",
    ]
    form = r"used \d+\.\d\d s in all, CPU \d+\.\d\d s, peak memory .+, output 0 bytes"
    assert re.fullmatch(f"INFO run {run['id']}: {form}", usage)
    lines = [line for line in scene.worker.lines]
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) \S.*"
    assert [line for line in lines if not re.fullmatch(form, line)] == []


def test_neither_secret_nor_script_stands_in_the_log_at_any_level(
    scene: Scene,
) -> None:
    scene.run(f"#!/bin/sh\n# {SCRIPT_MARK}\nfalse")
    scene.run(f"#!/no/such/interpreter\n# {SCRIPT_MARK}")
    scene.wait_until_heard()
    text = "\n".join(scene.worker.lines)
    assert SECRET not in text
    assert SCRIPT_MARK not in text
    assert "ApiKey" not in text


def test_thirty_runs_share_a_few_connections(tmp_path: Path) -> None:
    with StandInServer() as server, working(server, tmp_path) as scene:
        job_id = server.api.add_job("#!/bin/sh\necho hello")
        for _ in range(10):
            run_ids = [server.api.add_run(job_id) for _ in range(3)]
            for run_id in run_ids:
                server.enqueue(run_id)
            for run_id in run_ids:
                assert scene.end_of(run_id)["return_success"] is True
        assert server.connections_accepted <= 8
        scene.worker.terminate()
        assert scene.worker.wait(LIMIT_SECONDS) == 0
        assert run_folders(tmp_path / "spool") == []


@pytest.mark.parametrize("original", [True, False])
def test_a_server_that_closes_each_connection_is_served_as_well(
    tmp_path: Path, original: bool
) -> None:
    api = FakeApi(original=original)
    with (
        StandInServer(api, keep_alive=False) as server,
        working(server, tmp_path) as scene,
    ):
        run = scene.run("#!/bin/sh\necho hello")
        assert run["return_success"] is True
        assert api.log(run["id"]) == "hello\n"


def test_netrc_does_not_override_the_authorization(tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    env = {"HOME": str(tmp_path), "NETRC": str(netrc)}
    with StandInServer() as server, working(server, tmp_path, env=env) as scene:
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True
        assert {each.status for each in server.api.requests} == {200, 201, 202}


def test_everything_works_over_ipv6(tmp_path: Path) -> None:
    with (
        StandInServer(host="::1", ports=Ports()) as server,
        working(server, tmp_path) as scene,
    ):
        run = scene.run("#!/bin/sh\necho six")
        assert server.api.log(run["id"]) == "six\n"
        server.wait_for_event(LIMIT_SECONDS, event="returned", run_id=run["id"])
        eventually(lambda: run_folders(tmp_path / "spool") == [], "an empty spool")
