"""Whether runs are claimed is looked at when an offer comes, and logged once."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from in_process import core
from waiting import eventually

from job_runner_worker import admission
from job_runner_worker.admission import Admission
from job_runner_worker.models import Enqueue, Ping
from job_runner_worker.testing import ScriptedSource


def test_a_pause_begins_and_ends_with_one_line_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "job_runner_worker")
    made = Admission(tmp_path, 0)
    assert made.refusal() == ""
    admission.pause(tmp_path)
    admission.pause(tmp_path)
    assert [made.refusal() for _ in range(3)] == ["paused"] * 3
    admission.resume(tmp_path)
    admission.resume(tmp_path)
    assert [made.refusal() for _ in range(3)] == [""] * 3
    assert ["paused" in line for line in caplog.messages] == [True, True]


def test_a_shortage_begins_and_ends_with_one_line_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "job_runner_worker")
    blocks = 1
    monkeypatch.setattr(
        os, "statvfs", lambda path: SimpleNamespace(f_bavail=blocks, f_frsize=512)
    )
    made = Admission(tmp_path, 1024)
    assert [made.refusal() for _ in range(2)] == ["spool_path is short of space"] * 2
    assert made.shortage is not None
    assert made.shortage.free_bytes == 512
    blocks = 2
    assert [made.refusal() for _ in range(2)] == ["", ""]
    assert made.shortage is None
    assert ["claimed" in line for line in caplog.messages] == [True, True]


def test_zero_switches_the_least_space_off(tmp_path: Path) -> None:
    assert Admission(tmp_path / "gone", 0).refusal() == ""
    assert Admission(tmp_path / "gone", 1).refusal() != ""


def test_an_offer_that_waits_when_a_pause_begins_is_not_claimed(
    tmp_path: Path,
) -> None:
    source = ScriptedSource()
    for run_id in (1, 2):
        source.add_run(run_id)
    with core(tmp_path, source=source, concurrent_jobs=1) as worker:
        worker.say(Enqueue(1), Enqueue(2))
        execution = worker.executor.wait_for_start(1)
        eventually(lambda: worker.worker.waiting, "the second offer")
        admission.pause(tmp_path)
        execution.end()
        worker.wait_until_idle()
        assert source.refusals == [(Enqueue(2), "paused")]
        worker.say(Ping())
        eventually(lambda: ("pinged",) in worker.reporter.calls, "the answer")
        admission.resume(tmp_path)
        worker.say(Enqueue(2))
        worker.executor.wait_for_start(2).end()
        worker.wait_until_idle()
    assert source.calls.count(("claim", 2)) == 1
