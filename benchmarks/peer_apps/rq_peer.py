"""RQ's task, and what is asked of RQ."""

from __future__ import annotations

from redis import Redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.job import Job, JobStatus
from script_task import QUEUE, REDIS_URL, run_script

_connection = Redis.from_url(REDIS_URL)
_queue = Queue(QUEUE, connection=_connection)
_ENDS = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED)


def order(path: str) -> str:
    """Order a run; return its id."""
    return str(_queue.enqueue(run_script, path, result_ttl=600).id)


def state(number: str) -> tuple[str, object]:
    """Return what is stored of a run: its state, and its result."""
    job = Job.fetch(number, connection=_connection)
    return str(job.get_status().value), job.return_value()


def is_done(number: str) -> bool:
    """Return whether a run has a result."""
    status = _connection.hget(Job.key_for(number), "status")
    return status is not None and status.decode() in _ENDS


def kill(number: str) -> None:
    """Kill a run that has begun."""
    send_stop_job_command(_connection, number)
