"""One worker per spool, one spool per key and server, and nothing lost in it."""

import json
import os
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import fill_disk
from waiting import eventually

from job_runner_worker.errors import SpoolError, SpoolLockedError
from job_runner_worker.executors.process_tree import is_alive
from job_runner_worker.run_folder import RunFolder, boot_id
from job_runner_worker.spool import FORMAT, Spool

ROOT = Path(__file__).resolve().parent.parent
URL, KEY = "https://central.example/", "a key"
CLAIMED_AT = "2026-11-22T02:25:59+00:00"
HOLDER = """
import sys
from pathlib import Path
from job_runner_worker.spool import Spool
spool = Spool(Path(sys.argv[1]), "https://central.example/", "a key")
spool.open()
print("open", flush=True)
sys.stdin.read()
"""
HOLDER_WITH_A_SCRIPT = """
import dataclasses, sys
from pathlib import Path
from conftest import OPTIONS
from job_runner_worker.executors.local import LocalExecutor
from job_runner_worker.models import Run
from job_runner_worker.spool import Spool
spool = Spool(Path(sys.argv[1]), "https://central.example/", "a key")
spool.open()
folder = spool.create(3, "broadcast", "2026-11-22T02:25:59+00:00", 1000)
folder.update_note(run=Run(3, "/run/3/", "7", "title", "#!/bin/sh\\nsleep 60\\n"))
execution = LocalExecutor(OPTIONS).start(folder.run, folder)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def make_spool(path):
    """Returns spools that are closed in the end."""
    made = []

    def make(url=URL, key=KEY):
        made.append(Spool(path, url, key))
        return made[-1]

    yield make
    for spool in made:
        spool.close()


@pytest.fixture
def spool(make_spool):
    made = make_spool()
    made.open()
    return made


@contextmanager
def another_worker(path, code=HOLDER):
    """A process that has the spool open."""
    worker = subprocess.Popen(
        [sys.executable, "-c", code, path],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with worker:
        assert worker.stdout.readline() == b"open\n"
        try:
            yield worker
        finally:
            worker.kill()


def create(spool, run_id=3):
    return spool.create(run_id, "broadcast", CLAIMED_AT, 1000)


# The lock


def test_a_second_worker_is_told_who_holds_the_spool(path, make_spool):
    with another_worker(path) as holder:
        with pytest.raises(SpoolLockedError, match=f"pid {holder.pid}:") as error:
            make_spool().open()
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_the_lock_dies_with_its_process(path, make_spool):
    with another_worker(path) as holder:
        holder.kill()
        holder.wait()
        spool = make_spool()
        spool.open()
    assert (path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_script_that_goes_on_does_not_hold_the_lock(path, make_spool, local):
    with another_worker(path, HOLDER_WITH_A_SCRIPT) as holder:
        holder.kill()
        holder.wait()
        make_spool().open()
        assert is_alive(RunFolder.load(path / "3").shim())


def test_a_refused_worker_leaves_the_holders_pid_and_can_try_again(path, make_spool):
    second = make_spool()
    with another_worker(path) as holder:
        for _ in range(2):
            with pytest.raises(SpoolLockedError):
                second.open()
        assert (path / "lock").read_text() == f"{holder.pid}\n"
    second.open()


def test_a_closed_spool_lets_the_next_worker_in(spool, make_spool):
    spool.close()
    spool.close()
    make_spool().open()


def test_a_longer_pid_of_the_last_holder_does_not_show_through(path, make_spool):
    path.mkdir()
    (path / "lock").write_text("123456789\n")
    make_spool().open()
    assert (path / "lock").read_text() == f"{os.getpid()}\n"


# Whose it is


def test_a_new_spool_is_private_and_says_whose_it_is(spool, path):
    assert sorted(os.listdir(path)) == ["lock", "spool.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for name in ("lock", "spool.json"):
        assert stat.S_IMODE((path / name).stat().st_mode) == 0o600
    owner = json.loads((path / "spool.json").read_bytes())
    assert owner == {"format": FORMAT, "api_base_url": URL, "api_key": KEY}


def test_a_spool_that_everybody_could_read_becomes_private(path, make_spool):
    path.mkdir(mode=0o755)
    make_spool().open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("url", "key"), [(URL, "another key"), ("https://another.example/", KEY)]
)
def test_a_foreign_spool_is_refused_and_named(spool, make_spool, url, key):
    spool.close()
    with pytest.raises(SpoolError, match="belongs to api_key 'a key' at") as error:
        make_spool(url, key).open()
    assert "choose another spool_path" in str(error.value)


def test_a_spool_of_a_later_version_is_refused(spool, make_spool, path):
    spool.close()
    owner = {"format": FORMAT + 1, "api_base_url": URL, "api_key": KEY}
    (path / "spool.json").write_text(json.dumps(owner))
    with pytest.raises(SpoolError, match=rf"\(format {FORMAT + 1}\)"):
        make_spool().open()


@pytest.mark.parametrize("content", ["", "{", "[]", None])
def test_without_a_readable_owner_run_folders_are_nobodys(
    spool, make_spool, path, content
):
    create(spool)
    spool.close()
    if content is None:
        (path / "spool.json").unlink()
    else:
        (path / "spool.json").write_text(content)
    with pytest.raises(SpoolError, match="missing or torn"):
        make_spool().open()


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_torn_owner_of_an_empty_spool_is_written_again(
    spool, make_spool, path, content
):
    spool.close()
    (path / "spool.json").write_text(content)
    make_spool().open()
    assert json.loads((path / "spool.json").read_bytes())["api_key"] == KEY


@pytest.mark.parametrize("name", [".", "spool.json", "lock"])
def test_a_spool_that_cannot_be_used_is_one_line(path, make_spool, name):
    if name == ".":
        path.write_text("a file is in the way")
    else:
        (path / name).mkdir(parents=True)
    with pytest.raises(SpoolError, match="cannot be used") as error:
        make_spool().open()
    assert "\n" not in str(error.value)


def test_a_full_disk_is_a_spool_that_cannot_be_used(small_disk, make_spool):
    fill_disk(small_disk)
    with pytest.raises(SpoolError, match="No space left"):
        make_spool().open()


# Run folders


def test_a_folder_knows_this_boot_and_has_an_end_mark_of_its_own(spool, path):
    notes = [create(spool, number).note for number in (3, 4)]
    assert {note.boot_id for note in notes} == {boot_id()}
    assert [(note.run_id, note.claimed_at) for note in notes] == [
        (3, CLAIMED_AT),
        (4, CLAIMED_AT),
    ]
    assert len({note.end_mark.removesuffix("\n") for note in notes}) == 2
    assert (path / "3" / "run.json").is_file()


def test_folders_come_back_in_the_order_of_their_runs(spool):
    for number in (10, 9, 100, 2):
        create(spool, number)
    assert [folder.note.run_id for folder in spool.folders()] == [2, 9, 10, 100]


def test_an_empty_spool_has_no_folders(spool):
    assert spool.folders() == []


def test_what_was_not_finished_making_or_removing_is_removed(spool, path):
    folder = create(spool)
    folder.prepare(b"#!/bin/true\n")
    folder.path.rename(path / "3.done")
    (path / "4.new").mkdir()
    assert spool.folders() == []
    assert sorted(os.listdir(path)) == ["lock", "spool.json"]


def test_what_cannot_be_removed_does_not_keep_the_worker_from_starting(
    small_disk, make_spool, caplog
):
    spool = make_spool()
    spool.open()
    create(spool, 4)
    (small_disk / "3.done").mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", small_disk / "3.done"]
    subprocess.run(mount, check=True)
    try:
        assert [folder.note.run_id for folder in spool.folders()] == [4]
        assert "remove it by hand" in caplog.text
    finally:
        subprocess.run(["umount", small_disk / "3.done"], check=True)


@pytest.mark.parametrize("content", ["{", "{}", '{"format": 99}'])
def test_an_unreadable_folder_is_set_aside_and_the_others_are_taken_up(
    spool, path, caplog, content
):
    create(spool, 3)
    create(spool, 4)
    (path / "3" / "run.json").write_text(content)
    assert [folder.note.run_id for folder in spool.folders()] == [4]
    assert not (path / "3").exists()
    assert (path / "failed" / "3" / "run.json").read_text() == content
    [message] = caplog.messages
    assert f"moved to {path}/failed/3" in message


def test_nothing_that_was_set_aside_is_overwritten_or_taken_up(spool, path):
    for _ in range(3):
        spool.set_aside(create(spool).path, "a reason")
    assert len(os.listdir(path / "failed")) == 3
    assert spool.folders() == []
    assert stat.S_IMODE((path / "failed").stat().st_mode) == 0o700


def test_files_and_links_in_the_spool_are_left_alone(spool, path, tmp_path):
    (path / "README").write_text("mine")
    (path / "5").symlink_to(tmp_path)
    assert spool.folders() == []
    assert eventually((path / "README").exists, "the file is there")
    assert (path / "5").is_symlink()
