"""What scripts ask for in their first lines, and what they get of it."""

import dataclasses
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job_runner_worker import run_options
from job_runner_worker.errors import ConfigError, StartError
from job_runner_worker.run_options import NOTHING, RunOptions, effective, of_script
from job_runner_worker.settings import parse

FEW_EXAMPLES = settings(max_examples=100, deadline=None)
REQUIRED = {"api_base_url": "http://a.example", "api_key": "web", "secret": "x"}


def script(*lines):
    return "#!/bin/sh\n" + "".join(f"# job-runner: {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("timeout_seconds=60", "timeout_seconds", 60.0),
        ("timeout_seconds=.5", "timeout_seconds", 0.5),
        ("timeout_seconds = 60", "timeout_seconds", 60.0),
        ("kill_grace_seconds=0", "kill_grace_seconds", 0.0),
        ("nice=19", "nice", 19),
        ("memory_max_bytes=1048576", "memory_max_bytes", 1048576),
        ("cpu_max=1.5", "cpu_max", 1.5),
        ("pids_max=1", "pids_max", 1),
        ("cwd=/srv/a b", "cwd", "/srv/a b"),
        ("run_as_user=www-data", "run_as_user", "www-data"),
        ("umask=027", "umask", 0o027),
        ("umask=0077", "umask", 0o077),
        ("env.A_1=two  words = one", "env", (("A_1", "two  words = one"),)),
        ("env.EMPTY=", "env", (("EMPTY", ""),)),
    ],
)
def test_an_option_is_read(line, field, value):
    assert of_script(script(line)) == dataclasses.replace(NOTHING, **{field: value})


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("timeout=5", "'timeout' is no option of a run"),
        ("timeout_second=5", "did you mean timeout_seconds?"),
        ("timeout_seconds", "'timeout_seconds' is not key=value"),
        ("timeout_seconds=", "must be a number from 0.1 to 31622400, got ''"),
        ("timeout_seconds=nan", "must be a number"),
        ("timeout_seconds=1e3", "must be a number"),
        ("timeout_seconds=0", "must be a number"),
        ("timeout_seconds=-1", "must be a number"),
        ("nice=-5", "must be a whole number from 0 to 19, got '-5'"),
        ("nice=20", "must be a whole number"),
        ("pids_max=0", "must be a whole number from 1 to"),
        ("memory_max_bytes=64M", "must be a whole number"),
        ("cpu_max=0", "must be a number of processors"),
        ("cwd=work", "must be the absolute path of a folder, got 'work'"),
        ("umask=9", "must be three or four octal digits"),
        ("umask=4777", "must be three or four octal digits"),
        ("run_as_user=-x", "must be the name of a user"),
        ("run_as_user=", "must be the name of a user"),
        ("env.1=x", "'1' cannot be the name of a variable"),
        ("env.=x", "cannot be the name of a variable"),
        ("env.JOB_RUNNER_RUN_ID=1", "is the worker's to give, remove it"),
        ("env.A=a\0b", "has a NUL in its value"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_line_and_the_remedy(line, complaint):
    with pytest.raises(StartError) as error:
        of_script(script("env.X=1", line))
    assert str(error.value).startswith("line 3 of the script: ")
    assert complaint in str(error.value)


@pytest.mark.parametrize("again", ["nice=1", "env.A=1"])
def test_an_option_that_is_there_twice_is_refused(again):
    with pytest.raises(StartError, match="line 3 .* there twice, keep one of the two"):
        of_script(script(again, again))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#!/bin/sh",
        "#!/bin/sh\n",
        "#!/bin/sh\necho\n# job-runner: nice=5\n",
        "#!/bin/sh\n# a comment\n# about job-runner: nice=5\ntrue\n",
        "#!/bin/sh\n  # job-runner: nice=5\n",
        "# job-runner: nice=5\n",
    ],
)
def test_a_script_without_a_block_asks_for_nothing(text):
    assert of_script(text) is NOTHING


@pytest.mark.parametrize(
    "text", ["#!/bin/sh\r\n#job-runner:nice=5\r\n", "#!/bin/sh\n#\tjob-runner: nice=5"]
)
def test_white_space_of_a_line_does_not_matter(text):
    assert of_script(text) == RunOptions(nice=5)


