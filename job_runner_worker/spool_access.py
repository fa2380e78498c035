"""Whether a spool is its worker's alone, and the way to it nobody else's to change.

Whoever may rename a folder on the way puts another spool in this one's place.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from job_runner_worker.errors import SpoolError
from job_runner_worker.private_files import make_private

FOR_OTHER_USERS = 0o711
"""With run_as_users: those users pass through to the folders of their runs."""
_BELOW = ("lock", "spool.json", "failed", "parts", "kills", "standing")
_log = logging.getLogger(__name__)


def check(path: Path) -> None:
    """Make a spool private where others may read it.

    Raises SpoolError where it is a link, another user's, or below another user's
    folder; OSError where it is not there.
    """
    if found := trouble(path):
        raise SpoolError(f"spool_path {found}")
    if found := weakness(path):
        _log.warning("spool_path %s", found)
    opened = [path] if make_private(path, FOR_OTHER_USERS) else []
    # It is set again where there are such users.
    make_private(path)
    for name in _BELOW:
        below = path / name
        if os.path.lexists(below) and make_private(below):
            opened.append(below)
    for each in opened:
        _log.warning("%s was open to others: made private", each)


def trouble(path: Path) -> str:
    """Return what is wrong with a spool and its way, "" for nothing. Raises OSError.

    Rights of others to the spool itself are no trouble: `check` takes them away.
    """
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return (
            f"{path} is a symbolic link: give the path of the folder, "
            f"{os.path.realpath(path)}"
        )
    if status.st_uid != os.geteuid():
        return (
            f"{path} belongs to user {status.st_uid}: do `chown {os.geteuid()} {path}`,"
            " or run as its owner"
        )
    # In a user namespace those of root outside are somebody else's, like / itself.
    trusted = {0, os.geteuid(), os.lstat("/").st_uid}
    for folder in _way(path):
        status = os.lstat(folder)
        if status.st_uid not in trusted:
            return (
                f"{path} is below {folder}, which user {status.st_uid} may change: "
                "choose a folder that is root's or this user's all the way"
            )
    return ""


def weakness(path: Path) -> str:
    """Return what of the way to a spool everybody may change, "" for nothing.

    So they can move the spool away; to put another of this user's in its place they
    need one. In a container, where there is nobody else, it is usual.
    """
    for folder in _way(path):
        mode = os.lstat(folder).st_mode
        is_open = mode & stat.S_IWOTH and not mode & stat.S_ISVTX
        if is_open and not stat.S_ISLNK(mode):
            return (
                f"{path} is below {folder}, which everybody may change: do "
                f"`chmod o-w {folder}`, or choose another folder"
            )
    return ""


def _way(path: Path) -> Iterator[Path]:
    """Yield the folders above a path, and those that links among them lead to."""
    yield from path.parents
    real = Path(os.path.realpath(path.parent))
    if real != path.parent:
        yield real
        yield from real.parents
