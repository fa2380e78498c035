"""The worker's own log."""

import io
import logging
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job_runner_worker import worker_log

FEW_EXAMPLES = settings(max_examples=50, deadline=None)

LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) (.*)"
)


@pytest.fixture
def stream():
    logger = logging.getLogger("job_runner_worker")
    before = logger.handlers, logger.propagate, logger.level
    stream = io.StringIO()
    worker_log.configure("info", stream)
    yield stream
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def log(name="job_runner_worker.worker"):
    return logging.getLogger(name)


def line_of(message, created=0.0):
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, message, None, None)
    record.created = created
    return worker_log.LineFormatter().format(record)


@pytest.mark.parametrize(
    ("created", "time"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1795324560.123, "2026-11-22T05:16:00.123Z"),
        (1795324560.9999, "2026-11-22T05:16:00.999Z"),
    ],
)
def test_a_line_begins_with_its_utc_time_in_milliseconds(created, time, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")

    assert line_of("run 3: started", created) == f"{time} INFO run 3: started"


def test_a_message_of_this_package_is_one_line_on_the_stream(stream):
    log().info("run %s: %s", 3, "started")

    assert LINE.fullmatch(stream.getvalue().rstrip("\n"))
    assert stream.getvalue().endswith("Z INFO run 3: started\n")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("plain", "plain"),
        ("café €", "café €"),
        ("two\nlines", r"two\nlines"),
        ("a\r\n\tb", r"a\r\n\tb"),
        ("\x1b[31mred\x1b[0m\x00\x7f", r"\x1b[31mred\x1b[0m\x00\x7f"),
        ("a\x85b\u2028c\u2029d", r"a\x85b\u2028c\u2029d"),
        ("\u202eabc", r"\u202eabc"),
        ("\ud800", r"\ud800"),
        ("", ""),
    ],
)
def test_line_ends_and_control_characters_are_escaped(message, shown):
    assert worker_log.one_line(message) == shown
    assert line_of(message).endswith(f"Z INFO {shown}")


@FEW_EXAMPLES
@given(st.text())
def test_whatever_the_message_it_is_one_printable_line(message):
    line = line_of(message.replace("%", "%%"))

    assert line.isprintable()
    assert LINE.fullmatch(line)


def test_an_exception_stands_in_the_same_line(stream):
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log().exception("run 3: lost")

    (line,) = stream.getvalue().splitlines()
    assert " ERROR run 3: lost\\nTraceback (most recent call last):\\n" in line
    assert line.endswith(r"ValueError: first\nsecond")


def test_a_stack_stands_in_the_same_line(stream):
    log().warning("here", stack_info=True)

    (line,) = stream.getvalue().splitlines()
    assert r"here\nStack (most recent call last):" in line


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", ["DEBUG", "INFO", "WARNING", "ERROR"]),
        ("info", ["INFO", "WARNING", "ERROR"]),
        ("warning", ["WARNING", "ERROR"]),
        ("error", ["ERROR"]),
    ],
)
def test_a_level_hears_itself_and_what_is_worse(stream, level, heard):
    worker_log.configure(level, stream)

    for each in ("debug", "info", "warning", "error"):
        getattr(log(), each)("said")

    lines = stream.getvalue().splitlines()
    assert [LINE.fullmatch(line)[1] for line in lines] == heard


def test_configuring_twice_says_everything_once(stream):
    worker_log.configure("info", stream)

    log().info("once")

    assert len(stream.getvalue().splitlines()) == 1


def test_other_packages_are_left_alone(stream):
    root, theirs = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(theirs)
    root.addHandler(handler)
    try:
        log("urllib3").warning("their word")
        log().warning("our word")
    finally:
        root.removeHandler(handler)

    assert theirs.getvalue() == "their word\n"
    assert stream.getvalue().endswith(" WARNING our word\n")


def test_stderr_is_the_default(stream, capsys):
    worker_log.configure("info")

    log().info("heard")

    assert capsys.readouterr().err.endswith(" INFO heard\n")
