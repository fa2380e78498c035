"""What a script asks for itself, and what the operator lets it have. Pure.

A script says it in comment lines directly under its first line, one option a line::

    #!/bin/sh
    # job-runner: timeout_seconds=600
    # job-runner: env.LANG=C
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from job_runner_worker.errors import StartError

OWN_VARIABLES = "JOB_RUNNER_"
"""Variables that begin so are the worker's to give."""
_LINE = re.compile(r"#[ \t]*job-runner:(.*)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_SHOWN = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """What holds for a run; None, or an empty tuple, where nothing was said.

    ``cpu_max`` is a number of processors. ``env`` has names and values.
    """

    timeout_seconds: float | None = None
    kill_grace_seconds: float | None = None
    nice: int | None = None
    memory_max_bytes: int | None = None
    cpu_max: float | None = None
    pids_max: int | None = None
    cwd: str | None = None
    run_as_user: str | None = None
    umask: int | None = None
    env: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Return the options as words of an ini file."""
        return shlex.join(f"{key}={text}" for key, text in self.texts().items())

    def texts(self) -> dict[str, str]:
        """Return what was said, as it would be written."""
        found = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "umask" and value is not None:
                found[each.name] = f"{value:04o}"
            elif isinstance(value, float):
                found[each.name] = f"{value:.9f}".rstrip("0").removesuffix(".")
            elif each.name != "env" and value is not None:
                found[each.name] = str(value)
        return found | {f"env.{name}": value for name, value in self.env}


NOTHING = RunOptions()
CEILINGS = (
    "timeout_seconds",
    "kill_grace_seconds",
    "memory_max_bytes",
    "cpu_max",
    "pids_max",
)
"""Which options may have a ceiling."""


def of_script(script: str) -> RunOptions:
    """Return what a script asks for. Raises StartError, which names line and remedy."""
    read = _Reader()
    for number, text in _lines(script):
        try:
            read.add(text.strip())
        except ValueError as error:
            raise StartError(f"line {number} of the script: {error}") from None
    return read.options


def of_words(text: str) -> RunOptions:
    """Return the options in words as a shell splits them. Raises ValueError."""
    read = _Reader()
    for word in shlex.split(text):
        read.add(word)
    return read.options


def effective(
    asked: RunOptions, defaults: RunOptions, ceilings: RunOptions
) -> RunOptions:
    """Return what holds for a run.

    What a script does not say, the default says, else the ceiling. Raises StartError
    where more is asked for than the ceiling allows.
    """
    if defaults is NOTHING and ceilings is NOTHING:
        return asked
    said: dict[str, Any] = {}
    for each in fields(RunOptions):
        own = getattr(asked, each.name)
        value = getattr(defaults, each.name) if own is None else own
        ceiling = getattr(ceilings, each.name)
        if each.name in CEILINGS and ceiling is not None:
            if value is not None and value > ceiling:
                raise StartError(
                    f"{each.name}={value:.15g} is above this worker's ceiling of "
                    f"{ceiling:.15g} (run_ceilings): ask for less"
                )
            value = ceiling if value is None else value
        said[each.name] = value
    said["env"] = tuple({**dict(defaults.env), **dict(asked.env)}.items())
    return RunOptions(**said)


def _lines(script: str) -> Iterator[tuple[int, str]]:
    """Yield the options of a script with their lines' numbers, from 1.

    Raises StartError for one that stands further down among the first comments: it
    would look as if it held.
    """
    is_over = False
    number, start = 1, script.find("\n") + 1
    while start > 0:
        number += 1
        end = script.find("\n", start)
        line = script[start : end if end >= 0 else len(script)].replace("\r", "")
        start = end + 1
        if match := _LINE.fullmatch(line):
            if is_over:
                raise StartError(
                    f"line {number} of the script: options stand directly under the "
                    "first line: move it there"
                )
            yield number, match[1]
        elif line.strip() and not line.startswith("#"):
            return
        else:
            is_over = True


class _Reader:
    """Gathers options; each may be said once."""

    def __init__(self) -> None:
        self.options = NOTHING

    def add(self, text: str) -> None:
        """Take one ``key=value``. Raises ValueError, whose message says the remedy."""
        key, equals, value = text.partition("=")
        key, value = key.rstrip(), value.lstrip()
        if not equals:
            raise ValueError(f"{_shown(text)} is not key=value")
        if "\0" in value:
            raise ValueError(f"{_shown(key)} has a NUL in its value")
        if key.startswith("env."):
            self._add_variable(key.removeprefix("env."), value)
            return
        if key not in _KINDS:
            near = difflib.get_close_matches(key, [*_KINDS, "env.NAME"], 1)
            remedy = f"did you mean {near[0]}?" if near else "remove it"
            raise ValueError(f"{_shown(key)} is no option of a run, {remedy}")
        if getattr(self.options, key) is not None:
            raise ValueError(f"{key} is there twice, keep one of the two")
        allowed, pattern, convert, is_right = _KINDS[key]
        if not re.fullmatch(pattern, value) or not is_right(convert(value)):
            raise ValueError(f"{key} must be {allowed}, got {_shown(value)}")
        self.options = replace(self.options, **{key: convert(value)})

    def _add_variable(self, name: str, value: str) -> None:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{_shown(name)} cannot be the name of a variable")
        if name.startswith(OWN_VARIABLES):
            raise ValueError(f"env.{name[:80]} is the worker's to give, remove it")
        if name in dict(self.options.env):
            raise ValueError(f"env.{name} is there twice, keep one of the two")
        self.options = replace(self.options, env=(*self.options.env, (name, value)))


_Kind = tuple[str, str, Callable[[str], Any], Callable[[Any], bool]]
_WHOLE = "[0-9]{1,15}"
_NUMBER = r"[0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9}"


def _within(noun: str, kind: type[int] | type[float], low: float, high: float) -> _Kind:
    """Return how a number within bounds is read."""
    allowed = f"{noun} from {low:g} to {high:.0f}"
    pattern = _WHOLE if kind is int else _NUMBER
    return allowed, pattern, kind, lambda value: bool(low <= value <= high)


_YEAR_SECONDS = 366 * 86400
_KINDS: dict[str, _Kind] = {
    "timeout_seconds": _within("a number", float, 0.1, _YEAR_SECONDS),
    "kill_grace_seconds": _within("a number", float, 0, 3600),
    "nice": _within("a whole number", int, 0, 19),
    "memory_max_bytes": _within("a whole number", int, 1024 * 1024, 10**15 - 1),
    "cpu_max": _within("a number of processors", float, 0.01, 10000),
    "pids_max": _within("a whole number", int, 1, 4000000),
    "cwd": ("the absolute path of a folder", "/.*", str, lambda _: True),
    "run_as_user": ("the name of a user", r"[A-Za-z0-9_][\w.@-]*\$?", str, bool),
    "umask": (
        "three or four octal digits, such as 0027",
        "0?[0-7]{3}",
        lambda text: int(text, 8),
        lambda _: True,
    ),
}


def _shown(text: str) -> str:
    return repr(text[:_LONGEST_SHOWN])


def above(defaults: RunOptions, ceilings: RunOptions) -> str:
    """Return what of the operator's own settings contradicts itself, "" for nothing."""
    said: Iterable[str] = ceilings.texts()
    for key in said:
        if key not in CEILINGS:
            return f"{key} has no ceiling, remove it"
    try:
        effective(NOTHING, defaults, ceilings)
    except StartError as error:
        return str(error)
    return ""
