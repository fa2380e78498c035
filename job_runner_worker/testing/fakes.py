"""Stand-ins for a worker's three contracts: a source, an executor, a reporter.

They use gevent's events and queues and patch nothing: tests drive them from
greenlets, without sockets, processes or waiting.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gevent.event import Event

from job_runner_worker.errors import ApiError, StartError
from job_runner_worker.models import Outcome, Run
from job_runner_worker.reporters.base import Reporter
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.testing.observed import Observed
from job_runner_worker.testing.scripted_source import ScriptedSource

__all__ = ["FakeExecution", "FakeExecutor", "RecordingReporter", "ScriptedSource"]

TERMINATED_STATUS = 143
"""What a shell says of a script that SIGTERM has ended."""
FIRST_PID = 1_000_001


class FakeExecution:
    """A script that has begun, and ends when the test says so."""

    def __init__(self, run: Run, folder: RunFolder, pid: int) -> None:
        self.run = run
        self.folder = folder
        self.native_id: int | None = pid
        self.started_at = datetime.now(UTC)
        self.outcome: Outcome | None = None
        self.kill_reasons: list[str] = []
        self.dies_of_kill = True
        """Whether `kill` ends the script; otherwise it waits for `end`."""
        self._kill_reason: str | None = None
        self._ended = Event()

    def wait(self, timeout_seconds: float | None = None) -> Outcome | None:
        """Return the outcome, None if the time passed before there was one."""
        self._ended.wait(timeout_seconds)
        return self.outcome

    def kill(self, reason: str) -> None:
        """Note the reason; return when the script has ended."""
        self.kill_reasons.append(reason)
        if self.outcome is None:
            self._kill_reason = self._kill_reason or reason
            if self.dies_of_kill:
                self.end(TERMINATED_STATUS)
        self._ended.wait()

    def print(self, text: str | bytes) -> None:
        """Let the script print something."""
        data = text.encode("utf-8") if isinstance(text, str) else text
        with self.folder.output.path.open("ab") as file:
            file.write(data)

    def end(self, exit_status: int | None = 0, reason: str = "") -> None:
        """Let the script end; a kill under way gives the reason."""
        if self.outcome is None:
            why = self._kill_reason or reason
            self.outcome = Outcome(exit_status, why, datetime.now(UTC))
        self._ended.set()


class FakeExecutor(Observed):
    """Starts nothing: its runs go on until the test ends them.

    Used for two workers one after the other, it lets the second one attach.
    """

    def __init__(self) -> None:
        super().__init__()
        self.executions: dict[int, FakeExecution] = {}
        """By run id; those that have ended stay."""
        self.starts: list[int] = []
        self.attaches: list[int] = []
        self.is_open = False
        self._failures: list[StartError] = []

    @property
    def kills(self) -> list[tuple[int, str]]:
        """(run id, reason) of every kill."""
        return [
            (run_id, reason)
            for run_id, execution in self.executions.items()
            for reason in execution.kill_reasons
        ]

    def fail_next(self, *errors: StartError) -> None:
        """Let the next starts fail, one error a start."""
        self._failures.extend(errors)

    def open(self) -> None:
        """Note that the worker got ready."""
        self.is_open = True

    def start(self, run: Run, folder: RunFolder) -> FakeExecution:
        """Begin a run, or raise what `fail_next` was given."""
        self.starts.append(run.id)
        self._note_change()
        if self._failures:
            raise self._failures.pop(0)
        pid = FIRST_PID + len(self.starts)
        self.executions[run.id] = FakeExecution(run, folder, pid)
        self._note_change()
        return self.executions[run.id]

    def attach(self, run: Run, folder: RunFolder) -> FakeExecution | None:
        """Return the execution that was started before, None if there is none."""
        self.attaches.append(run.id)
        self._note_change()
        return self.executions.get(run.id)

    def close(self) -> None:
        """Let the runs go on."""
        self.is_open = False

    def wait_for_start(
        self, run_id: int, timeout_seconds: float = 5.0
    ) -> FakeExecution:
        """Return the execution of a run once it has begun."""
        return self.wait_for(
            lambda: self.executions.get(run_id),
            f"the start of run {run_id}",
            timeout_seconds,
        )


class RecordingReporter(Reporter, Observed):
    """Keeps every call as a tuple.

    ====================================  =============================================
    call                                  tuple
    ====================================  =============================================
    enqueued, started                     ("enqueued", run id), ("started", run id, pid)
    logged                                ("logged", run id, content, final)
    finished                              ("finished", run id, outcome)
    kill_requested, kill_executed         (name, kill request id)
    pinged                                ("pinged",)
    ====================================  =============================================
    """

    def __init__(self, name: str = "recording", *, acknowledges: bool = True) -> None:
        Observed.__init__(self)
        self.name = name
        self.acknowledges = acknowledges
        self.calls: list[tuple[Any, ...]] = []
        self.failed_calls: list[tuple[Any, ...]] = []
        """The calls that raised, by `fail_next`."""
        self.moments: dict[tuple[Any, ...], datetime] = {}
        """The ``at`` of a call, by its tuple."""
        self.is_open = False
        self._failures: list[ApiError] = []

    def fail_next(self, times: int = 1, error: ApiError | None = None) -> None:
        """Let the next calls raise an error, a transient one by default."""
        failure = error or ApiError("the server is down", 503, transient=True)
        self._failures.extend([failure] * times)

    def calls_for(self, run_id: int) -> list[tuple[Any, ...]]:
        """Return the calls about one run, in order."""
        names = ("enqueued", "started", "logged", "finished")
        return [call for call in self.calls if call[0] in names and call[1] == run_id]

    def names_for(self, run_id: int) -> list[str]:
        """Return the names of the calls about one run, in order."""
        return [call[0] for call in self.calls_for(run_id)]

    def wait_for_finish(self, run_id: int, timeout_seconds: float = 5.0) -> Outcome:
        """Return how a run ended once that was reported."""

        def finished() -> Outcome | None:
            ends = [c for c in self.calls if c[:2] == ("finished", run_id)]
            return ends[-1][2] if ends else None

        return self.wait_for(finished, f"the end of run {run_id}", timeout_seconds)

    def open(self) -> None:
        """Note that the worker got ready."""
        self.is_open = True

    def enqueued(self, run: Run, at: datetime) -> None:
        """Record it."""
        self._record(("enqueued", run.id), at)

    def started(self, run: Run, native_id: int | None, at: datetime) -> None:
        """Record it."""
        self._record(("started", run.id, native_id), at)

    def logged(self, run: Run, content: str, *, final: bool) -> None:
        """Record it."""
        self._record(("logged", run.id, content, final))

    def finished(self, run: Run, outcome: Outcome) -> None:
        """Record it."""
        self._record(("finished", run.id, outcome), outcome.returned_at)

    def kill_requested(self, kill_request_id: int, at: datetime) -> None:
        """Record it."""
        self._record(("kill_requested", kill_request_id), at)

    def kill_executed(self, kill_request_id: int, at: datetime) -> None:
        """Record it."""
        self._record(("kill_executed", kill_request_id), at)

    def pinged(self, at: datetime) -> None:
        """Record it."""
        self._record(("pinged",), at)

    def close(self) -> None:
        """Note that nothing more will come."""
        self.is_open = False
        self._note_change()

    def _record(self, call: tuple[Any, ...], at: datetime | None = None) -> None:
        if self._failures:
            self.failed_calls.append(call)
            raise self._failures.pop(0)
        self.calls.append(call)
        if at is not None:
            self.moments[call] = at
        self._note_change()
