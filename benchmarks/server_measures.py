"""What the server is asked for: runs to their end, orders in time, many requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import callers
import database_cpu
import zmq
from central import BenchmarkError
from figures import Figure
from measured_server import MeasuredServer, ids
from measured_worker import MeasuredWorker
from processes import cpu_seconds

SCRIPT = "#!/bin/sh\ntrue\n"
WORKERS = 4
SLOTS = 4
LIMIT_SECONDS = 60.0
POLL_SECONDS = 0.02
SUBMISSION_SECONDS = 0.06
"""What the submission of a run may take before the runs are due."""
MARGIN_SECONDS = 1.0
AHEAD_SECONDS = 0.25
PAUSE_SECONDS = 0.05
CLIENTS = 4
PAGE = 20
LOG = "a line of output\n" * 100
RATE_TARGET = {"median": 100.0}
DUE_TARGET = {"p95": 50.0}


@dataclass(frozen=True)
class Site:
    """A server, its database's name, and what has been made in it for measuring."""

    server: MeasuredServer
    kind: str
    workers: list[dict[str, Any]]
    job_uri: str
    listener: dict[str, Any]
    listener_job_uri: str

    @classmethod
    def make(cls, server: MeasuredServer, kind: str) -> Site:
        """Make a job of four workers, and one of a worker that is ourselves."""
        *workers, listener = server.make("workers", WORKERS)
        with server.person() as person:
            pools = {
                pool["title"]: pool["resource_uri"]
                for pool in person.get("worker_pool/")["objects"]
            }
            (template,) = person.get("job_template/")["objects"]
            jobs = [
                person.post(
                    "job/",
                    title=title,
                    job_template=template["resource_uri"],
                    worker_pool=pools[title],
                    script_content_partial=SCRIPT,
                )
                for title in ("default", "listener")
            ]
        uris = [callers.API + job for job in jobs]
        return cls(server, kind, workers, uris[0], listener, uris[1])

    def caller(self) -> callers.Worker:
        """Return the worker that is ourselves."""
        known = self.listener
        return callers.Worker(self.server.url, known["api_key"], known["secret"])


@dataclass(frozen=True)
class Round:
    """What came of some runs; a rate counts from the first claim to the last end."""

    runs_per_second: float
    server_cpu_ms: float
    others_cpu_ms: float | None
    database_cpu_ms: float | None


def measure_rate(site: Site, path: Path, rounds: int, runs: int) -> list[Figure]:
    """Let four workers do many runs that are due at once."""
    found = []
    # A job is not run twice at once: each run is of another one.
    (job_id,) = ids([site.job_uri])
    made = site.server.make("jobs", job_id, max(runs, WORKERS * SLOTS))
    jobs = [f"{callers.API}job/{each}/" for each in made]
    with ExitStack() as stack:
        person = stack.enter_context(site.server.person())
        backends = stack.enter_context(database_cpu.backends(site.server.database_url))
        workers = []
        for number, known in enumerate(site.workers):
            config = site.server.write_config(path / f"worker{number}", known, SLOTS)
            workers.append(stack.enter_context(MeasuredWorker(config)))
        _wait_for_workers(person)
        rate = partial(_rate, site, person, workers, backends)
        rate(jobs[: WORKERS * SLOTS])
        for _ in range(rounds):
            found.append(rate(jobs[:runs]))
    what = f"{runs} runs of true, {WORKERS} workers"
    return [
        Figure(
            f"rate_{site.kind}",
            f"claimed -> completed; {what}; {site.kind}",
            "1/s",
            [each.runs_per_second for each in found],
            RATE_TARGET,
            at_least=True,
        ),
        Figure(
            f"run_cpu_{site.kind}",
            f"CPU per run, the server; {site.kind}",
            "ms",
            [each.server_cpu_ms for each in found],
        ),
        *_known(
            f"run_cpu_workers_{site.kind}",
            f"CPU per run, workers, shims and scripts; {site.kind}",
            [each.others_cpu_ms for each in found],
        ),
        *_known(
            f"run_cpu_database_{site.kind}",
            f"CPU per run, backends of the database; {site.kind}",
            [each.database_cpu_ms for each in found],
        ),
    ]


def _known(key: str, name: str, found: Sequence[float | None]) -> list[Figure]:
    known = [each for each in found if each is not None]
    return [Figure(key, name, "ms", known)] if known else []


def _rate(
    site: Site,
    person: callers.Caller,
    workers: Sequence[MeasuredWorker],
    backends: database_cpu.Read,
    jobs: Sequence[str],
) -> Round:
    """Have a run of each job done."""
    runs = len(jobs)
    before = _completed(person)
    due_at = _in(MARGIN_SECONDS + runs * SUBMISSION_SECONDS)
    due = due_at.isoformat()
    mine = [person.post("run/", job=job, schedule_dts=due) for job in jobs]
    if datetime.now(UTC) > due_at:
        raise BenchmarkError("the runs were due before all were submitted")
    time.sleep((due_at - datetime.now(UTC)).total_seconds())
    cpu, others = cpu_seconds(site.server.pid), _cpu_of(workers)
    database = backends()
    deadline = time.monotonic() + LIMIT_SECONDS
    done = 0
    while done < runs:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{done} of {runs} runs have ended")
        time.sleep(POLL_SECONDS)
        # Who asks the server all the time measures that.
        if all(worker.is_quiet() for worker in workers):
            ended_at = datetime.now(UTC)
            done = _completed(person) - before
    cpu = cpu_seconds(site.server.pid) - cpu
    others_after = _cpu_of(workers)
    database_cpu_seconds = database_cpu.seconds_between(database, backends())
    page = person.get(f"run/?limit={runs}")["objects"]
    if {run["id"] for run in page} != set(ids(mine)):
        raise BenchmarkError("there are other runs")
    if not all(run["return_success"] for run in page):
        raise BenchmarkError("a script that should succeed did not")
    began_at = min(datetime.fromisoformat(run["enqueue_dts"]) for run in page)
    return Round(
        runs_per_second=runs / (ended_at - began_at).total_seconds(),
        server_cpu_ms=cpu * 1000 / runs,
        others_cpu_ms=(
            None
            if others is None or others_after is None
            else (others_after - others) * 1000 / runs
        ),
        database_cpu_ms=(
            None if database_cpu_seconds is None else database_cpu_seconds * 1000 / runs
        ),
    )


