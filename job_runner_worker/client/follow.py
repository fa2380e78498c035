"""A run's log as it grows, until the run has ended."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent

from job_runner_worker.client import listing, waiting
from job_runner_worker.client.connection import Connection

SHORTEST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 1.0
PATIENCE_SECONDS = 5.0
"""Of a run that has waited for so long it is told why."""
_OVERLAP = 2000
_GAP = "\n\n[...]\n\n"


def follow(
    connection: Connection,
    run_id: int,
    write: Callable[[str], object] | None = None,
    sleep: Callable[[float], None] = gevent.sleep,
) -> dict[str, Any]:
    """Write the log while it grows; return the run once it has ended.

    A server that is away for a while is waited for, not for ever: ClientError. Of a
    run that nobody claims it is told why. Ctrl-C: KeyboardInterrupt.
    """
    with _interruptible():
        return _follow(connection, run_id, write or _write, sleep)


def _follow(
    connection: Connection,
    run_id: int,
    write: Callable[[str], object],
    sleep: Callable[[float], None],
) -> dict[str, Any]:
    shown = told = ""
    wait_seconds = SHORTEST_WAIT_SECONDS
    patience = time.monotonic() + PATIENCE_SECONDS
    while True:
        # The run first: a log that is read after the end is the whole one.
        run = connection.get(f"run/{run_id}/", patient=True)
        content = log_of(connection, run, patient=True)
        news = news_in(content, shown)
        if news:
            write(news)
        shown = content
        if run["return_dts"]:
            return run
        if not run["enqueue_dts"] and time.monotonic() > patience:
            patience = time.monotonic() + PATIENCE_SECONDS
            reason = waiting.why(connection, run)
            if reason not in ("", told):
                told = reason
                print(f"run {run_id} waits: {reason}", file=sys.stderr, flush=True)
        wait_seconds = min(wait_seconds * 1.5, LONGEST_WAIT_SECONDS)
        if news:
            wait_seconds = SHORTEST_WAIT_SECONDS
        sleep(wait_seconds)


def log_of(
    connection: Connection, run: dict[str, Any], *, patient: bool = False
) -> str:
    """Return what a run has printed so far."""
    if not run["run_log"]:
        return ""
    return str(connection.get(run["run_log"], patient=patient)["content"])


def news_in(content: str, shown: str) -> str:
    """Return what has not been shown of a log, whose middle may be gone meanwhile."""
    if content.startswith(shown):
        return content[len(shown) :]
    tail = shown[-_OVERLAP:]
    found = content.rfind(tail)
    if found >= 0:
        return content[found + len(tail) :]
    return _GAP + content[len(content) // 5 :]


def summary(run: dict[str, Any]) -> str:
    """Return how a run ended, in one line."""
    words = [f"run {run['id']}: {listing.state_of(run)}"]
    if run.get("exit_status") is not None:
        words.append(f"exit status {run['exit_status']}")
    if run.get("reason"):
        words.append(run["reason"])
    return f"{', '.join(words)} ({listing.duration_of(run) or 'never started'})"


def exit_status_of(run: dict[str, Any]) -> int:
    """Return 0 for success, 1 otherwise."""
    return 0 if run["return_success"] else 1


@contextmanager
def _interruptible() -> Iterator[None]:
    """Take Ctrl-C in gevent's loop, which would print a traceback of its own."""
    here = gevent.getcurrent()
    handler = gevent.signal_handler(
        signal.SIGINT, lambda: gevent.kill(here, KeyboardInterrupt)
    )
    try:
        yield
    finally:
        handler.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
