"""The worker, which dies (-9) at one step of one run.

A program: ``dying_worker.py RUN_ID JOB_ID STEP JOURNAL [the command's own words]``.
STEP is ``before:NAME`` or ``after:NAME``, or empty for a worker that lives on. Every
step of the run is written to JOURNAL, one a line, just before it is taken: a change of
the run's folder or of the first that is made ahead, a request about the run, a signal,
and what is said to and by the spawn helper.
A name is what is done, with the number of the time it is done.
"""

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import contextlib
import functools
import json
import os
import posix
import re
import signal
import sys
from collections import Counter

import gevent.socket

from job_runner_worker import cli, private_files

_TCP = (gevent.socket.AF_INET, gevent.socket.AF_INET6)
_REQUEST = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n.*?\r\n\r\n(.*)", re.DOTALL)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Steps:
    """Counts the steps of a run, and ends the process at one of them."""

    def __init__(self, run_id, job_id, step, journal_path):
        self.when, _, self.name = step.partition(":")
        self.counts = Counter()
        self.folders = {
            "RUN": re.compile(rf"/spool/{run_id}((?:\.new|\.done)?(?:/.*)?)$"),
            # Where the first shim stands by.
            "AHEAD": re.compile(r"/spool/standing/1((?:/.*)?)$"),
        }
        self.about = re.compile(
            rf"/run/{run_id}/|/job/{job_id}/|/kill_request/|run-{run_id}-says"
        )
        self.numbers = re.compile(r"\d+")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.journal = os.open(journal_path, flags, 0o600)
        self.has_begun = False
        """Whether anything has been done, also ahead of the run."""
        self.is_under_way = False
        self.write = os.write

    def wrap(self, owner, name, describe):
        """Make a step of a function wherever ``describe`` has words for its call."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def stepped(*args, **kwargs):
            what = describe(*args, **kwargs)
            if what is None:
                return original(*args, **kwargs)
            self.counts[what] += 1
            step = f"{what} #{self.counts[what]}"
            self.write(self.journal, f"{step}\n".encode())
            self.die_if("before", step)
            result = original(*args, **kwargs)
            self.die_if("after", step)
            return result

        setattr(owner, name, stepped)

    def die_if(self, when, step):
        if (when, step) == (self.when, self.name):
            os.kill(os.getpid(), signal.SIGKILL)

    def describe_file(self, name):
        def describe(path, *_, dir_fd=None, **__):
            return self.describe_path(name, path, dir_fd)

        return describe

    def describe_path(self, name, path, dir_fd=None):
        if not isinstance(path, str | os.PathLike):
            return None
        if dir_fd is not None:
            # Where the folder is now: it may have been renamed since it was opened.
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        for whose, pattern in self.folders.items():
            if found := pattern.search(os.fspath(path)):
                self.has_begun = True
                self.is_under_way |= whose == "RUN" or name == "rename"
                return f"{name} {whose}{found[1]}"
        return None

    def describe_open(self, path, flags, *_, dir_fd=None, **__):
        return self.describe_path("open", path, dir_fd) if flags & _WRITES else None

    def describe_write(self, descriptor, *_):
        try:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            return None
        return self.describe_path("write", path)

    def describe_rename(self, source, target, *, src_dir_fd=None, **_):
        what = self.describe_path("rename", source, src_dir_fd)
        return what and f"{what} to {os.path.basename(target).lstrip('0123456789')}"

    def describe_request(self, sock, content, *_, **__):
        """Of a request with several items, name those that are about the run."""
        found = _REQUEST.match(bytes(content)) if sock.family in _TCP else None
        if found is None:
            return None
        method, path, body = (
            part.decode("utf-8", "replace") for part in found.groups()
        )
        asked = [{"method": method, "path": path, "body": body}]
        with contextlib.suppress(ValueError, TypeError, KeyError):
            asked = json.loads(body)["items"]
        names = [
            f"{each['method']} {self.numbers.sub('N', each['path'])}"
            for each in asked
            if self.about.search(f"{each['path']} {each.get('body')}")
        ]
        return " + ".join(names) or None

    def describe_wait(self, sock, *_, **__):
        """A request has been sent and is not answered."""
        is_tcp = sock.family in _TCP
        return "wait for an answer" if is_tcp and self.is_under_way else None

    def describe_signal(self, _descriptor, number, *_):
        return f"signal {signal.Signals(number).name}" if self.is_under_way else None

    def describe_helper(self, name):
        def describe(sock, *_, **__):
            is_helper = sock.family == gevent.socket.AF_UNIX
            return name if is_helper and self.has_begun else None

        return describe


def install(steps):
    for name in ("mkdir", "mkfifo", "unlink", "rmdir", "chmod"):
        steps.wrap(os, name, steps.describe_file(name))
    steps.wrap(os, "open", steps.describe_open)
    for module in (os, posix):
        steps.wrap(module, "write", steps.describe_write)
    steps.wrap(private_files, "_write_all", steps.describe_write)
    steps.wrap(os, "rename", steps.describe_rename)
    steps.wrap(signal, "pidfd_send_signal", steps.describe_signal)
    socket = gevent.socket.socket
    steps.wrap(socket, "sendall", steps.describe_request)
    steps.wrap(socket, "recv", steps.describe_wait)
    steps.wrap(socket, "send", steps.describe_helper("ask the helper"))
    for name in ("recv", "recvmsg"):
        steps.wrap(socket, name, steps.describe_helper("hear the helper"))


if __name__ == "__main__":
    install(Steps(*sys.argv[1:5]))
    sys.exit(cli.main(sys.argv[5:]))
