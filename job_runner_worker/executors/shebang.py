"""From a script's first line to the command that runs it.

Carriage returns are removed; what the first line says (see shebang_line) is looked up,
and the script's path is appended.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from job_runner_worker import shebang_line
from job_runner_worker.errors import StartError

MAX_SCRIPT_BYTES = 4 * 1024 * 1024


def script_bytes(script: str) -> bytes:
    """Return the script as it is executed.

    Raises StartError if it is no text, or longer than what is run.
    """
    try:
        content = script.replace("\r", "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise StartError(
            f"the script is not valid text (character {error.start})"
        ) from error
    if len(content) > MAX_SCRIPT_BYTES:
        raise StartError(
            f"the script has {len(content)} bytes, and no more than {MAX_SCRIPT_BYTES} "
            "are run: let a short one fetch the rest"
        )
    return content


def command(script: bytes, path: Path, search_path: str | None) -> list[str]:
    """Return the interpreter, its arguments and the script's path.

    Raises StartError where that could not be executed: no shebang, no interpreter.
    """
    words = shebang_line.words_of(script)
    interpreter = shutil.which(words[0], path=search_path)
    if interpreter is None:
        raise StartError(
            f"the interpreter {words[0]!r} of the script's shebang does not exist on "
            "this machine or cannot be executed"
        )
    return [interpreter, *words[1:], str(path)]
