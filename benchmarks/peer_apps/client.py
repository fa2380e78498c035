"""Gives orders to one peer; a process of the peers' own virtual environment.

``client.py MODULE``: one JSON object a line on standard input, ``{"call": name,
"arguments": {...}}``, is answered by one on standard output: ``{"answer": ...}`` or
``{"error": text}``. Times are nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

POLL_SECONDS = 0.005


class Orders:
    """What the benchmark may ask for."""

    def __init__(self, peer: Any) -> None:
        self._peer = peer

    def order(self, path: str, count: int) -> dict[str, Any]:
        """Order some runs of one script; ``sent_ns`` is just before the first."""
        sent_ns = time.monotonic_ns()
        return {
            "run_ids": [self._peer.order(path) for _ in range(count)],
            "sent_ns": sent_ns,
        }

    def order_and_wait(
        self, path: str, count: int, timeout_seconds: float
    ) -> dict[str, Any]:
        """Order some runs and wait for their results."""
        ordered = self.order(path, count)
        self.wait(ordered["run_ids"], timeout_seconds)
        return {**ordered, "done_ns": time.monotonic_ns()}

    def wait(self, run_ids: Sequence[str], timeout_seconds: float) -> None:
        """Wait until each run has a result."""
        deadline = time.monotonic() + timeout_seconds
        for run_id in run_ids:
            while not self._peer.is_done(run_id):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{run_id} has no result")
                time.sleep(POLL_SECONDS)

    def kill(self, run_id: str) -> int:
        """Order a kill; return when."""
        sent_ns = time.monotonic_ns()
        self._peer.kill(run_id)
        return sent_ns

    def state(self, run_id: str) -> dict[str, Any]:
        """Return the state that is stored of a run, and its output."""
        word, result = self._peer.state(run_id)
        output = result.get("output") if isinstance(result, dict) else None
        return {"state": word, "output": output}


def main(module: str) -> None:
    """Answer until nobody asks any more."""
    orders = Orders(importlib.import_module(module))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            call = getattr(orders, request["call"])
            answer = {"answer": call(**request["arguments"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
