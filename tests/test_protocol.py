"""Frames to commands and events, and back."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job_runner_worker import protocol
from job_runner_worker.errors import ProtocolError
from job_runner_worker.models import (
    FIRST_OWN_ID,
    Enqueue,
    Event,
    EventKind,
    Kill,
    Ping,
)

FEW_EXAMPLES = settings(max_examples=50, deadline=None)

TOPIC = b"master.broadcast.web"
IDS = st.integers(min_value=1, max_value=FIRST_OWN_ID - 1)
COMMANDS = (
    st.builds(Enqueue, IDS)
    | st.builds(Kill, IDS, st.none() | IDS, st.sampled_from(["", "an admin"]))
    | st.builds(Ping)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    max_leaves=4,
)


@pytest.mark.parametrize(
    ("body", "command"),
    [
        (b'{"action": "enqueue", "run_id": 3}', Enqueue(3)),
        (b'{"run_id":3,"action":"enqueue"}', Enqueue(3)),
        (b'{"action": "enqueue", "run_id": 3, "more": "\xc3\xa9"}', Enqueue(3)),
        (b'{"action": "kill", "kill_request_id": 1}', Kill(1)),
        (b'{"action": "kill", "kill_request_id": 1, "run_id": 3}', Kill(1, 3)),
        (
            b'{"action": "kill", "kill_request_id": 1, "requested_by": "an admin"}',
            Kill(1, None, "an admin"),
        ),
        # It gets into a log: one short line, or nothing.
        (
            b'{"action":"kill","kill_request_id":1,"requested_by":"a\\nb\\u001b[1m"}',
            Kill(1, None, "a b [1m"),
        ),
        (
            b'{"action":"kill","kill_request_id":1,"requested_by":"%s"}' % (b"x" * 999),
            Kill(1, None, "x" * 150),
        ),
        (b'{"action": "kill", "kill_request_id": 1, "requested_by": 7}', Kill(1)),
        (b'{"action": "ping"}', Ping()),
    ],
)
def test_an_order_is_decoded(body, command):
    assert protocol.decode_command([TOPIC, body], "web") == command


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [TOPIC],
        [TOPIC, b"{}", b"{}"],
        [TOPIC, b""],
        [TOPIC, b"ping"],
        [TOPIC, b"\xff"],
        [TOPIC, b"[]"],
        [TOPIC, b"null"],
        [TOPIC, b"[" * 100_000],
        [TOPIC, b'{"action": ' + b"[" * 900 + b"]" * 900 + b"}"],
        [TOPIC, b'{"action": "enqueue", "run_id": ' + b"9" * 5000 + b"}"],
        [TOPIC, b" " * protocol.MAX_FRAME_BYTES + b'{"action": "ping"}'],
        [TOPIC, b"{}"],
        [TOPIC, b'{"action": null}'],
        [TOPIC, b'{"action": "PING"}'],
        [TOPIC, b'{"action": ["ping"]}'],
        [TOPIC, b'{"action": "\\ud800"}'],
        [TOPIC, b'{"action": "enqueue"}'],
        [TOPIC, b'{"action": "enqueue", "run_id": "3"}'],
        [TOPIC, b'{"action": "enqueue", "run_id": 3.0}'],
        [TOPIC, b'{"action": "enqueue", "run_id": 0}'],
        [TOPIC, b'{"action": "enqueue", "run_id": -1}'],
        [TOPIC, b'{"action": "enqueue", "run_id": true}'],
        [TOPIC, b'{"action": "enqueue", "run_id": null}'],
        [TOPIC, b'{"action": "enqueue", "run_id": 9223372036854775808}'],
        [TOPIC, b'{"action": "enqueue", "run_id": "../3"}'],
        [TOPIC, b'{"action": "kill"}'],
        [TOPIC, b'{"action": "kill", "run_id": 3}'],
        [TOPIC, b'{"action": "kill", "kill_request_id": 1, "run_id": null}'],
    ],
    ids=lambda frames: repr(frames[1:])[:60],
)
def test_a_broadcast_that_is_no_order_is_a_protocol_error_of_one_short_line(frames):
    with pytest.raises(ProtocolError) as caught:
        protocol.decode_command(frames, "web")
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["web2", "we", "", "Web", "web "])
def test_an_order_for_another_worker_is_none_of_ours(key):
    frames = [protocol.broadcast_topic(key), b'{"action": "ping"}']

    assert protocol.decode_command(frames, "web") is None


def test_the_nonsense_of_another_worker_is_not_even_read():
    assert protocol.decode_command([b"master.broadcast.web2", b"\xff"], "web") is None


def test_a_topic_is_utf_8():
    assert protocol.broadcast_topic("wörker") == b"master.broadcast.w\xc3\xb6rker"


@FEW_EXAMPLES
@given(COMMANDS, st.text(st.characters(exclude_categories=["Cs"])))
def test_an_encoded_command_is_decoded_by_its_worker(command, api_key):
    frames = protocol.encode_command(command, api_key)

    assert protocol.decode_command(frames, api_key) == command
    assert protocol.decode_command(frames, api_key + "2") is None


@settings(FEW_EXAMPLES, max_examples=20)
@given(st.dictionaries(st.sampled_from(["action", "run_id", "kind", "event"]), JSON))
def test_any_json_object_is_decoded_or_a_protocol_error(message):
    body = json.dumps(message).encode()
    for decode in (
        lambda: protocol.decode_command([TOPIC, body], "web"),
        lambda: protocol.decode_event([protocol.EVENT_TOPIC, body]),
    ):
        try:
            decode()
        except ProtocolError as error:
            assert "\n" not in str(error)


@FEW_EXAMPLES
@given(st.lists(st.binary(), max_size=3))
def test_any_frames_are_decoded_or_a_protocol_error(rest):
    for frames, decode in (
        ([TOPIC, *rest], lambda frames: protocol.decode_command(frames, "web")),
        ([protocol.EVENT_TOPIC, *rest], protocol.decode_event),
    ):
        try:
            decode(frames)
        except ProtocolError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (
            Event(EventKind.RUN, "enqueued", 3),
            {"kind": "run", "event": "enqueued", "run_id": 3},
        ),
        (
            Event(EventKind.KILL_REQUEST, "executed", 1),
            {"kind": "kill_request", "event": "executed", "kill_request_id": 1},
        ),
    ],
)
def test_an_event_has_two_frames_and_comes_back_from_them(event, message):
    frames = protocol.encode_event(event)

    assert frames[0] == b"worker.event"
    assert json.loads(frames[1]) == message
    assert protocol.decode_event(frames) == event


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"worker.event"],
        [b"worker.events", b"{}"],
        [b"worker.event", b"{}", b""],
        [b"worker.event", b"{}"],
        [b"worker.event", b"[]"],
        [b"worker.event", b'{"kind": "job", "event": "x", "run_id": 1}'],
        [b"worker.event", b'{"kind": [], "event": "x", "run_id": 1}'],
        [b"worker.event", b'{"kind": "run", "event": 1, "run_id": 1}'],
        [b"worker.event", b'{"kind": "run", "event": "x", "kill_request_id": 1}'],
        [b"worker.event", b'{"kind": "run", "event": "x", "run_id": "1"}'],
    ],
    ids=repr,
)
def test_frames_that_are_no_event_are_a_protocol_error(frames):
    with pytest.raises(ProtocolError):
        protocol.decode_event(frames)
