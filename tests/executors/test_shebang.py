"""From a script's first line to the command that runs it."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job_runner_worker.errors import StartError
from job_runner_worker.executors import shebang

SEARCH_PATH = "/usr/bin:/bin"
SCRIPT = Path("/spool/3/script")


def command_of(script, search_path=SEARCH_PATH):
    return shebang.command(shebang.script_bytes(script), SCRIPT, search_path)


@pytest.mark.parametrize(
    ("first_line", "words"),
    [
        ("#!/bin/sh", ["/bin/sh"]),
        ("#! /bin/sh ", ["/bin/sh"]),
        ("#!\t/bin/sh\t-e", ["/bin/sh", "-e"]),
        ("#!/bin/sh -e -u", ["/bin/sh", "-e", "-u"]),
        ("#!/usr/bin/env -S sh -u", ["/usr/bin/env", "-S", "sh", "-u"]),
        ("#!/usr/bin/env -S 'A=b c' sh", ["/usr/bin/env", "-S", "A=b c", "sh"]),
        ('#!/bin/sh "a b" c\\ d', ["/bin/sh", "a b", "c d"]),
        ("#!/bin/sh # no comment", ["/bin/sh", "#", "no", "comment"]),
        ("#!/bin/sh $HOME ~ *", ["/bin/sh", "$HOME", "~", "*"]),
        ("#!/bin/sh \u20ac", ["/bin/sh", "\u20ac"]),
    ],
)
@pytest.mark.parametrize("rest", ["", "\n", "\n#!/bin/false\n", "\r\necho\r\n"])
def test_the_command_is_the_first_lines_words_and_the_path(first_line, words, rest):
    assert command_of(first_line + rest) == [*words, "/spool/3/script"]


def test_a_name_without_a_slash_is_looked_up_in_the_scripts_own_path(tmp_path):
    own = tmp_path / "mysh"
    shutil.copy("/bin/true", own)
    assert command_of("#!mysh", str(tmp_path))[0] == str(own)
    with pytest.raises(StartError, match="'mysh'"):
        command_of("#!mysh")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("", "no shebang"),
        ("echo 1\n", "no shebang"),
        ("\n#!/bin/sh\n", "no shebang"),
        (" #!/bin/sh\n", "no shebang"),
        ("\ufeff#!/bin/sh\n", "no shebang"),
        ("#!", "names no interpreter"),
        ("#!  \n", "names no interpreter"),
        ("#!\n/bin/sh", "names no interpreter"),
        ("#!''", "does not exist"),
        ("#!/no/such\n", "'/no/such'.*does not exist"),
        ("#!/etc/passwd\n", "cannot be executed"),
        ("#!/bin\n", "cannot be executed"),
        ("#!/bin/sh 'a\n", "cannot be read: No closing quotation"),
        ("#!/bin/sh \\\n", "cannot be read: No escaped character"),
        ("#!/bin/sh \0\n", "NUL"),
        ("#!/bin/sh " + "x" * 5000, "too long"),
    ],
)
def test_a_script_that_cannot_be_executed_says_why(script, message):
    with pytest.raises(StartError, match=message) as failure:
        command_of(script)
    assert not failure.value.transient
    assert "\n" not in str(failure.value)


def test_an_interpreter_without_the_right_to_execute_it_is_none(tmp_path):
    plain = tmp_path / "plain"
    shutil.copy("/bin/true", plain)
    plain.chmod(0o600)
    with pytest.raises(StartError, match="cannot be executed"):
        command_of(f"#!{plain}\n")


def test_carriage_returns_are_removed_everywhere():
    assert shebang.script_bytes("#!/bin/sh\r\na\rb\r\r\n") == b"#!/bin/sh\nab\n"


def test_a_script_with_half_a_character_is_a_start_failure():
    with pytest.raises(StartError, match="not valid text .character 10"):
        shebang.script_bytes("#!/bin/sh\n\ud800\n")


def test_a_script_that_is_too_long_is_a_start_failure():
    script = "#!/bin/sh\n" + "x" * (shebang.MAX_SCRIPT_BYTES - 10)
    assert len(shebang.script_bytes(script)) == shebang.MAX_SCRIPT_BYTES

    with pytest.raises(StartError, match="4194305 bytes, and no more than 4194304 are"):
        shebang.script_bytes(script + "x")


@given(st.text(max_size=60))
def test_any_text_is_a_command_or_a_start_failure(text):
    try:
        command = command_of(f"#!{text}")
    except StartError as failure:
        assert str(failure)
    else:
        assert command[-1] == str(SCRIPT)
