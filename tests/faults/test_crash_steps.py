"""A worker is killed before and after every single step of a run, one life a step.

Which steps there are is recorded from a worker that lives. `make faults` goes through
all of them (FAULT_STEPS=all), `make test` through a few, which FAULT_SEED draws.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("django", reason="pip install 'job-runner-worker[server]'")

from crash_scene import (  # noqa: E402
    END_SECONDS,
    Ledger,
    Server,
    Workers,
    count_headings,
    fail_with,
    leftovers,
    table,
    workers_of,
    write_config,
    wrong_runs,
)
from crash_scripts import Kind  # noqa: E402
from waiting import eventually  # noqa: E402

pytestmark = pytest.mark.integration
PROGRAM = Path(__file__).with_name("dying_worker.py")
FEW_STEPS = 2
TRIES = 3
LIVES = Kind(
    "lives",
    "echo run-$id-says one; sleep 0.25; echo two",
    lambda run_id: f"run-{run_id}-says one\ntwo\n".encode(),
)
IS_KILLED = Kind(
    "is killed",
    "echo run-$id-says one; sleep 120",
    lambda run_id: f"run-{run_id}-says one\n".encode(),
    is_to_be_killed=True,
)


@dataclass
class Lives:
    """One worker's life after another, each with a run of its own."""

    server: Server
    workers: Workers
    ledger: Ledger
    folder: Path

    def __post_init__(self) -> None:
        self.kinds: dict[int, Kind] = {}
        self.asked: set[int] = set()

    def live(self, kind: Kind, step: str = "") -> tuple[int, bool, list[str]]:
        """Run a script with a worker that dies at a step; return run, death, steps.

        Without a step, or where that is never reached, the worker lives on until the
        run is through.
        """
        job_id, run_id = self.server.submit(kind.script(self.ledger.path), kind.name)
        self.kinds[run_id] = kind
        journal = self.folder / f"steps-{run_id}"
        program = [str(PROGRAM), str(run_id), str(job_id), step, str(journal)]
        worker = self.workers.start(program)
        eventually(
            lambda: worker.process.poll() is not None or self._is_through(run_id),
            f"the end of run {run_id} or of its worker ({step})",
            END_SECONDS,
        )
        worker.interrupt()
        status = worker.wait()
        self.workers.leave()
        died = status == -signal.SIGKILL
        assert died or status == 0
        if died:
            self.workers.kills += 1
            self._kill_if_it_never_ends(run_id)
        return (
            run_id,
            died,
            journal.read_text().splitlines() if journal.exists() else [],
        )

    def _is_through(self, run_id: int) -> bool:
        if self.ledger.marks().get(run_id):
            self._kill_if_it_never_ends(run_id)
        spool = self.workers.spool_path
        folders = [spool / str(run_id), spool / f"{run_id}.done"]
        return run_id in self.server.ended() and not any(map(Path.exists, folders))

    def _kill_if_it_never_ends(self, run_id: int) -> None:
        if self.kinds[run_id].is_to_be_killed and run_id not in self.asked:
            self.asked.add(run_id)
            self.server.ask_to_kill(run_id)

    def finish(self) -> None:
        """Let an ordinary worker bring everything to its end, and stop."""
        worker = self.workers.start()
        eventually(
            lambda: (
                self.server.count_ended() == len(self.kinds)
                and not self.server.kills_under_way()
            ),
            "the end of every run",
            END_SECONDS,
        )
        worker.wait_for_line(r"\d slots", END_SECONDS)
        worker.terminate()
        assert worker.wait(END_SECONDS) == 0
        self.workers.leave()


def drawn(steps: Sequence[str], seed: str) -> list[str]:
    """Return where workers die."""
    places = [f"{when}:{step}" for step in steps for when in ("before", "after")]
    if os.environ.get("FAULT_STEPS") == "all":
        return places
    return random.Random(f"{seed} steps").sample(places, FEW_STEPS)


@pytest.mark.parametrize("batches", ["yes", "no"], ids=["batches", "one by one"])
@pytest.mark.parametrize("kind", [LIVES, IS_KILLED], ids=["lives", "is_killed"])
def test_at_whatever_step_the_worker_dies_the_run_runs_once_and_is_reported_as_it_was(
    kind: Kind, batches: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = os.environ.get("FAULT_SEED") or secrets.token_hex(4)
    print(f"FAULT_SEED={seed}")
    began = time.monotonic()
    with (
        Server(tmp_path) as server,
        workers_of(
            write_config(
                tmp_path,
                server,
                server.ports["http"],
                server.ports["broadcast"],
                log_flush_seconds=0.05,
                batches=batches,
            )
        ) as workers,
    ):
        ledger = Ledger(tmp_path / "ledger")
        lives = Lives(server, workers, ledger, tmp_path)
        _, _, recorded = lives.live(kind)
        assert len(recorded) > 20, recorded
        kinds = {step.partition(" ")[0] for step in recorded}
        assert kinds >= {"PATCH", "wait", "open", "write"}
        assert batches == "yes" or kinds >= {"GET", "POST"}
        died = {}
        never = []
        for place in drawn(recorded, seed):
            for _ in range(TRIES):
                run_id, is_dead, _ = lives.live(kind, place)
                if is_dead:
                    died[run_id] = place
                    break
            else:
                never.append(place)
        lives.finish()
        ended = server.ended()
        wrong = wrong_runs(lives.kinds, ended, ledger)
        left = leftovers(workers)
        figures = {
            "seed": seed,
            "steps of a run": len(recorded),
            "deaths": len(died),
            "steps not met again": len(never),
            "runs": len(ended),
            **count_headings(wrong),
            "leftovers": len(left),
            "wall seconds": round(time.monotonic() - began),
        }
        with capsys.disabled():
            how = "in batches" if batches == "yes" else "one by one"
            print(f"\ncrash at every step, the run {kind.name}, requests {how}")
            print(table(figures))
            for place in never:
                print(f"  never met: {place}")
        if wrong or left:
            evidence = {
                run_id: [f"died {died.get(run_id)}", *workers.lines_about(run_id)]
                for _, run_id, _ in wrong
            }
            fail_with(f"FAULT_SEED={seed}; left over: {left}", wrong, evidence)
        # A few steps depend on what came first, such as how often the log was sent.
        assert len(never) <= len(recorded) / 4, never
