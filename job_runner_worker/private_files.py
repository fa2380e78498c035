"""Files and folders that are nobody else's: written whole, removed for sure.

Each file is opened relative to the descriptor of its folder, and no symbolic link is
followed, neither for the file nor for the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posix
import shutil
import stat
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

PRIVATE = 0o600
PRIVATE_FOLDER = 0o700
OTHERS = 0o077
"""The rights of everybody but the owner."""
MAX_FILE_BYTES = 64 * 1024 * 1024
"""What is read as a whole is at most so long: the script of a run is in it."""
_close = posix.close
"""Not gevent's, which looks for watchers first: no loop ever waits for these."""
_FOLDER_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class PrivateFolder:
    """A folder whose files nobody else has.

    Held, it is one descriptor until `close`: then a file costs no walk of its path,
    and whatever takes the folder's place is not looked at. Else it is opened for each
    file. All of it raises OSError; a link in the place of a file is ELOOP.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: int | None = None

    def hold(self, path: Path | str | None = None) -> None:
        """Keep the folder open; ``path`` is where it is before it gets its name."""
        if self._held is None:
            self._held = os.open(path or self.path, _FOLDER_FLAGS)

    def close(self) -> None:
        """Keep it open no more."""
        held, self._held = self._held, None
        if held is not None:
            _close(held)

    def __del__(self) -> None:
        """Whoever was killed has closed nothing."""
        self.close()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder open meanwhile."""
        self.hold()
        try:
            yield
        finally:
            self.close()

    def open(self, name: str, flags: int) -> int:
        """Return the descriptor of a file; a new one is private."""
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        if self._held is not None:
            return os.open(name, flags, PRIVATE, dir_fd=self._held)
        folder = self._open()
        try:
            return os.open(name, flags, PRIVATE, dir_fd=folder)
        finally:
            _close(folder)

    def stat(self, name: str) -> os.stat_result:
        """Return what is known of a file, or of the link that stands there."""
        path, held = self._at(name)
        return os.stat(path, dir_fd=held, follow_symlinks=False)

    def make_folder(self, name: str) -> None:
        """Make a folder in this one, unless there is one."""
        path, held = self._at(name)
        try:
            os.mkdir(path, PRIVATE_FOLDER, dir_fd=held)
        except FileExistsError:
            if not stat.S_ISDIR(self.stat(name).st_mode):
                raise

    def make_fifo(self, name: str) -> None:
        """Make a FIFO, unless there is one."""
        path, held = self._at(name)
        try:
            os.mkfifo(path, PRIVATE, dir_fd=held)
        except FileExistsError:
            if not stat.S_ISFIFO(self.stat(name).st_mode):
                raise

    def write(self, name: str, content: bytes) -> None:
        """Write a file where a torn one does no harm."""
        descriptor = self.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        _write_all(descriptor, content)

    def write_atomically(self, name: str, content: bytes) -> None:
        """Write a file so that it is there as a whole or not at all."""
        temporary = f"{name}.new"
        folder = self._open()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            _write_all(os.open(temporary, flags, PRIVATE, dir_fd=folder), content)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        finally:
            _close(folder)

    def append(self, name: str, content: bytes, *, create: bool) -> None:
        """Add to the end of a file.

        To replace a file costs a run milliseconds, to append to it microseconds.
        """
        flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT if create else 0)
        _write_all(self.open(name, flags), content)

    def complete(self, name: str, content: bytes) -> None:
        """Make a file as long as the content, and keep what is in it already."""
        descriptor = self.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        rest = content[os.fstat(descriptor).st_size :] if content else b""
        _write_all(descriptor, rest)

    def read(self, name: str) -> bytes:
        """Return what is in a file; raises also where it is no ordinary one.

        Who opens a FIFO waits for its writer.
        """
        descriptor = self.open(name, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "no ordinary file", str(self.path / name))
            if status.st_size > MAX_FILE_BYTES:
                raise OSError(errno.EFBIG, "too large", str(self.path / name))
            content = b""
            # A byte more than there should be: less than that is all.
            while piece := os.read(descriptor, status.st_size + 1):
                content += piece
                if len(content) == status.st_size:
                    break
            return content
        finally:
            _close(descriptor)

    def modified_at(self, name: str) -> datetime:
        """Return when a file was written to, in UTC."""
        try:
            return datetime.fromtimestamp(self.stat(name).st_mtime, UTC)
        except (ValueError, OverflowError):
            return datetime.now(UTC)  # the year 30000 is nobody's clock

    def remove_all(self, files: Iterable[str], folders: Iterable[str]) -> None:
        """Remove these, up to the first that cannot be; folders must be empty.

        Does nothing where the folder is not held.
        """
        if self._held is None:
            return
        with contextlib.suppress(OSError):
            for name in files:
                os.unlink(name, dir_fd=self._held)
            for name in folders:
                os.rmdir(name, dir_fd=self._held)

    def _open(self) -> int:
        return os.open(self.path, _FOLDER_FLAGS)

    def _at(self, name: str) -> tuple[str, int | None]:
        """Return what names something in here: a path, and what it is relative to."""
        if self._held is not None:
            return name, self._held
        return f"{self.path}/{name}", None


def write_file(path: Path, content: bytes) -> None:
    """Write a private file where a torn one does no harm. Raises OSError."""
    PrivateFolder(path.parent).write(path.name, content)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a private file so that it is there as a whole or not at all."""
    PrivateFolder(path.parent).write_atomically(path.name, content)


def read_file(path: Path) -> bytes:
    """Return what is in a file. Raises OSError, also where it is no ordinary one."""
    return PrivateFolder(path.parent).read(path.name)


def make_private(path: Path, allowed: int = PRIVATE_FOLDER) -> bool:
    """Take from others what rights they have to a file or folder of this user's.

    Return whether they had any beyond those ``allowed``. Raises OSError, also where it
    is a link or belongs to another user.
    """
    # O_PATH: neither a FIFO nor a file without rights is in the way.
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISLNK(status.st_mode):
            raise OSError(errno.ELOOP, "is a symbolic link", str(path))
        if status.st_uid != os.geteuid():
            raise OSError(errno.EPERM, f"belongs to user {status.st_uid}", str(path))
        mode = stat.S_IMODE(status.st_mode)
        if not mode & OTHERS & ~allowed:
            return False
        os.chmod(f"/proc/self/fd/{descriptor}", mode & ~OTHERS)
    finally:
        _close(descriptor)
    return True


def remove_tree(path: Path) -> None:
    """Remove a folder, also where a script took its owner's rights away in it."""
    try:
        shutil.rmtree(path)
    except PermissionError:
        _regain(os.open(path, _FOLDER_FLAGS))
        shutil.rmtree(path)


def _regain(folder: int) -> None:
    """Give the owner the rights to a folder and to those below it, past no link."""
    try:
        there = f"/proc/self/fd/{folder}"
        os.chmod(there, PRIVATE_FOLDER)
        with os.scandir(there) as entries:
            names = [
                each.name for each in entries if each.is_dir(follow_symlinks=False)
            ]
        for name in names:
            _regain(os.open(name, _FOLDER_FLAGS, dir_fd=folder))
    finally:
        _close(folder)


def _write_all(descriptor: int, content: bytes) -> None:
    """Write and close."""
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        _close(descriptor)
