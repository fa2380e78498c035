"""Answers an operator's commands out of a live worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from job_runner_worker import __version__, status
from job_runner_worker.errors import JobRunnerError
from job_runner_worker.live_run import LiveRun
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.spool import Spool
from job_runner_worker.worker import Worker

Clock = Callable[[], float | None]


@dataclass(frozen=True, slots=True)
class Console:
    """What a control socket needs: `answer`.

    ``contacts`` are names of the other sides, and when each was last heard: monotonic
    seconds, None for never.
    """

    worker: Worker
    spool: Spool
    contacts: Mapping[str, Clock]

    def answer(self, request: Mapping[str, Any]) -> object:
        """Carry out a request. Raises JobRunnerError where that is not possible."""
        match request:
            case {"command": "status"}:
                return self._status()
            case {"command": "retry", "names": list(names)}:
                return self._retry([str(name) for name in names])
        raise JobRunnerError(
            f"version {__version__} of the worker does not know this command"
        )

    def _status(self) -> dict[str, Any]:
        worker, admission = self.worker, self.worker.admission
        # Asked now: without offers nobody else has looked lately.
        is_short = admission.is_short()
        shortage = admission.shortage
        return {
            "worker": {
                "pid": os.getpid(),
                "version": __version__,
                "started": status.monotonic_moment(worker.started_at),
                "stopping": admission.is_stopping,
            },
            "slots": {
                "all": worker.options.concurrent_jobs,
                "busy": worker.options.concurrent_jobs - worker.free_slots,
            },
            "waiting_offers": len(worker.waiting),
            "runs": [self._of_run(live) for live in worker.runs.values()],
            "short_of_space": {
                "since": status.moment(shortage.since),
                "free_bytes": shortage.free_bytes,
                "min_free_bytes": admission.min_free_bytes,
            }
            if is_short and shortage
            else None,
            "contacts": {
                name: status.monotonic_moment(heard_at())
                for name, heard_at in self.contacts.items()
            },
            **status.of_spool(self.spool.path, self.spool.ledger),
        }

    def _of_run(self, live: LiveRun) -> dict[str, Any]:
        if live.has_folder:
            names = [each.name for each in self.worker.reporters if each.acknowledges]
            return status.of_folder(live.folder, live.state, names, live.usage)
        since = status.monotonic_moment(live.offered_at)
        return status.without_folder(live.id, live.state, since)

    def _retry(self, names: list[str]) -> dict[str, dict[str, str]]:
        """Return what became of each: "retried", or why not under "errors"."""
        retried, errors = {}, {}
        for name in names:
            try:
                if self.spool.failed.run_id_of(name) in self.worker.runs:
                    raise JobRunnerError(
                        f"{name}: the run is in hand: wait for its end"
                    )
                path = self.spool.failed.retry(name)
                self.worker.take_up(RunFolder.load(path))
                retried[name] = str(path)
            except JobRunnerError as error:
                errors[name] = str(error)
        return {"retried": retried, "errors": errors}
