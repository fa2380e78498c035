"""The output of one run: read by offset, never as a whole, and punched as it grows."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from job_runner_worker import log_window, redaction
from job_runner_worker.private_files import PrivateFolder
from job_runner_worker.redaction import Redactor

PUNCH_MARGIN_BYTES = 1024 * 1024
"""Kept before the tail: the end mark may stand there when leftovers write on."""
_SEARCH_BYTES = 256 * 1024
_PIECE_BYTES = 64 * 1024
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02


class OutputFile:
    """The file to which a run's relay appends, as the worker sees it."""

    def __init__(
        self, path: Path, max_log_bytes: int, folder: PrivateFolder | None = None
    ) -> None:
        """``folder``: that of the path, where somebody holds it."""
        self.path = path
        self._name = path.name
        self._folder = folder or PrivateFolder(path.parent)
        self._max_log_bytes = max_log_bytes
        self._punched_to = 0
        self.redactor: Redactor | None = None
        """What is left out of the log; the file has it all the same."""

    def size(self) -> int:
        """Return the bytes printed so far; 0 where there is no file."""
        try:
            return self._folder.stat(self._name).st_size
        except FileNotFoundError:
            return 0

    def read_log(self, end: int, *, complete: bool) -> str:
        """Return the log of the first ``end`` bytes: at most max_log_bytes are read."""
        if not end:
            return ""
        kept = log_window.window(end, self._max_log_bytes)
        try:
            file = self._open(os.O_RDONLY)
        except FileNotFoundError:
            return ""
        with file:
            if self.redactor is not None:
                head, tail = self._redacted(file.fileno(), kept, end, self.redactor)
                if not complete:
                    # The rest of a line may make a secret of its beginning.
                    if tail is None:
                        head = head[: redaction.last_line_end(head)]
                    else:
                        tail = tail[: redaction.last_line_end(tail)]
                tails = None if tail is None else [tail]
                return log_window.text([head], tails, complete=complete)
            start_of_log = _pieces(file.fileno(), 0, kept.head_end)
            end_of_log = None
            if kept.tail_start is not None:
                end_of_log = _pieces(file.fileno(), kept.tail_start, end)
            return log_window.text(start_of_log, end_of_log, complete=complete)

    def _open(self, flags: int) -> FileIO:
        # A FIFO in its place would be waited for.
        descriptor = self._folder.open(self._name, flags | os.O_NONBLOCK)
        return FileIO(descriptor, "rb" if flags == os.O_RDONLY else "r+b")

    def _redacted(
        self, descriptor: int, kept: log_window.Window, end: int, redactor: Redactor
    ) -> tuple[bytes, bytes | None]:
        """Return head and tail: redacted first, then cut."""
        margin = redaction.MARGIN_BYTES
        beyond = min(end, kept.head_end + margin)
        head = redactor.cut(os.pread(descriptor, beyond, 0), 0, kept.head_end)
        if kept.tail_start is None:
            return head, None
        first = max(0, kept.tail_start - margin)
        data = os.pread(descriptor, end - first, first)
        start = kept.tail_start - first
        return head, redactor.cut(data, start, len(data), begins_within_line=first > 0)

    def find_end(self, end_mark: bytes, start: int = 0) -> int | None:
        """Return the offset of the end mark, None where none begins at ``start`` on.

        It stands at the very end, or else behind little that was not punched: what
        left-over children have printed since may be much. Holes are passed over.
        """
        try:
            file = self._open(os.O_RDONLY)
        except FileNotFoundError:
            return None
        with file:
            size = os.fstat(file.fileno()).st_size
            for position in _chunks(file.fileno(), start, size):
                length = _SEARCH_BYTES + len(end_mark) - 1
                chunk = os.pread(file.fileno(), length, position)
                found = chunk.find(end_mark)
                if found >= 0:
                    return position + found
        return None

    def is_long(self, size: int) -> bool:
        """Return whether there may be something to punch at this size."""
        return size > self._max_log_bytes + PUNCH_MARGIN_BYTES

    def punch(self, size: int) -> None:
        """Give the middle of the first ``size`` bytes back to the file system.

        Raises OSError where it cannot take it.
        """
        if not self.is_long(size):
            return
        try:
            file = self._open(os.O_RDWR)
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            hole = log_window.hole(
                size, self._max_log_bytes, status.st_blksize, PUNCH_MARGIN_BYTES
            )
            if hole is None or sum(hole) <= self._punched_to:
                return
            # What follows the head is looked at when the log is redacted.
            offset = max(hole[0] + redaction.MARGIN_BYTES, self._punched_to)
            if offset >= sum(hole):
                return
            _punch_hole(file.fileno(), offset, sum(hole) - offset)
            self._punched_to = sum(hole)


def _pieces(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    while piece := os.pread(descriptor, min(_PIECE_BYTES, end - start), start):
        yield piece
        start += len(piece)


def _chunks(descriptor: int, start: int, size: int) -> Iterator[int]:
    """Yield where to search: the last bytes first, then all data from the start on."""
    yield max(start, size - _SEARCH_BYTES)
    end = start
    with contextlib.suppress(OSError):  # ENXIO: no data any more
        while end < size:
            first = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, first, os.SEEK_HOLE)
            yield from range(first, end, _SEARCH_BYTES)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_int64,
]


def _punch_hole(descriptor: int, offset: int, length: int) -> None:
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _libc.fallocate(descriptor, mode, offset, length) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
