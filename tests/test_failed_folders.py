"""What was set aside keeps its reason, comes back whole, or goes for good."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import open_spool

from job_runner_worker.failed_folders import REASON, FailedFolderError
from job_runner_worker.spool import Spool

AT = "2026-11-22T02:25:59+00:00"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = open_spool(tmp_path / "spool")
    folder = made.create(3, "scripted", AT, 1000)
    folder.note_refused("rest", "finished")
    made.set_aside(folder.path, "because")
    made.close()
    return made


def test_a_folder_is_listed_with_run_time_reason_and_size(spool: Spool) -> None:
    (found,) = spool.failed.entries()
    assert (found.name, found.run_id, found.reason) == ("3", 3, "because")
    assert found.at is not None
    assert found.disk_bytes >= 0
    assert spool.ledger.given_up == {"folders set aside": 1}


def test_a_retried_folder_is_as_it_was_and_nothing_in_it_is_refused(
    spool: Spool,
) -> None:
    assert spool.failed.retry("3") == spool.path / "3"
    (folder,) = spool.folders()
    assert folder.refusals == []
    assert not (folder.path / REASON).exists()
    assert spool.failed.entries() == []


def test_a_retry_does_not_touch_a_run_that_is_there(spool: Spool) -> None:
    spool.create(3, "scripted", AT, 1000)
    with pytest.raises(FailedFolderError, match="is there already"):
        spool.failed.retry("3")
    assert len(spool.failed.entries()) == 1


def test_what_cannot_be_read_is_not_retried_but_may_be_discarded(spool: Spool) -> None:
    (spool.failed.path / "3" / "run.json").write_text("{")
    (spool.failed.path / "3" / REASON).write_text("[")
    with pytest.raises(FailedFolderError, match="cannot be read"):
        spool.failed.retry("3")
    assert spool.failed.entries()[0].reason == "unknown"
    spool.failed.discard("3")
    assert spool.failed.entries() == []
    assert sorted(path.name for path in spool.path.iterdir()) == [
        "failed",
        "lock",
        "spool.json",
    ]


@pytest.mark.parametrize("name", ["", ".", "..", "../lock", "4"])
def test_only_what_is_there_can_be_named(spool: Spool, name: str) -> None:
    for act in (spool.failed.retry, spool.failed.discard):
        with pytest.raises(FailedFolderError, match="there is no"):
            act(name)


def test_a_run_is_known_by_its_folder_also_under_another_name(spool: Spool) -> None:
    path = spool.failed.path / "3"
    path.rename(spool.failed.path / "3.0a1b2c3d")
    assert spool.failed.has_readable(3)
    assert not spool.failed.has_begun(3)
    (spool.failed.path / "3.0a1b2c3d" / "began").touch()
    assert spool.has(3)
    assert not spool.has(30)
