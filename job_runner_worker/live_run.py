"""A run that this worker has in hand: its state, and the kills that may meet it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import gevent
from gevent.event import Event

from job_runner_worker import backoff
from job_runner_worker.errors import StartError
from job_runner_worker.executors.base import Execution, Executor
from job_runner_worker.models import TRANSITIONS, Outcome, RunState, Usage
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.sources.base import Source

_OVER = (RunState.ENDED, RunState.REPORTED)
START_TRIES = 5
"""How often a start is tried on a machine that is short of processes or memory."""
_log = logging.getLogger(__name__)


class LiveRun:
    """One run between its offer and its last report.

    ``on_end`` is called once, when the run needs no slot any more.
    """

    def __init__(
        self,
        run_id: int,
        source: Source,
        executor: Executor,
        on_end: Callable[[], None],
        sleep: Callable[[float], None] = gevent.sleep,
    ) -> None:
        self.id = run_id
        self.source = source
        self.state = RunState.OFFERED
        self.sleep = sleep
        """Waits before somebody is asked again; may raise what ends the waiting."""
        self.kills_under_way = 0
        self.has_ended_there = False
        """Whether the server has an end of it: then only its log may be due."""
        self.may_be_claimed_late = False
        """Whether a claim that was given up may still arrive."""
        self.offered_at = time.monotonic()
        self._executor = executor
        self._on_end: Callable[[], None] | None = on_end
        self._folder: RunFolder | None = None
        self._execution: Execution | None = None
        self._kill_reason = ""
        self._ended = Event()
        self._is_decided = Event()

    @property
    def has_folder(self) -> bool:
        """Whether there is a folder, that is whether the run is being claimed."""
        return self._folder is not None

    @property
    def folder(self) -> RunFolder:
        """The run's folder; there is one as soon as the run is being claimed."""
        assert self._folder is not None
        return self._folder

    @property
    def usage(self) -> Usage | None:
        """What the run has used, None before its script's end."""
        if self._execution is None or self.state not in _OVER:
            return None
        outcome = self._execution.wait(0)
        return outcome.usage if outcome else None

    def claiming(self, folder: RunFolder) -> None:
        """The claim is on its way."""
        self._folder = folder
        self._move(RunState.CLAIMING)
        self._is_decided.set()

    def claimed(self) -> None:
        """The run is this worker's."""
        self._move(RunState.CLAIMED)

    def attach(self) -> Execution | None:
        """Take up the script if it has begun, and let kills reach it."""
        if self._execution is None:
            execution = self._executor.attach(self.folder.run, self.folder)
            if execution is not None:
                self._move(RunState.STARTING)
                self._follow(execution)
        return self._execution

    def begin(self) -> Execution:
        """Take up the script if it has begun, else start it.

        Raises StartError where there is nothing to wait for; the run then has failed.
        """
        failure = self.folder.failure()
        if failure is not None:
            raise StartError(failure.reason)
        execution = self.attach()
        if execution is None:
            self._move(RunState.STARTING)
            execution = self._start()
            self._follow(execution)
        return execution

    def fail(self, reason: str) -> Outcome:
        """Give the run an end without a script; return it."""
        if self.folder.failure() is None:
            self.folder.fail(reason)
        return self.end_without_script()

    def end_without_script(self) -> Outcome:
        """Return the end that `fail` gave the run, or an earlier worker's."""
        outcome = self.folder.failure()
        assert outcome is not None
        return outcome

    def end(self) -> None:
        """The script, if there was one, has ended; its slot is free."""
        if self.state not in _OVER:
            self._move(RunState.ENDED)
        self._ended.set()
        self.release_slot()

    def forget(self) -> None:
        """The run is not this worker's (any more)."""
        if self._folder is not None:
            self._folder.leave()
        self._folder = None
        self._is_decided.set()
        self._ended.set()
        self.release_slot()

    def reported(self) -> None:
        """Every reporter has the end."""
        self._move(RunState.REPORTED)

    def release_slot(self) -> None:
        """Let another run have the slot. May be repeated."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    def note_kill(self, kill_request_id: int, reason: str) -> None:
        """Keep the run's folder until `forget_kill`, and a request for its reason."""
        self.kills_under_way += 1
        self._note_in_folder(kill_request_id, reason)

    def remembers_kill(self, kill_request_id: int, reason: str) -> bool:
        """Return whether the next worker would find the request in a folder.

        Waits until it is known whether there is one.
        """
        self._is_decided.wait()
        self._note_in_folder(kill_request_id, reason)
        folder = self._folder
        return folder is not None and kill_request_id in folder.note.kill_requests

    def forget_kill(self, kill_request_id: int) -> None:
        """The request has been carried out and reported."""
        self.kills_under_way -= 1
        if self._folder is not None and kill_request_id in (
            pending := self._folder.note.kill_requests
        ):
            left = tuple(number for number in pending if number != kill_request_id)
            self._folder.update_note(kill_requests=left)

    def _note_in_folder(self, kill_request_id: int, reason: str) -> None:
        if self._folder is None or self._ended.is_set():
            return
        pending = self._folder.note.kill_requests
        if kill_request_id not in pending:
            pending = (*pending, kill_request_id)
            self._folder.update_note(kill_requests=pending, kill_reason=reason)

    def wait_for_script(self) -> Outcome | None:
        """Return when no script of this run is running: its outcome, if it began."""
        return self._execution.wait() if self._execution is not None else None

    def kill(self, reason: str) -> None:
        """End the run in whatever state it is; return when nothing of it is alive."""
        if self._execution is not None:
            self._execution.kill(reason)
        elif not self._ended.is_set():
            self._kill_reason = self._kill_reason or reason
            self._ended.wait()

    def _follow(self, execution: Execution) -> None:
        self._execution = execution
        self._move(RunState.RUNNING)
        _log.info("run %d: running, pid %s", self.id, execution.native_id)
        # The slot is free when the script ends, also while a report is stuck.
        gevent.spawn(self._end_with, execution)
        if self._kill_reason:
            gevent.spawn(execution.kill, self._kill_reason)

    def _end_with(self, execution: Execution) -> None:
        execution.wait()
        self.end()

    def _start(self) -> Execution:
        """Try some times. A try that failed may have begun the script all the same."""
        waits = backoff.waits()
        is_in_doubt = False
        for tries_left in reversed(range(START_TRIES)):
            try:
                if self._kill_reason:
                    raise StartError(f"{self._kill_reason} before the start")
                return self._executor.start(self.folder.run, self.folder)
            except StartError as error:
                is_in_doubt = is_in_doubt or error.transient
                is_last = not (error.transient and tries_left)
                if is_in_doubt and (begun := self._begun_after_all(is_last=is_last)):
                    return begun
                if is_last:
                    raise
            gevent.sleep(next(waits))
        raise AssertionError("the last try returns or raises")

    def _begun_after_all(self, *, is_last: bool) -> Execution | None:
        """Return the script, if it has begun; after the last try it never will."""
        folder = self.folder
        if folder.shim() is not None or (is_last and not folder.forbid_beginning()):
            return self._executor.attach(folder.run, folder)
        return None

    def _move(self, state: RunState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"run {self.id}: {self.state} -> {state}")
        self.state = state
