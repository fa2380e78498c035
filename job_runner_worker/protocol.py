"""ZeroMQ frames to commands and events, and back. No sockets.

Source: protocol.md, section 2. The worker and a server both use it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from job_runner_worker.errors import ProtocolError
from job_runner_worker.models import (
    FIRST_OWN_ID,
    Command,
    Enqueue,
    Event,
    EventKind,
    Kill,
    Ping,
)

BROADCAST_TOPIC_PREFIX = "master.broadcast."
EVENT_TOPIC = b"worker.event"
MAX_FRAME_BYTES = 1024 * 1024
"""An order is some hundred bytes; more than this is refused unread."""

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
    message = _decode_object(body)
    match message.get("action"):
        case "enqueue":
            return Enqueue(_id_in(message, "run_id"))
        case "kill":
            run_id = _id_in(message, "run_id") if "run_id" in message else None
            return Kill(_id_in(message, "kill_request_id"), run_id)
        case "ping":
            return Ping()
        case action:
            raise ProtocolError(f"unknown action {action!r:.80}")


def encode_command(command: Command, api_key: str) -> list[bytes]:
    """Return the frames of a broadcast to one worker."""
    message: dict[str, object]
    match command:
        case Enqueue(run_id):
            message = {"action": "enqueue", "run_id": run_id}
        case Kill(kill_request_id, None):
            message = {"action": "kill", "kill_request_id": kill_request_id}
        case Kill(kill_request_id, run_id):
            message = {
                "action": "kill",
                "kill_request_id": kill_request_id,
                "run_id": run_id,
            }
        case Ping():
            message = {"action": "ping"}
    return [broadcast_topic(api_key), json.dumps(message).encode("ascii")]


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
    message = _decode_object(frames[1])
    try:
        kind = EventKind(str(message.get("kind")))
    except ValueError as error:
        raise ProtocolError(f"unknown kind {message.get('kind')!r:.80}") from error
    event = message.get("event")
    if not isinstance(event, str):
        raise ProtocolError("an event's `event` is a string")
    return Event(kind, event, _id_in(message, _ID_OF_KIND[kind]))


def _decode_object(body: bytes) -> Mapping[str, object]:
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(body)} bytes is more than is read")
    try:
        message = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON in UTF-8: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError("the second frame is no JSON object")
    return message


def _id_in(message: Mapping[str, object], name: str) -> int:
    """Ids become folder names: nothing but a positive integer is taken for one."""
    value = message.get(name)
    if type(value) is not int or not 0 < value < FIRST_OWN_ID:
        raise ProtocolError(f"`{name}` is a positive integer, got {value!r:.80}")
    return value
