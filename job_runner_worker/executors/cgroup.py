"""A cgroup v2 for each run, where the worker may make one.

The shim is born in it, and so everything is that the script starts: nobody can leave.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from job_runner_worker.errors import StartError

WORKER_CGROUP = "worker"
"""The cgroup of the worker itself; see systemd.step_aside."""


CONTROLLERS = ("memory", "cpu", "pids")
"""What limits runs and counts what they use, where this worker is given it."""
PARENT_PREFIX = "job_runner_worker-"
ABANDONED_SECONDS = 300.0
NO_SWAP = ("memory.swap.max", "0")
"""Goes with memory.max: else what is above the limit would only be swapped out."""


class Cgroups:
    """The parent of this worker's run cgroups."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._has_enabled = False

    def make(self, name: str) -> Path:
        """Return a new or empty cgroup for one run. Raises OSError."""
        cgroup = self._parent / name
        try:
            cgroup.mkdir(exist_ok=True)
        except FileNotFoundError:
            # A sweep takes the parent along, this worker's or another's.
            self._has_enabled = False
            cgroup.mkdir(parents=True, exist_ok=True)
        if not self._has_enabled:
            self._enable()
        return cgroup

    def controllers(self) -> list[str]:
        """Return which of the CONTROLLERS runs have; the others' limits fail a run."""
        self._enable()
        try:
            there = (self._parent / "cgroup.controllers").read_text("ascii").split()
        except OSError:
            return []
        return [name for name in CONTROLLERS if name in there]

    def _enable(self) -> None:
        """Hand on what controllers this worker is given: to its runs' parent, to runs.

        Impossible where processes are beside the parent: see systemd.step_aside.
        """
        self._has_enabled = True
        for cgroup in (self._parent.parent, self._parent):
            for name in CONTROLLERS:
                with contextlib.suppress(OSError):
                    _write(cgroup / "cgroup.subtree_control", f"+{name}")

    def sweep(self) -> None:
        """Remove what is empty; cgroups with left-over processes stay."""
        _sweep(self._parent)

    def sweep_abandoned(self) -> None:
        """Remove what workers have left that were killed and never started again.

        Nobody can tell them from live ones, but by age: what has been empty for so long
        is nobody's that is about to be born in it.
        """
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._parent.parent):
                if (
                    entry.name.startswith(PARENT_PREFIX)
                    and entry.name != self._parent.name
                    and _age_seconds(Path(entry.path)) > ABANDONED_SECONDS
                ):
                    _sweep(Path(entry.path), ABANDONED_SECONDS)


def _sweep(parent: Path, age_seconds: float = 0) -> None:
    """Remove the empty cgroups in a parent that are so old, then an empty parent."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(parent):
            path = Path(entry.path)
            if entry.is_dir() and _age_seconds(path) >= age_seconds:
                remove(path)
        parent.rmdir()


def _age_seconds(cgroup: Path) -> float:
    """Return how long ago something was made or removed in it, or it itself."""
    try:
        return time.time() - cgroup.stat().st_mtime
    except OSError:
        return 0.0


def limit(cgroup: Path, limits: Mapping[str, tuple[str, str]]) -> None:
    """Give the cgroup of a run limits; who is in it already is subject to them, too.

    ``limits``: what to write to which file, and which option asks for it. Raises
    StartError where a limit cannot be set.
    """
    for name, (content, option) in limits.items():
        _limit(cgroup / name, content, option)


def _limit(path: Path, content: str, option: str) -> None:
    try:
        _write(path, content)
    except OSError as error:
        controller = path.name.partition(".")[0]
        raise StartError(
            f"{option} cannot be honoured: the cgroup of the run has no {controller} "
            f"controller ({error.strerror}): give the worker's cgroup that one, with "
            "systemd by Delegate=yes"
        ) from error
    if path.name == "memory.max":
        # There is none on a kernel that cannot swap.
        with contextlib.suppress(OSError):
            _write(path.with_name(NO_SWAP[0]), NO_SWAP[1])


def _write(path: Path, content: str) -> None:
    """Write to a file that the kernel has made: none is made here."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, content.encode("ascii"))
    finally:
        os.close(descriptor)


def remove(cgroup: Path | str) -> bool:
    """Remove the cgroup of a run that has ended, if nobody is left in it.

    Return whether it is gone.
    """
    try:
        os.rmdir(cgroup)
    except OSError:
        return not os.path.exists(cgroup)
    return True


def find(spool_path: Path, proc: Path = Path("/proc/self")) -> Cgroups | None:
    """Return where this worker may make cgroups, None where it may not.

    The name of the parent belongs to the spool, so that the next worker finds it.
    """
    own = _own_cgroup(proc)
    if own is None or not os.access(own / "cgroup.procs", os.W_OK):
        return None
    digest = hashlib.sha256(os.fsencode(spool_path)).hexdigest()[:12]
    parent = own / f"{PARENT_PREFIX}{digest}"
    try:
        parent.mkdir(exist_ok=True)
    except OSError:
        return None
    cgroups = Cgroups(parent)
    # cgroup.kill came with Linux 5.14.
    if os.access(parent / "cgroup.kill", os.W_OK):
        return cgroups
    cgroups.sweep()
    return None


def _own_cgroup(proc: Path) -> Path | None:
    try:
        mounts = (proc / "mountinfo").read_text("utf-8").splitlines()
        memberships = (proc / "cgroup").read_text("utf-8").splitlines()
    except OSError:
        return None
    # mountinfo: id parent device root mount-point ... - type source options
    roots = [line.split()[3:5] for line in mounts if " - cgroup2 " in line]
    paths = [line[3:] for line in memberships if line.startswith("0::")]
    if not roots or not paths:
        return None
    root, mount_point = roots[0]
    relative = os.path.relpath(paths[0], root)
    own = Path(os.path.normpath(Path(mount_point) / relative))
    # Under systemd the worker has stepped aside: its runs are beside it.
    return own.parent if own.name == WORKER_CGROUP else own
