"""A source, an executor and a reporter of one's own, without touching the core.

What is defined here is what an author of a plug-in writes: it imports contracts and
words, and nothing else of the package.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue

from job_runner_worker.errors import StartError
from job_runner_worker.executors.base import Execution, Executor
from job_runner_worker.models import Command, Enqueue, Kill, Outcome, Ping, Run
from job_runner_worker.reporters.base import Reporter
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.sources.base import Holder, Offer, Source
from job_runner_worker.spool import Spool
from job_runner_worker.worker import Worker
from job_runner_worker.worker_options import WorkerOptions

LIMIT_SECONDS = 10.0
OPTIONS = WorkerOptions(
    concurrent_jobs=2,
    max_log_bytes=10_000,
    log_flush_seconds=0.01,
    offer_ttl_seconds=LIMIT_SECONDS,
    drain_report_seconds=LIMIT_SECONDS,
    reschedule_interrupted=True,
)
pytestmark = pytest.mark.usefixtures("greenlet_errors")


class DropBox(Source):
    """Orders are files in a folder: <number>.run holds a script, <number>.kill."""

    name = "dropbox"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._new: Queue[Command | None] = Queue()
        self.mine: set[int] = set()
        self.log: list[str] = []

    def drop(self, name: str, content: str = "") -> None:
        (self._folder / name).write_text(content)
        number, _, kind = name.partition(".")
        orders = {"run": Enqueue(int(number)), "kill": Kill(int(number), int(number))}
        self._new.put(orders.get(kind, Ping()))

    def commands(self) -> Iterator[Command]:
        yield from iter(self._new.get, None)

    def look(self, run_id: int, *, patient: bool = False) -> Offer:
        holder = Holder.THIS_WORKER if run_id in self.mine else Holder.NOBODY
        uri = f"file:{run_id}.run"
        return Offer(run_id, uri, uri, None, holder, ended=False)

    def claim(self, offer: Offer, at: datetime) -> bool:
        self.mine.add(offer.run_id)
        return True

    def fetch(self, offer: Offer) -> Run:
        script = (self._folder / f"{offer.run_id}.run").read_text()
        return Run(offer.run_id, offer.uri, "none", f"no {offer.run_id}", script)

    def done(self, command: Command) -> None:
        self.log.append(f"done {command}")

    def refused(self, command: Command, reason: str) -> None:
        self.log.append(f"refused {command}: {reason}")

    def close(self) -> None:
        self._new.put(None)


class Calculator:
    """An executor whose scripts are lines of sums, in this very process."""

    def __init__(self) -> None:
        self.is_open = False
        self._begun: dict[int, _Sum] = {}

    def open(self) -> None:
        self.is_open = True

    def start(self, run: Run, folder: RunFolder) -> Execution:
        if not run.script.replace("+", "").replace("\n", "").isdigit():
            raise StartError("not a sum")
        self._begun[run.id] = _Sum(run, folder)
        return self._begun[run.id]

    def attach(self, run: Run, folder: RunFolder) -> Execution | None:
        return self._begun.get(run.id)

    def close(self) -> None:
        self.is_open = False


class _Sum:
    """Adds one line of a script after the other; a 0 waits for a kill."""

    native_id = None

    def __init__(self, run: Run, folder: RunFolder) -> None:
        self.started_at = datetime.now(UTC)
        self._outcome: Outcome | None = None
        self._killed, self._ended = Event(), Event()
        self._reason = ""
        gevent.spawn(self._work, run.script, folder)

    def wait(self, timeout_seconds: float | None = None) -> Outcome | None:
        self._ended.wait(timeout_seconds)
        return self._outcome

    def kill(self, reason: str) -> None:
        if self._outcome is None:
            self._reason = self._reason or reason
            self._killed.set()
        self._ended.wait()

    def _work(self, script: str, folder: RunFolder) -> None:
        status: int | None = 0
        for line in script.splitlines():
            with folder.output.path.open("a") as output:
                output.write(f"{sum(map(int, line.split('+')))}\n")
            if line == "0":
                self._killed.wait()
                status = None
                break
        self._outcome = Outcome(status, self._reason, datetime.now(UTC))
        self._ended.set()


class Diary(Reporter):
    """Appends a line to a file for everything that happens."""

    name = "diary"
    acknowledges = True

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def _write(self, line: str) -> None:
        with self._path.open("a") as diary:
            diary.write(f"{line}\n")

    def lines(self) -> list[str]:
        return self._path.read_text().splitlines()

    def enqueued(self, run: Run, at: datetime) -> None:
        self._write(f"{run.job_title} is ours")

    def logged(self, run: Run, content: str, *, final: bool) -> None:
        if final:
            self._write(f"{run.job_title} said {content!r}")

    def finished(self, run: Run, outcome: Outcome) -> None:
        self._write(f"{run.job_title}: {'good' if outcome.success else 'bad'}")

    def kill_executed(self, kill_request_id: int, at: datetime) -> None:
        self._write(f"kill {kill_request_id} done")

    def pinged(self, at: datetime) -> None:
        self._write("alive")


def wait_for(diary: Diary, line: str) -> None:
    late = AssertionError(f"no line {line!r} in {diary.lines()}")
    with gevent.Timeout(LIMIT_SECONDS, late):
        while line not in diary.lines():
            gevent.sleep(0.001)


def test_a_worker_of_foreign_parts_takes_executes_kills_and_reports(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path / "spool", "a drop box", "somebody")
    spool.open()
    source, executor = DropBox(tmp_path), Calculator()
    as_contract: Executor = executor
    diary = Diary(tmp_path / "diary")
    worker = Worker(OPTIONS, spool, [source], as_contract, [diary])
    running = gevent.spawn(worker.run)

    source.drop("1.run", "1+2\n3+4\n")
    wait_for(diary, "no 1: good")
    source.drop("2.run", "rm -rf /")
    wait_for(diary, "no 2: bad")
    source.drop("3.run", "5+5\n0\n7+7\n")
    wait_for(diary, "no 3 is ours")
    source.drop("3.kill")
    wait_for(diary, "no 3: bad")
    wait_for(diary, "kill 3 done")
    source.drop("4.ping")
    wait_for(diary, "alive")
    assert executor.is_open
    worker.stop(drain=True)
    running.get(timeout=LIMIT_SECONDS)
    spool.close()

    assert not executor.is_open
    assert [line for line in diary.lines() if " said " in line] == [
        "no 1 said '3\\n7\\n'",
        "no 2 said '[job_runner_worker] not a sum\\n'",
        "no 3 said '10\\n0\\n[job_runner_worker] killed on request 3\\n'",
    ]
    assert [line for line in source.log if "Enqueue" in line] == [
        f"done Enqueue(run_id={number})" for number in (1, 2, 3)
    ]
    left = sorted(path.name for path in (tmp_path / "spool").iterdir())
    assert left == ["lock", "spool.json"]


def test_the_core_names_no_concrete_part() -> None:
    root = Path(__file__).parent.parent / "job_runner_worker"
    core = ["worker", "kills", "live_run", "acceptance", "perform", "reports"]
    words = "broadcast|rest|events|local|requests|zmq|psutil"
    command = ["grep", "-nE", f"^(from|import) .*\\b({words})\\b"]
    found = subprocess.run(
        [*command, *(str(root / f"{name}.py") for name in core)],
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert found.stdout == ""
