"""Kill requests that outlive a worker though no run folder has them."""

import json
import logging

import pytest

from job_runner_worker.kill_notes import KillNote, KillNotes
from job_runner_worker.models import Kill

FIRST, SECOND = KillNote(9, 3, "broadcast"), KillNote(10, 3, "launcher")


@pytest.fixture
def notes(tmp_path):
    return KillNotes(tmp_path)


def test_a_note_is_there_until_it_is_discarded(notes, tmp_path):
    for note in (SECOND, FIRST, FIRST):
        notes.keep(note)
    assert KillNotes(tmp_path).entries() == [FIRST, SECOND]
    assert FIRST.order == Kill(9, 3)
    notes.discard(9)
    notes.discard(9)
    assert notes.entries() == [SECOND]
    notes.discard(10)
    assert list(tmp_path.iterdir()) == []


def test_a_note_and_its_folder_are_private(notes):
    notes.keep(FIRST)
    assert notes.path.stat().st_mode & 0o777 == 0o700
    assert (notes.path / "9").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("9", ""),
        ("9", '{"run": 3'),
        ("9", "[3]"),
        ("9", '{"run": "3", "source": "broadcast"}'),
        ("9", '{"source": "broadcast"}'),
        ("9", "[" * 100_000),
        ("nine", json.dumps({"run": 3, "source": "broadcast"})),
        ("10.new", ""),
    ],
)
def test_what_is_torn_or_foreign_is_removed_and_said(notes, caplog, name, content):
    notes.keep(SECOND)
    (notes.path / name).write_text(content)
    with caplog.at_level(logging.WARNING):
        assert notes.entries() == [SECOND]
    assert f"kills/{name}" in caplog.text
    assert [path.name for path in notes.path.iterdir()] == ["10"]


def test_without_a_spool_that_can_be_written_it_is_said_and_no_more(tmp_path, caplog):
    notes = KillNotes(tmp_path / "gone")
    with caplog.at_level(logging.WARNING):
        notes.keep(FIRST)
    assert "kill request 9: cannot be noted" in caplog.text
    notes.discard(9)
    assert notes.entries() == []
