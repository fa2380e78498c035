"""Waits for what is about to happen, and sees who is alive."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import gevent
import psutil
from harness import Process, read_process

from job_runner_worker.executors.process_tree import identify
from job_runner_worker.run_folder import ProcessId

LIMIT_SECONDS = 20.0
"""Far more than anything takes, also on a machine that is busy with other tests."""
PAUSE_SECONDS = 0.005
Found = TypeVar("Found")


def eventually(
    predicate: Callable[[], Found],
    what: str,
    timeout_seconds: float = LIMIT_SECONDS,
) -> Found:
    """Return the first true value; AssertionError where there is none in time."""
    deadline = time.monotonic() + timeout_seconds
    while not (found := predicate()):
        assert time.monotonic() < deadline, f"not in {timeout_seconds:g} s: {what}"
        gevent.sleep(PAUSE_SECONDS)
    return found


def alive_below(path: Path) -> list[Process]:
    """Return every process whose working directory is a folder or below it.

    That of a script's children is its run folder, whatever else they have changed:
    session, process group, environment, parent. Zombies have none.
    """
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            folder = Path(os.readlink(f"/proc/{name}/cwd").removesuffix(" (deleted)"))
        except OSError:
            continue
        if folder.is_relative_to(path):
            process = read_process(int(name))
            if process is not None:
                found.append(process)
    return found


def spawn_helpers(parent_pid: int | None = None) -> set[ProcessId]:
    """Return the spawn helpers of a process, of this one by default."""
    found = set()
    for child in psutil.Process(parent_pid).children():
        # A zombie has no command line.
        with suppress(psutil.Error):
            if any("spawn_helper" in word for word in child.cmdline()):
                found.add(identify(child.pid))
    return {process for process in found if process is not None}


def end_all_below(path: Path) -> None:
    """End every process that works in a folder."""

    def is_quiet() -> bool:
        doomed = alive_below(path)
        for process in doomed:
            process.kill()
        return not doomed

    eventually(is_quiet, f"everybody in {path} is dead")
