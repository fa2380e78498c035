"""Workers are killed, the network lies, the server dies; each run runs once and ends.

FAULT_RUNS is how many runs there are, FAULT_SEED repeats what was drawn.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("django", reason="pip install 'job-runner-worker[server]'")

from broadcast_relay import BroadcastRelay  # noqa: E402
from crash_scene import (  # noqa: E402
    END_SECONDS,
    Ledger,
    Server,
    Workers,
    count_headings,
    fail_with,
    leftovers,
    open_run_files,
    table,
    workers_of,
    write_config,
    wrong_runs,
)
from crash_scripts import KINDS, Kind  # noqa: E402
from fault_proxy import FaultProxy  # noqa: E402
from waiting import eventually  # noqa: E402

pytestmark = pytest.mark.integration
FEW_RUNS = 25
FAULT_RATE = 0.15
MOST_UNDER_WAY = 16
LOOK_SECONDS = 0.05
SECONDS_WITHOUT_AN_END = 180.0


class Ordeal:
    """Gives a worker's life its blows until every run has ended."""

    def __init__(
        self,
        seed: str,
        server: Server,
        workers: Workers,
        ledger: Ledger,
        relay: BroadcastRelay,
    ) -> None:
        self.server = server
        self.workers = workers
        self.ledger = ledger
        self.kinds: dict[int, Kind] = {}
        self.kill_orders = 0
        self._relay = relay
        self._dice = random.Random(f"{seed} ordeal")
        self._jobs: list[tuple[Kind, str]] = []
        self._to_be_killed: dict[int, float] = {}
        self._next: dict[str, float] = {}

    @property
    def faults(self) -> int:
        """How many processes were killed, connections cut and orders repeated."""
        workers, relay = self.workers, self._relay
        deaths = workers.kills + workers.helper_kills + self.server.lives - 1
        return deaths + relay.restarts + relay.repeats

    def make_jobs(self) -> None:
        for kind in KINDS:
            script = kind.script(self.ledger.path)
            job, run_id = self.server.submit(script, kind.name)
            self._jobs.append((kind, f"/api/v1/job/{job}/"))
            self._note(run_id, kind)

    def endure(self, runs: int) -> None:
        """Return when so many runs have ended."""
        self.workers.start()
        changed, ended = time.monotonic(), 0
        while ended < runs:
            found = self.server.count_ended()
            if found != ended:
                changed, ended = time.monotonic(), found
            if time.monotonic() > changed + SECONDS_WITHOUT_AN_END:
                return  # Whoever counts will see that something is lost.
            while len(self.kinds) < min(runs, ended + MOST_UNDER_WAY):
                kind, job = self._dice.choice(self._jobs)
                self._note(self.server.run_again(job), kind)
            self._order_kills()
            self._strike()
            time.sleep(LOOK_SECONDS)

    def _note(self, run_id: int, kind: Kind) -> None:
        self.kinds[run_id] = kind
        if kind.is_to_be_killed:
            # Some in the queue, some when claimed, most when they run.
            at_once = self._dice.random() < 0.3
            seconds = self._dice.uniform(0, 1.5) if at_once else float("inf")
            self._to_be_killed[run_id] = time.monotonic() + seconds

    def _order_kills(self) -> None:
        if not self._to_be_killed:
            return
        marks = self.ledger.marks()
        for run_id, moment in list(self._to_be_killed.items()):
            if moment == float("inf") and marks.get(run_id):
                moment = time.monotonic() + self._dice.uniform(0, 0.5)
                self._to_be_killed[run_id] = moment
            if moment <= time.monotonic():
                del self._to_be_killed[run_id]
                self.kill_orders += self.server.ask_to_kill(run_id)

    def _strike(self) -> None:
        self._from_time_to_time("worker", 0.1, 2.5, self._kill_worker)
        self._from_time_to_time("helper", 0.5, 3.0, self.workers.kill_helper)
        self._from_time_to_time("relay", 1.0, 5.0, self._relay.restart)
        self._from_time_to_time("server", 2.0, 12.0, self.server.restart)

    def _from_time_to_time(
        self, name: str, low: float, high: float, strike: Callable[[], None]
    ) -> None:
        now = time.monotonic()
        if now >= self._next.setdefault(name, now + self._dice.uniform(low, high)):
            strike()
            del self._next[name]

    def _kill_worker(self) -> None:
        if not self.workers.is_ready() and self._dice.random() < 0.95:
            return  # On a busy machine nobody would ever get anywhere.
        self.workers.kill()
        # The next one may speak the other way with the server: nothing must hang on it.
        self.workers.start(batches=self._dice.choice(["yes", "no"]))


