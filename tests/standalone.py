"""A server, or a server and a worker, started and used from the command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading

from harness import ROOT, end_scripts

from job_runner_worker import cli
from job_runner_worker.data_folder import DataFolder

LIMIT_SECONDS = 60.0
"""A first start took more than 20 s on two cores with a load of 13."""
COMMAND = [sys.executable, "-m", "job_runner_worker"]
ANY_PORTS = [
    f"--{name}-port=0" for name in ("http", "broadcast", "events", "websocket")
]
ENVIRON = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("JOB_RUNNER_") and name != "CONFIG_PATH"
} | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}


class Standalone:
    """The command in a folder; whatever it started ends with the context."""

    def __init__(self, path, *words, command="standalone", leaves_scripts=False):
        self.leaves_scripts = leaves_scripts
        self.folder = DataFolder(path)
        self.lines = []
        self.changed = threading.Condition()
        self.words = [*COMMAND, command, f"--data={path}", *ANY_PORTS, *words]

    def __enter__(self):
        self.process = subprocess.Popen(
            self.words,
            env=ENVIRON,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        return self

    def __exit__(self, kind, error, traceback):
        self.process.kill()
        self.process.wait(LIMIT_SECONDS)
        # Its children follow it: nobody else holds the pipe.
        if not self.leaves_scripts:
            end_scripts(self.folder.spool)
        self.reader.join(LIMIT_SECONDS)
        if error is not None:
            print("\n".join(["the log:", *self.lines]))
        assert not self.reader.is_alive()
        self.process.stdout.close()

    def read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.decode())
                self.changed.notify_all()

    def wait_for(self, pattern, count=1):
        """Return the match in the line that is the count-th with the pattern."""

        def found():
            matches = (re.search(pattern, line) for line in self.lines)
            return [match for match in matches if match]

        with self.changed:
            arrived = self.changed.wait_for(
                lambda: len(found()) >= count, LIMIT_SECONDS
            )
        assert arrived, f"no line {count} like {pattern!r} in\n{''.join(self.lines)}"
        return found()[count - 1]

    def wait_until_ready(self):
        self.wait_for("slots")
        return self

    def pid_of(self, name, count=1):
        return int(self.wait_for(rf"{name} started \(pid (\d+)\)", count)[1])

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self):
        try:
            return self.process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            # With PYTHONFAULTHANDLER: where it hangs stands in its log.
            self.process.send_signal(signal.SIGABRT)
            raise

    def begin(self, *words):
        """Start another command that talks to this server."""
        return subprocess.Popen(
            [*COMMAND, words[0], f"--data={self.folder.path}", *words[1:]],
            env=ENVIRON,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *words):
        """Return (exit status, stdout, stderr) of another command, run in here."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main([words[0], f"--data={self.folder.path}", *words[1:]])
        return status, out.getvalue(), err.getvalue()

    def runs(self):
        return {run["id"]: run for run in json.loads(self.call("runs", "--json")[1])}


class Gate:
    """A script that says that it runs, and goes on when the gate is opened."""

    def __init__(self, path):
        self.path = path
        self.script = f"#!/bin/sh\necho running\nread word <{path}\necho $word\n"
        os.mkfifo(path)

    def open(self):
        """Return a descriptor to be closed once the script has read from it."""
        descriptor = os.open(self.path, os.O_RDWR)
        os.write(descriptor, b"opened\n")
        return descriptor
