"""``job_runner_worker standalone``: a server and one worker under one command.

One loop takes signals and ends of processes one after another. Each process is
started again when it ends by itself. TERM drains: the worker finishes its runs, and
the server stays until it has. INT leaves scripts to the next start; a second signal
of any kind does, too. Should this process be killed, both others stop at once and
scripts go on.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent import queue

from job_runner_worker import backoff, worker_log
from job_runner_worker.data_folder import DataFolder, read_json, write_json
from job_runner_worker.server import proxy, serve, upkeep

STOP_SECONDS = 20.0
"""How long a process may take that has been told to stop at once."""
STEADY_SECONDS = 60.0
"""Who has run for so long is started again without delay."""
FIRST_WAIT_SECONDS = 0.2
MAX_WAIT_SECONDS = 30.0
LOOK_SECONDS = 0.05
PERMANENT = (os.EX_CONFIG, os.EX_NOPERM)
"""Exit statuses after which another try makes no sense."""
_PR_SET_PDEATHSIG = 1
_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    serve.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Keep both processes until a signal stops them; return the exit status."""
    serve.require_extra()
    worker_log.configure("info")
    folder = serve.folder_of(arguments)
    folder.make()
    with folder.locked("standalone"):
        return Standalone(folder, arguments).run()


class Child:
    """A process that is started again and again; ``name`` is for the log."""

    def __init__(self, name: str, command: list[str], told: queue.Queue[Any]) -> None:
        self.name = name
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self._told = told
        self._waits = self._new_waits()
        self._began = 0.0

    @property
    def pid(self) -> int | None:
        """The process there is now."""
        return self.process.pid if self.process is not None else None

    def start(self, environ: dict[str, str]) -> None:
        """Start it in a process group of its own: a terminal's Ctrl-C is for us."""
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "job_runner_worker", *self.command],
            env=environ,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_stop_with_parent(os.getpid()),
        )
        _log.info("%s started (pid %d)", self.name, self.process.pid)
        gevent.spawn(self._wait, self.process)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.process is not None:
            self.process.send_signal(number)

    def seconds_to_wait(self) -> float:
        """Return how long to wait before it is started again."""
        if time.monotonic() - self._began > STEADY_SECONDS:
            self._waits = self._new_waits()
        return next(self._waits)

    def _new_waits(self) -> Iterator[float]:
        bounds = backoff.bounds(FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS)
        return itertools.chain([0.0], bounds)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        self.process = None
        self._told.put((self, status))


class Standalone:
    """The supervisor. `run` is called once."""

    def __init__(self, folder: DataFolder, arguments: argparse.Namespace) -> None:
        self._folder = folder
        self._told: queue.Queue[Any] = queue.Queue()
        self._environ = dict(os.environ)
        if arguments.database:
            # Command lines are for everybody to read.
            self._environ[serve.DATABASE_VARIABLE] = arguments.database
        if arguments.mail:
            self._environ[serve.MAIL_VARIABLE] = arguments.mail
        self._server_words = [
            "server",
            "--migrate",
            f"--data={folder.path}",
            f"--bind={arguments.bind}",
            *(["--no-sha1"] if arguments.no_sha1 else []),
            *(["--curve"] if arguments.curve else []),
            f"--mail-from={arguments.mail_from}",
            f"--time-zone={arguments.time_zone}",
            *(f"--allowed-host={name}" for name in arguments.allowed_host),
            *proxy.words(arguments),
            *upkeep.retention_words(arguments),
        ]
        ports = serve.ports_of(arguments).arguments()
        self._server = Child("server", [*self._server_words, *ports], self._told)
        config_path = f"--config-path={folder.worker_ini}"
        self._worker = Child("worker", [config_path], self._told)
        self._is_ready = False
        self._stops = 0
        self._status = os.EX_OK

    def run(self) -> int:
        """Start both, keep them, stop them; return the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, self._told.put, number)
        self._start(self._server)
        try:
            while not self._stops or self._server.process or self._worker.process:
                self._handle(self._told.get())
        finally:
            for child in (self._worker, self._server):
                child.signal(signal.SIGKILL)
        _log.info("stopped")
        return self._status

    def _handle(self, told: Any) -> None:
        """Deal with one thing that happened."""
        match told:
            case "ready":
                self._take_ports()
                self._is_ready = True
                if not self._stops:
                    _adopt_spool(self._folder)
                    self._start(self._worker)
            case signal.Signals() as number:
                _log.info("%s: stopping", number.name)
                self._stop(number)
            case ("again", Child() as child):
                if self._is_needed(child):
                    self._start(child)
            case ("overdue", Child() as child, int(pid)):
                if child.pid == pid:
                    _log.warning("%s does not stop: killed", child.name)
                    child.signal(signal.SIGKILL)
            case (Child() as child, int(status)):
                self._ended(child, status)

    def _start(self, child: Child) -> None:
        child.start(self._environ)
        if child is self._server and not self._is_ready:
            gevent.spawn(self._await_server)

    def _stop(self, number: signal.Signals) -> None:
        """Stop the worker, in the way that is asked for; then the server.

        A second signal: the worker leaves its scripts to the next start.
        """
        self._stops += 1
        if self._worker.process is None:
            self._stop_server()
            return
        self._worker.signal(number if self._stops == 1 else signal.SIGTERM)
        if self._stops > 1 or number is not signal.SIGTERM:
            self._limit(self._worker)

    def _stop_server(self) -> None:
        self._server.signal(signal.SIGTERM)
        self._limit(self._server)

    def _limit(self, child: Child) -> None:
        gevent.spawn_later(
            STOP_SECONDS, self._told.put, ("overdue", child, child.pid or 0)
        )

    def _ended(self, child: Child, status: int) -> None:
        if not self._is_needed(child):
            if child is self._worker:
                self._stop_server()
            return
        _log.warning("%s ended: exit status %d", child.name, status)
        if status in PERMANENT or (status > 0 and not self._is_ready):
            # It has said why; another try would end the same way.
            self._status = status
            self._stop(signal.SIGINT)
            return
        seconds = child.seconds_to_wait()
        gevent.spawn_later(seconds, self._told.put, ("again", child))

    def _is_needed(self, child: Child) -> bool:
        """While a worker drains, it needs the server."""
        if child is self._server and self._worker.process is not None:
            return True
        return not self._stops

    def _await_server(self) -> None:
        """Wait until the server says where it is; it is given up when it ends."""
        while self._server.process is not None:
            found = read_json(self._folder.server_json) or {}
            if found.get("pid") == self._server.pid:
                self._told.put("ready")
                return
            gevent.sleep(LOOK_SECONDS)

    def _take_ports(self) -> None:
        """Where it is now, the server shall be after a restart: the worker knows it."""
        found = read_json(self._folder.server_json) or {}
        ports = serve.Ports(**found["ports"]).arguments()
        self._server.command = [*self._server_words, *ports]


def _adopt_spool(folder: DataFolder) -> None:
    """Tell the spool where its server is now: a folder has one, on whichever ports."""
    owner = read_json(folder.spool / "spool.json")
    found = read_json(folder.server_json)
    if owner and found and owner.get("api_base_url") != found["url"]:
        write_json(folder.spool / "spool.json", {**owner, "api_base_url": found["url"]})


def _stop_with_parent(parent: int) -> Callable[[], None]:
    """Return what a child does before it execs: it wants INT when its parent dies."""
    libc = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:
            os._exit(os.EX_TEMPFAIL)

    return ask
