"""Outputs are looked at while they grow; quiet ones cost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import eventually

from job_runner_worker.executors.output_keeper import OutputKeeper
from job_runner_worker.executors.write_watch import WriteWatch
from job_runner_worker.output_file import OutputFile

LIMIT = 10_000


class CountedOutput(OutputFile):
    """Knows how often it was looked at."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, LIMIT)
        path.touch()
        self.looks = 0

    def size(self) -> int:
        self.looks += 1
        return super().size()

    def print(self, content: bytes = b"x") -> None:
        with self.path.open("ab") as file:
            file.write(content)


@pytest.fixture
def keeper(greenlet_errors: list[object]) -> Iterator[OutputKeeper]:
    made = OutputKeeper()
    yield made
    made.close()


@pytest.fixture
def watch(greenlet_errors: list[object]) -> Iterator[WriteWatch]:
    made = WriteWatch()
    assert made.open()
    yield made
    made.close()


def test_a_quiet_output_is_not_looked_at_before_it_is_written_to(
    keeper: OutputKeeper, tmp_path: Path
) -> None:
    quiet, busy = CountedOutput(tmp_path / "quiet"), CountedOutput(tmp_path / "busy")
    for output in (quiet, busy):
        keeper.watch(output, lambda: True)

    def is_looked_at() -> bool:
        busy.print()
        return busy.looks > target

    target = 20
    eventually(is_looked_at, "the busy one is looked at")
    before, target = quiet.looks, busy.looks + 20
    eventually(is_looked_at, "the busy one is looked at again")
    assert quiet.looks == before
    quiet.print()
    eventually(lambda: quiet.looks > before, "the other one is looked at, too")


def test_what_is_printed_after_a_silence_is_punched_at_once(
    keeper: OutputKeeper, tmp_path: Path
) -> None:
    output = CountedOutput(tmp_path / "output")
    keeper.watch(output, lambda: True)
    eventually(lambda: output.looks >= 2, "it is known to be quiet")
    output.print(b"x" * 8 * 1024 * 1024)
    # The margin and the log stay.
    limit = 2 * 1024 * 1024
    eventually(lambda: output.path.stat().st_blocks * 512 < limit, "it is punched")


def test_an_output_that_is_forgotten_is_left_as_it_is(
    keeper: OutputKeeper, tmp_path: Path
) -> None:
    output, other = CountedOutput(tmp_path / "output"), CountedOutput(tmp_path / "b")
    keeper.watch(output, lambda: True)
    keeper.watch(other, lambda: True)
    eventually(lambda: output.looks >= 2, "it is known to be quiet")
    keeper.forget(output)
    before = output.looks
    output.print(b"x" * 8 * 1024 * 1024)
    seen = other.looks
    other.print()
    eventually(lambda: other.looks > seen, "the other one is looked at")
    assert output.looks == before


def test_a_write_is_told_once(watch: WriteWatch, tmp_path: Path) -> None:
    told: list[str] = []
    for name in ("a", "b"):
        (tmp_path / name).touch()
    assert watch.arm(tmp_path / "a", lambda: told.append("a")) is not None
    (tmp_path / "a").write_bytes(b"1")
    eventually(lambda: told == ["a"], "the write is told")
    (tmp_path / "a").write_bytes(b"2")
    watch.arm(tmp_path / "b", lambda: told.append("b"))
    (tmp_path / "b").write_bytes(b"3")
    eventually(lambda: told[-1] == "b", "the write to the other is told")
    assert told == ["a", "b"]


def test_nothing_is_told_of_a_file_that_is_disarmed(
    watch: WriteWatch, tmp_path: Path
) -> None:
    told: list[str] = []
    for name in ("a", "b"):
        (tmp_path / name).touch()
    number = watch.arm(tmp_path / "a", lambda: told.append("a"))
    assert number is not None
    watch.disarm(number)
    (tmp_path / "a").write_bytes(b"1")
    watch.arm(tmp_path / "b", lambda: told.append("b"))
    (tmp_path / "b").write_bytes(b"3")
    eventually(lambda: told, "the write to the other is told")
    assert told == ["b"]


def test_a_file_that_is_not_there_cannot_be_watched(
    watch: WriteWatch, tmp_path: Path
) -> None:
    assert watch.arm(tmp_path / "none", lambda: None) is None
