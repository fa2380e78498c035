"""The limit of the machine: scripts spawned by next to nothing; a process of its own.

``bare_spawner.py bare|shim FOLDER``: answers calls as peer_apps/client.py does. Runs
four scripts at once, each with its output in a file; with ``shim`` a plain ``sh``
waits for each script and stores its exit status.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SLOTS = 4
SHIM = '"$0" >"$1.out" 2>&1; echo $? >"$1.status"'
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


class Spawner:
    """What the benchmark may ask for."""

    def __init__(self, folder: Path, has_shim: bool) -> None:
        self._folder = folder
        self._has_shim = has_shim

    def order(self, path: str, count: int) -> dict[str, Any]:
        """Spawn some scripts; `wait` waits for them."""
        sent_ns = time.monotonic_ns()
        for number in range(count):
            self._spawn(path, number)
        return {"run_ids": [""], "sent_ns": sent_ns}

    def order_and_wait(
        self, path: str, count: int, timeout_seconds: float
    ) -> dict[str, Any]:
        """Run some scripts to their ends."""
        sent_ns = time.monotonic_ns()
        live = 0
        for number in range(count):
            if live == SLOTS:
                os.wait()
                live -= 1
            self._spawn(path, number)
            live += 1
        for _ in range(live):
            os.wait()
        return {"run_ids": [], "sent_ns": sent_ns, "done_ns": time.monotonic_ns()}

    def wait(self, run_ids: list[str], timeout_seconds: float) -> None:
        """Wait for one script for each id."""
        for _ in run_ids:
            os.wait()

    def _spawn(self, path: str, number: int) -> None:
        base = f"{self._folder}/{number}"
        if self._has_shim:
            os.posix_spawn("/bin/sh", ["sh", "-c", SHIM, path, base], os.environ)
            return
        actions = [
            (os.POSIX_SPAWN_OPEN, 1, f"{base}.out", _WRITE, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        os.posix_spawn(path, [path], os.environ, file_actions=actions)


def main(kind: str, folder: str) -> None:
    """Answer until nobody asks any more."""
    spawner = Spawner(Path(folder), kind == "shim")
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(spawner, request["call"])(**request["arguments"])
        print(json.dumps({"answer": answer}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