@pytest.mark.parametrize("between", ["# a comment\n", "\n", "#\n"])
def test_an_option_that_looks_as_if_it_held_is_refused(between):
    text = f"{script('nice=5')}{between}# job-runner: pids_max=9\n"
    with pytest.raises(StartError, match="line 4 .* directly under the first line"):
        of_script(text)


@pytest.mark.parametrize(
    ("asked", "default", "ceiling", "holds"),
    [
        (None, None, None, None),
        (7, None, None, 7),
        (None, 5, None, 5),
        (None, None, 9, 9),
        (None, 5, 9, 5),
        (7, 5, 9, 7),
        (9, None, 9, 9),
    ],
)
def test_the_script_comes_before_the_default_and_that_before_the_ceiling(
    asked, default, ceiling, holds
):
    given = (RunOptions(pids_max=each) for each in (asked, default, ceiling))
    assert effective(*given).pids_max == holds


def test_more_than_the_ceiling_is_refused_and_not_cut_down():
    with pytest.raises(StartError, match="pids_max=10 is above .* ceiling of 9 "):
        effective(RunOptions(pids_max=10), NOTHING, RunOptions(pids_max=9))


def test_variables_of_script_and_defaults_are_joined_and_the_scripts_hold():
    asked = RunOptions(env=(("A", "script"), ("B", "script")))
    defaults = RunOptions(env=(("A", "default"), ("C", "default")))
    found = dict(effective(asked, defaults, NOTHING).env)
    assert found == {"A": "script", "B": "script", "C": "default"}


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("run_defaults", "nice=50", "run_defaults: must be options of runs"),
        ("run_defaults", "nice=5 'x", "run_defaults: must be options of runs"),
        ("run_ceilings", "nice=5", "run_ceilings: must be timeout_seconds, kill_gr"),
        ("run_as_users", "a:b", "run_as_users: must be names of users"),
    ],
)
def test_settings_about_runs_are_checked(name, text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse({**REQUIRED, name: text}, {"HOME": "/home/x"})


def test_a_default_above_the_ceiling_is_refused_at_start():
    options = {"run_defaults": "pids_max=9", "run_ceilings": "pids_max=8"}
    with pytest.raises(ConfigError, match="run_defaults: pids_max=9 is above"):
        parse({**REQUIRED, **options}, {"HOME": "/home/x"})


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
NAMES = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,9}\Z").filter(
    lambda name: not name.startswith("JOB_RUNNER_")
)


@st.composite
def options(draw):
    variables = draw(st.dictionaries(NAMES, TEXTS.map(str.strip), max_size=3))
    return RunOptions(
        timeout_seconds=draw(
            st.none() | st.floats(0.1, 1e6).map(lambda x: round(x, 6))
        ),
        nice=draw(st.none() | st.integers(0, 19)),
        memory_max_bytes=draw(st.none() | st.integers(2**20, 10**14)),
        cpu_max=draw(st.none() | st.floats(0.01, 1e4).map(lambda x: round(x, 6))),
        pids_max=draw(st.none() | st.integers(1, 4000000)),
        cwd=draw(st.none() | TEXTS.map(lambda text: f"/{text}".strip())),
        umask=draw(st.none() | st.integers(0, 0o777)),
        env=tuple(variables.items()),
    )


@FEW_EXAMPLES
@given(options())
def test_options_that_are_written_are_read_again(given):
    lines = [f"{key}={text}" for key, text in given.texts().items()]
    assert of_script(script(*lines)) == given
    assert run_options.of_words(str(given)) == given
    assert shlex.split(str(given)) == lines


@FEW_EXAMPLES
@given(st.text(), st.text())
def test_whatever_stands_in_a_script_it_is_read_or_a_start_error(line, rest):
    for text in (line, script(line) + rest, script(f"cwd=/{line}"), f"#!\n{rest}"):
        try:
            assert isinstance(of_script(text), RunOptions)
        except StartError as error:
            assert "line " in str(error)
