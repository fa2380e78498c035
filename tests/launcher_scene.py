"""A worker with nothing but a launcher, and a web application that it calls back."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import WorkerProcess
from scene import LIMIT_SECONDS
from waiting import eventually

from job_runner_worker.testing.http_front import HttpFront
from job_runner_worker.testing.rest import Answer


@dataclass(frozen=True)
class Callback:
    """One request that the web application got."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    answered: int

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class WebApplication:
    """Takes callbacks; ``answer`` decides about each."""

    answer: Callable[[str], Answer] = lambda target: Answer(204)
    calls: list[Callback] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._front = HttpFront(self._handle, "127.0.0.1")

    def __enter__(self) -> WebApplication:
        self._front.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._front.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._front.port}"

    def accepted(self, target: str) -> list[str]:
        """Return the states that were accepted at a path, in order."""
        with self._lock:
            found = [x for x in self.calls if x.target == target and x.answered < 300]
        return [each.status["state"] for each in found]

    def _handle(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        answer = self.answer(target)
        with self._lock:
            self.calls.append(Callback(method, target, headers, body, answer.status))
        return answer


@dataclass
class Launcher:
    """A worker, and how to talk to its launcher."""

    worker: WorkerProcess
    port: int

    def ask(
        self, method: str, target: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """Return status, headers in lower case and JSON content of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body)
            sent = {"Content-Type": "application/json"} if body is not None else {}
            sent |= {name.replace("_", "-"): text for name, text in headers.items()}
            connection.request(method, target, data, sent)
            answer = connection.getresponse()
            content = answer.read()
            found = {name.lower(): text for name, text in answer.getheaders()}
            return answer.status, found, json.loads(content) if content else None
        finally:
            connection.close()

    def post(self, jobdir: Path, executable: str, *arguments: str, **more: Any) -> str:
        """Return the path of a new job."""
        body = {
            "jobdir": str(jobdir),
            "executable": executable,
            "arguments": list(arguments),
            **more,
        }
        status, headers, content = self.ask("POST", "/job", body)
        assert (status, content) == (201, None), (status, content)
        return headers["location"].removeprefix(f"http://127.0.0.1:{self.port}")

    def status(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", path)[2]["status"]
        return found

    def wait_for(self, path: str, state: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            status = self.status(path)
            return status if status["state"] == state else None

        return eventually(found, f"{path} is {state}")

    def end_of(self, path: str) -> dict[str, Any]:
        """Return the status of a job once it is done."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not (status := self.status(path))["done"]:
            assert time.monotonic() < deadline, status
            time.sleep(0.01)
        return status


@contextmanager
def launching(
    folder: Path, *, port: int = 0, leaves_scripts: bool = False, **settings: object
) -> Iterator[Launcher]:
    """Yield a worker that takes jobs over HTTP."""
    config_path = folder / "worker.ini"
    options = {
        "launcher_bind": f"127.0.0.1:{port}",
        "spool_path": folder / "spool",
        "kill_grace_seconds": 0.5,
        "callback_timeout_seconds": 2,
        **settings,
    }
    lines = [f"{name} = {value}\n" for name, value in options.items()]
    config_path.write_text("[job_runner_worker]\n" + "".join(lines))
    with WorkerProcess(config_path, leaves_scripts=leaves_scripts) as worker:
        line = worker.wait_for_line("takes jobs at", LIMIT_SECONDS)
        found = re.search(r":(\d+)/job", line)
        assert found
        yield Launcher(worker, int(found[1]))
