"""ZeroMQ frames and WebSocket messages to orders and events, and back. No sockets.

Source: protocol.md, section 2; docs/channel.rst for the WebSocket channel. The worker
and a server both use it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from job_runner_worker.errors import ProtocolError
from job_runner_worker.models import (
    FIRST_OWN_ID,
    Command,
    Enqueue,
    Event,
    EventKind,
    Kill,
    Ping,
    Pong,
)

BROADCAST_TOPIC_PREFIX = "master.broadcast."
EVENT_TOPIC = b"worker.event"
MAX_FRAME_BYTES = 1024 * 1024
"""An order is some hundred bytes; more than this is refused unread."""
_MAX_VERSION_CHARACTERS = 100
MAX_NAME_CHARACTERS = 150

_ID_OF_KIND = {
    EventKind.RUN: "run_id",
    EventKind.KILL_REQUEST: "kill_request_id",
}


def broadcast_topic(api_key: str) -> bytes:
    """Return the topic of one worker. A subscription to it matches longer keys too."""
    return (BROADCAST_TOPIC_PREFIX + api_key).encode("utf-8")


def decode_command(frames: Sequence[bytes], api_key: str) -> Command | None:
    """Return the command in a broadcast, None if it is meant for another worker.

    Frames: [topic, JSON object with ``action``]. Raises ProtocolError otherwise.
    """
    if len(frames) != 2:
        raise ProtocolError(f"a broadcast has 2 frames, got {len(frames)}")
    topic, body = frames
    if topic != broadcast_topic(api_key):
        return None
    return decode_order(body)


def decode_order(body: bytes) -> Command:
    """Return the command in a JSON object with ``action``. Raises ProtocolError."""
    message = _decode_object(body)
    match message.get("action"):
        case "enqueue":
            return Enqueue(_id_in(message, "run_id"))
        case "kill":
            run_id = _id_in(message, "run_id") if "run_id" in message else None
            number = _id_in(message, "kill_request_id")
            return Kill(number, run_id, name_in(message.get("requested_by")))
        case "ping":
            return Ping()
        case action:
            raise ProtocolError(f"unknown action {action!r:.80}")


def encode_command(command: Command, api_key: str) -> list[bytes]:
    """Return the frames of a broadcast to one worker."""
    return [broadcast_topic(api_key), encode_order(command)]


def encode_order(command: Command) -> bytes:
    """Return the JSON object of an order; `decode_order` reads it."""
    message: dict[str, object]
    match command:
        case Enqueue(run_id):
            message = {"action": "enqueue", "run_id": run_id}
        case Kill(kill_request_id, run_id, requested_by):
            message = {"action": "kill", "kill_request_id": kill_request_id}
            if run_id is not None:
                message["run_id"] = run_id
            if requested_by:
                message["requested_by"] = requested_by
        case Ping():
            message = {"action": "ping"}
    return json.dumps(message).encode("ascii")


def encode_event(event: Event) -> list[bytes]:
    """Return the frames of an event; the second is what a browser gets, unchanged."""
    message = {
        "kind": event.kind.value,
        "event": event.event,
        _ID_OF_KIND[event.kind]: event.id,
    }
    return [EVENT_TOPIC, json.dumps(message).encode("ascii")]


def decode_event(frames: Sequence[bytes]) -> Event:
    """Return the event in its two frames. Raises ProtocolError otherwise."""
    if len(frames) != 2 or frames[0] != EVENT_TOPIC:
        raise ProtocolError("an event has the frames [worker.event, JSON object]")
    return _event_in(_decode_object(frames[1]))


def encode_pong(pong: Pong) -> bytes:
    """Return the JSON object by which a worker answers a ping over its channel."""
    return json.dumps({"action": "pong", **asdict(pong)}).encode("ascii")


def decode_answer(body: bytes) -> Pong | Event:
    """Return what a worker says over its channel. Raises ProtocolError."""
    message = _decode_object(body)
    if "action" not in message:
        return _event_in(message)
    if message["action"] != "pong":
        raise ProtocolError(f"unknown action {message['action']!r:.80}")
    version = message.get("version")
    slots = [message.get(name) for name in ("slots", "busy_slots")]
    if not isinstance(version, str) or len(version) > _MAX_VERSION_CHARACTERS:
        raise ProtocolError("a pong's `version` is a short string")
    for number in slots:
        if type(number) is not int or not 0 <= number < 2**31:
            raise ProtocolError("a pong's `slots` and `busy_slots` are numbers")
    return Pong(version, *slots)  # type: ignore[arg-type]


def _event_in(message: Mapping[str, object]) -> Event:
    try:
        kind = EventKind(str(message.get("kind")))
    except ValueError as error:
        raise ProtocolError(f"unknown kind {message.get('kind')!r:.80}") from error
    event = message.get("event")
    if not isinstance(event, str):
        raise ProtocolError("an event's `event` is a string")
    return Event(kind, event, _id_in(message, _ID_OF_KIND[kind]))


def name_in(value: object) -> str:
    """Return a name for people in one short line, "" where it is none."""
    if not isinstance(value, str):
        return ""
    shown = "".join(each if each.isprintable() else " " for each in value)
    return " ".join(shown.split())[:MAX_NAME_CHARACTERS]


def _decode_object(body: bytes) -> Mapping[str, object]:
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(body)} bytes is more than is read")
    try:
        message = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON in UTF-8: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError("no JSON object")
    return message


def _id_in(message: Mapping[str, object], name: str) -> int:
    """Ids become folder names: nothing but a positive integer is taken for one."""
    value = message.get(name)
    if type(value) is not int or not 0 < value < FIRST_OWN_ID:
        raise ProtocolError(f"`{name}` is a positive integer, got {value!r:.80}")
    return value
