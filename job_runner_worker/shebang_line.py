"""What a script's first line says: which command is to run it. Pure.

The rule (protocol.md, section 4): the first line starts with ``#!``; the rest of it is
split as a shell splits words.
"""

from __future__ import annotations

import functools
import shlex

from job_runner_worker.errors import StartError

MAX_SHEBANG_CHARACTERS = 4096


def words_of(script: bytes) -> list[str]:
    """Return the interpreter and its arguments. Raises StartError where none is named.

    ``script`` is what is executed: its carriage returns have been removed.
    """
    try:
        first_line = script.split(b"\n", 1)[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise StartError("the script's first line is not UTF-8") from error
    if not first_line.startswith("#!"):
        raise StartError(
            "the script has no shebang: its first line must start with #!, "
            "for example #!/bin/sh"
        )
    if len(first_line) > MAX_SHEBANG_CHARACTERS or "\0" in first_line:
        raise StartError("the script's shebang is too long or has a NUL in it")
    try:
        words = _split(first_line[2:])
    except ValueError as error:
        raise StartError(f"the script's shebang cannot be read: {error}") from error
    if not words:
        raise StartError("the script's shebang names no interpreter")
    return list(words)


@functools.lru_cache
def _split(line: str) -> tuple[str, ...]:
    """Split as a shell does. Mostly it is one of few lines; it takes a while."""
    return tuple(shlex.split(line))
