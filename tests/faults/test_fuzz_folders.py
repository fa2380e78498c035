"""No run folder, whatever is in it, keeps a worker from starting or from the others."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fault_examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from in_process import core

from job_runner_worker import worker_log
from job_runner_worker.errors import RunFolderError, SpoolError
from job_runner_worker.models import Run
from job_runner_worker.run_folder import Note, RunFolder, boot_id
from job_runner_worker.sources.base import Holder
from job_runner_worker.spool import Spool
from job_runner_worker.testing import FakeExecutor, ScriptedSource

LIMIT_SECONDS = 20.0
IN_THE_YEAR_30000 = 884_541_340_800
RUN_ID = 3
NOTE = Note(
    run_id=RUN_ID,
    source="scripted",
    boot_id=boot_id(),
    claimed_at="2026-11-22T02:25:59+00:00",
    max_log_bytes=1000,
    end_mark="\x1eend of run 3\n",
    run=Run(RUN_ID, "/api/v1/run/3/", "7", "a title", "#!/bin/sh\ntrue\n"),
    kill_requests=(7,),
    failure="interrupted",
    failed_at="2026-11-22T02:26:59+00:00",
)
DEEP = b'{"a":' * 100_000
FILES = ("run.json", "reported.json", "began", "pid", "exit_status", "output", "script")
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Opening the wrong file would wait for ever: in C, where only a signal helps."""

    def late(*about: object) -> None:
        raise AssertionError("something waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spools")


def make(place: Path) -> RunFolder:
    """Return a folder as a worker leaves it, in a spool of its own."""
    spool = place / str(next(_numbers))
    spool.mkdir()
    folder = RunFolder.create(spool / str(RUN_ID), NOTE)
    folder.prepare(b"#!/bin/sh\ntrue\n")
    folder.note_reported("rest", "started")
    (folder.path / "began").write_bytes(b"4194304 1\n")
    return folder


def look_at(path: Path) -> bool:
    """Return whether a folder can be read; then everything in it can."""
    try:
        folder = RunFolder.load(path)
    except RunFolderError as error:
        assert str(path) in str(error)
        return False
    folder.shim()
    folder.script_process()
    folder.exit_status()
    folder.failure()
    folder.has_reported("rest", "started")
    folder.log(final=False)
    folder.log(final=True)
    if folder.exit_status() is not None:
        folder.ended_at()
    datetime.fromisoformat(folder.note.claimed_at)
    assert str(folder.note.run_id) == path.name
    return True


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def note_as_json() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asdict(NOTE)))
    return found


@examples(300)
@given(
    where=st.sampled_from(["", "run"]),
    name=st.sampled_from([*note_as_json(), *note_as_json()["run"], "unknown"]),
    value=JSON_VALUES,
)
@example("", "kill_requests", 3)
@example("", "kill_requests", ["1"])
@example("", "run_id", True)
@example("", "run_id", -3)
@example("", "run_id", "3")
@example("", "failed_at", "yesterday")
@example("", "failed_at", "2026-11-22T02:26:59")
@example("", "claimed_at", "")
@example("", "max_log_bytes", "1000")
@example("", "max_log_bytes", -1)
@example("", "end_mark", "")
@example("", "end_mark", "\ud800")
@example("", "cgroup", "/sys\0")
@example("", "format", True)
@example("", "run", [1])
@example("", "run", 0)
@example("run", "id", 4)
@example("run", "uri", None)
def test_a_note_with_a_wrong_value_is_refused_or_makes_sense(
    place: Path, where: str, name: str, value: object
) -> None:
    path = make(place).path
    found = note_as_json()
    (found["run"] if where else found)[name] = value
    (path / "run.json").write_text(json.dumps(found))
    if look_at(path):
        folder = RunFolder.load(path)
        assert type(folder.note.run_id) is int
        assert folder.note.max_log_bytes > 0
        assert all(type(each) is int for each in folder.note.kill_requests)
        assert folder.note.run is None or folder.note.run.id == folder.note.run_id


@examples(300)
@given(
    name=st.sampled_from(FILES),
    content=st.binary(max_size=40)
    | st.sampled_from(
        [
            b"",
            b"null",
            b"[]",
            DEEP,
            b"[" * 100_000,
            b'\n["rest", "started"]\n{"a": 1, "b": 2}\n[1, 2]\n"ab"\n["rest", "fin',
            b"9" * 5000,
            b"9" * 5000 + b" 1",
            b"99999999999 1\n",
            b"1 99999999999999999999999 1\n",
            b"-1 -1 -1",
            b"\xb2 \xb3",
            b"999 ",
            b'{"run_id": %s}' % (b"9" * 5000),
        ]
    ),
    at=st.integers(0, 300),
    mode=st.sampled_from(["replace", "insert", "cut"]),
)
@example("began", b"9" * 5000 + b" 1", 0, "replace")
@example("reported.json", b"[" * 100_000, 0, "replace")
@example("run.json", DEEP, 0, "replace")
def test_a_torn_or_foreign_file_is_refused_or_makes_sense(
    place: Path, name: str, content: bytes, at: int, mode: str
) -> None:
    path = make(place).path
    before = (path / name).read_bytes()
    after = {
        "replace": content,
        "insert": before[:at] + content + before[at:],
        "cut": before[:at],
    }[mode]
    (path / name).write_bytes(after)
    look_at(path)


