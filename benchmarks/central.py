"""The benchmark's end of the stand-in server, which is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
END_SECONDS = 30.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
"""Both the server and the worker are this checkout's."""


class BenchmarkError(Exception):
    """What was to be measured did not happen."""


@dataclass(frozen=True)
class Ordered:
    """Runs that have been offered, the first at ``sent_ns`` (CLOCK_MONOTONIC)."""

    run_ids: list[int]
    sent_ns: int


class Central:
    """A stand-in server while the context is entered.

    With ``batches`` it speaks what our own server says beyond the original protocol.
    Every method raises BenchmarkError where the server did not see what it waited
    for.
    """

    def __init__(self, *, batches: bool = False) -> None:
        self._words = ["--batches"] if batches else []

    def __enter__(self) -> Self:
        """Start the process."""
        script = str(Path(__file__).with_name("central_process.py"))
        self._process = subprocess.Popen(
            [sys.executable, script, *self._words],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the process."""
        try:
            self._process.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    @property
    def pid(self) -> int:
        """The server's pid."""
        return self._process.pid

    def write_config(self, folder: Path, **options: object) -> Path:
        """Write a worker's configuration into a folder; return its path."""
        path: str = self._call("write_config", folder=str(folder), options=options)
        return Path(path)

    def wait_for_worker(self) -> None:
        """Wait until a worker hears the broadcasts."""
        self._call("wait_for_worker")

    def order(self, script: str, count: int = 1) -> Ordered:
        """Offer some runs of one script."""
        return Ordered(**self._call("order", script=script, count=count))

    def log(self, run_id: int) -> str | None:
        """Return the log of a run, None while it has none."""
        content: str | None = self._call("log", run_id=run_id)
        return content

    def wait_for_log(self, run_id: int, text: str) -> int:
        """Wait until a text is in the log of a run; return when it was there."""
        seen_ns: int = self._call(
            "wait_for_log", run_id=run_id, text=text, timeout_seconds=END_SECONDS
        )
        return seen_ns

    def wait_for_ends(
        self, run_ids: Sequence[int], timeout_seconds: float = END_SECONDS
    ) -> list[bool]:
        """Wait until some runs have ended; return which of them succeeded."""
        ended: list[bool] = self._call(
            "wait_for_ends", run_ids=list(run_ids), timeout_seconds=timeout_seconds
        )
        return ended

    def wait_for_successes(self, run_ids: Sequence[int]) -> None:
        """Wait until some runs have ended, all of them well."""
        if not all(self.wait_for_ends(run_ids)):
            raise BenchmarkError("a script that should succeed did not")

    def kill(self, run_id: int) -> tuple[int, int]:
        """Order a kill; return the request's id and when it was sent."""
        answer = self._call("kill", run_id=run_id)
        return answer["number"], answer["sent_ns"]

    def wait_for_kill(self, number: int) -> None:
        """Wait until a kill has been reported."""
        self._call("wait_for_kill", number=number, timeout_seconds=END_SECONDS)

    def count_requests(self) -> int:
        """Return how many HTTP requests there were."""
        count: int = self._call("count_requests")
        return count

    def answered_ns(self, run_id: int, method: str, part_of_path: str) -> list[int]:
        """Return when the requests of a kind about a run were answered."""
        return [
            at_ns
            for each, path, at_ns in self._call("timeline", run_id=run_id)
            if each == method and part_of_path in path
        ]

    def _call(self, name: str, **arguments: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"call": name, "arguments": arguments}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("the stand-in server has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(answer["error"])
        return answer["answer"]
