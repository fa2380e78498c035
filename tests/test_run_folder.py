"""The durable folder of one run: whole or not at all, and removable."""

import json
import os
import stat
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import another_user, fill_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from job_runner_worker.errors import RunFolderError
from job_runner_worker.models import Outcome, Run
from job_runner_worker.private_files import remove_tree, write_atomically
from job_runner_worker.run_folder import (
    FORMAT,
    Note,
    ProcessId,
    RunFolder,
)

RUN = Run(3, "/api/v1/run/3/", "7", "a t\u00eftle", "#!/bin/sh\ntrue\n", "/log/9/")
NOTE = Note(
    run_id=3,
    source="broadcast",
    boot_id="a boot",
    claimed_at="2026-11-22T02:25:59+00:00",
    max_log_bytes=1000,
    end_mark="\x1eend of run 3\n",
)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "3", NOTE)


def modes(path):
    return {entry.name: stat.S_IMODE(entry.lstat().st_mode) for entry in path.iterdir()}


def ordinary_user(path):
    """Return a context: be somebody without root's rights, who owns a folder."""
    if os.geteuid() != 0:
        return nullcontext()
    for parent in [*path.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    return another_user(path.parent, path, *path.rglob("*"))


# run.json


def test_a_folder_is_read_as_it_was_written(folder):
    assert RunFolder.load(folder.path).note == NOTE
    folder.update_note(run=RUN, kill_requests=(4, 5), cgroup="/a", kill_reason="why")
    loaded = RunFolder.load(folder.path)
    assert loaded.note == folder.note
    assert loaded.run == RUN
    assert loaded.note.kill_requests == (4, 5)


@given(st.text(max_size=50), st.lists(st.integers()), st.text(max_size=20))
@settings(max_examples=25)
def test_any_script_and_title_come_back(tmp_path_factory, script, requests, title):
    path = tmp_path_factory.mktemp("run") / "3"
    run = replace(RUN, script=script, job_title=title)
    made = RunFolder.create(path, replace(NOTE, run=run, kill_requests=tuple(requests)))
    assert RunFolder.load(path).note == made.note


def test_a_run_may_have_any_name_that_its_source_gave_it(tmp_path):
    run = replace(RUN, uri="file:3.run")
    made = RunFolder.create(tmp_path / "3", replace(NOTE, run=run))
    assert RunFolder.load(made.path).run == run


def test_a_folder_that_is_there_already_is_not_made_again(folder):
    with pytest.raises(OSError, match=str(folder.path)):
        RunFolder.create(folder.path, NOTE)
    assert os.listdir(folder.path.parent) == ["3"]


def test_a_folder_that_a_full_disk_forbids_can_be_made_later(small_disk):
    fill_disk(small_disk)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            RunFolder.create(small_disk / "3", NOTE)
        assert os.listdir(small_disk) == ["filler"]
    (small_disk / "filler").unlink()
    made = RunFolder.create(small_disk / "3", NOTE)
    assert RunFolder.load(made.path).note == NOTE


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '"text"',
        "\ud83d",
        b"\xff\xfe",
        json.dumps({"format": FORMAT + 1, "something": "new"}),
        json.dumps({"format": "1"}),
        json.dumps({"format": FORMAT}),
        json.dumps({"format": FORMAT, "run": {"id": 3}, "kill_requests": []}),
        json.dumps({"format": FORMAT, "run": 3, "kill_requests": []}),
        json.dumps({"format": FORMAT, "run": None, "kill_requests": 3}),
        None,
    ],
)
def test_a_torn_foreign_or_newer_folder_is_one_line_that_names_it(folder, content):
    path = folder.path / "run.json"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, "utf-8", "surrogatepass")
    with pytest.raises(RunFolderError) as error:
        RunFolder.load(folder.path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_torn_change_costs_what_it_said_and_nothing_else(folder):
    path = folder.path / "run.json"
    for lost in (b'\n{"kill_reason": "to', b"\n[3]", b"\n\xff", b"\n" + b"[" * 10_000):
        with path.open("ab") as file:
            file.write(lost)
        folder.update_note(run=RUN)
        assert RunFolder.load(folder.path).note == folder.note


def test_a_change_makes_no_note_where_there_is_none(folder, caplog):
    (folder.path / "run.json").unlink()
    folder.update_note(run=RUN)
    assert not (folder.path / "run.json").exists()
    assert "cannot write run.json" in caplog.text


def test_a_torn_note_of_every_length_is_refused(folder):
    path = folder.path / "run.json"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(RunFolderError):
            RunFolder.load(folder.path)


def test_a_copied_folder_is_no_run(folder):
    folder.path.rename(folder.path.with_name("4"))
    with pytest.raises(RunFolderError, match="is about run 3"):
        RunFolder.load(folder.path.with_name("4"))


# Writing


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"new and longer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert modes(tmp_path) == {"file": 0o600}


@pytest.mark.parametrize("left_bytes", [0, 4096, 8192])
def test_a_full_disk_keeps_what_was_there(small_disk, left_bytes):
    path = small_disk / "file"
    write_atomically(path, b"old")
    fill_disk(small_disk, left_bytes)
    # Part of it could be written, and write() would not call that an error.
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"x" * (left_bytes + 5000))
    assert path.read_bytes() == b"old"
    assert sorted(os.listdir(small_disk)) == ["file", "filler"]