def _fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def _link_to_itself(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def _link_to_a_file(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(100 * 1024**3)


KINDS: dict[str, Callable[[Path], None]] = {
    "fifo": _fifo,
    "folder": _folder,
    "link": _link,
    "link to itself": _link_to_itself,
    "link to a file": _link_to_a_file,
    "huge": _huge,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_of_a_worker_s_is_refused(
    place: Path, name: str, kind: str
) -> None:
    path = make(place).path
    KINDS[kind](path / name)
    # A long output is an ordinary one: it is read by offset.
    assert look_at(path) is ((name, kind) == ("output", "huge"))


def test_an_end_in_a_year_that_no_date_has_is_now() -> None:
    # A disk of this kind keeps such a time; the usual ones do not.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        folder = make(Path(place))
        status = folder.path / "exit_status"
        status.write_bytes(b"0\n")
        os.utime(status, (IN_THE_YEAR_30000, IN_THE_YEAR_30000))
        assert status.stat().st_mtime == IN_THE_YEAR_30000
        late = (folder.ended_at() - datetime.now(UTC)).total_seconds()
        assert abs(late) < LIMIT_SECONDS


NAMES: list[bytes] = [
    b"99",
    b"0x3",
    b"3 ",
    b"\xff\xfe",
    b"line\nend",
    b"9" * 250,
    b"-1",
    "\u0663".encode(),
    b"4.new",
    b"5.done",
    b"failed.new",
]


def test_a_worker_starts_beside_any_folders_and_takes_up_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = Spool(tmp_path, "http://server", "key")
    spool.open()
    spool.close()
    for name in NAMES:
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
    for number, (change, name) in enumerate(
        itertools.product(KINDS.values(), ("run.json", "reported.json", "began")), 100
    ):
        folder = make(tmp_path.parent)
        change(folder.path / name)
        folder.path.rename(tmp_path / str(number))
    (tmp_path / "stray").write_text("a file")
    _fifo(tmp_path / "8")
    os.symlink("/", tmp_path / "9")
    good = Note(
        RUN_ID, "scripted", boot_id(), NOTE.claimed_at, 1000, NOTE.end_mark, NOTE.run
    )
    RunFolder.create(tmp_path / str(RUN_ID), good)
    source, executor = ScriptedSource(), FakeExecutor()
    source.add_run(RUN_ID, holder=Holder.THIS_WORKER)
    log = io.StringIO()
    worker_log.configure("info", log)
    with core(tmp_path, source=source, executor=executor) as worker:
        worker.executor.wait_for_start(RUN_ID, LIMIT_SECONDS).end()
        assert worker.reporter.wait_for_finish(RUN_ID, LIMIT_SECONDS).success
    lines = log.getvalue()
    log.getvalue().encode("utf-8")  # what stderr would do
    assert "Traceback" not in lines + capsys.readouterr().err
    kept = {path.name for path in (tmp_path / "failed").iterdir()}
    assert {str(number) for number in range(100, 100 + 3 * len(KINDS))} <= kept
    assert lines.count("moved to") >= 3 * len(KINDS)


@pytest.mark.parametrize("kind", ["fifo", "folder", "file"])
def test_a_worker_starts_where_nothing_can_be_set_aside(
    tmp_path: Path, kind: str
) -> None:
    spool = Spool(tmp_path, "http://server", "key")
    spool.open()
    (tmp_path / "5").mkdir()
    if kind == "fifo":
        _fifo(tmp_path / "failed")
    elif kind == "file":
        (tmp_path / "failed").write_text("")
    else:
        (tmp_path / "failed" / "5" / "more").mkdir(parents=True)
    assert spool.folders() == []
    assert (tmp_path / "5").exists() is (kind != "folder")
    spool.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_spool_whose_owner_cannot_be_read_is_refused_in_a_line(
    tmp_path: Path, kind: str
) -> None:
    spool = Spool(tmp_path, "http://server", "key")
    spool.open()
    spool.close()
    KINDS[kind](tmp_path / "spool.json")
    with pytest.raises(SpoolError) as raised:
        spool.open()
    assert "\n" not in str(raised.value)
    spool.close()


def test_an_owner_nested_too_deeply_is_a_torn_one(tmp_path: Path) -> None:
    (tmp_path / "spool.json").write_bytes(DEEP)
    (tmp_path / "3").mkdir()
    spool = Spool(tmp_path, "http://server", "key")
    with pytest.raises(SpoolError, match="missing or torn"):
        spool.open()
    spool.close()
