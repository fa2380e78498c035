"""What a run uses, as far as its folder and its cgroup tell."""

from __future__ import annotations

import os
import posix
from datetime import UTC, datetime

from job_runner_worker.models import Usage
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.shim_lines import ScriptProcess

_MICROSECONDS = 1_000_000
_MAX_BYTES = 64 * 1024


def of_run(
    folder: RunFolder,
    ended_at: datetime | None = None,
    process: ScriptProcess | None = None,
) -> Usage:
    """Return what a run has used so far, or to its end. Raises OSError.

    ``process`` is the script's, if that is known. Of CPU and memory a cgroup tells only
    while it is there.
    """
    process = process or folder.script_process()
    wall_seconds = None
    if process is not None:
        until = ended_at or datetime.now(UTC)
        # The clock of the machine may have been set back.
        wall_seconds = max(0.0, (until - process.started_at).total_seconds())
    cgroup = folder.note.cgroup
    cpu = _numbers(cgroup, "cpu.stat").get("usage_usec")
    return Usage(
        wall_seconds=wall_seconds,
        cpu_seconds=None if cpu is None else cpu / _MICROSECONDS,
        peak_memory_bytes=_numbers(cgroup, "memory.peak").get(""),
        peak_processes=_numbers(cgroup, "pids.peak").get(""),
        output_bytes=folder.output_bytes(),
    )


def oom_kills(cgroup: str) -> int:
    """Return how many processes of a cgroup were killed for want of memory."""
    return _numbers(cgroup, "memory.events").get("oom_kill", 0)


def describe(usage: Usage) -> str:
    """Return what was used, for people."""
    memory, cpu = usage.peak_memory_bytes, usage.cpu_seconds
    return ", ".join(
        (
            f"{_seconds(usage.wall_seconds)} in all",
            f"CPU {_seconds(cpu)}",
            f"peak memory {'not known' if memory is None else f'{memory} bytes'}",
            f"output {usage.output_bytes} bytes",
        )
    )


def _seconds(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f} s"


def _numbers(cgroup: str, name: str) -> dict[str, int]:
    """Return the numbers of a flat keyed file, the key "" for a single one."""
    if not cgroup:
        return {}
    try:
        descriptor = os.open(f"{cgroup}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        lines = os.read(descriptor, _MAX_BYTES).decode("ascii", "replace").splitlines()
    except OSError:
        return {}
    finally:
        posix.close(descriptor)
    pairs = (line.rpartition(" ") for line in lines)
    return {key: int(text) for key, _, text in pairs if text.isdecimal()}
