"""The output of a run: its head, its tail, its end, and how much disk it takes."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import eventually

from job_runner_worker import output_file
from job_runner_worker.log_window import TRUNCATION_MARK
from job_runner_worker.output_file import PUNCH_MARGIN_BYTES, OutputFile

MARK = b"\x1eend of run 3\n"
MEGABYTE = 1_000_000
LIMIT = 100_000
FEW_EXAMPLES = settings(max_examples=60, deadline=None)


@pytest.fixture
def make(tmp_path):
    """Returns an output file with a content."""

    def made(content=b"", max_log_bytes=LIMIT):
        path = tmp_path / "output"
        path.write_bytes(content)
        return OutputFile(path, max_log_bytes)

    return made


def disk_bytes(output):
    return output.path.stat().st_blocks * 512


def print_and_punch(output, total, between=lambda: None):
    """Append numbered lines of 100 bytes; punch as they come. Return the most disk."""
    number = most = 0
    with output.path.open("ab", buffering=0) as file:
        while number * 100 < total:
            lines = range(number, number + 10_000)
            file.write(b"".join(b"%099d\n" % line for line in lines))
            number += 10_000
            output.punch(output.size())
            most = max(most, disk_bytes(output))
            between()
    return most


# Without a file


def test_an_output_that_is_not_there_is_empty(tmp_path):
    output = OutputFile(tmp_path / "output", LIMIT)
    assert output.size() == 0
    assert output.read_log(10, complete=True) == ""
    assert output.find_end(MARK) is None
    output.punch(10**9)


# The log


def test_an_output_within_the_limit_is_its_log(make):
    output = make(b"a\xe2\x82\xacb")
    assert output.read_log(5, complete=True) == "a\u20acb"
    assert output.read_log(3, complete=False) == "a"
    assert output.read_log(3, complete=True) == "a\ufffd"


def test_a_longer_output_is_its_head_and_its_tail(make):
    output = make(bytes(range(65, 91)), max_log_bytes=10)
    mark = TRUNCATION_MARK
    assert output.read_log(26, complete=True) == f"AB{mark}STUVWXYZ"
    assert output.read_log(11, complete=True) == f"AB{mark}DEFGHIJK"
    assert output.read_log(10, complete=True) == "ABCDEFGHIJ"


def test_a_log_ends_where_it_is_said_whatever_follows(make):
    output = make(b"mine" + MARK + b"theirs" * 1000)
    assert output.read_log(output.find_end(MARK), complete=True) == "mine"


# The end mark


@pytest.mark.parametrize("before", [0, 1, 4 * 4096 - 5, 4 * 4096, 100_000])
@pytest.mark.parametrize("behind", [0, 1, 4 * 4096 - 5, 4 * 4096, 100_000])
def test_the_end_mark_is_found_wherever_it_stands(make, monkeypatch, before, behind):
    monkeypatch.setattr(output_file, "_SEARCH_BYTES", 4096)
    output = make(b"x" * before + MARK + b"y" * behind)
    assert output.find_end(MARK) == before


def test_half_an_end_mark_is_none(make):
    for length in range(len(MARK)):
        assert make(b"text" + MARK[:length]).find_end(MARK) is None


@given(
    st.lists(st.sampled_from([b"x", b"\x1e", b"ab", b"aba", b"b" * 7]), max_size=40),
    st.sampled_from([b"aba", b"\x1e", b"abab", b"bbbbbb"]),
    st.integers(0, 60),
    st.integers(1, 9),
)
@FEW_EXAMPLES
def test_a_mark_is_found_where_a_plain_search_finds_one(
    tmp_path_factory, words, mark, start, chunk_bytes
):
    content = b"".join(words)
    path = tmp_path_factory.mktemp("output") / "output"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_file, "_SEARCH_BYTES", chunk_bytes)
        found = OutputFile(path, LIMIT).find_end(mark, start)
    if mark in content[start:]:
        assert found >= start
        assert content[found:].startswith(mark)
    else:
        assert found is None


def test_a_search_that_starts_later_sees_only_what_came_since(make):
    output = make(b"x" * 50 + MARK + b"y" * 50)
    assert output.find_end(MARK, 50) == 50
    assert output.find_end(MARK, 51) is None
    assert output.find_end(MARK, 10**9) is None


# The disk


def test_200_megabytes_take_little_disk_and_keep_head_and_tail(make):
    output = make()
    most = print_and_punch(output, 200 * MEGABYTE)
    assert output.size() == 200 * MEGABYTE
    assert most < LIMIT + PUNCH_MARGIN_BYTES + 2 * MEGABYTE
    head, tail = output.read_log(output.size(), complete=True).split(TRUNCATION_MARK)
    assert head == "".join(f"{number:099}\n" for number in range(200))
    assert tail == "".join(f"{number:099}\n" for number in range(1_999_200, 2_000_000))


def test_every_log_on_the_way_is_intact(make):
    output = make()
    logs = []

    def look():
        logs.append(output.read_log(output.size(), complete=False))

    print_and_punch(output, 20 * MEGABYTE, look)
    for number, log in enumerate(logs, 1):
        assert "\0" not in log
        assert "\ufffd" not in log
        assert log.startswith(f"{0:099}\n{1:099}\n")
        assert log.endswith(f"{number * 10_000 - 1:099}\n")


def test_the_end_mark_is_found_before_and_behind_a_hole(make):
    output = make()
    print_and_punch(output, 20 * MEGABYTE)
    assert output.find_end(MARK) is None
    with output.path.open("ab") as file:
        file.write(MARK)
    assert output.find_end(MARK) == 20 * MEGABYTE
    assert output.find_end(b"%099d\n" % 7) == 700


def test_a_search_passes_over_a_hole_without_reading_it(make):
    output = make(b"x" * 1000)
    # To read so much would take minutes.
    os.truncate(output.path, 10**12)
    assert output.find_end(MARK) is None


def test_only_what_was_there_when_the_size_was_taken_is_given_back(make):
    output = make()
    print_and_punch(output, 10 * MEGABYTE)
    size = output.size()
    with output.path.open("ab") as file:
        file.write(MARK + b"y" * 20 * MEGABYTE)
    output.punch(size)
    assert output.find_end(MARK) == size


def test_small_outputs_are_left_whole(make):
    content = os.urandom(LIMIT + PUNCH_MARGIN_BYTES)
    output = make(content)
    output.punch(output.size())
    assert output.path.read_bytes() == content


def test_a_size_too_small_to_punch_changes_nothing(make):
    output = make()
    print_and_punch(output, 10 * MEGABYTE)
    before = disk_bytes(output)
    for size in (0, 1, LIMIT, output.size()):
        output.punch(size)
    assert disk_bytes(output) == before


def test_a_script_that_prints_200_megabytes_takes_little_disk(local):
    executor = local.executor()
    folder = local.folder("#!/bin/sh\nyes 0123456 | head -c 200000000\n", LIMIT)
    script = local.begin(folder, executor)
    most = 0
    while script.execution.wait(0.005) is None:
        most = max(most, disk_bytes(folder.output))
    assert script.end().success
    assert folder.output.size() > 200_000_000
    # What it prints within one look of the worker on a busy machine.
    assert most < 150 * MEGABYTE
    lines = LIMIT // 8
    head, tail = script.log.split(TRUNCATION_MARK)
    assert head == "0123456\n" * (lines // 5)
    assert tail == "0123456\n" * (lines - lines // 5)


def test_a_file_system_without_holes_says_so(disk_without_holes):
    output = OutputFile(disk_without_holes / "output", LIMIT)
    output.path.write_bytes(b"x" * 10 * MEGABYTE)
    with pytest.raises(OSError, match="not supported"):
        output.punch(output.size())
    assert output.path.read_bytes() == b"x" * 10 * MEGABYTE


def test_scripts_run_on_a_file_system_without_holes_with_one_warning(
    disk_without_holes, local, caplog
):
    executor = local.executor()
    text = "#!/bin/sh\nyes | head -c 10000000; mkfifo go; read -r _ <go\n"
    for _ in range(2):
        script = local.start(text, executor)
        eventually((script.work_path / "go").exists, "it has printed")
        eventually(lambda: caplog.messages, "the warning")
        script.let_go()
        assert script.end().success
        assert script.raw_output.startswith(b"y\n" * 5_000_000)
    [message] = caplog.messages
    assert "cannot be kept small" in message
