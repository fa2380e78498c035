"""How long an order takes: to a script's first line, and to a tree's death."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trees
from central import Central
from figures import Figure
from first_line import FirstLine
from measured_worker import worker_and_server

WARM_UP_RUNS = 5
PAUSE_SECONDS = 0.03
"""After a run is reported the worker removes its folder; an order finds it idle."""
START_TARGET = {"median": 4.0, "p95": 6.0}
KILL_TARGET = {"median": 10.0}


def measure_starts(runs: int) -> list[Figure]:
    """Order scripts one after the other; the time to their first line."""
    return [
        *_measure_starts(runs, "auto"),
        *_measure_starts(runs, "subreaper"),
        *_measure_starts(runs, "auto", batches=True),
        *_measure_bare_starts(runs),
    ]


def _measure_starts(runs: int, tracking: str, *, batches: bool = False) -> list[Figure]:
    whole, claimed = [], []
    pair = worker_and_server(batches=batches, process_tracking=tracking)
    with _folder() as folder, pair as (central, worker):
        for number in range(WARM_UP_RUNS + runs):
            began_ms, claimed_ms = _start(central, folder)
            if number >= WARM_UP_RUNS:
                whole.append(began_ms)
                claimed.append(claimed_ms)
            worker.wait_until_quiet()
            time.sleep(PAUSE_SECONDS)
        by = worker.tracking()
    protocol = "own server's protocol: " if batches else ""
    key = "start_own" if batches else f"start_{tracking}"
    name = f"{protocol}order -> first line of the script; {tracking}: {by}"
    part = f"{protocol}order -> claim and script are here; {tracking}"
    return [
        Figure(key, name, "ms", whole, START_TARGET),
        Figure(f"{key}_claimed", part, "ms", claimed),
    ]


def _measure_bare_starts(runs: int) -> list[Figure]:
    """Spawn the same script without any worker: the limit of the machine."""
    found = []
    with _folder() as folder:
        path = folder / "script"
        for _ in range(runs):
            with FirstLine(folder) as first_line:
                path.write_text(first_line.script())
                spawned_ns = time.monotonic_ns()
                pid = os.posix_spawn("/bin/sh", ["sh", str(path)], os.environ)
                found.append((first_line.wait() - spawned_ns) / 1e6)
                os.waitpid(pid, 0)
            time.sleep(PAUSE_SECONDS)
    name = "spawn -> first line of the same script, no worker"
    return [Figure("start_bare", name, "ms", found)]


def measure_kills(rounds: int) -> list[Figure]:
    """Kill trees of processes; the time until every one is gone or a zombie."""
    return [_measure_kills(rounds, "auto"), _measure_kills(rounds, "subreaper")]


def _measure_kills(rounds: int, tracking: str) -> Figure:
    found = []
    pair = worker_and_server(process_tracking=tracking)
    with _folder() as folder, pair as (central, worker):
        for _ in range(1 + rounds):
            found.append(_kill(central, folder))
            worker.wait_until_quiet()
            time.sleep(PAUSE_SECONDS)
    name = f"kill order -> tree of {trees.SIZE} processes dead; {tracking}"
    return Figure(f"kill_{tracking}", name, "ms", found[1:], KILL_TARGET)


def _start(central: Central, folder: Path) -> tuple[float, float]:
    """Return how long the first line took, and how long the claim did."""
    with FirstLine(folder) as first_line:
        ordered = central.order(first_line.script())
        began_ns = first_line.wait()
    central.wait_for_successes(ordered.run_ids)
    (run_id,) = ordered.run_ids
    claim_ns = min(central.answered_ns(run_id, "PATCH", "/run/"))
    # From our own server the script comes with the claim.
    job_ns = min(central.answered_ns(run_id, "GET", "/job/"), default=0)
    return (
        (began_ns - ordered.sent_ns) / 1e6,
        (max(claim_ns, job_ns) - ordered.sent_ns) / 1e6,
    )


def _kill(central: Central, folder: Path) -> float:
    script, pids_path = trees.script(folder)
    ordered = central.order(script)
    with trees.pidfds(trees.grown(pids_path)) as descriptors:
        # What a shell does last before it waits is not to be measured.
        time.sleep(PAUSE_SECONDS)
        number, sent_ns = central.kill(ordered.run_ids[0])
        for descriptor in descriptors:
            trees.wait_for_death(descriptor)
        dead_ns = time.monotonic_ns()
    central.wait_for_kill(number)
    central.wait_for_ends(ordered.run_ids)
    return (dead_ns - sent_ns) / 1e6


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="job_runner_bench_") as name:
        yield Path(name)
