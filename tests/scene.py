"""A stand-in server and a real worker together, and how to wait for what they do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import WorkerProcess, read_process
from waiting import eventually

from job_runner_worker import protocol
from job_runner_worker.testing import FakeApi, StandInServer

LIMIT_SECONDS = 20.0
"""Nothing here takes a second; a loaded machine gets more."""
SETTINGS = {"log_level": "debug", "log_flush_seconds": 0.1, "kill_grace_seconds": 0.5}


@dataclass
class Scene:
    """A server, and the worker that hears it."""

    server: StandInServer
    worker: WorkerProcess

    @property
    def api(self) -> FakeApi:
        return self.server.api

    def end_of(self, run_id: int) -> dict[str, Any]:
        """Return a run once it has ended."""
        return self.server.wait_for_end(run_id, LIMIT_SECONDS)

    def run(self, script: str) -> dict[str, Any]:
        """Return the run of a script once it has ended."""
        return self.end_of(self.server.submit(script))

    def start(self, script: str) -> int:
        """Return the id of a run once the API knows that it has started."""
        run_id = self.server.submit(script)
        self.wait_for_start(run_id)
        return run_id

    def wait_for_start(self, run_id: int) -> None:
        self.api.wait_for(
            lambda: self.api.run(run_id)["start_dts"],
            f"the start of run {run_id}",
            LIMIT_SECONDS,
        )

    def wait_for_claim(self, run_id: int) -> None:
        self.api.wait_for(
            lambda: self.api.run(run_id)["enqueue_dts"],
            f"the claim of run {run_id}",
            LIMIT_SECONDS,
        )

    def wait_for_kill(self, kill_request_id: int) -> None:
        """Wait until a kill request has both of its times."""
        self.api.wait_for(
            lambda: self.api.kill_request(kill_request_id)["execute_dts"],
            f"the execution of kill request {kill_request_id}",
            LIMIT_SECONDS,
        )

    def wait_until_heard(self) -> None:
        """Return when the worker has taken note of every order so far."""
        ping = r"/worker/\d+/$"
        before = self.api.count("PATCH", ping)
        self.server.ping()
        self.api.wait_for(
            lambda: self.api.count("PATCH", ping) > before,
            "the answer to a ping",
            LIMIT_SECONDS,
        )

    def wait_until_gone(self, run_id: int) -> None:
        """Return when the worker has forgotten a run."""
        spool_path = self.worker.spool_path
        paths = [spool_path / str(run_id), spool_path / f"{run_id}.done"]
        eventually(
            lambda: not any(path.exists() for path in paths),
            f"the removal of {paths[0]}",
        )

    def lines_about(self, run_id: int) -> list[str]:
        """Return what the worker logged about a run, without times."""
        found = (re.search(rf"Z (.*\brun {run_id}: .*)", x) for x in self.worker.lines)
        return [match[1] for match in found if match]

    def wait_for_line(self, pattern: str) -> str:
        return self.worker.wait_for_line(pattern, LIMIT_SECONDS)


@contextmanager
def working(
    server: StandInServer,
    folder: Path,
    *,
    leaves_scripts: bool = False,
    env: dict[str, str] | None = None,
    **settings: object,
) -> Iterator[Scene]:
    """Yield a scene with a worker that hears the server."""
    with starting(
        server, folder, leaves_scripts=leaves_scripts, env=env, **settings
    ) as scene:
        server.wait_for_subscriber(timeout_seconds=LIMIT_SECONDS)
        yield scene


@contextmanager
def starting(
    server: StandInServer,
    folder: Path,
    *,
    leaves_scripts: bool = False,
    env: dict[str, str] | None = None,
    **settings: object,
) -> Iterator[Scene]:
    """Yield a scene with a worker that may not be through with its start."""
    server.api.wait_for(
        lambda: subscribers(server) == 0, "the end of the last worker", LIMIT_SECONDS
    )
    config_path = server.write_config(folder, **{**SETTINGS, **settings})
    worker = WorkerProcess(config_path, env, leaves_scripts=leaves_scripts)
    with worker:
        yield Scene(server, worker)


def subscribers(server: StandInServer, api_key: str | None = None) -> int:
    """Return how many connections hear what is broadcast to a worker."""
    topic = protocol.broadcast_topic(api_key or server.api.api_key)
    with server.api.changing():
        return server._exchange.subscribers[topic]


def wait_for_text(path: Path, pattern: str = r"\n\Z") -> str:
    """Return what a script wrote into a file once a regular expression is in it."""

    def text() -> str | None:
        content = path.read_text() if path.exists() else ""
        return content if re.search(pattern, content) else None

    return eventually(text, f"{pattern!r} in {path}")


def pid_in(path: Path) -> int:
    """Return the pid that a script wrote into a file."""
    return int(wait_for_text(path))


def wait_for_death(*pids: int) -> None:
    eventually(
        lambda: all(read_process(pid) is None for pid in pids), f"the end of {pids}"
    )


def run_folders(spool_path: Path) -> list[str]:
    """Return the names of what is in a spool beside what stays there."""
    names = {path.name for path in spool_path.iterdir()}
    return sorted(names - {"lock", "spool.json", "control", "standing"})


class Gate:
    """Where scripts wait until the test lets them go on, or is gone.

    ``gate.wait`` is the line of a script that waits.
    """

    def __init__(self, folder: Path, name: str = "gate") -> None:
        path = folder / name
        os.mkfifo(path)
        self.wait = f"read _ <{path}"
        self._descriptor = os.open(path, os.O_RDWR)

    def open(self, times: int = 1) -> None:
        """Let this many waits end."""
        os.write(self._descriptor, b"\n" * times)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
