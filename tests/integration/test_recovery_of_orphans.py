"""Runs that the server has as this worker's and no folder knows; and many crashes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from scene import LIMIT_SECONDS, run_folders, working

from job_runner_worker.testing import FakeApi, Fault, StandInServer

pytestmark = pytest.mark.integration

CLAIMED_AT, STARTED_AT = "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"
MORE_THAN_A_PAGE = 230


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with StandInServer() as server:
        yield server


def add_orphan(api: FakeApi, job_id: int, *, started: bool = False) -> int:
    fields = {"enqueue_dts": CLAIMED_AT, "worker": api.worker_uri()}
    if started:
        fields["start_dts"] = STARTED_AT
    return api.add_run(job_id, **fields)


def test_every_page_is_read_before_the_first_run_is_handed_back(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    job_id = api.add_job("#!/bin/sh\ntrue")
    queued = [add_orphan(api, job_id) for _ in range(MORE_THAN_A_PAGE)]
    started = [add_orphan(api, job_id, started=True) for _ in range(5)]
    api.faults.add(Fault("status", "PATCH", f"/run/{queued[7]}/", status=404))
    with working(server, tmp_path):
        api.wait_for(
            lambda: len(api.runs("scheduled")) == MORE_THAN_A_PAGE + 4,
            "all but one to be handed back",
            LIMIT_SECONDS,
        )
    requests = [each for each in api.requests if "/run/" in each.path]
    methods = [each.method for each in requests]
    pages = methods.index("PATCH")
    assert pages == 3
    assert set(methods[pages:]) == {"PATCH"}
    back = {"enqueue_dts": None, "start_dts": None}
    assert all(each.body == back for each in requests[pages:])
    counts = Counter(each.run_id for each in requests[pages:])
    assert set(counts) == {*queued, *started}
    assert set(counts.values()) == {1}


def test_with_interrupted_runs_fail_they_are_given_an_end(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    job_id = api.add_job("#!/bin/sh\necho never")
    runs = [add_orphan(api, job_id, started=number > 2) for number in range(6)]
    with_log = runs[4]
    api.add_log(with_log, "what had been said\n")
    api.faults.add(Fault("status", "PATCH", f"/run/{runs[1]}/", times=None, status=404))
    with working(server, tmp_path, interrupted_runs="fail") as scene:
        for run_id in set(runs) - {runs[1]}:
            run = scene.end_of(run_id)
            assert run["return_success"] is False
            assert "no record of the run" in run["reason"]
            if run_id == with_log:
                assert api.log(run_id) == "what had been said\n"
            else:
                assert run["reason"] in (api.log(run_id) or "")
            scene.wait_until_gone(run_id)
        run = scene.run("#!/bin/sh\ntrue")
        assert run["return_success"] is True
        scene.wait_until_gone(run["id"])
    assert api.count("PATCH", "/run_log/") == 0
    assert run_folders(tmp_path / "spool") == ["failed"]


def test_an_orphan_of_another_pool_does_not_hold_up_the_others(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    foreign_job = api.add_job("#!/bin/sh\n", of_another_pool=True)
    job_id = api.add_job("#!/bin/sh\n")
    # The latest run stands first in the server's answers.
    runs = [add_orphan(api, job_id) for _ in range(3)]
    foreign = add_orphan(api, foreign_job)
    with working(server, tmp_path, interrupted_runs="fail") as scene:
        scene.wait_for_line(f"ERROR run {foreign}: .*401")
        for run_id in runs:
            assert scene.end_of(run_id)["return_success"] is False


def test_a_run_that_is_offered_at_once_is_not_taken_for_an_orphan(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    api.faults.add(Fault("delay", "GET", "state=in_queue", seconds=0.3))
    with working(server, tmp_path) as scene:
        run_id = scene.start("#!/bin/sh\nsleep 0.5")
        assert scene.end_of(run_id)["return_success"] is True
        scene.wait_until_heard()
    back = {"enqueue_dts": None, "start_dts": None}
    assert back not in api.patches_of(run_id)


def test_whenever_it_is_killed_each_script_runs_once_and_each_log_is_whole(
    tmp_path: Path,
) -> None:
    """A worker is killed after so many requests, the next takes over, and so on."""
    said = tmp_path / "said"
    with StandInServer(repeat_seconds=0.2) as server:
        api = server.api
        script = (
            f"#!/bin/sh\nid=$JOB_RUNNER_RUN_ID\necho begin $id\necho $id >>{said}\n"
            "sleep 0.0$((id % 7))\necho end\nexit $((id % 2))"
        )
        job_id = api.add_job(script)
        run_ids: list[int] = []
        lines: list[str] = []
        for more_requests in (5, 7, 8, 9, 11, 12, 14, 17):
            with working(server, tmp_path, leaves_scripts=True) as scene:
                limit = api.count() + more_requests
                run_ids += [api.add_run(job_id) for _ in range(4)]
                for run_id in run_ids[-4:]:
                    server.enqueue(run_id)
                api.wait_for(
                    lambda limit=limit: api.count() >= limit,  # type: ignore[misc]
                    "the next moment",
                    LIMIT_SECONDS,
                )
                scene.worker.kill()
                scene.worker.wait()
            lines += scene.worker.lines
        with working(server, tmp_path) as scene:
            for run_id in run_ids:
                run = scene.end_of(run_id)
                assert run["exit_status"] == run_id % 2
                assert run["return_success"] is (run_id % 2 == 0)
                assert api.log(run_id) == f"begin {run_id}\nend\n"
            scene.worker.terminate()
            assert scene.worker.wait(LIMIT_SECONDS) == 0
        lines += scene.worker.lines
    counts = Counter(int(line) for line in said.read_text().split())
    errors = [line for line in lines if re.search("Z (ERROR|WARNING) ", line)]
    assert [line for line in errors if "No such file" not in line] == []
    assert counts == dict.fromkeys(run_ids, 1)
    # Killed between making a folder and writing into it, a worker leaves nothing else.
    assert list((tmp_path / "spool" / "failed").glob("*/*")) == []
    for run_id in run_ids:
        ends = [
            request
            for request in api.requests_like("PATCH", f"/run/{run_id}/$")
            if request.carried_out and "return_dts" in request.body
        ]
        assert len(ends) == 1
        assert api.requests_like(run_id=run_id)[-1].method in ("GET", "PATCH")
