"""Files and folders that are nobody else's: written whole, removed for sure."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

PRIVATE = 0o600
MAX_FILE_BYTES = 64 * 1024 * 1024
"""What is read as a whole is at most so long: the script of a run is in it."""


def write_file(path: Path, content: bytes) -> None:
    """Write a private file where a torn one does no harm. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with open(os.open(path, flags, PRIVATE), "wb") as file:
        file.write(content)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a private file so that it is there as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    try:
        write_file(temporary, content)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def append(path: Path, content: bytes, *, create: bool) -> None:
    """Add to the end of a private file. Raises OSError.

    To replace a file costs a run milliseconds, to append to it microseconds.
    """
    flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT if create else 0)
    with open(os.open(path, flags, PRIVATE), "wb") as file:
        file.write(content)


def read_file(path: Path) -> bytes:
    """Return what is in a file. Raises OSError, also where it is no ordinary one.

    Who opens a FIFO waits for its writer; a link leads to somebody else's file.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no ordinary file", str(path))
        if status.st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, "too large", str(path))
        return file.read()


def remove_tree(path: Path) -> None:
    """Remove a folder, also where a script took its owner's rights away in it."""
    try:
        shutil.rmtree(path)
    except PermissionError:
        path.chmod(0o700)
        for folder, _, _ in os.walk(path):
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
        shutil.rmtree(path)
