"""Which bytes of an output are kept, and the text they become."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job_runner_worker import log_window
from job_runner_worker.log_window import TRUNCATION_MARK, Window

FEW_EXAMPLES = settings(max_examples=50, deadline=None)

DEFAULT_MAX_BYTES = 819200
SIZES = st.integers(0, 200_000)
LIMITS = st.integers(0, 50_000)
CLEAN_TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufffd")
)


def log_of(output, max_log_bytes, *, complete=True):
    """What a worker does with the output file."""
    kept = log_window.window(len(output), max_log_bytes)
    tail = None if kept.tail_start is None else output[kept.tail_start :]
    tails = None if tail is None else in_pieces(tail)
    head = in_pieces(output[: kept.head_end])
    return log_window.text(head, tails, complete=complete)


def in_pieces(data):
    """Cut where characters of several bytes are cut, too."""
    return [data[start : start + 5] for start in range(0, len(data), 5)]


def reference(text, max_log_bytes):
    """The rule for clean text, character by character."""
    if len(text.encode()) <= max_log_bytes:
        return text
    head_bytes = max_log_bytes * 20 // 100
    tail_bytes = max_log_bytes - head_bytes
    head = tail = ""
    for character in text:
        if len((head + character).encode()) > head_bytes:
            break
        head += character
    for character in reversed(text):
        if len((character + tail).encode()) > tail_bytes:
            break
        tail = character + tail
    return head + TRUNCATION_MARK + tail


@pytest.mark.parametrize(
    ("size", "max_log_bytes", "window"),
    [
        (0, DEFAULT_MAX_BYTES, Window(0, None)),
        (819200, DEFAULT_MAX_BYTES, Window(819200, None)),
        (819201, DEFAULT_MAX_BYTES, Window(163840, 163841)),
        (10**9, DEFAULT_MAX_BYTES, Window(163840, 10**9 - 655360)),
        (11, 10, Window(2, 3)),
        (11, 9, Window(1, 3)),
        (5, 0, Window(0, 5)),
    ],
)
def test_the_window_is_the_first_20_and_the_last_80_percent(
    size, max_log_bytes, window
):
    assert log_window.window(size, max_log_bytes) == window


def test_a_long_output_has_exactly_the_bytes_of_the_original_worker():
    output = b"a" * 163840 + b"b" * 1_000_000 + b"c" * 655360

    log = log_of(output, DEFAULT_MAX_BYTES)

    assert log == "a" * 163840 + "\n\n[truncated]\n\n" + "c" * 655360
    assert len(log) == 163840 + 15 + 655360


@pytest.mark.parametrize(
    ("output", "log"),
    [
        (b"", ""),
        (b"hello\n", "hello\n"),
        (b"h\xc3\xa9", "hé"),
        (b"a\0b", "a\ufffdb"),
        (b"\xff", "\ufffd"),
        (b"caf\xe9\n", "caf\ufffd\n"),
        (b"\xe2\x82", "\ufffd"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\r\n\x1b[0m", "\r\n\x1b[0m"),
    ],
)
def test_what_is_not_utf_8_and_nul_are_replaced(output, log):
    assert log_of(output, 100) == log


@pytest.mark.parametrize(
    ("output", "log"),
    [
        # Head and tail of 10 bytes: 2 and 8.
        ("aé" + "x" * 20, f"a{TRUNCATION_MARK}xxxxxxxx"),
        ("é" + "x" * 20, f"é{TRUNCATION_MARK}xxxxxxxx"),
        ("€" + "x" * 20, f"{TRUNCATION_MARK}xxxxxxxx"),
        ("x" * 20 + "€€€", f"xx{TRUNCATION_MARK}€€"),
        ("x" * 20 + "😀😀😀y", f"xx{TRUNCATION_MARK}😀y"),
        ("x" * 20 + "éééé", f"xx{TRUNCATION_MARK}éééé"),
    ],
)
def test_no_character_is_cut(output, log):
    assert log_of(output.encode(), 10) == log


@pytest.mark.parametrize(
    ("output", "log"),
    [
        (b"a\xe2", "a"),
        (b"a\xe2\x82", "a"),
        (b"a\xe2\x82\xac", "a€"),
        (b"a\xe2b", "a\ufffdb"),
    ],
)
def test_a_character_that_is_still_being_printed_is_held_back(output, log):
    assert log_of(output, 100, complete=False) == log


@FEW_EXAMPLES
@given(st.binary(max_size=300))
def test_a_short_output_is_what_python_decodes(output):
    expected = output.decode("utf-8", "replace").replace("\0", "\ufffd")

    assert log_of(output, 300) == expected


@FEW_EXAMPLES
@given(CLEAN_TEXT, st.integers(0, 60))
def test_clean_text_is_kept_as_in_the_reference(text, max_log_bytes):
    assert log_of(text.encode(), max_log_bytes) == reference(text, max_log_bytes)


@FEW_EXAMPLES
@given(st.binary(max_size=300), st.integers(0, 100), st.booleans())
def test_any_output_becomes_text_that_every_database_takes(output, limit, complete):
    log = log_of(output, limit, complete=complete)

    assert "\0" not in log
    assert log.encode("utf-8").decode("utf-8") == log
    assert len(log) <= limit + len(TRUNCATION_MARK)


@FEW_EXAMPLES
@given(CLEAN_TEXT, st.integers(0, 300))
def test_a_growing_log_never_takes_anything_back(text, printed):
    output = text.encode()

    so_far = log_of(output[:printed], len(output), complete=False)

    assert text.startswith(so_far)


@FEW_EXAMPLES
@given(SIZES, LIMITS)
def test_the_window_keeps_the_limit_and_never_overlaps(size, max_log_bytes):
    kept = log_window.window(size, max_log_bytes)

    if kept.tail_start is None:
        assert kept.head_end == size <= max_log_bytes
    else:
        assert 0 <= kept.head_end <= kept.tail_start <= size
        assert kept.head_end + size - kept.tail_start == max_log_bytes < size


@FEW_EXAMPLES
@given(SIZES, SIZES, LIMITS, st.sampled_from([1, 512, 4096]), st.integers(0, 9000))
def test_a_hole_never_touches_what_is_kept_at_any_later_size(
    size, growth, max_log_bytes, block_bytes, margin_bytes
):
    hole = log_window.hole(size, max_log_bytes, block_bytes, margin_bytes)

    if hole is None:
        return
    start, length = hole
    later = log_window.window(size + growth, max_log_bytes)
    assert length > 0
    assert start % block_bytes == length % block_bytes == 0
    assert later.tail_start is not None
    assert later.head_end <= start
    assert start + length + margin_bytes <= later.tail_start


@FEW_EXAMPLES
@given(st.integers(0, 5000), st.integers(0, 3000), st.integers(0, 100))
def test_a_hole_is_as_large_as_whole_blocks_allow(size, max_log_bytes, margin_bytes):
    block_bytes = 64
    kept = log_window.window(size, max_log_bytes)
    free = (
        set()
        if kept.tail_start is None
        else {
            block
            for block in range(size // block_bytes + 1)
            if kept.head_end <= block * block_bytes
            and (block + 1) * block_bytes + margin_bytes <= kept.tail_start
        }
    )

    hole = log_window.hole(size, max_log_bytes, block_bytes, margin_bytes)

    start, length = hole or (0, 0)
    blocks = range(start // block_bytes, (start + length) // block_bytes)
    assert set(blocks) == free
