"""What a service manager is told, and what it has set up for this process.

Source: sd_notify(3), systemd.resource-control(5), systemd.exec(5). Without systemd
nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

WORKER_CGROUP = "worker"
"""Where the worker itself is below its unit's cgroup; its runs are beside it."""


class Notifier:
    """Tells the service manager how this process is; never fails, never waits."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_seconds = _watchdog_seconds(environ)
        """How often a sign of life is wanted, None where it is not."""

    @property
    def is_heard(self) -> bool:
        """Whether anybody wants to know."""
        return self._address is not None

    def ready(self) -> None:
        """Tell that the start, or a change of settings, is through."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """Tell that the settings are read again; `ready` follows."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        """Tell that this process is about to end."""
        self._tell("STOPPING=1")

    def status(self, line: str) -> None:
        """Tell people, in one line."""
        self._tell(f"STATUS={' '.join(line.split())}")

    def alive(self) -> None:
        """Give a sign of life."""
        self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as to:
            # gevent would wait for a full queue; what is not taken now is not worth it.
            to.settimeout(0)
            to.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)


def step_aside(environ: Mapping[str, str], proc: Path = Path("/proc/self")) -> bool:
    """Move this process to a cgroup of its own below that of its unit.

    A cgroup that has processes in it can hand no controllers on to those below. Only
    where systemd has started this very process and delegated its cgroup. Return
    whether this process is in a cgroup of its own.
    """
    if environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return False
    unit = _unit_cgroup(proc)
    if unit is None:
        return False
    if unit.name == WORKER_CGROUP:
        # DelegateSubgroup= of systemd 254 and later.
        return True
    own = unit / WORKER_CGROUP
    try:
        own.mkdir(exist_ok=True)
        (own / "cgroup.procs").write_text(f"{os.getpid()}\n")
    except OSError:
        return False
    return True


def _unit_cgroup(proc: Path) -> Path | None:
    """Return the folder of this process's cgroup v2."""
    try:
        mounts = (proc / "mountinfo").read_text("utf-8").splitlines()
        memberships = (proc / "cgroup").read_text("utf-8").splitlines()
    except OSError:
        return None
    # mountinfo: id parent device root mount-point ... - type source options
    points = [line.split()[3:5] for line in mounts if " - cgroup2 " in line]
    paths = [line[3:] for line in memberships if line.startswith("0::/")]
    if not points or not paths or paths[0] == "/":
        return None
    root, point = points[0]
    return Path(os.path.normpath(Path(point) / os.path.relpath(paths[0], root)))


def _address(text: str) -> str | None:
    """Return the address of a datagram socket; ``@`` begins an abstract one."""
    if text.startswith("@"):
        return f"\0{text[1:]}"
    return text if text.startswith("/") else None


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    text = environ.get("WATCHDOG_USEC", "")
    pid = environ.get("WATCHDOG_PID") or str(os.getpid())
    if not text.isdigit() or int(text) == 0 or pid != str(os.getpid()):
        return None
    return int(text) / 1_000_000
