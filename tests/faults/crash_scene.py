"""A server, workers that are killed, and what is left when all of it is over."""

from __future__ import annotations

import configparser
import contextlib
import os
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from crash_scripts import MAX_LOG_BYTES, Kind, Reported
from harness import SECTION, WorkerProcess, end_scripts, read_process
from standalone import Standalone
from waiting import alive_below, eventually, spawn_helpers

from job_runner_worker.client.connection import Connection, PersonClient
from job_runner_worker.data_folder import read_json
from job_runner_worker.errors import ApiError
from job_runner_worker.executors import cgroup

END_SECONDS = 60.0
SETTINGS = {
    "concurrent_jobs": 6,
    "log_level": "debug",
    "log_flush_seconds": 0.1,
    "max_log_bytes": MAX_LOG_BYTES,
    "kill_grace_seconds": 0.5,
    "http_timeout_seconds": 5,
    "zmq_heartbeat_seconds": 1,
    "reconnect_after_inactivity": 5,
}
_RUNS = """
    SELECT run.id, return_success, exit_status, reason, ended_by_server, pid, content
    FROM server_run AS run LEFT JOIN server_runlog AS log ON log.run_id = run.id
    WHERE return_dts IS NOT NULL
"""


class Server:
    """The embedded server on SQLite, on the same ports in each of its lives."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "data"
        self.ports: dict[str, int] = {}
        self.lives = 0
        self._process: Any = None
        self._rows: sqlite3.Connection | None = None
        self._person: Connection | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._rows is not None:
            self._rows.close()
        if self._person is not None:
            self._person.api.close()
        self._process.__exit__(kind, error, traceback)

    def restart(self) -> None:
        """Kill it (-9) and start it again."""
        self._process.__exit__(None, None, None)
        self._start()

    def submit(self, script: str, title: str) -> tuple[int, int]:
        """Return the numbers of a new job and of its first run."""
        assert self._person is not None
        (pool,) = self._person.objects("worker_pool/")
        (template,) = self._person.objects("job_template/")
        job = {
            "title": title,
            "script_content_partial": script,
            "job_template": template["resource_uri"],
            "worker_pool": pool["resource_uri"],
        }
        uri = self._person.post("job/", job)
        return _number(uri), self.run_again(uri)

    def run_again(self, job_uri: str) -> int:
        """Return the number of a new run of a job."""
        assert self._person is not None
        return _number(self._person.post("run/", {"job": job_uri, "is_manual": True}))

    def ask_to_kill(self, run_id: int) -> bool:
        """Return whether there was something to kill."""
        assert self._person is not None
        try:
            self._person.post("kill_request/", {"run": f"/api/v1/run/{run_id}/"})
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        return True

    def ended(self) -> dict[int, Reported]:
        """Return all runs that have ended, as the database has them."""
        found = {}
        for row in self._select(_RUNS):
            run_id, success, status, reason, by_server, pid, log = row
            known = None if success is None else bool(success)
            found[run_id] = Reported(
                run_id, known, status, reason, bool(by_server), pid, log
            )
        return found

    def count_ended(self) -> int:
        """Return how many runs have ended."""
        query = "SELECT count(*) FROM server_run WHERE return_dts IS NOT NULL"
        return int(self._select(query)[0][0])

    def kills_under_way(self) -> list[Any]:
        """Return the kill requests that nobody has executed."""
        return self._select(
            "SELECT id, run_id, enqueue_dts FROM server_killrequest"
            " WHERE execute_dts IS NULL"
        )

    def credentials(self) -> Mapping[str, str]:
        """Return what the server has written for the worker of its folder."""
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(self.path / "worker.ini")
        return parser[SECTION]

    @property
    def log(self) -> list[str]:
        return [line.rstrip("\n") for line in self._process.lines]

    def _select(self, query: str) -> list[Any]:
        if self._rows is None:
            where = f"file:{self.path}/server.sqlite3?mode=ro"
            self._rows = sqlite3.connect(where, uri=True, timeout=20)
        return self._rows.execute(query).fetchall()

    def _start(self) -> None:
        words = [f"--{name}-port={port}" for name, port in self.ports.items()]
        self._process = Standalone(
            self.path, *words, command="server", leaves_scripts=True
        )
        self._process.__enter__()
        self.lives += 1
        self._process.wait_for("Job-Runner server")
        found = read_json(self.path / "server.json")
        known = read_json(self.path / "client.json")
        assert found and known and found["pid"] == self._process.process.pid
        self.ports = found["ports"]
        if self._person is None:
            client = PersonClient(found["url"], known["session"])
            self._person = Connection(client, found["url"])


@dataclass
class Ledger:
    """What really happened: which script has started and which has ended."""

    path: Path

    def marks(self) -> dict[int, list[str]]:
        """Return the marks of each run, in their order."""
        found = defaultdict(list)
        text = self.path.read_text() if self.path.exists() else ""
        for line in text.splitlines():
            run_id, mark = line.split()
            found[int(run_id)].append(mark)
        return found


@dataclass
class Workers:
    """One worker after another on one spool."""

    config_path: Path
    kills: int = 0
    helper_kills: int = 0
    lines: list[str] = field(default_factory=list)
    """What all that are gone have logged."""
    current: WorkerProcess | None = None
    _began: float = 0.0

    @property
    def age_seconds(self) -> float:
        """How long the current one has been there."""
        return time.monotonic() - self._began

    @property
    def spool_path(self) -> Path:
        return self.config_path.parent / "spool"

    def start(self, program: Sequence[str] = (), **changes: str) -> WorkerProcess:
        """Start the next one; ``program`` in place of the command.

        ``changes`` are settings from now on.
        """
        assert self.current is None
        if changes:
            parser = configparser.ConfigParser(interpolation=None)
            parser.read(self.config_path)
            parser[SECTION].update(changes)
            with self.config_path.open("w") as file:
                parser.write(file)
        words = {"program": program} if program else {}
        self.current = WorkerProcess(self.config_path, leaves_scripts=True, **words)
        self.current.__enter__()
        self._began = time.monotonic()
        return self.current

    def is_ready(self) -> bool:
        """Return whether the current one has said so."""
        assert self.current is not None
        return any("slots" in line for line in self.current.lines)

    def kill(self) -> None:
        """End it as a crash does; its spawn helper ends by that."""
        assert self.current is not None
        helpers = spawn_helpers(self.current.pid)
        self.current.kill()
        self.leave()
        self.kills += 1
        for helper in helpers:
            eventually(
                lambda pid=helper.pid: read_process(pid) is None,
                "the end of a helper whose worker was killed",
            )

    def kill_helper(self) -> None:
        """Kill the spawn helper of the current one, if it has one by now."""
        assert self.current is not None
        for helper in spawn_helpers(self.current.pid):
            found = read_process(helper.pid)
            if found is not None and found.start_ticks == helper.start_ticks:
                found.kill()
                self.helper_kills += 1

    def leave(self) -> None:
        """Take leave of one that has ended, or ends now."""
        assert self.current is not None
        self.current.__exit__(None, None, None)
        self.lines += self.current.lines
        self.current = None

    def lines_about(self, run_id: int) -> list[str]:
        lines = [*self.lines, *(self.current.lines if self.current else [])]
        return [line for line in lines if f"run {run_id}: " in line]

    def close(self) -> None:
        if self.current is not None:
            self.current.kill()
            self.leave()
        end_scripts(self.spool_path)


def write_config(
    folder: Path, server: Server, api_port: int, broadcast_port: int, **more: object
) -> Path:
    """Write the configuration of the server's worker, which has these ports."""
    known = server.credentials()
    options = {
        "api_base_url": f"http://127.0.0.1:{api_port}",
        "api_key": known["api_key"],
        "secret": known["secret"],
        "spool_path": folder / "spool",
        "ws_server_hostname": "127.0.0.1",
        "ws_server_port": server.ports["events"],
        "broadcaster_server_hostname": "127.0.0.1",
        "broadcaster_server_port": broadcast_port,
        **SETTINGS,
        **more,
    }
    path = folder / "worker.ini"
    lines = [f"{name} = {value}\n" for name, value in options.items()]
    path.write_text("".join([f"[{SECTION}]\n", *lines]))
    return path


