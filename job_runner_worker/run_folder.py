"""The durable folder of one run: what was accepted, how far it got, what was told.

Each file has one writer; docs/architecture.rst has the table. What the worker writes
appears whole or not at all; what the shim writes may be read before it is there.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from job_runner_worker import run_note, shim_lines
from job_runner_worker.errors import RunFolderError
from job_runner_worker.made_ahead import MadeAhead, furnish
from job_runner_worker.models import Outcome, Run
from job_runner_worker.output_file import OutputFile
from job_runner_worker.private_files import (
    MAX_FILE_BYTES,
    OTHERS,
    PrivateFolder,
    make_private,
    read_file,
    remove_tree,
)
from job_runner_worker.reported_steps import ReportedSteps
from job_runner_worker.run_note import FORMAT as FORMAT
from job_runner_worker.run_note import Note as Note
from job_runner_worker.shim_lines import ProcessId as ProcessId
from job_runner_worker.shim_lines import ScriptProcess as ScriptProcess

NEW_SUFFIX = ".new"
DONE_SUFFIX = ".done"
_MAX_PID = 2**31 - 1
_MAX_EXIT_STATUS = 255
_TICK = timedelta(seconds=0.01)
"""The kernel writes down the time of its last tick; there are 100 a second or more."""
_FILES = (
    "run.json",
    "reported.json",
    "began",
    "pid",
    "exit_status",
    "output",
    "script",
)
_log = logging.getLogger(__name__)


class RunFolder:
    """One folder of the spool."""

    def __init__(self, path: Path, note: Note) -> None:
        self.path = path
        self.note = note
        self.files = PrivateFolder(path)
        self.output = OutputFile(path / "output", note.max_log_bytes, self.files)
        self.made_ahead: MadeAhead | None = None
        self._reported = ReportedSteps(self.files)
        self._searched_bytes = 0
        self._end: int | None = None

    @classmethod
    def create(
        cls, path: Path, note: Note, made_ahead: MadeAhead | None = None
    ) -> RunFolder:
        """Make a folder for a run that is about to be claimed: whole or not at all.

        One that was ``made_ahead`` becomes that folder.
        """
        folder = cls(path, note)
        if made_ahead is None:
            unfinished = path.with_name(path.name + NEW_SUFFIX)
            unfinished.mkdir(mode=0o700)
        else:
            unfinished = made_ahead.path
            folder.made_ahead = made_ahead
        try:
            folder.files.hold(unfinished)
            folder.files.write("run.json", run_note.encode(note))
            os.rename(unfinished, path)
        except OSError:
            # Else the run could not be offered again.
            folder.files.close()
            remove_tree(unfinished)
            raise
        return folder

    @classmethod
    def load(cls, path: Path) -> RunFolder:
        """Return the folder that an earlier worker left.

        Raises RunFolderError where it is torn, foreign or from a later version.
        """
        folder = cls(path, read_note(path))
        try:
            with folder.files.held():
                folder._check_files()
                folder._reported.read()
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} cannot be read: {error}") from error
        if path.name != str(folder.note.run_id):
            raise RunFolderError(
                f"{path}/run.json is about run {folder.note.run_id}: a copied folder?"
            )
        return folder

    @property
    def run(self) -> Run:
        """The run of a confirmed claim."""
        assert self.note.run is not None
        return self.note.run

    @property
    def script_path(self) -> Path:
        """Where the script stands as it is executed."""
        return self.path / "script"

    @property
    def temporary_path(self) -> Path:
        """The run's own TMPDIR."""
        return self.path / "tmp"

    @property
    def work_path(self) -> Path:
        """Where the script begins, unless it says otherwise."""
        return self.path / "work"

    @property
    def bell_path(self) -> Path:
        """The FIFO on which the shim says that something happened."""
        return self.path / "bell"

    def update_note(self, **changes: object) -> None:
        """Change what run.json says.

        A full disk must not stop a run that has been claimed: then the change is
        known to this process only.
        """
        self.note = replace(self.note, **changes)  # type: ignore[arg-type]
        with self._tolerance("run.json"):
            content = run_note.encode_changes(changes)
            self.files.append("run.json", content, create=False)

    def prepare(self, script: bytes) -> None:
        """Make everything that the shim expects. May be repeated.

        Also while a shim of an earlier try may be about to begin: a script that is
        there is left as it is.
        """
        if self._read("script") != script:
            self.files.write("script", script)
        if not self.made_ahead:
            furnish(self.files)

    def shim(self) -> ProcessId | None:
        """Return the shim that began this run, None if none has.

        A `began` without a readable process (the disk was full) is the process 0,
        which never exists: the run has begun all the same.
        """
        content = self._read("began")
        if content is None:
            return None
        numbers = shim_lines.numbers(content, 2)
        if not numbers or numbers[0] > _MAX_PID:
            return ProcessId(0, 0)
        return ProcessId(*numbers)

    def forbid_beginning(self) -> bool:
        """Let no shim begin this run any more; return False where one has."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            os.close(self.files.open("began", flags))
        except FileExistsError:
            return False
        except OSError as error:
            _log.warning("run %d: cannot write began: %s", self.note.run_id, error)
        return True

    def script_process(self, shim: ProcessId | None = None) -> ScriptProcess | None:
        """Return the script's process, None if the script has not begun yet.

        ``shim`` is the run's, if that is known already.
        """
        numbers = shim_lines.numbers(self._read("pid") or b"", 2)
        if not numbers or max(numbers) > _MAX_PID:
            return None
        pid, relay_pid = numbers
        script = shim_lines.child(pid, shim or self.shim())
        return ScriptProcess(script, relay_pid, self._modified_at("pid"))

    def exit_status(self) -> int | None:
        """Return the script's exit status, None while there is none."""
        numbers = shim_lines.numbers(self._read("exit_status") or b"", 1)
        return numbers[0] if numbers and numbers[0] <= _MAX_EXIT_STATUS else None

    def ended_at(self) -> datetime:
        """Return when the shim wrote the exit status."""
        return self._modified_at("exit_status")

    def failure(self) -> Outcome | None:
        """Return the outcome of a run whose script never had an exit status."""
        if not self.note.failure:
            return None
        at = datetime.fromisoformat(self.note.failed_at)
        return Outcome(None, self.note.failure, at)

    def fail(self, reason: str) -> None:
        """Give the run an outcome without an exit status, now."""
        now = datetime.now(UTC).isoformat()
        self.update_note(failure=reason, failed_at=now)

    def log(self, *, final: bool) -> str:
        """Return the log as it stands, or as it will stay."""
        if final:
            self.has_end_mark()
            return self.output.read_log(self.output_bytes(), complete=True)
        # Only for the moment between the script's end and the final log.
        content = self.output.read_log(self.output.size(), complete=False)
        return content.partition(self.note.end_mark)[0]

    def has_end_mark(self) -> bool:
        """Return whether all that the script printed has reached the output.

        Each call searches what has come since the last one.
        """
        mark = self.note.end_mark.encode()
        if self._end is None:
            size = self.output.size()
            self._end = self.output.find_end(mark, self._searched_bytes)
            self._searched_bytes = max(0, size - len(mark) + 1)
        return self._end is not None

    def output_bytes(self) -> int:
        """Return how much the script has printed so far."""
        return self.output.size() if self._end is None else self._end

    def has_reported(self, reporter: str, step: str) -> bool:
        """Return whether a reporter has acknowledged a step, or refused it for good."""
        return (reporter, step) in self._reported

    @property
    def refusals(self) -> list[tuple[str, str]]:
        """(reporter, step) of what a reporter will not take."""
        return self._reported.refusals

    def note_refused(self, reporter: str, step: str) -> None:
        """Remember, over a restart too, that a reporter will not take a step."""
        self._reported.refuse(reporter, step)
        with self._tolerance("reported.json"):
            self._reported.write()

    def note_reported(self, reporter: str, step: str, *, durably: bool = True) -> None:
        """Remember that a reporter has been told a step.

        Over a restart where ``durably``, or else with the next one that is.
        """
        self._reported.acknowledge(reporter, step)
        if durably:
            with self._tolerance("reported.json"):
                self._reported.write()

    def remove(self) -> None:
        """Remove the folder; nobody can take it for a run's from the first moment.

        Raises OSError where a script left something that cannot be removed.
        """
        done = f"{self.path}{DONE_SUFFIX}"
        os.rename(self.path, done)
        # Mostly there is nothing else; to find out costs more than to try.
        self.files.hold(done)
        self.files.remove_all((*_FILES, "bell"), ("work", "tmp"))
        self.files.close()
        try:
            os.rmdir(done)
        except OSError:
            remove_tree(Path(done))

    def leave(self) -> None:
        """Nothing will be started here any more."""
        if self.made_ahead is not None:
            self.made_ahead.abandon()

    def _check_files(self) -> None:
        """Refuse a folder in which something stands in the place of a file.

        Who opened a FIFO would wait for ever; a link leads to somebody else's file.
        What others might read is made private.
        """
        # A script that runs as another user may pass through by its group.
        opened = [self.path] if make_private(self.path, 0o710) else []
        kinds = dict.fromkeys(_FILES, stat.S_ISREG) | {"bell": stat.S_ISFIFO}
        for name, is_right in kinds.items():
            with contextlib.suppress(FileNotFoundError):
                status = self.files.stat(name)
                if not is_right(status.st_mode):
                    raise RunFolderError(f"{self.path}/{name} is no file of a worker's")
                if name != "output" and status.st_size > MAX_FILE_BYTES:
                    raise RunFolderError(f"{self.path}/{name} is too large")
                if status.st_mode & OTHERS and make_private(self.path / name):
                    opened.append(self.path / name)
        for path in opened:
            _log.warning("%s was open to others: made private", path)

    @contextlib.contextmanager
    def _tolerance(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _log.warning(
                "run %d: cannot write %s: %s; a restart now would not know of it",
                self.note.run_id,
                name,
                error.strerror,
            )

    def _read(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return self.files.read(name)
        return None

    def _modified_at(self, name: str) -> datetime:
        """Return a file's time; not a moment before the claim, as coarse as it is."""
        modified_at = self.files.modified_at(name)
        before = datetime.fromisoformat(self.note.claimed_at) - modified_at
        return modified_at + before if timedelta(0) < before < _TICK else modified_at


def read_note(path: Path) -> Note:
    """Return what a folder's run.json says, whatever the folder is called.

    Raises RunFolderError where it is torn, foreign or from a later version.
    """
    try:
        return run_note.decode(read_file(path / "run.json"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}/run.json cannot be read: {error}") from error


@functools.cache
def boot_id() -> str:
    """Return what names this boot of the machine: processes do not outlive it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
