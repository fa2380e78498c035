"""Tells that a quiet file is written to again, by inotify: nobody has to look."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

_IN_MODIFY = 0x00000002
_IN_Q_OVERFLOW = 0x00004000
_IN_IGNORED = 0x00008000
_IN_DONT_FOLLOW = 0x02000000
_IN_ONESHOT = 0x80000000
_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


class WriteWatch:
    """Calls back once, from the event loop, after a file has been written to.

    Of this machine only: a write of another one to a network file system is not told.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._watcher: Any = None
        self._calls: dict[int, Callable[[], None]] = {}

    def open(self) -> bool:
        """Return whether files can be watched here; the system allows so many users."""
        descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            return False
        self._descriptor = descriptor
        self._watcher = gevent.get_hub().loop.io(descriptor, 1)
        self._watcher.start(self._read)
        return True

    def arm(self, path: Path, call: Callable[[], None]) -> int | None:
        """Have ``call`` called at the next write; return what `disarm` takes.

        None where the file is not there or no more files can be watched.
        """
        if self._descriptor is None:
            return None
        number = _libc.inotify_add_watch(
            self._descriptor,
            os.fsencode(path),
            _IN_MODIFY | _IN_ONESHOT | _IN_DONT_FOLLOW,
        )
        if number < 0:
            return None
        self._calls[number] = call
        return int(number)

    def disarm(self, number: int) -> None:
        """Call back no more."""
        if self._calls.pop(number, None) is not None and self._descriptor is not None:
            _libc.inotify_rm_watch(self._descriptor, number)

    def close(self) -> None:
        """Watch nothing any more."""
        if self._descriptor is not None:
            self._watcher.stop()
            self._watcher.close()
            os.close(self._descriptor)
            self._descriptor = None

    def _read(self) -> None:
        assert self._descriptor is not None
        with contextlib.suppress(BlockingIOError):
            content = os.read(self._descriptor, _READ_BYTES)
            start = 0
            while start < len(content):
                number, mask, _, name_bytes = _EVENT.unpack_from(content, start)
                start += _EVENT.size + name_bytes
                # Also where the file is gone: that is no write, but the end of waiting.
                if mask & (_IN_MODIFY | _IN_IGNORED):
                    self._tell(number)
                elif mask & _IN_Q_OVERFLOW:
                    for each in tuple(self._calls):
                        self._tell(each)

    def _tell(self, number: int) -> None:
        call = self._calls.pop(number, None)
        if call is not None:
            call()
