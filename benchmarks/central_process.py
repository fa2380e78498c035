"""The stand-in server as a process: `central.Central` talks to it.

In a process of its own it shares no interpreter with what measures; all they share
is the machine and its monotonic clock. One JSON object a line on standard input,
``{"call": name, "arguments": {...}}``, is answered by one on standard output:
``{"answer": ...}`` or ``{"error": text}``. It ends with its standard input. With
``--batches`` it speaks what our own server says beyond the original protocol.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from job_runner_worker.testing import FakeApi, StandInServer

POLL_SECONDS = 0.005
"""Rarer than the server is asked: to wait must not slow the answers down."""


class Orders:
    """What the benchmark may ask for. Times are nanoseconds of CLOCK_MONOTONIC."""

    def __init__(self, server: StandInServer) -> None:
        self._server = server

    def write_config(self, folder: str, options: Mapping[str, object]) -> str:
        """Write a worker's configuration; return its path."""
        return str(self._server.write_config(Path(folder), **options))

    def wait_for_worker(self) -> None:
        """Wait until a worker hears the broadcasts."""
        self._server.wait_for_subscriber()

    def order(self, script: str, count: int) -> dict[str, Any]:
        """Offer some runs of one script; ``sent_ns`` is just before the first."""
        api = self._server.api
        job_id = api.add_job(script)
        run_ids = [api.add_run(job_id) for _ in range(count)]
        sent_ns = time.monotonic_ns()
        for run_id in run_ids:
            self._server.enqueue(run_id)
        return {"run_ids": run_ids, "sent_ns": sent_ns}

    def log(self, run_id: int) -> str | None:
        """Return the log of a run."""
        return self._server.api.log(run_id)

    def wait_for_log(self, run_id: int, text: str, timeout_seconds: float) -> int:
        """Wait until a text is in the log of a run; return when it was there."""
        api = self._server.api

        def is_there() -> int | None:
            is_visible = text in (api.log(run_id) or "")
            return time.monotonic_ns() if is_visible else None

        return api.wait_for(is_there, f"{text!r} in the log", timeout_seconds)

    def wait_for_ends(
        self, run_ids: Sequence[int], timeout_seconds: float
    ) -> list[bool]:
        """Wait until some runs have ended; return which of them succeeded."""
        rows = (self._wait("run", run_id, timeout_seconds) for run_id in run_ids)
        return [row["return_success"] for row in rows]

    def kill(self, run_id: int) -> dict[str, int]:
        """Order a kill, as an original server: the order does not name the run."""
        api = self._server.api
        with api.changing():
            sent_ns = time.monotonic_ns()
            return {"number": self._server.kill(run_id), "sent_ns": sent_ns}

    def wait_for_kill(self, number: int, timeout_seconds: float) -> None:
        """Wait until a kill has been reported."""
        self._wait("kill_request", number, timeout_seconds)

    def count_requests(self) -> int:
        """Return how many HTTP requests there were."""
        return self._server.api.count_http()

    def timeline(self, run_id: int) -> list[list[Any]]:
        """Return method, path and time of the answer of each request about a run."""
        return [
            [request.method, request.path, round(request.monotonic_seconds * 1e9)]
            for request in self._server.api.requests_like(run_id=run_id)
        ]

    def _wait(self, resource: str, number: int, timeout_seconds: float) -> Any:
        api = self._server.api
        end = {"run": "return_dts", "kill_request": "execute_dts"}[resource]
        deadline = time.monotonic() + timeout_seconds
        while True:
            row = getattr(api, resource)(number)
            if row[end]:
                return row
            if time.monotonic() > deadline:
                raise TimeoutError(f"{resource} {number} has no {end}: {row}")
            time.sleep(POLL_SECONDS)


def main() -> None:
    """Serve until nobody asks any more."""
    with StandInServer(FakeApi(batches="--batches" in sys.argv)) as server:
        orders = Orders(server)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                call = getattr(orders, request["call"])
                answer = {"answer": call(**request["arguments"])}
            except (AssertionError, TimeoutError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
