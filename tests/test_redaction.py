"""Secrets do not leave the machine in a log, wherever it is cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job_runner_worker.errors import ConfigError
from job_runner_worker.log_window import TRUNCATION_MARK
from job_runner_worker.output_file import PUNCH_MARGIN_BYTES, OutputFile
from job_runner_worker.redaction import MARGIN_BYTES, Redactor
from job_runner_worker.settings import parse

SECRET = "s3cr3t-wOrd"
LIMIT = 100
FEW_EXAMPLES = settings(max_examples=200, deadline=None)
REQUIRED = {"api_base_url": "http://jobs", "api_key": "web", "secret": "hunter2"}


def output_of(folder: Path, data: bytes, redactor: Redactor) -> OutputFile:
    path = folder / "output"
    path.write_bytes(data)
    output = OutputFile(path, LIMIT)
    output.redactor = redactor
    return output


@pytest.mark.parametrize(
    ("pattern", "values", "text", "shown"),
    [
        ("", [SECRET], f"a {SECRET} b\n{SECRET}", "a [redacted] b\n[redacted]"),
        (r"token=\S+", [], "x token=abc y\n", "x [redacted] y\n"),
        ("[0-9]{4}|key", [], "key 1234 12\n", "[redacted] [redacted] 12\n"),
        (r"a[^x]*", [], "abc\ndef\n", "[redacted]\ndef\n"),
        ("", ["abc", ""], "abc\n", "abc\n"),
        ("", ["word", "word-long"], "word-long word\n", "[redacted] [redacted]\n"),
        ("", ["first line\nsecond line"], "second line\n", "[redacted]\n"),
        ("pässword", [], "pässword\n", "[redacted]\n"),
    ],
)
def test_what_is_to_be_redacted_is_not_in_the_log(
    tmp_path: Path, pattern: str, values: list[str], text: str, shown: str
) -> None:
    data = text.encode()
    output = output_of(tmp_path, data, Redactor(pattern, values))

    assert output.read_log(len(data), complete=True) == shown


@FEW_EXAMPLES
@given(before=st.integers(0, 300), after=st.integers(0, 300))
def test_no_part_of_a_secret_is_shown_at_the_cut(
    tmp_path_factory: pytest.TempPathFactory, before: int, after: int
) -> None:
    data = b"." * before + SECRET.encode() + b"." * after
    output = output_of(tmp_path_factory.getbasetemp(), data, Redactor("", [SECRET]))

    log = output.read_log(len(data), complete=True)

    assert set(log.replace("[redacted]", "").replace(TRUNCATION_MARK, "")) <= {"."}


@FEW_EXAMPLES
@given(end=st.integers(0, 40))
def test_no_part_of_a_secret_is_shown_while_it_is_being_printed(
    tmp_path_factory: pytest.TempPathFactory, end: int
) -> None:
    data = f"first\n{SECRET}\nlast\n".encode()[:end]
    output = output_of(tmp_path_factory.getbasetemp(), data, Redactor("", [SECRET]))

    log = output.read_log(len(data), complete=False)

    assert log in ("", "first\n", "first\n[redacted]\n", "first\n[redacted]\nlast\n")


def test_a_secret_at_the_cut_is_found_also_when_the_middle_has_been_punched(
    tmp_path: Path,
) -> None:
    secret = SECRET.encode()
    dots = b"." * (4 * 1024 * 1024)
    # The head ends within the first one, the tail begins within the last one.
    data = b"." * 15 + secret + dots + secret + b"." * 75
    output = output_of(tmp_path, data, Redactor("", [SECRET]))
    before = os.stat(output.path).st_blocks

    output.punch(len(data))

    assert os.stat(output.path).st_blocks < before
    log = output.read_log(len(data), complete=True)
    assert log == f"{'.' * 15}[redacted]{TRUNCATION_MARK}[redacted]{'.' * 75}"
    assert len(dots) > 2 * MARGIN_BYTES


@pytest.mark.parametrize("end", [b"\n", b"\r"])
@pytest.mark.parametrize("length", [20, 3000, MARGIN_BYTES - 20])
def test_a_secret_across_the_punched_middle_is_shown_on_neither_side(
    tmp_path: Path, length: int, end: bytes
) -> None:
    secret = b"<" + b"s3" * (length // 2) + b">"
    redactor = Redactor("<[^>]*>", [])
    # It begins within the head's last 5 bytes; another one ends 5 within the tail.
    middle = b"." * (2 * PUNCH_MARGIN_BYTES) + end
    data = b"." * 14 + end + secret + end + middle + secret + end + b"." * 74
    output = output_of(tmp_path, data, redactor)
    before = os.stat(output.path).st_blocks

    for size in range(0, len(data) + 1, len(data) // 7):
        output.punch(size)
    output.punch(len(data))

    assert os.stat(output.path).st_blocks < before
    log = output.read_log(len(data), complete=True)
    assert "s3" not in log and log.count("[redacted]") == 2


def test_where_the_beginning_of_a_line_is_gone_its_rest_is_not_shown(
    tmp_path: Path,
) -> None:
    # Seen from within, what stands between the quotes looks like what does not.
    line = b'"s3cr3t" word ' * (3 * MARGIN_BYTES // 14)
    data = line + b"\nplain\n"
    output = output_of(tmp_path, data, Redactor('"[^"]*"', []))

    head, _, tail = output.read_log(len(data), complete=True).partition(TRUNCATION_MARK)

    assert head == "[redacted] word [redacted]"
    assert tail == "[redacted]\nplain\n"


def test_values_are_found_in_a_line_whose_beginning_is_gone(tmp_path: Path) -> None:
    data = b"." * (3 * MARGIN_BYTES) + SECRET.encode() + b"." * 75
    output = output_of(tmp_path, data, Redactor("", [SECRET]))

    log = output.read_log(len(data), complete=True)

    assert log.endswith(f"{TRUNCATION_MARK}[redacted]{'.' * 75}")


@given(
    lines=st.lists(st.sampled_from([SECRET, "word", "\r", "a longer word"])),
    chunk=st.integers(1, 30),
)
@FEW_EXAMPLES
def test_however_an_output_is_read_no_part_of_a_secret_is_shown(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], chunk: int
) -> None:
    """Whatever the worker has read so far, as if it had read at every boundary."""
    data = "\n".join(lines).encode()
    output = output_of(tmp_path_factory.mktemp("out"), data, Redactor("", [SECRET]))

    for size in range(0, len(data), chunk):
        log = output.read_log(size, complete=False)
        assert not any(SECRET[:n] in log for n in range(4, len(SECRET) + 1))


@pytest.mark.parametrize("expression", ["(", ".*", "a|", "x?"])
def test_an_expression_that_is_none_or_matches_everywhere_is_refused(
    expression: str,
) -> None:
    with pytest.raises(ConfigError, match="redact: must be a regular expression"):
        parse(REQUIRED | {"redact": expression}, {"HOME": "/home/jobs"})
