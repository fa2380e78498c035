"""Huey's task, and what is asked of Huey."""

from __future__ import annotations

from huey import RedisHuey
from script_task import QUEUE, REDIS_URL, run_script

huey = RedisHuey(QUEUE, url=REDIS_URL)


@huey.task()
def run(path: str) -> dict[str, object]:
    """Run a script."""
    return run_script(path)


def order(path: str) -> str:
    """Order a run; return its id."""
    return str(run(path).id)


def state(number: str) -> tuple[str, object]:
    """Return what is stored of a run: its state, and its result."""
    result = huey.result(number, preserve=True)
    return ("no result" if result is None else "success"), result


def is_done(number: str) -> bool:
    """Return whether a run has a result."""
    return bool(huey.storage.has_data_for_key(number))