def _cpu_of(workers: Sequence[MeasuredWorker]) -> float | None:
    """Return the CPU time of workers and all they started, None if it is unknown."""
    total = 0.0
    for worker in workers:
        seconds = worker.everything_cpu_seconds()
        if seconds is None:
            return None
        total += seconds
    return total


def _completed(person: callers.Caller) -> int:
    total: int = person.get("run/?state=completed&limit=1")["meta"]["total_count"]
    return total


def _wait_for_workers(person: callers.Caller) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        found = person.get("worker/")["objects"]
        if sum(each["ping_response_dts"] is not None for each in found) >= WORKERS:
            return
        if time.monotonic() > deadline:
            raise BenchmarkError("the workers do not answer the server's pings")
        time.sleep(POLL_SECONDS)


def measure_orders(site: Site, runs: int) -> list[Figure]:
    """Be a worker that has all slots free; how soon does it hear of a due run?"""
    submitted, scheduled = [], []
    with (
        zmq.Context() as context,
        context.socket(zmq.SUB) as orders,
        site.server.person() as person,
        site.caller() as worker,
    ):
        orders.setsockopt(zmq.LINGER, 0)
        orders.setsockopt(zmq.RCVTIMEO, int(LIMIT_SECONDS * 1000))
        orders.connect(f"tcp://127.0.0.1:{site.server.ports['broadcast']}")
        orders.subscribe(f"master.broadcast.{site.listener['api_key']}")
        _next_order(orders, "ping")
        for _ in range(runs):
            for found, ahead_seconds in ((submitted, 0.0), (scheduled, AHEAD_SECONDS)):
                due_at = _in(ahead_seconds)
                later = {"schedule_dts": due_at.isoformat()} if ahead_seconds else {}
                run = person.post("run/", job=site.listener_job_uri, **later)
                _next_order(orders, "enqueue")
                found.append((datetime.now(UTC) - due_at).total_seconds() * 1000)
                _do(worker, run)
                time.sleep(PAUSE_SECONDS)
    return [
        Figure(
            f"due_{name}_{site.kind}",
            f"{what} -> order is at the worker; {site.kind}",
            "ms",
            values,
            DUE_TARGET,
        )
        for name, what, values in (
            ("submitted", "POST run is sent", submitted),
            ("scheduled", "schedule_dts, some time ahead,", scheduled),
        )
    ]


def _next_order(orders: zmq.Socket[bytes], action: str) -> None:
    while True:
        _, content = orders.recv_multipart()
        if f'"{action}"'.encode() in content:
            return


def _do(worker: callers.Caller, run: str) -> None:
    """Claim a run and end it."""
    now = datetime.now(UTC).isoformat()
    worker.patch(run, enqueue_dts=now)
    worker.patch(run, start_dts=now, pid=1)
    worker.patch(run, return_dts=now, return_success=True)


def measure_requests(site: Site, rounds: int, count: int) -> list[Figure]:
    """Let a few clients ask at the same time, each as often as it can."""
    (job_id,) = ids([site.listener_job_uri])
    runs = site.server.make("runs", job_id, rounds * count)
    now = datetime.now(UTC).isoformat()

    def get(caller: callers.Caller, run: int) -> None:
        caller.get(f"run/{run}/")

    def claim(caller: callers.Caller, run: int) -> None:
        caller.patch(f"run/{run}/", enqueue_dts=now)

    def log(caller: callers.Caller, run: int) -> None:
        caller.post("run_log/", run=f"{callers.API}run/{run}/", content=LOG)

    def page(caller: callers.Caller, run: int) -> None:
        caller.get(f"run/?limit={PAGE}")

    figures = []
    for name, what, ask in (
        ("get_run", "GET a run that waits", get),
        ("claim", "PATCH run, a claim", claim),
        ("post_log", f"POST run_log, {len(LOG)} bytes", log),
        ("list", f"GET {PAGE} of {len(runs)} runs", page),
    ):
        rates = [
            _requests_per_second(site, ask, runs[begin : begin + count])
            for begin in range(0, len(runs), count)
        ]
        key = f"requests_{name}_{site.kind}"
        name = f"{what}; {CLIENTS} clients; {site.kind}"
        figures.append(Figure(key, name, "1/s", rates))
    return figures


def _requests_per_second(
    site: Site, ask: Callable[[callers.Caller, int], None], runs: Sequence[int]
) -> float:
    failed: list[Exception] = []

    def be_client(mine: Sequence[int], caller: callers.Caller) -> None:
        try:
            for run in mine:
                ask(caller, run)
        except (BenchmarkError, OSError) as error:
            failed.append(error)

    with ExitStack() as stack:
        threads = []
        for number in range(CLIENTS):
            caller = stack.enter_context(site.caller())
            caller.get("worker/")
            act = partial(be_client, runs[number::CLIENTS], caller)
            threads.append(threading.Thread(target=act))
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
    if failed:
        raise BenchmarkError(str(failed[0])) from failed[0]
    return len(runs) / seconds


def _in(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)
