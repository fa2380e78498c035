"""What a run with a lot of output costs: memory, disk and time."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from central import Central
from cost import SCRIPT
from figures import Figure
from first_line import FirstLine
from measured_worker import MeasuredWorker, worker_and_server
from processes import forget_peak, peak_resident_mib, resident_mib

SAMPLE_SECONDS = 0.002
BLOCK_BYTES = 512
MIB = 2**20
GROWTH_TARGET = {"max": 2.0}
DISK_TARGET = {"max": 16.0}
RATIO_TARGET = {"median": 1.3}
_LINE = "x" * 79


@dataclass(frozen=True)
class Printed:
    """What a run with a lot of output cost."""

    growth_mib: float
    disk_mib: float
    seconds: float


@dataclass(frozen=True)
class Round:
    """The same output by different ways."""

    at_once: Printed
    after_silence: Printed
    direct_seconds: float


def measure_output(
    rounds: int, size_bytes: int, silence_seconds: float
) -> list[Figure]:
    """Print a lot; each round has a worker of its own, with one small run behind it."""
    found = [_round(size_bytes, silence_seconds) for _ in range(rounds)]
    what = f"{size_bytes / 1e6:g} MB of output"
    silence = f"the same after {silence_seconds:g} s of silence: peak disk"
    growth = [each.at_once.growth_mib for each in found]
    disk = [each.at_once.disk_mib for each in found]
    later_disk = [each.after_silence.disk_mib for each in found]
    wall = [each.at_once.seconds for each in found]
    direct = [each.direct_seconds for each in found]
    ratio = [each.at_once.seconds / each.direct_seconds for each in found]
    return [
        Figure(
            "output_rss", f"{what}: growth of peak RSS", "MiB", growth, GROWTH_TARGET
        ),
        Figure("output_disk", f"{what}: peak disk", "MiB", disk, DISK_TARGET),
        Figure("output_disk_later", silence, "MiB", later_disk, DISK_TARGET),
        Figure("output_wall", f"{what}: first line -> all reported", "s", wall),
        Figure("output_direct", "the same script > file: to its end", "s", direct),
        Figure("output_ratio", "the one divided by the other", "", ratio, RATIO_TARGET),
    ]


def _round(size_bytes: int, silence_seconds: float) -> Round:
    rest = f"yes {_LINE} 2>/dev/null | head -c {size_bytes}\n"
    with worker_and_server() as (central, worker):
        folder = worker.spool_path.parent
        direct_seconds = _print_into_file(folder, rest)
        central.wait_for_successes(central.order(SCRIPT).run_ids)
        worker.wait_until_quiet()
        at_once = _print_under_worker(central, worker, rest)
        silence = f"sleep {silence_seconds}\n"
        after_silence = _print_under_worker(central, worker, silence + rest)
    return Round(at_once, after_silence, direct_seconds)


def _print_under_worker(central: Central, worker: MeasuredWorker, rest: str) -> Printed:
    before_mib = resident_mib(worker.pid)
    forget_peak(worker.pid)
    with FirstLine(worker.spool_path.parent) as first_line:
        with DiskUse(worker.spool_path) as disk:
            ordered = central.order(first_line.script(rest))
            began_ns = first_line.wait()
            central.wait_for_successes(ordered.run_ids)
            worker.wait_until_quiet()
        growth_mib = peak_resident_mib(worker.pid) - before_mib
    reported_ns = max(central.answered_ns(ordered.run_ids[0], "PATCH", "/run/"))
    seconds = (reported_ns - began_ns) / 1e9
    return Printed(growth_mib, disk.peak_bytes / MIB, seconds)


def _print_into_file(folder: Path, rest: str) -> float:
    """Return how long the script takes from its first line to its end."""
    script_path, output_path = folder / "direct", folder / "direct.out"
    with output_path.open("wb") as file, FirstLine(folder) as first_line:
        script_path.write_text(first_line.script(rest))
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", str(script_path)],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), 1)],
        )
        began_ns = first_line.wait()
        os.waitpid(pid, 0)
        seconds = (time.monotonic_ns() - began_ns) / 1e9
    output_path.unlink()
    return seconds


class DiskUse:
    """The most blocks that the folders of a spool held, looked at every 2 ms."""

    def __init__(self, spool_path: Path) -> None:
        self.peak_bytes = 0
        self._spool_path = spool_path
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disk use")

    def __enter__(self) -> Self:
        """Look from now on."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, _allocated_bytes(self._spool_path))


def _allocated_bytes(folder: Path) -> int:
    """Return the bytes of all blocks below a folder; files may vanish meanwhile."""
    found = 0
    try:
        for entry in os.scandir(folder):
            found += entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES
            if entry.is_dir(follow_symlinks=False):
                found += _allocated_bytes(Path(entry.path))
    except FileNotFoundError:
        pass
    return found
