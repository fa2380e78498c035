"""Why a run waits, in words: it may do so for ever, and nobody would know what for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from job_runner_worker.client import listing
from job_runner_worker.client.connection import Connection, number_of
from job_runner_worker.errors import ApiError

SILENCE = timedelta(minutes=15)
"""Who has not answered a ping for so long is away, as the server sees it."""


def why(connection: Connection, run: dict[str, Any]) -> str:
    """Return why nobody has claimed a run; '' where that cannot be told."""
    due_at = datetime.fromisoformat(run["schedule_dts"])
    if due_at.tzinfo is not None and due_at > datetime.now(UTC):
        return f"it is due at {listing.time_of(run['schedule_dts'])}"
    try:
        if run["worker"]:
            return _about_one(connection.get(run["worker"], patient=True))
        job = connection.get(run["job"], patient=True)
        path = f"run/?job={number_of(run['job'])}&state=started&limit=1"
        if connection.get(path, patient=True)["objects"]:
            return "another run of its job goes on"
        return _about_pool(connection, job["worker_pool"])
    except ApiError:
        # Not everything is shown to everybody.
        return ""


def _about_one(worker: dict[str, Any]) -> str:
    name = worker["title"]
    if not worker["enqueue_is_enabled"]:
        return f"it is for worker {name}, which is disabled"
    if not _answers(worker):
        return f"it is for worker {name}, {_last_heard(worker)}"
    return f"it is for worker {name}, which has not taken it yet"


def _about_pool(connection: Connection, uri: str) -> str:
    pool = connection.get(uri, patient=True)
    name = f"pool {pool['title']}"
    if not pool["enqueue_is_enabled"]:
        return f"{name} is disabled"
    workers = [connection.get(each, patient=True) for each in pool["workers"]]
    if not workers:
        return f"{name} has no worker"
    enabled = [each for each in workers if each["enqueue_is_enabled"]]
    if not enabled:
        return f"every worker of {name} is disabled"
    if not any(map(_answers, enabled)):
        return f"no worker of {name} answers"
    return f"no worker of {name} has taken it yet"


def _answers(worker: dict[str, Any]) -> bool:
    heard = worker["ping_response_dts"]
    if not heard:
        return False
    at = datetime.fromisoformat(heard)
    return at.tzinfo is None or datetime.now(UTC) - at < SILENCE


def _last_heard(worker: dict[str, Any]) -> str:
    heard = worker["ping_response_dts"]
    if not heard:
        return "which has never answered"
    return f"which has not answered since {listing.time_of(heard)}"
