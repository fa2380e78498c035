"""What a run costs the worker, at several sizes of what it might depend on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from central import BenchmarkError, Central
from cost import SCRIPT
from growth_plot import Series
from measured_worker import MeasuredWorker, worker_and_server
from processes import cpu_seconds

from job_runner_worker.run_folder import Note

OFFER_TTL_SECONDS = 600
SETTLE_SECONDS = 0.3
START_SECONDS = 60.0
WARM_UP_RUNS = 8
SLOTS = 4
LEAST_MS = 0.001
ELSEWHERE = "a source that is not configured"


def by_rate(rates: Sequence[int], seconds: float) -> list[Series]:
    """Offer runs at several rates."""
    costs = []
    with worker_and_server(
        concurrent_jobs=SLOTS, offer_ttl_seconds=OFFER_TTL_SECONDS
    ) as (central, worker):
        _cost_ms(central, worker, WARM_UP_RUNS)
        for rate in rates:
            count = max(1, round(rate * seconds))
            costs.append((rate, _cost_ms(central, worker, count, 1 / rate)))
    return [Series("rate", "CPU per run", "ms", costs)]


def by_live_runs(sizes: Sequence[int], runs: int) -> list[Series]:
    """Do small runs beside many that only wait."""
    costs = []
    with worker_and_server(
        concurrent_jobs=max(sizes) + SLOTS, offer_ttl_seconds=OFFER_TTL_SECONDS
    ) as (central, worker):
        folder = worker.spool_path.parent
        path, begun_path = folder / "end", folder / "begun"
        os.mkfifo(path)
        begun_path.touch()
        descriptor = os.open(path, os.O_RDWR)
        live: list[int] = []
        script = f"#!/bin/sh\necho >>{begun_path}\nread line <{path}\ntrue\n"
        _cost_ms(central, worker, WARM_UP_RUNS)
        for size in sizes:
            live += central.order(script, size - len(live)).run_ids
            _wait_for_size(begun_path, len(live))
            time.sleep(1 + SETTLE_SECONDS)
            costs.append((size, _cost_ms(central, worker, runs)))
        os.write(descriptor, b"\n" * len(live))
        central.wait_for_ends(live, START_SECONDS)
        os.close(descriptor)
    return [Series("live", "CPU per run", "ms", costs)]


def by_folders(sizes: Sequence[int], runs: int) -> list[Series]:
    """Do small runs with many folders in the spool that are left alone there."""
    costs, starts = [], []
    with worker_and_server(
        concurrent_jobs=SLOTS, offer_ttl_seconds=OFFER_TTL_SECONDS
    ) as (central, first):
        first.stop()
        made = 0
        for size in sizes:
            _make_folders(first.spool_path, made, size)
            made = size
            began = time.monotonic()
            with MeasuredWorker(first.config_path) as worker:
                # A run that is ordered too early is lost: it is offered again.
                _first_run(central)
                starts.append((size, (time.monotonic() - began) * 1000))
                _cost_ms(central, worker, WARM_UP_RUNS)
                costs.append((size, _cost_ms(central, worker, runs)))
    return [
        Series("folders", "CPU per run", "ms", costs),
        Series("folders_start", "process start -> first run done", "ms", starts),
    ]


def by_log_size(sizes: Sequence[int], runs: int) -> list[Series]:
    """Print more and more."""
    costs, walls = [], []
    with worker_and_server() as (central, worker):
        _cost_ms(central, worker, WARM_UP_RUNS)
        for size in sizes:
            script = f"#!/bin/sh\nyes {'x' * 79} 2>/dev/null | head -c {size}\n"
            began = time.monotonic()
            cost = _cost_ms(central, worker, runs, script=script)
            wall_ms = (time.monotonic() - began - SETTLE_SECONDS) * 1000 / runs
            costs.append((size, cost))
            walls.append((size, wall_ms))
    return [
        Series("log", "CPU per run", "ms", costs),
        Series("log_wall", "wall per run", "ms", walls),
    ]


def _cost_ms(
    central: Central,
    worker: MeasuredWorker,
    runs: int,
    pause_seconds: float = 0.0,
    script: str = SCRIPT,
) -> float:
    """Return the CPU time of worker and helper per run."""
    pids = (worker.pid, worker.helper_pid())
    before = sum(map(cpu_seconds, pids))
    if pause_seconds:
        run_ids = []
        next_at = time.monotonic()
        for _ in range(runs):
            run_ids += central.order(script).run_ids
            next_at += pause_seconds
            time.sleep(max(0.0, next_at - time.monotonic()))
    else:
        run_ids = central.order(script, runs).run_ids
    central.wait_for_successes(run_ids)
    time.sleep(SETTLE_SECONDS)
    used = sum(map(cpu_seconds, pids)) - before
    return max(LEAST_MS, used * 1000 / runs)


def _first_run(central: Central) -> None:
    central.wait_for_worker()
    for _ in range(20):
        ordered = central.order(SCRIPT)
        try:
            if all(central.wait_for_ends(ordered.run_ids, 3.0)):
                return
        except BenchmarkError:
            continue
    raise BenchmarkError("the worker does nothing")


def _wait_for_size(path: Path, size: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while (found := path.stat().st_size) < size:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{found} of {size} scripts have begun")
        time.sleep(0.02)


def _make_folders(spool_path: Path, first: int, end: int) -> None:
    """Make run folders that no source of this worker claims."""
    note = Note(
        run_id=0,
        source=ELSEWHERE,
        boot_id="another boot",
        claimed_at="2026-01-01T00:00:00+00:00",
        max_log_bytes=819200,
        end_mark="0" * 32,
    )
    for number in range(first, end):
        run_id = 1_000_000 + number
        folder = spool_path / str(run_id)
        folder.mkdir(mode=0o700)
        path = folder / "run.json"
        path.write_text(json.dumps(asdict(replace(note, run_id=run_id))))
        path.chmod(0o600)
