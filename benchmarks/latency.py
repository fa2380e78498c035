"""How long an order takes: to a script's first line, and to a tree's death."""

from __future__ import annotations

import os
import select
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from central import BenchmarkError, Central
from figures import Figure
from first_line import FirstLine
from measured_worker import worker_and_server
from processes import command_name

WARM_UP_RUNS = 5
PAUSE_SECONDS = 0.03
"""After a run is reported the worker removes its folder; an order finds it idle."""
START_TARGET = {"median": 15.0, "p95": 40.0}
KILL_TARGET = {"median": 30.0}
CHILDREN, OWN_SESSIONS, DOUBLE_FORKED = 9, 5, 5
TREE_SIZE = 1 + CHILDREN + OWN_SESSIONS + DOUBLE_FORKED
LIMIT_SECONDS = 20.0

_MEMBER = """\
echo $$ >>{pids}
exec sleep 120
"""
_TREE = """\
#!/bin/sh
echo $$ >>{pids}
for i in $(seq {children}); do sh {member} & done
for i in $(seq {own_sessions}); do setsid sh {member} & done
for i in $(seq {double_forked}); do (setsid sh -c 'sh {member} &' &); done
wait
"""


def measure_starts(runs: int) -> list[Figure]:
    """Order scripts one after the other; the time to their first line."""
    return [
        *_measure_starts(runs, "auto"),
        *_measure_starts(runs, "subreaper"),
        *_measure_bare_starts(runs),
    ]


def _measure_starts(runs: int, tracking: str) -> list[Figure]:
    whole, claimed = [], []
    pair = worker_and_server(process_tracking=tracking)
    with _folder() as folder, pair as (central, worker):
        for number in range(WARM_UP_RUNS + runs):
            began_ms, claimed_ms = _start(central, folder)
            if number >= WARM_UP_RUNS:
                whole.append(began_ms)
                claimed.append(claimed_ms)
            worker.wait_until_quiet()
            time.sleep(PAUSE_SECONDS)
        by = worker.tracking()
    name = f"order -> first line of the script; {tracking}: {by}"
    part = f"order -> claim and script are here; {tracking}"
    return [
        Figure(f"start_{tracking}", name, "ms", whole, START_TARGET),
        Figure(f"start_{tracking}_claimed", part, "ms", claimed),
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
    name = f"kill order -> tree of {TREE_SIZE} processes dead; {tracking}"
    return Figure(f"kill_{tracking}", name, "ms", found[1:], KILL_TARGET)


def _start(central: Central, folder: Path) -> tuple[float, float]:
    """Return how long the first line took, and how long the claim did."""
    with FirstLine(folder) as first_line:
        ordered = central.order(first_line.script())
        began_ns = first_line.wait()
    central.wait_for_successes(ordered.run_ids)
    (run_id,) = ordered.run_ids
    claim_ns = min(central.answered_ns(run_id, "PATCH", "/run/"))
    job_ns = min(central.answered_ns(run_id, "GET", "/job/"))
    return (
        (began_ns - ordered.sent_ns) / 1e6,
        (max(claim_ns, job_ns) - ordered.sent_ns) / 1e6,
    )


def _kill(central: Central, folder: Path) -> float:
    pids_path, member_path = folder / "pids", folder / "member"
    pids_path.write_text("")
    member_path.write_text(_MEMBER.format(pids=pids_path))
    script = _TREE.format(
        pids=pids_path,
        member=member_path,
        children=CHILDREN,
        own_sessions=OWN_SESSIONS,
        double_forked=DOUBLE_FORKED,
    )
    ordered = central.order(script)
    with _pidfds(_grown_tree(pids_path)) as descriptors:
        # What a shell does last before it waits is not to be measured.
        time.sleep(PAUSE_SECONDS)
        number, sent_ns = central.kill(ordered.run_ids[0])
        for descriptor in descriptors:
            _wait_for_death(descriptor)
        dead_ns = time.monotonic_ns()
    central.wait_for_kill(number)
    central.wait_for_ends(ordered.run_ids)
    return (dead_ns - sent_ns) / 1e6


def _grown_tree(pids_path: Path) -> list[int]:
    """Return the pids of a tree, once it is complete."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        pids = [int(word) for word in pids_path.read_text().split()]
        asleep = [pid for pid in pids if command_name(pid) == "sleep"]
        if len(pids) == TREE_SIZE and len(asleep) == TREE_SIZE - 1:
            return pids
        time.sleep(0.005)
    raise BenchmarkError(f"no tree of {TREE_SIZE} processes")


@contextmanager
def _pidfds(pids: list[int]) -> Iterator[list[int]]:
    descriptors = [os.pidfd_open(pid) for pid in pids]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _wait_for_death(descriptor: int) -> None:
    """A pidfd can be read from when its process has become a zombie."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    if not poller.poll(LIMIT_SECONDS * 1000):
        raise BenchmarkError("a process lives on after the kill")


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="job_runner_bench_") as name:
        yield Path(name)
