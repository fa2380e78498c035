"""What ``run.json`` says, and who may believe it: JSON to a Note and back. No files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from job_runner_worker.models import Run

FORMAT = 1
"""Grows when an older worker could not read a folder any more."""
_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
    "str | None": (str, type(None)),
    "float | None": (float, int, type(None)),
}
"""The types of a field, by its annotation. The others are looked at one by one."""


@dataclass(frozen=True, slots=True)
class Note:
    """What ``run.json`` says.

    ``run`` is None until the claim is confirmed. ``failure`` is the outcome of a run
    whose exit status will never be in the folder: its script did not start, or was
    interrupted. ``kill_leftovers`` is what the shim was told at the start.
    ``keeps_log``: the server's log has more than the output here, leave it alone.
    So are the seconds of its limits; None for no limit, and for the worker's grace.
    ``kill_requests`` have been taken and not been executed. Times are ISO 8601.
    """

    run_id: int
    source: str
    boot_id: str
    claimed_at: str
    max_log_bytes: int
    end_mark: str
    run: Run | None = None
    cgroup: str = ""
    kill_leftovers: bool = False
    timeout_seconds: float | None = None
    kill_grace_seconds: float | None = None
    keeps_log: bool = False
    kill_requests: tuple[int, ...] = ()
    kill_reason: str = ""
    failure: str = ""
    failed_at: str = ""
    format: int = FORMAT


_TYPES: dict[type[Any], dict[str, tuple[type, ...]]] = {
    kind: {
        field.name: _KINDS[str(field.type)]
        for field in fields(kind)
        if str(field.type) in _KINDS
    }
    for kind in (Run, Note)
}


def encode(note: Note) -> bytes:
    """Return the content of a new ``run.json``."""
    return json.dumps(note, default=_plain).encode()


def encode_changes(changes: Mapping[str, Any]) -> bytes:
    """Return what is appended to a ``run.json`` when fields of its note change.

    It begins with its line end, so that a torn line before it stays alone.
    """
    return b"\n" + json.dumps(changes, default=_plain).encode()


def _plain(words: Note | Run) -> dict[str, Any]:
    """Return the fields by name, as they are: json comes back for what is in them."""
    return {name: getattr(words, name) for name in words.__slots__}


def decode(content: bytes) -> Note:
    """Return what a ``run.json`` says: a note, and in each later line what changed.

    A torn later line costs what it said. Raises ValueError, which names the field,
    for what no worker of this format wrote.
    """
    first_line, *later_lines = content.split(b"\n")
    try:
        found = json.loads(first_line)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    for line in later_lines:
        with contextlib.suppress(ValueError, RecursionError):
            changes = json.loads(line)
            found |= changes if isinstance(changes, dict) else {}
    if found.get("format") != FORMAT or found["format"] is True:
        raise ValueError(
            f"format {found.get('format')!r:.20}; this version reads format {FORMAT}"
        )
    requests = found.get("kill_requests", [])
    if not isinstance(requests, list) or any(
        type(each) is not int for each in requests
    ):
        raise ValueError(f"`kill_requests` is {requests!r:.80}")
    found["kill_requests"] = tuple(requests)
    if found.get("run") is not None:
        found["run"] = _checked(Run, found["run"])
    note: Note = _checked(Note, found)
    _check(note)
    return note


def _checked(kind: type[Any], found: object) -> Any:
    """Return the object in a dict, if its fields are of their types."""
    if not isinstance(found, dict):
        raise ValueError(f"a {kind.__name__} is {found!r:.80}")
    for name, types in _TYPES[kind].items():
        if name in found and type(found[name]) not in types:
            raise ValueError(f"`{name}` is {found[name]!r:.80}")
    try:
        return kind(**found)
    except TypeError as error:
        raise ValueError(f"its fields are not those of a {kind.__name__}") from error


def _check(note: Note) -> None:
    """Refuse values that are of their types and make no sense."""
    times = [note.claimed_at, *([note.failed_at] if note.failure else [])]
    is_right = {
        "run_id": 0 < note.run_id < 2**63,
        "run": note.run is None or note.run.id == note.run_id,
        "max_log_bytes": note.max_log_bytes > 0,
        "end_mark": note.end_mark.strip() != "" and note.end_mark.isascii(),
        "cgroup": "\0" not in note.cgroup,
        "timeout_seconds": 0 < (note.timeout_seconds or 1) < float("inf"),
        "kill_grace_seconds": 0 <= (note.kill_grace_seconds or 0) < float("inf"),
        "claimed_at or failed_at": all(_is_time(text) for text in times),
    }
    for name, right in is_right.items():
        if not right:
            raise ValueError(f"`{name}` makes no sense")


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