@contextlib.contextmanager
def workers_of(config_path: Path) -> Iterator[Workers]:
    """Yield workers of which nothing is left afterwards."""
    workers = Workers(config_path)
    try:
        yield workers
    finally:
        workers.close()


def wrong_runs(
    kinds: Mapping[int, Kind], ended: Mapping[int, Reported], ledger: Ledger
) -> list[tuple[str, int, str]]:
    """Return what is wrong with each run: heading, run, and in words."""
    marks = ledger.marks()
    wrong = []
    for run_id, kind in kinds.items():
        if run_id not in ended:
            wrong.append(
                ("lost", run_id, f"has not ended; the ledger: {marks[run_id]}")
            )
            continue
        for heading, words in ended[run_id].complaints(kind, marks[run_id]):
            wrong.append((heading, run_id, f"{kind.name}: {words}"))
    return wrong


def leftovers(workers: Workers) -> list[str]:
    """Return what a worker that has stopped in order left behind."""
    spool = workers.spool_path
    found = [f"process {each}" for each in alive_below(spool)]
    found += [
        f"process {path.parent.name} has {spool} in its command line"
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"{spool}/".encode() in _read(path)
    ]
    names = {path.name for path in spool.iterdir()} - {"lock", "spool.json", "standing"}
    found += [f"{spool}/{name}" for name in sorted(names)]
    cgroups = cgroup.find(spool)
    if cgroups is not None:
        cgroups.sweep()
        parent = cgroups._parent
        if parent.exists():
            found += [str(path) for path in parent.iterdir() if path.is_dir()]
    return found


def open_run_files(worker: WorkerProcess) -> list[str]:
    """Return what a worker has open in run folders, by its descriptors."""
    found = []
    for path in Path(f"/proc/{worker.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(path)
            if target.startswith(f"{worker.spool_path}/") and "/lock" not in target:
                found.append(target)
    return found


def table(figures: Mapping[str, object]) -> str:
    """Return figures, one a line, under each other."""
    width = max(map(len, figures))
    return "\n".join(f"  {name:{width}}  {value}" for name, value in figures.items())


def fail_with(
    what: str, wrong: Sequence[tuple[str, int, str]], evidence: Mapping[int, list[str]]
) -> None:
    """Fail with what is wrong and everything that is known of the first runs.

    What is no run's stands under the number 0.
    """
    lines = [what]
    lines += [f"run {run_id}: {head}: {why}" for head, run_id, why in wrong[:20]]
    for run_id, known in [*evidence.items()][:3]:
        lines += [f"--- run {run_id}", *known[-200:]]
    pytest.fail("\n".join(lines), pytrace=False)


def count_headings(wrong: Sequence[tuple[str, int, str]]) -> dict[str, int]:
    counts = Counter(heading for heading, _, _ in wrong)
    return {
        name: counts[name] for name in ("lost", "doubled", "wrong log", "wrong status")
    }


def _number(uri: str) -> int:
    return int(uri.rstrip("/").rpartition("/")[2])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""