def test_whatever_is_killed_or_lost_each_run_runs_once_and_is_reported_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = max(int(os.environ.get("FAULT_RUNS", FEW_RUNS)), len(KINDS))
    seed = os.environ.get("FAULT_SEED") or secrets.token_hex(4)
    what = f"FAULT_RUNS={runs} FAULT_SEED={seed}"
    print(what)
    began = time.monotonic()
    ledger = Ledger(tmp_path / "ledger")
    with (
        Server(tmp_path) as server,
        FaultProxy(server.ports["http"], seed, FAULT_RATE) as proxy,
        BroadcastRelay(server.ports["broadcast"], seed, FAULT_RATE) as relay,
        workers_of(write_config(tmp_path, server, proxy.port, relay.port)) as workers,
    ):
        ordeal = Ordeal(seed, server, workers, ledger, relay)
        ordeal.make_jobs()
        ordeal.endure(runs)
        proxy.rate = 0.0
        unfinished = _settle(server, workers)
        ended = server.ended()
        wrong = wrong_runs(ordeal.kinds, ended, ledger)
        wrong += [("wrong status", row[1], f"kill {row}") for row in unfinished]
        left = _stop(workers)
        figures = {
            "seed": seed,
            "runs": len(ended),
            "worker kills": workers.kills,
            "helper kills": workers.helper_kills,
            "kill requests": ordeal.kill_orders,
            "server kills": server.lives - 1,
            "broadcaster restarts": relay.restarts,
            "orders repeated": relay.repeats,
            "requests spoilt": proxy.counts.total(),
            **{f"  {name}": proxy.counts[name] for name in sorted(proxy.counts)},
            "faults injected": ordeal.faults + proxy.counts.total(),
            **count_headings(wrong),
            "leftovers": len(left),
            "wall seconds": round(time.monotonic() - began),
        }
        with capsys.disabled():
            print(f"\ncrash test\n{table(figures)}")
        if wrong or left:
            evidence = {
                run_id: [*workers.lines_about(run_id), *proxy.lines_about(run_id)]
                for _, run_id, _ in wrong
            }
            evidence[0] = [line for line in workers.lines if " ERROR " in line]
            fail_with(f"{what}; left over: {left}", wrong, evidence)
        assert len(ended) == len(ordeal.kinds) == runs


def _settle(server: Server, workers: Workers) -> list[object]:
    """Wait until a worker has nothing in hand; return the kills nobody executed."""
    worker = workers.current
    assert worker is not None

    def is_idle() -> bool:
        names = {path.name for path in workers.spool_path.iterdir()}
        is_quiet = names <= {"lock", "control", "spool.json", "failed", "standing"}
        return is_quiet and not server.kills_under_way()

    try:
        eventually(is_idle, "the worker is through with everything", END_SECONDS)
        eventually(lambda: not open_run_files(worker), "nothing of a run is open")
    except AssertionError:
        return server.kills_under_way()
    return []


def _stop(workers: Workers) -> list[str]:
    """Stop the last worker in order; return what is left over."""
    worker = workers.current
    assert worker is not None
    left = [f"open in the worker: {path}" for path in open_run_files(worker)]
    worker.wait_for_line(r"\d slots", END_SECONDS)
    worker.terminate()
    status = worker.wait(END_SECONDS)
    workers.leave()
    if status:
        left.append(f"the last worker's exit status is {status}")

    # Children that a script has left behind end by themselves.
    deadline = time.monotonic() + END_SECONDS / 2
    while (found := leftovers(workers)) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    return left + found
