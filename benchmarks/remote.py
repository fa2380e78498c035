"""A process that answers calls, one JSON object a line each way."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from central import BenchmarkError

END_SECONDS = 15.0
ANSWER_SECONDS = 90.0


class Remote:
    """Such a process, while the context is entered; what it says goes to a file."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self._command = command
        self._environment = environment
        self._log_path = folder / "client.log"

    def __enter__(self) -> Self:
        """Start it."""
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                process_group=0,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let it end, or end it."""
        try:
            self._process.communicate(timeout=END_SECONDS)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Its pid."""
        return self._process.pid

    def call(self, name: str, **arguments: object) -> Any:
        """Ask and wait. Raises BenchmarkError where the answer is an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"call": name, "arguments": arguments}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchmarkError(self._last_words()) from None
        if not select.select([self._process.stdout], [], [], ANSWER_SECONDS)[0]:
            raise BenchmarkError(f"{name}: no answer in {ANSWER_SECONDS:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{name}: {answer['error']}")
        return answer["answer"]

    def _last_words(self) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines()
        return "\n".join(["the process has ended:", *lines[-10:]])
