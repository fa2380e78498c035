"""The FIFO on which a shim says that something happened, as the worker hears it."""

from __future__ import annotations

import contextlib
import os
import posix
import re

from gevent.socket import wait_read

from job_runner_worker.private_files import PrivateFolder

_ENDED = b"ended"
_TIME = re.compile(rb"(\d+)m(\d+)[.,](\d+)s")
_TIMES = 4
"""What `times` prints: user and system, of the shell, then of its children."""


class Bell:
    """Open from the start: what the shim says from now on is heard.

    Lines: ``started``; what the shell's `times` prints; ``ended``, with the exit
    status: its file may have no place.
    """

    def __init__(self, folder: PrivateFolder) -> None:
        """Raises OSError where there is no such FIFO in the run folder."""
        self.exit_status: int | None = None
        """The script's exit status, None while it has not been heard."""
        self.cpu_seconds: float | None = None
        """What the script used, with those it waited for; None as above."""
        self._descriptor: int | None = folder.open("bell", os.O_RDONLY | os.O_NONBLOCK)

    def listen(self, timeout_seconds: float | None = None) -> bool:
        """Wait until it rings or the time is over; return False if it never will.

        Any process that has the FIFO open keeps it alive: the kernel tells when the
        last is gone.
        """
        if self._descriptor is None:
            return False
        with contextlib.suppress(TimeoutError):
            wait_read(self._descriptor, timeout_seconds, TimeoutError())
            try:
                heard = os.read(self._descriptor, 4096)
            except BlockingIOError:
                return True
            self._note_exit_status(heard)
            self._note_times(heard)
            return heard != b""
        return True

    def close(self) -> None:
        """Hear no more."""
        if self._descriptor is not None:
            # Not gevent's, which closes it some time later: nobody listens any more.
            posix.close(self._descriptor)
            self._descriptor = None

    def _note_exit_status(self, heard: bytes) -> None:
        *_, before, last = (b"", b"", *heard.split())
        if before == _ENDED and last.isdigit():
            self.exit_status = int(last)

    def _note_times(self, heard: bytes) -> None:
        found = _TIME.findall(heard)
        if len(found) == _TIMES:
            self.cpu_seconds = sum(
                int(minutes) * 60 + float(b"%s.%s" % (seconds, fraction))
                for minutes, seconds, fraction in found[2:]
            )
