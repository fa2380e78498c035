"""Each reporter is told each step once, over all restarts."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from job_runner_worker.errors import ApiError
from job_runner_worker.models import Outcome, Run
from job_runner_worker.reported_steps import forget_refusals
from job_runner_worker.reports import (
    LIVE_LOG_BYTES_PER_SECOND,
    SLOW_BOUND_SECONDS,
    Reports,
)
from job_runner_worker.run_folder import Note, RunFolder
from job_runner_worker.testing import RecordingReporter

NOW = datetime(2026, 11, 22, 2, 25, 59, tzinfo=UTC)
RUN = Run(3, "/api/v1/run/3/", "3", "a title", "#!/bin/sh\ntrue\n")
MARK = "\x1eend of run 3\n"
END = Outcome(0, "", NOW)
REFUSAL = ApiError("PATCH run: 404", 404)
UNAUTHORIZED = ApiError("PATCH run: 401", 401)
FLUSH_SECONDS = 0.5


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    note = Note(3, "scripted", "boot", NOW.isoformat(), 1_000_000, MARK, run=RUN)
    made = RunFolder.create(tmp_path / "3", note)
    made.prepare(b"")
    return made


@pytest.fixture
def first() -> RecordingReporter:
    return RecordingReporter("first")


@pytest.fixture
def second() -> RecordingReporter:
    return RecordingReporter("second")


@pytest.fixture
def reports(
    first: RecordingReporter, second: RecordingReporter, folder: RunFolder
) -> Reports:
    return Reports([first, second], folder)


def say(folder: RunFolder, text: str) -> None:
    with folder.output.path.open("a") as output:
        output.write(text)


def tell_all(reports: Reports, outcome: Outcome = END) -> None:
    reports.enqueued(NOW)
    reports.started(4711, NOW)
    reports.finished(outcome)


ALL = [
    ("enqueued", 3),
    ("started", 3, 4711),
    ("logged", 3, "hello\n", True),
    ("finished", 3, END),
]


def test_each_reporter_hears_each_step_in_order(
    reports: Reports,
    first: RecordingReporter,
    second: RecordingReporter,
    folder: RunFolder,
) -> None:
    say(folder, f"hello\n{MARK}")
    tell_all(reports)
    assert first.calls == second.calls == ALL
    assert folder.refusals == []


@pytest.mark.parametrize("told", range(5))
def test_after_a_restart_nobody_hears_a_step_again(
    first: RecordingReporter, folder: RunFolder, told: int
) -> None:
    say(folder, f"hello\n{MARK}")
    steps = ("enqueued", "started", "logged", "finished")
    for step in steps[:told]:
        folder.note_reported("first", step)
    tell_all(Reports([first], RunFolder.load(folder.path)))
    assert first.calls == ALL[told:]
    first.calls.clear()
    tell_all(Reports([first], RunFolder.load(folder.path)))
    assert first.calls == []


def test_a_reporter_that_is_new_after_a_restart_hears_everything(
    first: RecordingReporter, second: RecordingReporter, folder: RunFolder
) -> None:
    say(folder, f"hello\n{MARK}")
    tell_all(Reports([first], folder))
    tell_all(Reports([first, second], RunFolder.load(folder.path)))
    assert first.calls == second.calls == ALL


def test_a_refusal_is_logged_and_the_next_steps_are_told(
    reports: Reports,
    first: RecordingReporter,
    second: RecordingReporter,
    folder: RunFolder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    say(folder, f"hello\n{MARK}")
    first.fail_next(1, REFUSAL)
    tell_all(reports)
    assert (first.calls, second.calls) == (ALL[1:], ALL)
    assert folder.refusals == [("first", "enqueued")]
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "run 3: 'enqueued' refused" in record.getMessage()


def test_a_refused_step_is_not_repeated_after_a_restart(
    reports: Reports, first: RecordingReporter, folder: RunFolder
) -> None:
    first.fail_next(1, REFUSAL)
    reports.started(1, NOW)
    again = Reports([first], RunFolder.load(folder.path))
    again.started(1, NOW)
    assert first.calls == []


def test_a_refusal_is_known_after_a_restart_and_told_again_once_it_is_forgotten(
    reports: Reports, first: RecordingReporter, folder: RunFolder
) -> None:
    first.fail_next(1, REFUSAL)
    reports.started(1, NOW)
    assert RunFolder.load(folder.path).refusals == [("first", "started")]
    forget_refusals(folder.path)
    again = RunFolder.load(folder.path)
    assert again.refusals == []
    Reports([first], again).started(1, NOW)
    assert first.calls == [("started", 3, 1)]


def test_what_met_a_401_is_told_again_before_the_end_and_slowly(
    first: RecordingReporter, folder: RunFolder
) -> None:
    sleeps: list[float] = []
    first.fail_next(3 + 3 * 9, UNAUTHORIZED)
    say(folder, f"hello\n{MARK}")
    tell_all(Reports([first], folder, sleeps.append))
    assert first.calls == ALL
    assert folder.refusals == []
    assert max(sleeps) <= SLOW_BOUND_SECONDS
    assert len(sleeps) >= 5


def test_what_met_a_401_is_due_after_a_restart(
    first: RecordingReporter, folder: RunFolder
) -> None:
    first.fail_next(1, UNAUTHORIZED)
    Reports([first], folder).started(4711, NOW)
    Reports([first], RunFolder.load(folder.path)).started(4711, NOW)
    assert first.calls == [("started", 3, 4711)]


def test_what_stays_401_when_the_end_is_taken_is_refused(
    first: RecordingReporter, folder: RunFolder
) -> None:
    reports = Reports([first], folder)
    reports.enqueued(NOW)
    first.fail_next(2, UNAUTHORIZED)
    reports.started(1, NOW)
    reports.finished(END)
    assert first.names_for(3) == ["enqueued", "logged", "finished"]
    assert folder.refusals == [("first", "started")]


def test_a_log_that_the_server_has_more_of_is_left_alone(
    reports: Reports, first: RecordingReporter, folder: RunFolder
) -> None:
    folder.update_note(keeps_log=True)
    reports.finished(END)
    assert first.names_for(3) == ["finished"]


def test_a_run_with_an_end_is_told_its_log_and_no_more(
    reports: Reports, first: RecordingReporter, folder: RunFolder
) -> None:
    say(folder, f"hello\n{MARK}")
    reports.logged_after_end(END)
    assert first.calls == [("logged", 3, "hello\n", True)]


def test_a_log_is_told_only_when_it_has_grown(
    reports: Reports, first: RecordingReporter, folder: RunFolder
) -> None:
    assert reports.logged(FLUSH_SECONDS) == FLUSH_SECONDS
    assert first.calls == []
    for text in ("one\n", "two\n"):
        say(folder, text)
        for _ in range(3):
            assert reports.logged(FLUSH_SECONDS) == FLUSH_SECONDS
    assert first.calls == [
        ("logged", 3, "one\n", False),
        ("logged", 3, "one\ntwo\n", False),
    ]


def test_a_long_log_is_told_less_often(reports: Reports, folder: RunFolder) -> None:
    say(folder, "x" * 4 * LIVE_LOG_BYTES_PER_SECOND)
    assert reports.logged(FLUSH_SECONDS) == 4


def test_a_live_log_that_fails_is_told_the_next_time(
    reports: Reports, first: RecordingReporter, folder: RunFolder
) -> None:
    say(folder, "one\n")
    first.fail_next()
    assert reports.logged(FLUSH_SECONDS) == FLUSH_SECONDS
    assert folder.refusals == []
    reports.logged(FLUSH_SECONDS)
    assert first.calls == [("logged", 3, "one\n", False)]


def test_the_end_mark_and_what_follows_it_are_not_in_the_log(
    reports: Reports, first: RecordingReporter, folder: RunFolder
) -> None:
    say(folder, f"mine\n{MARK}of a child that stayed\n")
    reports.finished(END)
    assert first.calls[0] == ("logged", 3, "mine\n", True)


@pytest.mark.parametrize(
    ("output", "content"),
    [
        ("", "[job_runner_worker] killed\n"),
        ("said\n", "said\n[job_runner_worker] killed\n"),
        ("no line end", "no line end\n[job_runner_worker] killed\n"),
    ],
)
def test_a_reason_stands_in_the_last_line_of_the_log(
    reports: Reports,
    first: RecordingReporter,
    folder: RunFolder,
    output: str,
    content: str,
) -> None:
    say(folder, output + MARK)
    outcome = Outcome(143, "killed", NOW)
    reports.finished(outcome)
    assert first.calls == [("logged", 3, content, True), ("finished", 3, outcome)]


def test_a_run_that_never_began_has_a_log_all_the_same(
    first: RecordingReporter, tmp_path: Path
) -> None:
    note = Note(3, "scripted", "boot", NOW.isoformat(), 1_000_000, MARK, run=RUN)
    reports = Reports([first], RunFolder.create(tmp_path / "3", note))
    reports.finished(Outcome(None, "no interpreter", NOW))
    assert first.calls[0] == ("logged", 3, "[job_runner_worker] no interpreter\n", True)


class InOne(RecordingReporter):
    """A reporter that takes log and end in one, if it is let."""

    takes = True

    def ended(self, run: Run, content: str, outcome: Outcome) -> bool:
        self._record(("ended", run.id, content))
        return self.takes


def test_log_and_end_are_told_in_one_and_not_again(folder: RunFolder) -> None:
    reporter = InOne("first")
    say(folder, f"all{MARK}")
    Reports([reporter], folder).finished(END)
    assert reporter.calls == [("ended", 3, "all")]
    later = RunFolder.load(folder.path)
    assert later.has_reported("first", "logged")
    assert later.has_reported("first", "finished")


def test_what_is_not_taken_in_one_is_told_step_by_step(folder: RunFolder) -> None:
    reporter = InOne("first")
    reporter.takes = False
    say(folder, f"all{MARK}")
    Reports([reporter], folder).finished(END)
    assert [call[0] for call in reporter.calls] == ["ended", "logged", "finished"]


def test_with_a_step_before_them_due_log_and_end_are_not_told_in_one(
    folder: RunFolder,
) -> None:
    reporter = InOne("first")
    reports = Reports([reporter], folder, sleep=lambda seconds: None)
    reporter.fail_next(1, UNAUTHORIZED)
    reports.started(7, NOW)
    say(folder, f"all{MARK}")
    reports.finished(END)
    assert [call[0] for call in reporter.calls] == ["started", "logged", "finished"]
