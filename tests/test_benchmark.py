"""The benchmark runs and says something; how fast anything is, is not tested here."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 240
KEYS = {
    "start_auto",
    "start_subreaper",
    "kill_auto",
    "kill_subreaper",
    "run_cpu",
    "run_requests",
    "run_rate",
    "own_cpu",
    "own_requests",
    "own_requests_alone",
    "own_rate",
    "start_own",
    "idle_cpu",
    "idle_switches",
    "rss",
    "output_rss",
    "output_disk",
    "output_ratio",
    "line_1",
    "line_0.2",
    "process_start",
    "many_rss",
    "many_cpu",
    "many_broken",
    "restart_attached",
    "restart_lost",
}

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The finished process of a quick benchmark, and the path of its results."""
    path = tmp_path_factory.mktemp("benchmark") / "results.json"
    finished = subprocess.run(
        [sys.executable, "benchmarks/core.py", "--quick", "--output", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished, path


def test_the_quick_benchmark_measures_everything(quick):
    _, path = quick
    figures = json.loads(path.read_text())["figures"]

    assert {figure["key"] for figure in figures} >= KEYS
    for figure in figures:
        numbers = [figure[name] for name in ("min", "median", "p95", "max")]
        assert figure["n"] >= 1
        assert all(math.isfinite(number) and number >= 0 for number in numbers), figure
        assert numbers == sorted(numbers), figure
        assert (figure["met"] is None) == (figure["target"] is None), figure


def test_the_results_name_the_machine_by_its_facts_only(quick):
    _, path = quick
    text = path.read_text()
    machine = json.loads(text)["machine"]

    assert {"date", "cpus", "kernel", "python", "gevent", "libzmq"} <= set(machine)
    assert os.uname().nodename not in machine.values()
    assert str(ROOT) not in text


def test_the_table_has_a_line_for_every_figure(quick):
    finished, path = quick
    figures = json.loads(path.read_text())["figures"]

    for figure in figures:
        assert any(
            line.startswith(figure["name"]) for line in finished.stdout.splitlines()
        ), figure["name"]
