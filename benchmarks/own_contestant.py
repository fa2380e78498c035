"""This worker among the contestants, against the stand-in server."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from central import Central
from contestant_kinds import Begun
from first_line import FirstLine
from measured_worker import MeasuredWorker

SLOTS = 4
OFFER_TTL_SECONDS = 600


class OwnContestant:
    """A real worker that speaks as its server does."""

    def __init__(self, folder: Path, central: Central) -> None:
        self._folder = folder
        self._central = central
        self._config_path = central.write_config(
            folder, concurrent_jobs=SLOTS, offer_ttl_seconds=OFFER_TTL_SECONDS
        )
        self._workers: list[MeasuredWorker] = []
        self.start_ms: float | None = None

    @property
    def _worker(self) -> MeasuredWorker:
        return self._workers[-1]

    def start(self) -> None:
        """Start it; the first order is sent as soon as it listens."""
        with FirstLine(self._folder) as first_line:
            began_ns = time.monotonic_ns()
            self.restart()
            self._central.wait_for_worker()
            begun = self.begin(first_line.script())
            self.start_ms = (first_line.wait() - began_ns) / 1e6
        self.wait(begun)

    def restart(self) -> None:
        worker = MeasuredWorker(self._config_path)
        self._workers.append(worker)
        worker.__enter__()

    def stop(self) -> None:
        """End all of them."""
        for worker in self._workers:
            worker.__exit__(None, None, None)

    def log(self) -> str:
        """Return the end of what it said."""
        lines = self._worker.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-20:])

    def begin(self, script: str) -> Begun:
        ordered = self._central.order(script)
        return Begun(str(ordered.run_ids[0]), ordered.sent_ns)

    def wait(self, begun: Begun) -> None:
        self._central.wait_for_ends([int(begun.run_id)])

    def runs_per_second(self, script: str, count: int) -> float:
        ordered = self._central.order(script, count)
        self._central.wait_for_successes(ordered.run_ids)
        # The last of them is among the last that were ordered.
        ended_ns = max(
            max(self._central.answered_ns(run_id, "PATCH", "/run/"))
            for run_id in ordered.run_ids[-SLOTS * 4 :]
        )
        return count / (ended_ns - ordered.sent_ns) * 1e9

    def kill(self, begun: Begun) -> int:
        return self._central.kill(int(begun.run_id))[1]

    def state(self, begun: Begun) -> str:
        (is_success,) = self._central.wait_for_ends([int(begun.run_id)])
        return "success" if is_success else "failure"

    def pids(self) -> list[int]:
        return [pid for each in self._workers for pid in each.pids()]

    def everything_cpu_seconds(self) -> float | None:
        return self._worker.everything_cpu_seconds()

    def count_requests(self) -> int:
        return self._central.count_requests()

    def settle(self) -> None:
        self._worker.wait_until_quiet()
        time.sleep(0.02)

    def crash(self, script_pids: set[int]) -> None:
        for pid in (self._worker.pid, self._worker.helper_pid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
