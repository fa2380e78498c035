"""Many runs and as much nonsense: the worker is no larger at the end.

FAULT_SOAK_RUNS (default 300; `make faults` sets 10000) is how many runs there are, and
how many bad frames. The measure is taken after the first 500 runs, after a third of a
shorter soak. A short soak sees what leaks 12 KB or an object a run; only a long one
sees what leaks a few hundred bytes.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pytest
from harness import ROOT
from scene import Scene, run_folders, working
from waiting import eventually, spawn_helpers

from job_runner_worker import protocol
from job_runner_worker.testing import StandInServer

RUNS = int(os.environ.get("FAULT_SOAK_RUNS", "300"))
FIRST = min(500, RUNS // 3)
BATCH = 20
BATCH_LIMIT_SECONDS = 60.0
GROWTH = 1.05
KIB = 1024

CENSUS = """
import gc, json, os, signal, sys

def count(number, frame):
    greenlet = sys.modules["greenlet"].greenlet
    gc.collect()
    objects = gc.get_objects()
    found = {
        "objects": len(objects),
        "greenlets": sum(isinstance(each, greenlet) for each in objects),
    }
    path = os.environ["CENSUS"]
    with open(path + ".new", "w") as file:
        json.dump(found, file)
    os.rename(path + ".new", path)

signal.signal(signal.SIGUSR1, count)
"""
"""What the worker is given beside itself: it counts what only it can see."""

TOPIC = protocol.broadcast_topic("testworker")
BAD_FRAMES = [
    [TOPIC],
    [TOPIC, b""],
    [TOPIC, b"\xff\xfe\0"],
    [TOPIC, b"{"],
    [TOPIC, b"[1, 2]"],
    [TOPIC, b'{"action": "enqueue"}'],
    [TOPIC, b'{"action": "enqueue", "run_id": "7"}'],
    [TOPIC, b'{"action": "enqueue", "run_id": -1}'],
    [TOPIC, b'{"action": "kill", "kill_request_id": null}'],
    [TOPIC, b'{"action": "reboot"}'],
    [TOPIC, b'{"action": "ping"}', b"a third frame"],
    [TOPIC + b"2", b'{"action": "ping"}'],
    [TOPIC, b"x" * 50_000],
]


@dataclass(frozen=True)
class Size:
    """How large a worker and its helper are."""

    worker_rss_kib: int
    worker_descriptors: int
    worker_threads: int
    worker_sockets: int
    worker_greenlets: int
    worker_objects: int
    helper_rss_kib: int
    helper_descriptors: int

    @classmethod
    def of(cls, scene: Scene, census_path: Path) -> Size:
        worker = psutil.Process(scene.worker.pid)
        helper = psutil.Process(next(iter(spawn_helpers(worker.pid))).pid)
        census_path.unlink(missing_ok=True)
        worker.send_signal(signal.SIGUSR1)
        eventually(census_path.exists, "the worker has counted")
        census = json.loads(census_path.read_text())
        return cls(
            worker.memory_info().rss // KIB,
            worker.num_fds(),
            worker.num_threads(),
            len(worker.net_connections()),
            census["greenlets"],
            census["objects"],
            helper.memory_info().rss // KIB,
            helper.num_fds(),
        )


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    (helpers / "sitecustomize.py").write_text(CENSUS)
    env = {
        "PYTHONPATH": f"{helpers}{os.pathsep}{ROOT}",
        "CENSUS": str(tmp_path / "census"),
    }
    with (
        StandInServer() as server,
        working(server, tmp_path, env=env, concurrent_jobs=10, log_level="info") as it,
    ):
        yield it


def test_a_worker_is_no_larger_after_many_runs_and_bad_frames(
    scene: Scene, tmp_path: Path
) -> None:
    job_id = scene.api.add_job("#!/bin/sh\necho hello")
    frames = itertools.cycle(BAD_FRAMES)
    done = 0

    def work(runs: int) -> Size:
        nonlocal done
        while done < runs:
            _one_batch(scene, job_id, frames)
            done += BATCH
        scene.wait_until_heard()
        eventually(lambda: not run_folders(scene.worker.spool_path), "no folder")
        return Size.of(scene, tmp_path / "census")

    before = work(FIRST)
    after = work(RUNS)
    print(f"after {FIRST} runs: {before}\nafter {done} runs: {after}")
    assert not [line for line in scene.worker.lines if " ERROR " in line]
    earlier = asdict(before)
    grown = {
        name: (earlier[name], size)
        for name, size in asdict(after).items()
        if size > earlier[name] * GROWTH
    }
    assert grown == {}
    assert after.worker_objects - before.worker_objects < (done - FIRST) / 4


def _one_batch(scene: Scene, job_id: int, frames: Iterator[list[bytes]]) -> None:
    """Have some runs done, a bad frame with each, and order a kill that is too late."""
    api, server = scene.api, scene.server
    run_ids = [api.add_run(job_id) for _ in range(BATCH)]
    for run_id in run_ids:
        server.broadcast(next(frames))
        server.enqueue(run_id)
    for run_id in run_ids:
        run = server.wait_for_end(run_id, BATCH_LIMIT_SECONDS)
        assert run["return_success"] is True
        assert api.log(run_id) == "hello\n"
        ends = [fields for fields in api.patches_of(run_id) if "return_dts" in fields]
        assert len(ends) == 1
    scene.wait_for_kill(server.kill(run_ids[0]))
    # What the server in this process remembers is none of the worker's growth.
    with api.changing():
        api.requests.clear()
