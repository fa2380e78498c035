"""Celery's task, and what is asked of Celery."""

from __future__ import annotations

from celery import Celery
from script_task import AMQP_URL, IS_ON_REDIS, QUEUE, REDIS_URL, run_script

app = Celery(QUEUE, broker=REDIS_URL if IS_ON_REDIS else AMQP_URL, backend=REDIS_URL)
app.conf.update(
    task_default_queue=QUEUE,
    task_default_exchange=QUEUE,
    task_default_routing_key=QUEUE,
    control_exchange=QUEUE,
    event_exchange=f"{QUEUE}.events",
    event_queue_prefix=QUEUE,
    task_track_started=True,
    broker_connection_retry_on_startup=True,
)


@app.task(name="run")
def run(path: str) -> dict[str, object]:
    """Run a script."""
    return run_script(path)


def order(path: str) -> str:
    """Order a run; return its id."""
    return str(run.delay(path).id)


def state(number: str) -> tuple[str, object]:
    """Return what is stored of a run: its state, and its result."""
    found = app.backend.get_task_meta(number, cache=False)
    return found["status"].lower(), found["result"]


def is_done(number: str) -> bool:
    """Return whether a run has a result."""
    return state(number)[0] in ("success", "failure", "revoked")


def kill(number: str) -> None:
    """Kill a run that has begun."""
    app.control.revoke(number, terminate=True, signal="KILL")
