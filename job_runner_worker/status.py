"""What `job_runner_worker status` tells of runs and of a spool, ready for JSON.

Times are ISO 8601 in UTC, each with its age in seconds. Everything is only read.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from job_runner_worker import admission, run_options, run_usage
from job_runner_worker.errors import RunFolderError, StartError
from job_runner_worker.failed_folders import FailedFolders
from job_runner_worker.ledger import Ledger
from job_runner_worker.models import RunState, Usage
from job_runner_worker.run_folder import ProcessId, RunFolder, boot_id

REPORTS = {"started": "start", "logged": "log", "finished": "end"}
"""The steps of a run that are told the server, and what people call them."""
UNREADABLE, INTERRUPTED, LOST = "unreadable", "interrupted", "lost"


def moment(at: datetime | None) -> dict[str, Any] | None:
    """Return a time and its age, None where there is none."""
    if at is None:
        return None
    age_seconds = max(0.0, (datetime.now(UTC) - at).total_seconds())
    return {
        "at": at.astimezone(UTC).isoformat(timespec="seconds"),
        "age_seconds": round(age_seconds, 1),
    }


def monotonic_moment(monotonic: float | None) -> dict[str, Any] | None:
    """Return a time of the monotonic clock and its age, None where there is none."""
    if monotonic is None:
        return None
    age_seconds = time.monotonic() - monotonic
    return moment(datetime.now(UTC) - timedelta(seconds=age_seconds))


def of_folder(
    folder: RunFolder,
    state: str,
    reporters: Iterable[str],
    used: Usage | None = None,
) -> dict[str, Any]:
    """Return what there is to say of a run that has a folder.

    ``reporters`` are the names of those who acknowledge. ``used`` is what is known at
    the end; before it the folder is asked. Raises OSError where the folder goes away
    meanwhile.
    """
    note, process = folder.note, folder.script_process()
    return {
        "run": note.run_id,
        "job": note.run.job_title if note.run else "",
        "state": state,
        "pid": process.script.pid if process else None,
        "claimed": moment(datetime.fromisoformat(note.claimed_at)),
        "due": _due(folder, list(reporters)),
        "refused": sorted({REPORTS.get(step, step) for _, step in folder.refusals}),
        "kill_requests": list(note.kill_requests),
        "options": _options(folder),
        "usage": asdict(used or run_usage.of_run(folder, _ended_at(folder))),
    }


def without_folder(
    run_id: int, state: str, since: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the same of a run that has no folder, or none that can be read."""
    return {
        "run": run_id,
        "job": "",
        "state": state,
        "pid": None,
        "claimed": since,
        "due": [],
        "refused": [],
        "kill_requests": [],
        "options": {},
        "usage": None,
    }


def of_spool(path: Path, ledger: Ledger | None = None) -> dict[str, Any]:
    """Return what holds for a spool with and without a worker.

    ``ledger`` is a live worker's; what has been given up is known to nobody else.
    """
    return {
        "spool_path": str(path),
        "paused": moment(admission.paused_since(path)),
        "failed": [
            {
                "name": each.name,
                "run": each.run_id,
                "set_aside": moment(each.at),
                "reason": each.reason,
                "disk_bytes": each.disk_bytes,
            }
            for each in FailedFolders(path).entries()
        ],
        "given_up": dict(ledger.given_up) if ledger else None,
        "claimed_elsewhere": [
            {"run": run_id, "seen": moment(at)}
            for run_id, at in (ledger.claimed_elsewhere.items() if ledger else ())
        ],
    }


def of_abandoned_runs(
    path: Path, reporters: Iterable[str], is_alive: Callable[[ProcessId], bool]
) -> list[dict[str, Any]]:
    """Return the runs in a spool that no worker has, oldest first."""
    found = []
    for name in os.listdir(path):
        if name.isdecimal() and (path / name).is_dir():
            found.append(_of_abandoned_run(path / name, reporters, is_alive))
    return sorted(found, key=lambda run: int(run["run"]))


def _of_abandoned_run(
    path: Path, reporters: Iterable[str], is_alive: Callable[[ProcessId], bool]
) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RunFolderError):
        folder = RunFolder.load(path)
        return of_folder(folder, _state_of(folder, is_alive), reporters)
    return without_folder(int(path.name), UNREADABLE, None)


def _state_of(folder: RunFolder, is_alive: Callable[[ProcessId], bool]) -> str:
    """Return how far a run got, from its folder alone."""
    shim = folder.shim()
    if folder.exit_status() is not None or folder.failure() is not None:
        return RunState.ENDED
    if folder.note.boot_id != boot_id():
        return INTERRUPTED
    if shim is not None:
        return RunState.RUNNING if is_alive(shim) else LOST
    return RunState.CLAIMING if folder.note.run is None else RunState.CLAIMED


def _due(folder: RunFolder, reporters: list[str]) -> list[dict[str, Any]]:
    """Return what the server has not taken yet, and since when it is due."""
    process, ended_at = folder.script_process(), _ended_at(folder)
    since = {
        "started": process.started_at if process else ended_at,
        "logged": None if folder.note.keeps_log else ended_at,
        "finished": ended_at,
    }
    return [
        {"report": REPORTS[step], "since": moment(at)}
        for step, at in since.items()
        if at and not all(folder.has_reported(each, step) for each in reporters)
    ]


def _ended_at(folder: RunFolder) -> datetime | None:
    failure = folder.failure()
    if folder.exit_status() is not None:
        return folder.ended_at()
    return failure.returned_at if failure else None


def _options(folder: RunFolder) -> dict[str, str]:
    """Return what the script asks for, but for the values of variables.

    What it could not be given has failed the run.
    """
    if folder.note.run is None:
        return {}
    try:
        asked = run_options.of_script(folder.note.run.script).texts()
    except StartError:
        return {}
    return {
        key: "..." if key.startswith("env.") else text for key, text in asked.items()
    }
