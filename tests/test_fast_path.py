"""What our worker says to our own server: few requests, and every promise kept.

The worker's core, claims, reporter and batches are real; the server is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.queue import Queue
from in_process import LIMIT_SECONDS, make_worker, open_spool
from waiting import eventually

from job_runner_worker import batching
from job_runner_worker.batching import BatchingApi
from job_runner_worker.claims import CentralClaims, ResourcePaths
from job_runner_worker.models import Command, Enqueue
from job_runner_worker.reporters.rest import RestOptions, RestReporter
from job_runner_worker.sources.central import CentralSource
from job_runner_worker.spool import Spool
from job_runner_worker.testing import FakeApi, FakeExecutor, Fault
from job_runner_worker.worker import Worker

SCRIPT = "#!/bin/sh\necho hi\n"
THEN = "2026-01-01T00:00:00+00:00"
PATHS = ResourcePaths()


class PushedSource(CentralSource):
    """Orders of the central server, as the test gives them."""

    name = "broadcast"

    def __init__(self, claims: CentralClaims) -> None:
        super().__init__(claims)
        self.queue: Queue[Command | None] = Queue()

    def commands(self) -> Iterator[Command]:
        while (command := self.queue.get()) is not None:
            yield command

    def close(self) -> None:
        self.queue.put(None)


@dataclass
class Fast:
    """A worker and its server."""

    api: FakeApi
    source: PushedSource
    executor: FakeExecutor
    worker: Worker
    spool: Spool

    def offer(self, script: str = SCRIPT, **fields: object) -> int:
        run_id = self.api.add_run(self.api.add_job(script, "a title"), **fields)
        self.source.queue.put(Enqueue(run_id))
        return run_id

    def end(self, run_id: int, **outcome: Any) -> dict[str, Any]:
        """Let a script end once it has begun; return the run as it ended."""
        self.executor.wait_for_start(run_id).end(**outcome)
        return self.api.wait_for_end(run_id)

    def run(self) -> dict[str, Any]:
        return self.end(self.offer())

    def folders(self) -> list[str]:
        names = {path.name for path in self.spool.path.iterdir()}
        return sorted(names - {"lock", "spool.json"})

    def wait_until_idle(self) -> None:
        eventually(lambda: not self.worker.runs, "no run in hand")


@contextmanager
def fast(path: Path, api: FakeApi, **options: Any) -> Iterator[Fast]:
    """Yield a worker that knows what its server takes; it is stopped in the end."""
    batches = BatchingApi(api, sleep=lambda seconds: gevent.sleep(0))
    claims = CentralClaims(batches, PATHS, api.api_key, batches)
    rest = RestReporter(
        batches,
        RestOptions(PATHS.run_log, PATHS.kill_request, 4),
        claims.worker_uri,
        lambda seconds: gevent.sleep(0),
        batches,
        claims.is_of_our_server,
    )
    spool = open_spool(path)
    source, executor = PushedSource(claims), FakeExecutor()
    worker = make_worker(spool, [source], executor, [rest], **options)
    running = gevent.spawn(worker.run)
    try:
        claims.worker_uri()
        api.wait_for(lambda: api.count("GET", "state=started"), "the start")
        api.requests.clear()
        yield Fast(api, source, executor, worker, spool)
    finally:
        worker.stop(drain=False)
        running.join(LIMIT_SECONDS)
        spool.close()


@pytest.fixture
def api() -> FakeApi:
    return FakeApi(batches=True)


@pytest.fixture
def made(tmp_path: Path, api: FakeApi) -> Iterator[Fast]:
    with fast(tmp_path, api) as worker:
        yield worker


def asked(api: FakeApi) -> list[str]:
    """What was asked but for batches themselves, without ids."""
    found = [each for each in api.requests if "/batch/" not in each.path]
    return [f"{each.method} {each.path.split('/')[3]}" for each in found]


def test_a_run_takes_three_requests(made: Fast) -> None:
    run = made.run()
    assert run["return_success"] is True
    assert made.api.log(run["id"]) == "hi\n" or made.api.log(run["id"]) == ""
    made.wait_until_idle()
    assert asked(made.api) == ["PATCH run"] * 3
    assert made.api.count_http() == 3
    assert made.folders() == []


def test_the_claim_brings_the_script(made: Fast) -> None:
    run_id = made.offer("#!/bin/sh\necho so\n")
    execution = made.executor.wait_for_start(run_id)
    run = made.worker.runs[run_id].folder.run
    assert (run.script, run.job_title) == ("#!/bin/sh\necho so\n", "a title")
    assert run.uri == f"/api/v1/run/{run_id}/"
    execution.end()
    made.api.wait_for_end(run_id)


def test_runs_that_are_busy_share_requests(made: Fast) -> None:
    made.worker.reconfigure(made.worker.options)
    run_ids = [made.offer(), made.offer()]
    executions = [made.executor.wait_for_start(each) for each in run_ids]
    for execution in executions:
        execution.end()
    for run_id in run_ids:
        made.api.wait_for_end(run_id)
    assert made.api.count_http() < 6


def test_a_run_that_another_worker_has_is_dropped(made: Fast) -> None:
    made.api.add_worker("other", "othersecret")
    other = made.api.worker_uri("other")
    run_id = made.offer(enqueue_dts=THEN, worker=other)
    made.api.wait_for(lambda: made.api.count("GET", f"/run/{run_id}/"), "the look")
    made.wait_until_idle()
    assert made.api.run(run_id)["worker"] == other
    assert made.folders() == []


def test_a_run_that_our_key_has_claimed_elsewhere_is_not_run_twice(
    made: Fast, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = made.offer(enqueue_dts=THEN, worker=made.api.worker_uri())
    made.api.wait_for(lambda: made.api.count("GET", f"/run/{run_id}/"), "the look")
    made.wait_until_idle()
    assert not made.executor.executions
    assert made.api.run(run_id)["enqueue_dts"] == THEN
    assert "is the key used on two hosts?" in caplog.text
    assert made.folders() == []


@pytest.mark.parametrize("kind", ["drop", "lose_answer", "truncate", "garbage"])
@pytest.mark.parametrize("has", ["with_job", "start_dts", "return_dts"])
def test_whatever_is_lost_the_run_begins_and_ends_once(
    made: Fast, kind: Any, has: str
) -> None:
    made.api.faults.add(Fault(kind, "PATCH", "/run/", body_has=f'"{has}"'))
    run = made.run()
    assert run["return_success"] is True
    assert made.api.log(run["id"]) is not None
    made.wait_until_idle()
    assert len(made.executor.executions) == 1
    (end,) = [
        each
        for each in made.api.requests
        if each.is_item and each.carried_out and "return_dts" in (each.body or {})
    ]
    later = made.api.requests[made.api.requests.index(end) + 1 :]
    assert not [each for each in later if each.method == "PATCH"]
    assert made.folders() == []


@pytest.mark.parametrize("kind", ["drop", "lose_answer", "truncate", "garbage"])
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_whichever_batch_is_lost_the_run_begins_and_ends_once(
    made: Fast, kind: Any, skip: int
) -> None:
    made.api.faults.add(Fault(kind, "POST", "/batch/", skip=skip))
    assert made.run()["return_success"] is True
    made.wait_until_idle()
    assert len(made.executor.executions) == 1
    assert made.folders() == []


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("has", ["with_job", "start_dts", "return_dts"])
def test_a_server_that_is_busy_is_asked_again(
    made: Fast, status: int, has: str
) -> None:
    busy = Fault("status", "PATCH", "/run/", body_has=f'"{has}"', status=status)
    made.api.faults.add(busy)
    assert made.run()["return_success"] is True
    assert busy.hits == 1
    made.wait_until_idle()
    assert made.folders() == []


@pytest.mark.parametrize("has", ["with_job", "start_dts", "return_dts"])
def test_a_server_that_takes_no_batches_any_more_gets_the_original_protocol(
    made: Fast, has: str
) -> None:
    def forget() -> None:
        made.api.takes_batches = False

    run_id = made.offer() if has != "with_job" else 0
    if has == "return_dts":
        made.api.wait_for(
            lambda: made.api.run(run_id)["start_dts"], "the start is reported"
        )
    forget()
    run_id = run_id or made.offer()
    assert made.end(run_id)["return_success"] is True
    made.wait_until_idle()
    assert made.api.log(run_id) is not None
    assert made.folders() == []
    made.api.requests.clear()
    made.run()
    made.wait_until_idle()
    assert sorted(asked(made.api)) == sorted(
        ["GET run", "PATCH run", "GET job", "PATCH run", "POST run_log", "PATCH run"]
    )


def test_a_server_without_batches_gets_the_original_protocol(tmp_path: Path) -> None:
    with fast(tmp_path, FakeApi(original=False)) as made:
        made.run()
        made.wait_until_idle()
        assert len(asked(made.api)) == 6
        assert not made.api.count(path="/batch/")


def test_a_script_that_is_too_long_for_a_batch_is_fetched(
    made: Fast, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    ask = made.api.ask

    def without_bodies(path: str, body: bytes) -> dict[str, Any]:
        found = ask(path, body)
        for answer in found["answers"]:
            if answer["status"] == 202 and "body" in answer:
                keys.extend(answer.pop("body"))
        return found

    monkeypatch.setattr(made.api, "ask", without_bodies)
    run_id = made.offer("#!/bin/sh\necho so\n")
    made.executor.wait_for_start(run_id)
    monkeypatch.undo()
    assert made.worker.runs[run_id].folder.run.script == "#!/bin/sh\necho so\n"
    assert "job" in keys
    assert made.end(run_id)["return_success"] is True


def test_a_long_log_goes_before_the_end(
    made: Fast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MAX_ITEM_BYTES", 250)
    run_id = made.offer()
    made.executor.wait_for_start(run_id)
    output = made.worker.runs[run_id].folder.output.path
    with output.open("a") as file:
        file.write("x" * 300)
    assert made.end(run_id)["return_success"] is True
    assert made.api.log(run_id) == "x" * 300
    order = [f"{x.method} {x.path.split('/')[3]}" for x in made.api.requests]
    assert order.index("POST run_log") < len(order) - 1
    assert order[-1] in ("PATCH run", "POST batch")


def test_a_refused_end_is_told_step_by_step_and_kept(made: Fast) -> None:
    no = Fault(
        "status", "PATCH", "/run/", body_has='"return_dts"', status=403, times=None
    )
    made.api.faults.add(no)
    run_id = made.offer()
    made.executor.wait_for_start(run_id).end()
    made.wait_until_idle()
    assert made.api.log(run_id) is not None
    assert made.folders() == ["failed"]


def test_an_end_that_was_stored_before_a_crash_is_not_sent_again(
    tmp_path: Path, api: FakeApi
) -> None:
    with fast(tmp_path, api) as first:
        run_id = first.offer()
        first.executor.wait_for_start(run_id)
        api.wait_for(lambda: api.run(run_id)["start_dts"], "the start is reported")
        api.faults.add(Fault("lose_answer", "POST", "/batch/"))
        lost = Fault("drop", "GET", f"/run/{run_id}/", times=None)
        api.faults.add(lost)
        first.executor.executions[run_id].end()
        api.wait_for_end(run_id)
        api.wait_for(lambda: lost.hits, "the worker asks whether it was stored")
        # It is gone before it knows.
    assert first.folders() == [str(run_id)]
    api.faults.clear()
    log = api.log(run_id)
    with fast(tmp_path, api) as second:
        second.wait_until_idle()
        assert second.folders() == []
    assert api.log(run_id) == log
    assert not [each for each in api.patches_of(run_id) if "return_dts" in each][1:]
