"""From a script's first line to the command that runs it.

The rule (protocol.md, section 4): carriage returns are removed; the first line starts
with ``#!``; the rest of it is split as a shell splits words, and the script's path is
appended.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from job_runner_worker.errors import StartError

MAX_SHEBANG_CHARACTERS = 4096


def script_bytes(script: str) -> bytes:
    """Return the script as it is executed. Raises StartError if it is no text."""
    try:
        return script.replace("\r", "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise StartError(
            f"the script is not valid text (character {error.start})"
        ) from error


def command(script: bytes, path: Path, search_path: str | None) -> list[str]:
    """Return the interpreter, its arguments and the script's path.

    Raises StartError where that could not be executed: no shebang, no interpreter.
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
        words = shlex.split(first_line[2:])
    except ValueError as error:
        raise StartError(f"the script's shebang cannot be read: {error}") from error
    if not words:
        raise StartError("the script's shebang names no interpreter")
    interpreter = shutil.which(words[0], path=search_path)
    if interpreter is None:
        raise StartError(
            f"the interpreter {words[0]!r} of the script's shebang does not exist on "
            "this machine or cannot be executed"
        )
    return [interpreter, *words[1:], str(path)]
