"""Frames, configuration files and shebang lines: an error as promised, or sense."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path

import pytest
from fault_examples import examples
from hypothesis import assume, example, given
from hypothesis import strategies as st

from job_runner_worker import protocol
from job_runner_worker import settings as settings_module
from job_runner_worker.cli import example_config
from job_runner_worker.errors import ConfigError, ProtocolError, StartError
from job_runner_worker.executors import shebang
from job_runner_worker.models import Enqueue, Event, Kill, Ping
from job_runner_worker.settings import Settings

KEY = "testworker"
SECRET = "Zqx7secretZqx7"
DEEP = b'{"a":' * 100_000
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["enqueue", "kill", "ping", "run", "kill_request", "returned"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
MESSAGES = st.dictionaries(
    st.sampled_from(["action", "run_id", "kill_request_id", "kind", "event"]),
    JSON_VALUES,
)
BODIES = st.one_of(
    st.binary(max_size=60),
    MESSAGES.map(lambda found: json.dumps(found).encode()),
    JSON_VALUES.map(lambda found: json.dumps(found).encode()),
    st.sampled_from(
        [
            DEEP,
            b"[" * 100_000,
            b'{"action": "enqueue", "run_id": NaN}',
            b'{"action": "enqueue", "run_id": 1e999}',
            b'{"action": "enqueue", "run_id": %s}' % (b"9" * 5000),
            b'{"action": "ping"' + b" " * protocol.MAX_FRAME_BYTES + b"}",
            b'{"action": "\\ud800"}',
            b'{"action": "enqueue", "run_id": 1, "run_id": 2}',
        ]
    ),
)


def frames(topic: bytes) -> st.SearchStrategy[list[bytes]]:
    return st.tuples(st.just(topic), BODIES).map(list) | st.lists(BODIES, max_size=4)


@examples(500)
@given(received=frames(protocol.broadcast_topic(KEY)))
def test_any_frames_are_a_command_or_a_protocol_error(received: list[bytes]) -> None:
    try:
        command = protocol.decode_command(received, KEY)
    except ProtocolError as error:
        assert len(str(error)) < 300
        return
    match command:
        case Enqueue(run_id):
            assert 0 < run_id < 2**63
        case Kill(kill_request_id, run_id):
            assert 0 < kill_request_id < 2**63
            assert run_id is None or 0 < run_id < 2**63
        case _:
            assert command in (Ping(), None)
    if command is not None:
        assert protocol.decode_command(protocol.encode_command(command, KEY), KEY) == (
            command
        )


@examples(500)
@given(received=frames(protocol.EVENT_TOPIC))
def test_any_frames_are_an_event_or_a_protocol_error(received: list[bytes]) -> None:
    try:
        event = protocol.decode_event(received)
    except ProtocolError as error:
        assert len(str(error)) < 300
    else:
        assert isinstance(event, Event)
        assert protocol.decode_event(protocol.encode_event(event)) == event


# Configuration files.

VALID = "".join(
    f"{line}\n"
    for line in example_config().splitlines()
    if not line.startswith("secret")
).replace("[job_runner_worker]\n", f"[job_runner_worker]\nsecret = {SECRET}\n", 1)
LINES = VALID.splitlines()
PIECES = st.text(max_size=10) | st.sampled_from(
    [
        "[",
        "]",
        "=",
        ":",
        "\n",
        "\n ",
        "%(",
        "#",
        "\0",
        "\ufeff",
        "\x85",
        "\u2028",
        "9" * 5000,
    ]
)


def load(path: Path, content: bytes) -> Settings | None:
    """Return the settings in a file, None where it is refused as promised."""
    path.write_bytes(content)
    try:
        return settings_module.load(path, {"HOME": "/nowhere"})
    except ConfigError as error:
        message = str(error)
        assert message.isprintable(), message
        assert str(path) in message
        assert SECRET not in message
        assert len(message) < 1000
        return None


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "worker.ini"


def test_the_file_that_is_mutated_is_a_good_one(path: Path) -> None:
    found = load(path, VALID.encode())
    assert found is not None
    assert found.secret == SECRET


@examples(300)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_is_settings_or_one_line_of_a_config_error(
    path: Path, content: bytes
) -> None:
    load(path, content)


@examples(600)
@given(
    at=st.integers(0, len(VALID)),
    length=st.integers(0, 30),
    piece=PIECES,
    again=st.sampled_from(["", *LINES]),
)
@example(VALID.index(SECRET), 0, "\n ", "")
@example(VALID.index(SECRET) - 3, 3, "", "")
@example(0, len("[job_runner_worker]"), "", "")
def test_a_mutated_file_is_settings_or_one_line_without_the_secret(
    path: Path, at: int, length: int, piece: str, again: str
) -> None:
    # What is left of the secret stands in its own place: the line is still there.
    start = VALID.index(SECRET)
    assume(at + length <= start or at >= start + len(SECRET) or length == 0)
    content = f"{VALID[:at]}{piece}{VALID[at + length :]}\n{again}\n"
    load(path, content.encode("utf-8", "surrogatepass"))


NAMES = [line.lstrip("# ").split(" = ")[0] for line in LINES if " = " in line]


@examples(600)
@given(
    name=st.sampled_from([name for name in NAMES if name != "secret"]),
    value=st.text(max_size=30)
    | st.floats().map(str)
    | st.integers().map(str)
    | st.sampled_from(
        [
            f"http://{SECRET}@host",
            f"http://user:{SECRET}@host/",
            "http://[::1",
            "http://[fe80::1%eth0]/",
            "http://host:99999",
            "http://host:port",
            "http://\u212a/",
            "9" * 5000,
            "1e5",
            "nan",
            "-0",
            "\u0663",
            "/\0",
            "/" + "x" * 5000,
        ]
    ),
)
@example("api_base_url", "http://[::1")
@example("api_base_url", f"http://user:{SECRET}@host/")
@example("spool_path", "/\ud800")
def test_any_value_is_taken_or_refused_in_one_line(
    path: Path, name: str, value: str
) -> None:
    kept = [
        line
        for line in LINES
        if line.lstrip("# ").split(" = ")[0] != name or " = " not in line
    ]
    content = "\n".join([*kept, f"{name} = {value}", ""])
    found = load(path, content.encode("utf-8", "surrogatepass"))
    if found is not None:
        for _, shown in settings_module.describe(found):
            assert SECRET not in shown
        numbers = (found.log_flush_seconds, found.http_timeout_seconds)
        assert all(math.isfinite(number) for number in numbers)


# Shebang lines.

LINE_PIECES = st.lists(
    st.sampled_from(["#!", "/bin/sh", " ", "'", '"', "\\", "\t", "-e", "\0", "\r", "#"])
    | st.text(max_size=5),
    max_size=8,
).map("".join)


@examples(600)
@given(
    script=st.text(max_size=60) | LINE_PIECES | LINE_PIECES.map("#!/bin/sh ".__add__)
)
@example("#!" + "x" * 5000)
@example("#!/bin/sh \ud800\n")
@example("#!/bin/sh '")
@example("#! /\n")
@example("#!" + "/x" * 2000)
@example("#!''")
@example("\ufeff#!/bin/sh\n")
def test_any_script_has_a_command_or_a_start_error(script: str) -> None:
    place = Path("/spool/3/script")
    with suppress(StartError):
        found = shebang.command(shebang.script_bytes(script), place, "/bin:/usr/bin")
        assert found[-1] == str(place)
        assert Path(found[0]).exists()
        assert all("\0" not in word and word.encode() for word in found if word)


@examples(300)
@given(
    script=st.binary(max_size=60) | st.binary(max_size=20).map(b"#!/bin/sh ".__add__)
)
@example(b"#!/bin/sh \xff\n")
def test_any_bytes_have_a_command_or_a_start_error(script: bytes) -> None:
    with suppress(StartError):
        found = shebang.command(script, Path("/spool/3/script"), "/bin:/usr/bin")
        assert Path(found[0]).exists()
