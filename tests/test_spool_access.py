"""A spool is its worker's alone, and no link leads out of it."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import NO_OTHER_USER, NOBODY

from job_runner_worker.errors import RunFolderError, SpoolError
from job_runner_worker.private_files import PrivateFolder, make_private, remove_tree
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.spool import Spool

CLAIMED_AT = "2026-11-22T02:25:59+00:00"
NAMES = ("run.json", "script", "output", "exit_status", "pid", "reported.json")


@pytest.fixture
def open_spool() -> Iterator[Callable[[Path], Spool]]:
    made = []

    def opened(path: Path) -> Spool:
        made.append(Spool(path, "http://jobs", "web"))
        made[-1].open()
        return made[-1]

    yield opened
    for spool in made:
        spool.close()


@pytest.fixture
def spool(open_spool: Callable[[Path], Spool], tmp_path: Path) -> Spool:
    return open_spool(tmp_path / "spool")


@pytest.fixture
def folder(spool: Spool) -> RunFolder:
    made = spool.create(3, "broadcast", CLAIMED_AT, 1000)
    made.prepare(b"#!/bin/true\n")
    made.note_reported("rest", "enqueued")
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# The spool


def test_a_spool_that_is_a_link_is_refused_and_says_where_it_leads(
    open_spool: Callable[[Path], Spool], tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "spool").symlink_to("real")

    with pytest.raises(SpoolError, match=f"link: give the path.*{tmp_path}/real"):
        open_spool(tmp_path / "spool")

    assert list((tmp_path / "real").iterdir()) == []


@pytest.mark.parametrize("name", ["lock", "spool.json"])
def test_a_link_in_the_place_of_a_spools_file_is_refused_and_not_followed(
    open_spool: Callable[[Path], Spool], tmp_path: Path, name: str
) -> None:
    (tmp_path / "spool").mkdir(mode=0o700)
    (tmp_path / "precious").write_text("content")
    (tmp_path / "precious").chmod(0o644)
    (tmp_path / "spool" / name).symlink_to(tmp_path / "precious")

    with pytest.raises(SpoolError, match="cannot be used: is a symbolic link"):
        open_spool(tmp_path / "spool")

    assert (tmp_path / "precious").read_text() == "content"
    assert mode(tmp_path / "precious") == 0o644


def test_what_others_could_read_of_a_spool_becomes_private_and_is_told(
    open_spool: Callable[[Path], Spool],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "spool"
    (path / "parts").mkdir(parents=True)
    (path / "lock").touch()
    for each in (path, path / "parts"):
        each.chmod(0o777)
    (path / "lock").chmod(0o644)

    open_spool(path)

    assert [mode(each) for each in (path, path / "parts", path / "lock")] == [
        0o700,
        0o700,
        0o600,
    ]
    assert [
        line.removesuffix(" was open to others: made private")
        for line in caplog.messages
    ] == [str(path), f"{path}/lock", f"{path}/parts"]


def test_a_spool_below_a_folder_that_everybody_may_change_is_warned_of(
    open_spool: Callable[[Path], Spool],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "shared").mkdir()
    # Where nobody can rename what is another's, as in /tmp, it may be.
    (tmp_path / "shared").chmod(0o1777)
    open_spool(tmp_path / "shared" / "sticky")
    assert caplog.messages == []
    (tmp_path / "shared").chmod(0o777)

    open_spool(tmp_path / "shared" / "spool")

    [line] = caplog.messages
    assert f"{tmp_path}/shared, which everybody may change: do `chmod o-w " in line


@pytest.mark.parametrize("is_linked", [False, True], ids=["directly", "by a link"])
def test_a_spool_below_another_users_folder_is_refused(
    open_spool: Callable[[Path], Spool], tmp_path: Path, is_linked: bool
) -> None:
    if os.geteuid() != 0:
        pytest.skip(NO_OTHER_USER)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    way = theirs
    if is_linked:
        way = tmp_path / "link"
        way.symlink_to(theirs)

    with pytest.raises(SpoolError, match=f"which user {NOBODY} may change: choose"):
        open_spool(way / "spool")


def test_a_spool_of_another_user_is_refused(
    open_spool: Callable[[Path], Spool], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip(NO_OTHER_USER)
    (tmp_path / "spool").mkdir()
    os.chown(tmp_path / "spool", NOBODY, NOBODY)

    with pytest.raises(SpoolError, match=f"belongs to user {NOBODY}: do `chown 0 "):
        open_spool(tmp_path / "spool")


# Run folders


def test_a_link_in_the_place_of_a_run_folder_is_no_runs(
    spool: Spool, folder: RunFolder
) -> None:
    folder.files.close()
    folder.path.rename(spool.path / "away")
    folder.path.symlink_to("away")

    assert spool.folders() == []
    with pytest.raises(RunFolderError, match="Not a directory"):
        RunFolder.load(folder.path)
    with pytest.raises(OSError, match="Not a directory"):
        folder.files.read("run.json")
    with pytest.raises(OSError, match="Not a directory"):
        spool.create(3, "broadcast", CLAIMED_AT, 1000)


@pytest.mark.parametrize("name", NAMES)
def test_a_link_in_the_place_of_a_runs_file_is_refused_and_not_followed(
    spool: Spool, folder: RunFolder, tmp_path: Path, name: str
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("content")
    path = folder.path / name
    path.unlink()
    path.symlink_to(precious)

    folder.fail("lost")
    folder.note_reported("rest", "started")
    with pytest.raises(OSError, match="symbolic link"):
        folder.files.read(name)
    with pytest.raises(OSError, match="symbolic link"):
        folder.files.write(name, b"")
    with pytest.raises(RunFolderError, match=f"{name}|link"):
        RunFolder.load(folder.path)
    assert spool.folders() == []
    assert (spool.path / "failed" / "3").is_dir()
    assert precious.read_text() == "content"


@pytest.mark.parametrize("name", ["work", "tmp", "bell"])
def test_a_link_in_the_place_of_what_a_script_gets_fails_its_start(
    folder: RunFolder, tmp_path: Path, name: str
) -> None:
    remove = os.rmdir if (folder.path / name).is_dir() else os.unlink
    remove(folder.path / name)
    (folder.path / name).symlink_to(tmp_path)

    with pytest.raises(FileExistsError):
        folder.prepare(b"#!/bin/true\n")


def test_whatever_takes_the_place_of_a_folder_in_hand_is_not_looked_at(
    folder: RunFolder, tmp_path: Path
) -> None:
    folder.path.rename(tmp_path / "away")
    folder.path.mkdir()
    (folder.path / "exit_status").write_text("0\n")

    assert folder.exit_status() is None
    (tmp_path / "away" / "exit_status").write_text("7\n")
    assert folder.exit_status() == 7


def test_files_that_others_could_read_become_private_when_a_run_is_taken_up(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    folder.path.chmod(0o755)
    (folder.path / "script").chmod(0o644)
    (folder.path / "output").chmod(0o666)

    RunFolder.load(folder.path)

    assert mode(folder.path) == 0o700
    assert mode(folder.path / "script") == mode(folder.path / "output") == 0o600
    assert [line.split()[0] for line in caplog.messages] == [
        str(folder.path),
        f"{folder.path}/output",
        f"{folder.path}/script",
    ]


def test_a_folder_in_hand_is_one_descriptor_and_one_let_go_is_none(
    folder: RunFolder,
) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    held = descriptors()
    folder.files.close()
    assert descriptors() == held - 1
    assert folder.files.read("script") == b"#!/bin/true\n"
    assert folder.log(final=True) == ""
    assert descriptors() == held - 1
    folder.files.hold()
    assert descriptors() == held
    folder.remove()
    assert descriptors() == held - 1


# Files


def test_who_is_not_its_owner_makes_nothing_private(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip(NO_OTHER_USER)
    path = tmp_path / "theirs"
    path.touch(0o644)
    os.chown(path, NOBODY, NOBODY)

    with pytest.raises(OSError, match=f"belongs to user {NOBODY}"):
        make_private(path)


def test_a_new_file_is_private_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        PrivateFolder(tmp_path).write("file", b"x" * 100_000)
        PrivateFolder(tmp_path).write_atomically("whole", b"x")
    finally:
        os.umask(before)

    assert mode(tmp_path / "file") == mode(tmp_path / "whole") == 0o600
    assert (tmp_path / "file").stat().st_size == 100_000


def test_removing_a_folder_gives_no_rights_past_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(outside)

    remove_tree(tmp_path / "tree")

    assert mode(outside) == 0o500
    with pytest.raises(NotADirectoryError):
        remove_tree_by_link(tmp_path, outside)


def remove_tree_by_link(folder: Path, target: Path) -> None:
    (folder / "other").symlink_to(target)
    PrivateFolder(folder / "other").hold()
