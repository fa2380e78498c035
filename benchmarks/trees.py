"""A tree of 20 processes as scripts make them, and how one sees its death."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from central import BenchmarkError
from processes import command_name

CHILDREN, OWN_SESSIONS, DOUBLE_FORKED = 9, 5, 5
SIZE = 1 + CHILDREN + OWN_SESSIONS + DOUBLE_FORKED
LIMIT_SECONDS = 20.0

_MEMBER = """\
echo $$ >>{pids}
exec sleep 120
"""
_TREE = """\
#!/bin/sh
echo $$ >>{pids}
for i in $(seq {children}); do sh {member} & done
for i in $(seq {own_sessions}); do setsid sh {member} & done
for i in $(seq {double_forked}); do (setsid sh -c 'sh {member} &' &); done
wait
"""


def script(folder: Path) -> tuple[str, Path]:
    """Return a script that grows the tree, and the file that gets the pids."""
    pids_path, member_path = folder / "pids", folder / "member"
    pids_path.write_text("")
    member_path.write_text(_MEMBER.format(pids=pids_path))
    text = _TREE.format(
        pids=pids_path,
        member=member_path,
        children=CHILDREN,
        own_sessions=OWN_SESSIONS,
        double_forked=DOUBLE_FORKED,
    )
    return text, pids_path


def grown(pids_path: Path) -> list[int]:
    """Return the pids of a tree, once it is complete."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        pids = [int(word) for word in pids_path.read_text().split()]
        asleep = [pid for pid in pids if command_name(pid) == "sleep"]
        if len(pids) == SIZE and len(asleep) == SIZE - 1:
            return pids
        time.sleep(0.005)
    raise BenchmarkError(f"no tree of {SIZE} processes")


@contextmanager
def pidfds(pids: list[int]) -> Iterator[list[int]]:
    """Yield a descriptor of each process."""
    descriptors = [os.pidfd_open(pid) for pid in pids]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def wait_for_death(descriptor: int) -> None:
    """A pidfd can be read from when its process has become a zombie."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    if not poller.poll(LIMIT_SECONDS * 1000):
        raise BenchmarkError("a process lives on after the kill")


def dies(descriptor: int, deadline: float) -> bool:
    """Return whether a process is dead at a moment of time.monotonic()."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
