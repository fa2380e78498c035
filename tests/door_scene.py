"""A real central server, and workers that hear it by whichever door."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness import SECTION, end_scripts
from standalone import COMMAND, ENVIRON, Standalone
from waiting import eventually

from job_runner_worker.client.connection import Connection, PersonClient
from job_runner_worker.data_folder import read_json
from job_runner_worker.errors import ApiError

ROOT = "/api/v1/"
SETTINGS = {
    "log_level": "debug",
    "log_flush_seconds": 0.1,
    "kill_grace_seconds": 0.5,
    "http_timeout_seconds": 5,
    "zmq_heartbeat_seconds": 1,
    "channel_ping_seconds": 0.5,
    "lock_wait_seconds": 5,
}


class CentralServer:
    """The embedded server on SQLite, on the same ports in each of its lives."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.path = folder / "data"
        self.ports: dict[str, int] = {}
        self.process: Any = None
        self._words = words
        self._person: Connection | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            # Else it would run on behind a test that never began.
            self.stop(*sys.exc_info())
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._person is not None:
            self._person.api.close()
        self.stop(kind, error, traceback)

    def start(self) -> None:
        words = [f"--{name}-port={port}" for name, port in self.ports.items()]
        self.process = Standalone(
            self.path, *self._words, *words, command="server", leaves_scripts=True
        )
        self.process.__enter__()
        self.process.wait_for("Job-Runner server")
        found = read_json(self.path / "server.json")
        known = read_json(self.path / "client.json")
        assert found and known and found["pid"] == self.process.process.pid
        self.ports = found["ports"]
        if self._person is None:
            url = f"http://127.0.0.1:{self.ports['http']}"
            client = PersonClient(url, known["session"])
            self._person = Connection(client, url)

    def stop(self, *error: Any) -> None:
        """End it as a crash does."""
        if self.process is not None:
            process, self.process = self.process, None
            process.__exit__(*(error or (None, None, None)))

    @property
    def person(self) -> Connection:
        assert self._person is not None
        return self._person

    @property
    def channel_url(self) -> str:
        return f"ws://127.0.0.1:{self.ports['http']}/ws/worker/"

    def credentials(self) -> tuple[str, str]:
        """Return key and secret of the worker that the server made at first."""
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(self.path / "worker.ini")
        return parser[SECTION]["api_key"], parser[SECTION]["secret"]

    def config(self, folder: Path, **more: object) -> Path:
        """Write the configuration of that worker; None leaves a setting out."""
        api_key, secret = self.credentials()
        options = {
            "api_base_url": f"http://127.0.0.1:{self.ports['http']}",
            "api_key": api_key,
            "secret": secret,
            "spool_path": folder / "spool",
            "broadcaster_server_port": self.ports["broadcast"],
            "ws_server_port": self.ports["events"],
            **SETTINGS,
            **more,
        }
        path = folder / "worker.ini"
        lines = [f"{k} = {v}\n" for k, v in options.items() if v is not None]
        path.write_text("".join([f"[{SECTION}]\n", *lines]))
        path.chmod(0o600)
        return path

    def submit(self, script: str, **fields: object) -> int:
        """Return the number of the first run of a new job; ``fields`` are the run's."""
        (pool,) = self.person.objects("worker_pool/")
        (template,) = self.person.objects("job_template/")
        job = {
            "title": "a job",
            "script_content_partial": script,
            "job_template": template["resource_uri"],
            "worker_pool": pool["resource_uri"],
        }
        uri = self.person.post("job/", job)
        return number_of(
            self.person.post("run/", {"job": uri, "is_manual": True, **fields})
        )

    def kill(self, run_id: int) -> int:
        """Return the number of a new kill request."""
        return number_of(
            self.person.post("kill_request/", {"run": f"{ROOT}run/{run_id}/"})
        )

    def row(self, resource: str, number: int) -> dict[str, Any]:
        """Return an object of the API."""
        return self.person.get(f"{ROOT}{resource}/{number}/")

    def run(self, run_id: int) -> dict[str, Any]:
        return self.row("run", run_id)

    def worker(self) -> dict[str, Any]:
        """Return the worker that the server made at first."""
        return next(iter(self.person.objects("worker/")))

    def log_of(self, run_id: int) -> str:
        uri = self.run(run_id)["run_log"]
        return "" if uri is None else str(self.person.get(uri)["content"])

    def wait_for_start(self, run_id: int) -> dict[str, Any]:
        return eventually(
            lambda: self._run_with(run_id, "start_dts"), f"the start of run {run_id}"
        )

    def wait_for_end(self, run_id: int) -> dict[str, Any]:
        return eventually(
            lambda: self._run_with(run_id, "return_dts"), f"the end of run {run_id}"
        )

    def wait_for_kill(self, number: int) -> dict[str, Any]:
        def executed() -> dict[str, Any] | None:
            found = self.row("kill_request", number)
            return found if found["execute_dts"] else None

        return eventually(executed, f"the execution of kill request {number}")

    def _run_with(self, run_id: int, field: str) -> dict[str, Any] | None:
        try:
            found = self.run(run_id)
        except ApiError as error:
            if not error.transient:
                raise
            return None
        return found if found[field] else None


def number_of(uri: str) -> int:
    return int(uri.rstrip("/").rpartition("/")[2])


@dataclass(frozen=True)
class Passed:
    """What one pass came to."""

    status: int
    lines: list[str]
    errors: str


class Cron:
    """What a crontab does for a worker; scripts end with the context."""

    def __init__(self, config_path: Path) -> None:
        self.config_path = config_path
        self.spool_path = config_path.parent / "spool"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_scripts(self.spool_path)

    def begin(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            [*COMMAND, *words, "--config-path", str(self.config_path)],
            env={**ENVIRON, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *words: str, **env: str) -> Passed:
        """Return what a command came to; its end does not depend on scripts."""
        process = self.begin(*words, **env)
        try:
            out, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        lines = [re.sub(r", \d+ s ago", "", line) for line in out.splitlines()]
        return Passed(process.returncode, lines, errors)

    def call_with(self, changes: dict[str, str], *words: str) -> Passed:
        """Return what a command came to, some of its settings changed."""
        text = self.config_path.read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path = self.config_path.with_name("changed.ini")
        path.write_text(text)
        return Cron(path).call(*words)

    def launch(self, *words: str) -> Passed:
        """Return what launch-scheduled came to; it has to be well."""
        passed = self.call("launch-scheduled", *words)
        assert passed.status == 0, passed
        return passed

    def propagate(self, *words: str) -> Passed:
        """Return what propagate-statuses came to; it has to be well."""
        passed = self.call("propagate-statuses", *words)
        assert passed.status == 0, passed
        return passed

    def wait_for_exit_status(self, run_id: int) -> None:
        path = self.spool_path / str(run_id) / "exit_status"
        eventually(
            lambda: path.exists() and path.read_text().strip(),
            f"the end of run {run_id}",
        )

    def run_folders(self) -> list[str]:
        """Return the names of the run folders that are there."""
        return sorted(path.name for path in self.spool_path.glob("[0-9]*"))