def test_a_note_that_cannot_be_written_is_known_to_this_worker_only(small_disk, caplog):
    folder = RunFolder.create(small_disk / "3", NOTE)
    fill_disk(small_disk)
    # What fits beside the first line in its page would be written all the same.
    long_run = replace(RUN, script="#!/bin/sh\n" + "true\n" * 10_000)
    folder.update_note(run=long_run)
    folder.note_reported("rest", "enqueued")
    assert folder.run == long_run
    assert folder.has_reported("rest", "enqueued")
    loaded = RunFolder.load(folder.path)
    assert loaded.note == NOTE
    assert not loaded.has_reported("rest", "enqueued")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_files_that_a_full_disk_left_short_are_completed_by_the_next_try(small_disk):
    folder = RunFolder.create(small_disk / "3", NOTE)
    fill_disk(small_disk, 4096)
    with pytest.raises(OSError, match="No space left"):
        folder.prepare(b"#!/bin/sh\n" * 50)
    (small_disk / "filler").unlink()
    folder.prepare(b"#!/bin/sh\n")
    assert (folder.path / "exit_status").stat().st_size >= len("255\n")
    assert (folder.path / "pid").stat().st_size >= len("4194304 " * 2) + 20


# What the shim finds and writes


def test_a_prepared_folder_is_private_and_its_files_have_their_full_size(folder):
    folder.prepare(b"#!/bin/sh\n")
    assert modes(folder.path) == {
        **dict.fromkeys(["run.json", "script", "output", "exit_status", "pid"], 0o600),
        **dict.fromkeys(["work", "tmp"], 0o700),
        "bell": 0o600,
    }
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert folder.script_path.read_bytes() == b"#!/bin/sh\n"
    assert (folder.path / "exit_status").read_bytes() == b" " * 4
    assert (folder.path / "pid").read_bytes() == b" " * 64
    assert stat.S_ISFIFO(folder.bell_path.stat().st_mode)


def test_a_prepared_folder_says_nothing_about_a_process(folder):
    for _ in range(2):
        folder.prepare(b"#!/bin/sh\n")
        assert folder.shim() is None
        assert folder.script_process() is None
        assert folder.exit_status() is None
        assert folder.log(final=True) == ""


def test_a_second_preparation_keeps_what_the_shim_wrote(folder):
    folder.prepare(b"#!/bin/sh\n")
    for name, content in [("exit_status", b"7\n  "), ("output", b"printed")]:
        (folder.path / name).write_bytes(content)
    folder.prepare(b"#!/bin/sh\n")
    assert folder.exit_status() == 7
    assert folder.log(final=True) == "printed"


@pytest.mark.parametrize(
    ("content", "exit_status"),
    [(b"0\n  ", 0), (b"255\n", 255), (b"7\n", 7), (b"", None), (b"    ", None)],
)
def test_an_exit_status_is_there_when_it_is_written(folder, content, exit_status):
    (folder.path / "exit_status").write_bytes(content)
    assert folder.exit_status() == exit_status


