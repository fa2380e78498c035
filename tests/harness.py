"""A real worker as a process of its own, and nothing left of it afterwards."""

from __future__ import annotations

import configparser
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

ROOT = Path(__file__).resolve().parent.parent
SECTION = "job_runner_worker"
END_SECONDS = 5.0


class WorkerProcess:
    """The worker with a configuration, started when the context is entered.

    When it is left the worker is killed if it still runs, and with it the scripts
    whose folders are in its spool. ``leaves_scripts`` lets them go on, for a test in
    which another worker takes them up. ``program`` is what Python is given before
    the command's own words.
    """

    def __init__(
        self,
        config_path: Path,
        env: Mapping[str, str] | None = None,
        *,
        leaves_scripts: bool = False,
        program: Sequence[str] = ("-m", "job_runner_worker"),
    ) -> None:
        self.config_path = config_path
        self.lines: list[str] = []
        """What the worker wrote to stdout and stderr, without line ends."""
        self._env = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        self._leaves_scripts = leaves_scripts
        self._program = program
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = threading.Thread(target=self._read, name="worker's log")

    def __enter__(self) -> Self:
        path = str(self.config_path)
        self._process = subprocess.Popen(
            [sys.executable, *self._program, "--config-path", path],
            env=self._env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        self.process.wait(END_SECONDS)
        if not self._leaves_scripts:
            end_scripts(self.spool_path)
        self._reader.join(END_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        if error is not None:
            print("\n".join(["the worker's log:", *self.lines]))

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "enter the context first"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def spool_path(self) -> Path:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(self.config_path)
        return Path(parser[SECTION]["spool_path"])

    def terminate(self) -> None:
        """Ask it to drain."""
        self._signal(signal.SIGTERM)

    def interrupt(self) -> None:
        """Ask it to leave its scripts and go."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End it as a crash does."""
        self._signal(signal.SIGKILL)

    def wait(self, timeout_seconds: float = 10.0) -> int:
        """Return its exit status; AssertionError where it does not end in time."""
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            log = "\n  ".join(self.lines[-20:])
            raise AssertionError(
                f"the worker still runs after {timeout_seconds:g} s; its log:\n  {log}"
            ) from None

    def wait_for_line(self, pattern: str, timeout_seconds: float = 10.0) -> str:
        """Return the first line in which a regular expression is found."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while True:
                for line in self.lines:
                    if re.search(pattern, line):
                        return line
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._reader.is_alive():
                    log = "\n  ".join(self.lines[-20:])
                    raise AssertionError(f"no line like {pattern!r} in\n  {log}")
                self._changed.wait(remaining)

    def _signal(self, number: signal.Signals) -> None:
        # Popen sends nothing to a process that it has waited for.
        self.process.send_signal(number)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


class Process(NamedTuple):
    """A process as /proc/PID/stat has it."""

    pid: int
    parent: int
    session: int
    start_ticks: int

    def kill(self) -> None:
        """Send SIGKILL, to this very process only."""
        with suppress(ProcessLookupError, FileNotFoundError):
            descriptor = os.pidfd_open(self.pid)
            try:
                found = read_process(self.pid)
                if found is not None and found.start_ticks == self.start_ticks:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def read_process(pid: int) -> Process | None:
    """Return a process, None where there is none (a zombie is none)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in parentheses and may hold anything; field 3 follows it.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]))


def scripts_in(spool_path: Path) -> list[Process]:
    """Return the shims and scripts of a spool's run folders that are alive."""
    found = []
    for path in [*spool_path.glob("*/began"), *spool_path.glob("*/pid")]:
        with suppress(OSError, ValueError):
            pid, start_ticks = [int(word) for word in path.read_text().split()[:2]]
            process = read_process(pid)
            if process is not None and process.start_ticks == start_ticks:
                found.append(process)
    return found


def end_scripts(spool_path: Path) -> None:
    """End what a killed worker left running, with every descendant of it."""
    deadline = time.monotonic() + END_SECONDS
    while doomed := _trees(scripts_in(spool_path)):
        assert time.monotonic() < deadline, f"these do not end: {doomed}"
        for process in doomed:
            process.kill()


def _trees(roots: list[Process]) -> list[Process]:
    """Return some processes, the rest of their sessions and their descendants."""
    doomed = {process.pid: process for process in roots}
    listed = [read_process(int(path.name)) for path in Path("/proc").glob("[0-9]*")]
    alive = [process for process in listed if process is not None]
    # Never a session that the tests share with somebody.
    sessions = {process.session for process in roots} - {os.getsid(0)}
    grown = True
    while grown:
        more = [
            process
            for process in alive
            if process.pid not in doomed
            and (process.parent in doomed or process.session in sessions)
        ]
        doomed.update({process.pid: process for process in more})
        grown = bool(more)
    return list(doomed.values())
