"""What a caller of the launcher wants to be run: read, checked, made a script. Pure."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from job_runner_worker.errors import RequestError
from job_runner_worker.mac import origin_of

MAX_LIST_ENTRIES = 10_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_URL = re.compile(r"(?i:https?)://[^\s/?#@\\][^\s#@\\]*")
_RESERVED_PREFIX = "JOB_RUNNER_"


@dataclass(frozen=True, slots=True)
class JobRequest:
    """The body of a `POST /job`. Paths are checked by job_files, not here."""

    jobdir: str
    executable: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    prestaged: tuple[str, ...] = ()
    poststaged: tuple[str, ...] = ()
    stdout: str = "stdout.txt"
    stderr: str = "stderr.txt"
    status_callback_url: str | None = None
    max_time_seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as they came, those that were left out at their default."""
        return {**asdict(self), "environment": dict(self.environment or {})}


def decode(body: bytes) -> JobRequest:
    """Return the request in a body: a JSON object in UTF-8. Raises RequestError."""
    try:
        found = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RequestError("", f"not JSON in UTF-8: {error}") from error
    if not isinstance(found, dict):
        raise RequestError("", "must be a JSON object")
    return read(found)


def read(found: Mapping[str, Any]) -> JobRequest:
    """Return the request in an object. Raises RequestError, which names the field."""
    for name in found:
        if name not in _READERS:
            raise RequestError(name[:80], "unknown field")
    for name in ("jobdir", "executable"):
        if name not in found:
            raise RequestError(name, "is missing")
    return JobRequest(
        **{name: _READERS[name](name, value) for name, value in found.items()}
    )


def script_of(request: JobRequest, sandbox: str, stdout: str, stderr: str) -> str:
    """Return the shell script that becomes the executable.

    Its working folder is the sandbox; what it prints goes into two files. Variables
    are set by env(1), since a shell refuses some of their names.
    """
    words = [request.executable, *request.arguments]
    if request.environment:
        assignments = [f"{name}={value}" for name, value in request.environment.items()]
        words = ["env", *assignments, "/bin/sh", "-c", 'exec "$0" "$@"', *words]
    lines = (
        "#!/bin/sh",
        "cr=$(printf '\\r')",
        f"cd {_quoted(sandbox)} || exit 125",
        f"exec >{_quoted(stdout)} 2>{_quoted(stderr)} || exit 125",
        f"exec {' '.join(map(_quoted, words))}",
    )
    return "".join(f"{line}\n" for line in lines)


def _quoted(word: str) -> str:
    """Quote a word; a script cannot hold carriage returns: they are removed from it."""
    return '"$cr"'.join(shlex.quote(part) for part in word.split("\r"))


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(field, "must be a text")
    if "\0" in value:
        raise RequestError(field, "must not have a NUL in it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(field, "is not valid text") from error
    return value


def _name(field: str, value: object) -> str:
    text = _text(field, value)
    if not text:
        raise RequestError(field, "must not be empty")
    return text


def _jobdir(field: str, value: object) -> str:
    text = _name(field, value)
    if not text.startswith("/"):
        raise RequestError(field, "must be an absolute path")
    return text


def _executable(field: str, value: object) -> str:
    text = _name(field, value)
    if text.startswith("-"):
        raise RequestError(field, "must not begin with a -, give ./ in front of it")
    return text


def _texts(field: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_LIST_ENTRIES:
        raise RequestError(
            field, f"must be a list of at most {MAX_LIST_ENTRIES} entries"
        )
    return tuple(_text(f"{field}[{i}]", each) for i, each in enumerate(value))


def _names(field: str, value: object) -> tuple[str, ...]:
    return tuple(_name(f"{field}[{i}]", x) for i, x in enumerate(_texts(field, value)))


def _environment(field: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise RequestError(field, "must be an object of texts")
    for name in value:
        if not _NAME.fullmatch(name):
            raise RequestError(field, f"{name[:80]!r} is no name of a variable")
        if name.startswith(_RESERVED_PREFIX):
            raise RequestError(field, f"{_RESERVED_PREFIX}* is set by the worker")
    return {name: _text(f"{field}.{name}", each) for name, each in value.items()}


def _url(field: str, value: object) -> str | None:
    if value is None:
        return None
    text = _text(field, value)
    try:
        is_url = bool(_URL.fullmatch(text) and text.isascii() and origin_of(text))
    except ValueError:
        is_url = False
    if not is_url:
        raise RequestError(
            field, "must be an http or https URL in ASCII, without password and #"
        )
    return text


def _max_time(field: str, value: object) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise RequestError(field, "must be a number above 0")
    return float(value)  # type: ignore[arg-type]


_READERS: dict[str, Callable[[str, object], Any]] = {
    "jobdir": _jobdir,
    "executable": _executable,
    "arguments": _texts,
    "environment": _environment,
    "prestaged": _names,
    "poststaged": _names,
    "stdout": _name,
    "stderr": _name,
    "status_callback_url": _url,
    "max_time_seconds": _max_time,
}
assert _READERS.keys() == {each.name for each in fields(JobRequest)}