@pytest.mark.parametrize(
    ("content", "shim"),
    [
        (b"12 34\n", ProcessId(12, 34)),
        (b"", ProcessId(0, 0)),
        (b"12", ProcessId(0, 0)),
        (b"12 x\n", ProcessId(0, 0)),
    ],
)
def test_a_began_says_that_the_run_has_begun_whatever_is_in_it(folder, content, shim):
    (folder.path / "began").write_bytes(content)
    assert folder.shim() == shim


def test_the_scripts_process_is_known_when_its_line_is_whole(folder):
    path = folder.path / "pid"
    for content in (b"", b" " * 64, b"12", b"12 x", b"12 34 56"):
        path.write_bytes(content)
        assert folder.script_process() is None
    own, parent = os.getpid(), ProcessId(os.getppid(), 1)
    path.write_bytes(b"%d 56\n" % own + b" " * 55)
    os.utime(path, (1_800_000_000, 1_800_000_000))
    process = folder.script_process(parent)
    assert (process.script.pid, process.relay_pid) == (own, 56)
    assert process.script.start_ticks > 0
    # Whoever has the script's number and another parent is somebody else.
    assert folder.script_process().script == ProcessId(own, 0)
    assert process.started_at == datetime.fromtimestamp(1_800_000_000, UTC)


@pytest.mark.parametrize(
    ("before_the_claim_ms", "told_ms"), [(4, 0), (9, 0), (20, 20), (3_600_000,) * 2]
)
def test_no_script_ends_within_the_tick_before_its_claim(
    folder, before_the_claim_ms, told_ms
):
    """File times are those of the last tick; a clock that was set back stays seen."""
    claimed_at = datetime.fromisoformat(folder.note.claimed_at)
    path = folder.path / "exit_status"
    path.write_bytes(b"0\n")
    written_at = claimed_at.timestamp() - before_the_claim_ms / 1000
    os.utime(path, (written_at, written_at))
    assert folder.ended_at() == claimed_at - timedelta(milliseconds=told_ms)


def test_a_failure_is_an_outcome_over_a_restart(folder):
    assert folder.failure() is None
    folder.fail("a reason")
    failure = RunFolder.load(folder.path).failure()
    assert failure == folder.failure()
    assert failure == Outcome(None, "a reason", failure.returned_at)


# What was reported


def test_each_reporters_steps_are_remembered_over_a_restart(folder):
    folder.note_reported("rest", "enqueued")
    folder.note_reported("rest", "started")
    folder.note_reported("mail", "finished")
    for known in (folder, RunFolder.load(folder.path)):
        assert known.has_reported("rest", "enqueued")
        assert known.has_reported("rest", "started")
        assert known.has_reported("mail", "finished")
        assert not known.has_reported("rest", "finished")
        assert not known.has_reported("other", "enqueued")


@pytest.mark.parametrize("content", ["", "{", '\n["rest", "enq', "\n3", "\n[1]"])
def test_a_torn_list_of_reports_costs_nothing_but_repeated_reports(folder, content):
    folder.note_reported("rest", "enqueued")
    (folder.path / "reported.json").write_text(content)
    loaded = RunFolder.load(folder.path)
    assert not loaded.has_reported("rest", "enqueued")
    loaded.note_reported("rest", "enqueued")
    assert RunFolder.load(folder.path).has_reported("rest", "enqueued")


# Removal


def test_a_removed_folder_is_gone_with_everything_in_it(folder, tmp_path):
    folder.prepare(b"#!/bin/sh\n")
    (folder.path / "work" / "link").symlink_to("/etc")
    folder.remove()
    assert list(tmp_path.iterdir()) == []
    assert Path("/etc/passwd").exists()


def test_a_folder_without_its_owners_rights_is_removed(folder, tmp_path):
    folder.prepare(b"#!/bin/sh\n")
    deep = folder.path / "work" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (folder.path / "work" / "a" / "link").symlink_to(outside)
    with ordinary_user(folder.path):
        for path in (deep, deep.parent, deep.parent.parent, folder.path):
            path.chmod(0)
        folder.remove()
    assert list(tmp_path.iterdir()) == [outside]
    assert stat.S_IMODE(outside.stat().st_mode) == 0o500


def test_a_folder_that_cannot_be_removed_says_so_and_is_no_runs_any_more(small_disk):
    # Something is mounted in the way, as a script with sudo might leave it.
    with pytest.raises(OSError, match="busy"):
        remove_tree(small_disk)
