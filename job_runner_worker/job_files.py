"""The files of a launched job: into its sandbox, and its results out of it.

A path is looked at twice: when the job is accepted, so that its caller hears of it, and
when the file is open, since what a path leads to may change in between. These functions
wait for disks: call them in a thread.
"""

from __future__ import annotations

import contextlib
import os
import posix
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from job_runner_worker.errors import RequestError
from job_runner_worker.job_request import JobRequest

_COPY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class JobFolders:
    """Where one job's files are while it is with this worker."""

    sandbox: Path
    stdout: Path
    stderr: Path


def check(request: JobRequest, roots: Sequence[Path]) -> None:
    """Raise RequestError where a path is missing, or leaves jobdir and ``roots``."""
    jobdir = Path(request.jobdir)
    if not jobdir.is_dir():
        raise RequestError("jobdir", "is no folder on this machine")
    if roots and not _is_in(os.path.realpath(jobdir), roots):
        raise RequestError("jobdir", "is not in one of launcher_roots")
    taken: set[str] = set()
    for field, name in _named("prestaged", request.prestaged):
        source = jobdir / name
        if not _is_in(os.path.realpath(source), [jobdir, *roots]):
            raise RequestError(field, "leaves jobdir and the allowed roots")
        if not source.is_file():
            raise RequestError(field, "is no file")
        _take(field, sandbox_name(name, jobdir), taken)
    taken.clear()
    results = [*_named("poststaged", request.poststaged)]
    for field, name in [
        *results,
        ("stdout", request.stdout),
        ("stderr", request.stderr),
    ]:
        result = result_name(field, name, jobdir)
        if not _is_in(os.path.realpath((jobdir / result).parent), [jobdir]):
            raise RequestError(field, "leaves jobdir")
        _take(field, result, taken)


def stage_in(request: JobRequest, folders: JobFolders, roots: Sequence[Path]) -> None:
    """Make the sandbox anew with the prestaged files in it.

    Raises RequestError where a file is not to be had, OSError where there is no room.
    """
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folders.sandbox)
    folders.sandbox.mkdir(mode=0o700, parents=True)
    for path in (folders.stdout, folders.stderr):
        path.unlink(missing_ok=True)
    jobdir = Path(request.jobdir)
    for field, name in _named("prestaged", request.prestaged):
        try:
            with _open_inside(jobdir / name, [jobdir, *roots]) as source:
                target = sandbox_name(name, jobdir)
                _write_inside(folders.sandbox, target, source)
        except (_LeavesError, FileNotFoundError, IsADirectoryError) as error:
            raise RequestError(field, f"cannot be copied: {error}") from error


def stage_out(
    request: JobRequest, folders: JobFolders, *, has_succeeded: bool
) -> list[str]:
    """Copy the results into jobdir; return what could not be copied, and why.

    What a job that failed has not made is not missed.
    """
    jobdir = Path(request.jobdir)
    box = folders.sandbox
    wanted = [
        (field, name, box / result_name(field, name, jobdir), box)
        for field, name in _named("poststaged", request.poststaged)
    ]
    for field, name, path in (
        ("stdout", request.stdout, folders.stdout),
        ("stderr", request.stderr, folders.stderr),
    ):
        wanted.append((field, name, path, path.parent))
    problems = []
    for field, name, path, allowed in wanted:
        try:
            with _open_inside(path, [allowed]) as source:
                _write_inside(jobdir, result_name(field, name, jobdir), source)
        except FileNotFoundError as error:
            if has_succeeded:
                problems.append(f"{field} {name!r}: {error.strerror}")
        except (OSError, _LeavesError, RequestError) as error:
            problems.append(f"{field} {name!r}: {error}")
    return problems


def sandbox_name(name: str, jobdir: Path) -> str:
    """Return where a prestaged file stands in the sandbox.

    As in jobdir, where it is there; else directly in it, under its own name.
    """
    path = os.path.normpath(jobdir / name)
    if Path(path).is_relative_to(os.path.normpath(jobdir)):
        return os.path.relpath(path, os.path.normpath(jobdir))
    return os.path.basename(path)


def result_name(field: str, name: str, jobdir: Path) -> str:
    """Return where a result stands in jobdir, and in the sandbox. RequestError."""
    path, folder = os.path.normpath(jobdir / name), os.path.normpath(jobdir)
    if not Path(path).is_relative_to(folder):
        raise RequestError(field, "leaves jobdir")
    if path == folder or name.endswith("/"):
        raise RequestError(field, "must be the path of a file")
    return os.path.relpath(path, folder)


class _LeavesError(Exception):
    """What has been opened is not where it has to be, or is no plain file."""


def _named(field: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((f"{field}[{number}]", name) for number, name in enumerate(names))


def _take(field: str, name: str, taken: set[str]) -> None:
    if name in taken:
        raise RequestError(field, f"{name!r} is there twice")
    taken.add(name)


def _is_in(real_path: str, roots: Sequence[Path]) -> bool:
    return any(Path(real_path).is_relative_to(os.path.realpath(each)) for each in roots)


@contextlib.contextmanager
def _open_inside(path: Path, roots: Sequence[Path]) -> Iterator[BinaryIO]:
    """Open a plain file, wherever links lead, if it is below one of the roots."""

    def opener(name: str, flags: int) -> int:
        # A FIFO would be waited for.
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=opener) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _LeavesError("no plain file")
        if not _is_in(os.readlink(f"/proc/self/fd/{file.fileno()}"), roots):
            raise _LeavesError("leaves the folders that are allowed")
        yield file


def _write_inside(root: Path, name: str, source: BinaryIO) -> None:
    """Copy a file to a name below a folder: as a whole or not at all.

    A link that stands there is replaced and not followed.
    """
    parent = (root / name).parent
    # Nothing is made through a link that leads away.
    if not _is_in(os.path.realpath(parent), [root]):
        raise _LeavesError("leaves jobdir")
    parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _is_in(os.readlink(f"/proc/self/fd/{folder}"), [root]):
            raise _LeavesError("leaves jobdir")
        _replace_in(folder, os.path.basename(name), source)
    finally:
        # Not os.close: in a thread, gevent's would wait for a loop that is not there.
        posix.close(folder)


def _replace_in(folder: int, name: str, source: BinaryIO) -> None:
    temporary = f".{uuid.uuid4().hex}.part"

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)

    try:
        with open(temporary, "wb", opener=opener) as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)
            mode = stat.S_IMODE(os.fstat(source.fileno()).st_mode) & 0o777
            os.fchmod(target.fileno(), mode)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
