"""The real server as a process that is measured from outside, on either database."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import callers
from central import ENVIRONMENT, ROOT, BenchmarkError

from job_runner_worker.data_folder import DataFolder, read_json

POSTGRESQL = [
    os.environ.get("JRW_TEST_POSTGRESQL", ""),
    "postgresql://postgres@127.0.0.1:5432/postgres",
    "postgresql://root@127.0.0.1:5432/postgres",
]
DATABASE_VARIABLE = "JOB_RUNNER_DATABASE"
START_SECONDS = 120.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.02
PORTS = ("http", "broadcast", "events", "websocket")


class MeasuredServer:
    """A server with nothing in it, while the context is entered.

    ``database_url`` is empty for SQLite, in a folder of this server's own.
    """

    def __init__(self, folder: Path, database_url: str = "") -> None:
        self.database_url = database_url
        self._data = DataFolder(folder / "data")
        self._log_path = folder / "server.log"
        self._environment = {**ENVIRONMENT, DATABASE_VARIABLE: database_url}

    def __enter__(self) -> Self:
        """Start it."""
        ports = [f"--{name}-port=0" for name in PORTS]
        words = ["server", f"--data={self._data.path}", *ports]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "job_runner_worker", *words],
                env=self._environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        deadline = time.monotonic() + START_SECONDS
        while (addresses := read_json(self._data.server_json)) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise BenchmarkError(f"no server:\n{self._log_path.read_text()}")
            time.sleep(POLL_SECONDS)
        self.url: str = addresses["url"]
        self.ports: dict[str, int] = addresses["ports"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if error is not None:
            log = self._log_path.read_text(errors="replace").splitlines()
            print("\n".join(["the server's log:", *log[-20:]]), file=sys.stderr)

    @property
    def pid(self) -> int:
        """The server's pid."""
        return self._process.pid

    def person(self) -> callers.Person:
        """Return the administrator."""
        found = read_json(self._data.client_json) or {}
        return callers.Person(self.url, found["session"])

    @property
    def cookie(self) -> str:
        """The administrator's session, as a cookie."""
        found = read_json(self._data.client_json) or {}
        return f"sessionid={found['session']}"

    def make(self, *words: object) -> Any:
        """Make objects (see server_objects.py); return what it prints."""
        helper = Path(__file__).with_name("server_objects.py")
        done = subprocess.run(
            [sys.executable, helper, self._data.path, *map(str, words)],
            env=self._environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(done.stdout)

    def write_config(self, folder: Path, worker: dict[str, Any], slots: int) -> Path:
        """Write the configuration of a worker into a folder of its own."""
        folder.mkdir()
        path = folder / "worker.ini"
        host = urlsplit(self.url).hostname
        options = {
            "api_base_url": self.url,
            "api_key": worker["api_key"],
            "secret": worker["secret"],
            "concurrent_jobs": slots,
            "spool_path": folder / "spool",
            "ws_server_hostname": host,
            "ws_server_port": self.ports["events"],
            "broadcaster_server_hostname": host,
            "broadcaster_server_port": self.ports["broadcast"],
        }
        lines = [f"{name} = {value}\n" for name, value in options.items()]
        path.write_text("".join(["[job_runner_worker]\n", *lines]))
        return path


@contextmanager
def database(kind: str) -> Iterator[str | None]:
    """Yield a new database's URL, empty for SQLite, None where it cannot be made."""
    if kind == "sqlite":
        yield ""
        return
    import psycopg

    name = f"jrw_bench_{secrets.token_hex(8)}"
    for url in filter(None, POSTGRESQL):
        try:
            server = psycopg.connect(url, autocommit=True, connect_timeout=2)
            server.execute(f'CREATE DATABASE "{name}"')
        except psycopg.Error:
            continue
        with server:
            try:
                yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
            finally:
                server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        return
    yield None


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="job_runner_bench_") as name:
        yield Path(name)


def ids(paths: Sequence[str]) -> list[int]:
    """Return the numbers in the paths of rows."""
    return [int(path.rstrip("/").rpartition("/")[2]) for path in paths]
