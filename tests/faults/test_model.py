"""Any order of offers, kills, ends, crashes and faults keeps what the worker promises.

The worker, its claims and its REST reporter are real; the server, the scripts, the
clock and the greenlets' turns are in this test's hand. FAULT_EXAMPLES=2000 tries so
many histories, other ones each time; see fault_examples.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
from fault_examples import examples
from gevent.event import Event
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from in_process import make_worker

from job_runner_worker import acceptance, backoff, run_folder
from job_runner_worker import spool as spool_module
from job_runner_worker import worker as worker_module
from job_runner_worker.batching import BatchingApi
from job_runner_worker.claims import CentralClaims, ResourcePaths
from job_runner_worker.errors import ApiError, JobRunnerError
from job_runner_worker.models import Enqueue, Kill, Outcome, Ping, Run
from job_runner_worker.reporters.rest import RestOptions, RestReporter
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.spool import Spool
from job_runner_worker.testing import FakeApi, FakeExecutor, Fault, ScriptedSource
from job_runner_worker.testing import fake_api as fake_api_module
from job_runner_worker.testing import scripted_source as scripted_source_module
from job_runner_worker.testing.fakes import FakeExecution
from job_runner_worker.worker import Worker

SLOTS = 2
MAX_RUNS = 6
TURNS = 6_000
"""How often greenlets get their turn before something counts as stuck."""
SCRIPT = "#!/bin/sh\ntrue\n"
RUN_PATH = r"/run/\d+/$"


class Script(FakeExecution):
    """A script that leaves in its folder what the shim leaves there."""

    def __init__(self, run: Run, folder: RunFolder, pid: int) -> None:
        super().__init__(run, folder, pid)
        self.printed = ""
        self.is_time_for_log = Event()

    def wait(self, timeout_seconds: float | None = None) -> Outcome | None:
        """Wait for the end; with a limit, also for the model to say that it is over."""
        if timeout_seconds is None:
            return super().wait()
        self.is_time_for_log.clear()
        gevent.wait([self._ended, self.is_time_for_log], count=1)
        return self.outcome

    def end(self, exit_status: int | None = 0, reason: str = "") -> None:
        super().end(exit_status, reason)
        if self.folder.path.is_dir():
            self.folder.files.write("exit_status", b"%d\n" % exit_status)


class Machine(FakeExecutor):
    """Scripts that outlive workers; a reboot ends them."""

    def __init__(self) -> None:
        super().__init__()
        self.boot = "boot 1"
        self.begun: list[tuple[str, int]] = []

    def start(self, run: Run, folder: RunFolder) -> Script:
        gevent.sleep(0)
        assert (self.boot, run.id) not in self.begun, f"run {run.id} began twice"
        assert run.id not in self.executions, f"run {run.id} began again after its end"
        self.begun.append((self.boot, run.id))
        for name, content in {"began": b"4194304 1\n", "output": b""}.items():
            folder.files.write(name, content)
        script = Script(run, folder, 1_000_000 + len(self.begun))
        self.executions[run.id] = script
        gevent.sleep(0)
        return script

    def running(self) -> list[int]:
        found = self.executions.items()
        return sorted(run_id for run_id, script in found if script.outcome is None)

    def reboot(self) -> None:
        self.boot = f"boot {int(self.boot.split()[1]) + 1}"
        for run_id in self.running():
            del self.executions[run_id]


class YieldingApi(FakeApi):
    """Lets others have their turn before and after everything it carries out."""

    def __init__(self, kind: str) -> None:
        super().__init__(original=kind == "original", batches=kind == "batches")
        self.ends_refused: set[int] = set()
        """Which of the requests was a 409 to the end of a run that had ended."""

    def _handle(self, asked: Any) -> Any:
        gevent.sleep(0)
        first = len(self.requests)
        answer = super()._handle(asked)
        for number, request in enumerate(self.requests[first:], first):
            run_id = request.run_id
            if request.status == 409 and run_id and self.run(run_id)["return_dts"]:
                self.ends_refused.add(number)
        gevent.sleep(0)
        return answer


class Client:
    """What one worker has of the API: nothing, once its process is dead."""

    def __init__(self, api: FakeApi) -> None:
        self._api = api
        self.is_dead = False

    def _asked(self, method: str, *about: Any, patient: bool) -> Any:
        if self.is_dead:
            raise gevent.GreenletExit
        return getattr(self._api, method)(*about, patient=patient)

    def get(self, path: str, *, patient: bool = True) -> Any:
        return self._asked("get", path, patient=patient)

    def patch(self, path: str, fields: Any, *, patient: bool = True) -> None:
        self._asked("patch", path, fields, patient=patient)

    def post(self, path: str, fields: Any, *, patient: bool = True) -> Any:
        return self._asked("post", path, fields, patient=patient)

    def ask(self, path: str, body: bytes) -> Any:
        if self.is_dead:
            raise gevent.GreenletExit
        return self._api.ask(path, body)


class Complaints(logging.Handler):
    """Keeps every traceback that the worker logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.seen.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


class Process:
    """One worker, from its start to its stop or crash."""

    def __init__(self, path: Path, api: FakeApi, machine: Machine) -> None:
        self.client = Client(api)
        self.source = ScriptedSource()
        self.spool = Spool(path, "http://server", "key")
        batching = BatchingApi(self.client, lambda seconds: gevent.sleep(0))
        claims = CentralClaims(batching, ResourcePaths(), api.api_key, batching)
        self.source.overrides = {
            "look": lambda run_id: claims.look(run_id, patient=False),
            "claim": claims.claim,
            "fetch": claims.fetch,
            "unfinished": claims.unfinished,
            "hand_back": claims.hand_back,
            "kill_target": claims.kill_target,
        }
        self.source.offered = claims.offered  # type: ignore[method-assign]
        options = RestOptions("/api/v1/run_log/", "/api/v1/kill_request/", SLOTS)
        reporter = RestReporter(
            batching,
            options,
            claims.worker_uri,
            lambda seconds: gevent.sleep(0),
            batching,
        )
        self.worker: Worker = make_worker(
            self.spool,
            [self.source],
            machine,
            [reporter],
            offer_ttl_seconds=4.0,
            log_flush_seconds=3600.0,
        )
        self.greenlets: list[Any] = []
        self.error: JobRunnerError | None = None
        gevent.Greenlet.add_spawn_callback(self.greenlets.append)
        self.spool.open()
        self.running = gevent.spawn(self._run)

    def _run(self) -> None:
        try:
            self.worker.run()
        except ApiError as error:
            self.error = error

    def die(self) -> None:
        """End at once, as with SIGKILL: nothing is said, nothing is put in order."""
        gevent.Greenlet.remove_spawn_callback(self.greenlets.append)
        self.client.is_dead = True
        gevent.killall(list(self.greenlets))
        self.spool.close()

    def stop(self, *, drain: bool) -> None:
        """End in order."""
        self.worker.stop(drain=drain)
        turn_until(self.running.ready, "the worker stops")
        self.die()


def turn_until(predicate: Any, what: str) -> None:
    """Give every greenlet its turn until something is so."""
    for _ in range(TURNS):
        if predicate():
            return
        gevent.sleep(0)
    raise AssertionError(f"waited for: {what}")


class Clock:
    """The monotonic clock of the worker: it stands still until the model moves it."""

    seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


FAULTS = st.sampled_from(
    [
        dict(kind="drop"),
        dict(kind="lose_answer"),
        dict(kind="garbage"),
        dict(kind="status", status=500),
        dict(kind="status", status=429),
        dict(kind="status_after", status=502),
        dict(kind="lose_answer", method="PATCH"),
        dict(kind="lose_answer", method="PATCH", body_has="return_dts"),
        dict(kind="drop", method="PATCH", body_has="return_dts"),
        dict(kind="status_after", status=500, method="PATCH", body_has="return_dts"),
        dict(kind="lose_answer", method="PATCH", body_has='"worker"'),
        dict(kind="lose_answer", method="POST"),
        dict(kind="status_after", status=500, method="POST"),
        dict(kind="status", status=401, method="PATCH", body_has="return_dts"),
        dict(kind="status", status=401, method="PATCH", body_has='"worker"'),
        dict(kind="status", status=401, method="GET", path=RUN_PATH),
    ]
)


class WorkerModel(RuleBasedStateMachine):
    """What may happen to a worker, and what must hold whatever happens."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.machine = Machine()
        self.complaints = Complaints()
        self.errors: list[object] = []
        self.run_ids: list[int] = []
        self.kill_orders: list[Kill] = []
        self.lost: set[int] = set()
        """Runs that another worker took or that the server ended: they are its."""
        self.process: Process | None = None
        self._checked_requests = 0
        self._over: set[int] = set()
        self._patch()

    def _patch(self) -> None:
        fake_time = SimpleNamespace(monotonic=self.clock.monotonic)
        changes: list[tuple[Any, str, Any]] = [
            (backoff, "waits", lambda *about: itertools.repeat(0.0)),
            (acceptance, "REFUSED_PAUSE_SECONDS", 0.0),
            (fake_api_module, "PAUSE_SECONDS", 0.0),
            (scripted_source_module, "PAUSE_SECONDS", 0.0),
            (worker_module, "time", fake_time),
            (acceptance, "time", fake_time),
            (gevent.get_hub(), "handle_error", self._greenlet_error),
        ]
        for module in (acceptance, spool_module, run_folder):
            changes.append((module, "boot_id", lambda: self.machine.boot))
        self._undo = [(on, name, getattr(on, name)) for on, name, _ in changes]
        for on, name, value in changes:
            setattr(on, name, value)
        logging.getLogger("job_runner_worker").addHandler(self.complaints)

    def _greenlet_error(self, context: object, *error: Any) -> None:
        self.errors.append(error[1])

    @initialize(
        kind=st.sampled_from(["original", "ours", "batches"]), runs=st.integers(1, 4)
    )
    def begin(self, kind: str, runs: int) -> None:
        self.api = YieldingApi(kind)
        self.api.add_worker("other", "secret")
        self.other = self.api.worker_uri("other")
        self._start()
        for _ in range(runs):
            self.a_run_is_due(is_offered=True)

    def _start(self) -> None:
        self.process = Process(self.place / "spool", self.api, self.machine)

    def _alive(self) -> bool:
        return self.process is not None and not self.process.running.ready()

    def _say(self, *commands: Any) -> None:
        if self.process is not None:
            for command in commands:
                self.process.source.push(command)

    def _ended(self, run_id: int) -> bool:
        return self.api.run(run_id)["return_dts"] is not None

    # What the server says.

    @precondition(lambda self: len(self.run_ids) < MAX_RUNS)
    @rule(is_offered=st.booleans())
    def a_run_is_due(self, is_offered: bool) -> None:
        run_id = self.api.add_run(self.api.add_job(SCRIPT))
        self.run_ids.append(run_id)
        if is_offered:
            self._say(Enqueue(run_id))

    @precondition(lambda self: self.run_ids)
    @rule(data=st.data())
    def a_run_is_offered(self, data: st.DataObject) -> None:
        self._say(Enqueue(data.draw(st.sampled_from(self.run_ids))))

    @precondition(lambda self: self.run_ids)
    @rule(data=st.data(), with_run_id=st.booleans())
    def a_run_is_to_be_killed(self, data: st.DataObject, with_run_id: bool) -> None:
        run_id = data.draw(st.sampled_from(self.run_ids))
        number = self.api.add_kill_request(run_id)
        self.kill_orders.append(Kill(number, run_id if with_run_id else None))
        self._say(self.kill_orders[-1])

    @precondition(lambda self: self.kill_orders)
    @rule(data=st.data())
    def a_kill_is_ordered_again(self, data: st.DataObject) -> None:
        self._say(data.draw(st.sampled_from(self.kill_orders)))

    @rule()
    def the_server_pings(self) -> None:
        self._say(Ping())

    @precondition(lambda self: self.run_ids)
    @rule(data=st.data(), how=st.sampled_from(["takes back", "gives away", "ends"]))
    def the_server_interferes(self, data: st.DataObject, how: str) -> None:
        run_id = data.draw(st.sampled_from(self.run_ids))
        now = datetime.now(UTC)
        if self._ended(run_id):
            return
        if how == "takes back":
            self.api.change_run(run_id, enqueue_dts=None, start_dts=None)
        elif how == "gives away":
            self.lost.add(run_id)
            self.api.change_run(run_id, enqueue_dts=now, worker=self.other)
        else:
            self.lost.add(run_id)
            self.api.change_run(
                run_id, enqueue_dts=now, return_dts=now, return_success=False
            )

    # What goes wrong on the way.

    @rule(about=FAULTS, times=st.integers(1, 3), skip=st.integers(0, 2))
    def a_request_goes_wrong(
        self, about: dict[str, Any], times: int, skip: int
    ) -> None:
        self.api.faults.add(Fault(times=times, skip=skip, **about))

    @rule(down=st.booleans())
    def the_api_is_down_or_up(self, down: bool) -> None:
        self.api.down = down

    # What happens on the machine.

    @rule(turns=st.integers(1, 12))
    def some_turns_pass(self, turns: int) -> None:
        self._turn(turns)

    @rule()
    def much_is_done(self) -> None:
        self._turn(150)

    def _turn(self, turns: int) -> None:
        for _ in range(turns):
            gevent.sleep(0)

    @rule(seconds=st.sampled_from([1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.seconds += seconds
        for script in self.machine.executions.values():
            script.is_time_for_log.set()

    @precondition(lambda self: self.machine.running())
    @rule(data=st.data(), text=st.text("ab\u00e9\n", min_size=1, max_size=5))
    def a_script_prints(self, data: st.DataObject, text: str) -> None:
        script = self.machine.executions[
            data.draw(st.sampled_from(self.machine.running()))
        ]
        script.print(text)
        script.printed += text

    @precondition(lambda self: self.machine.running())
    @rule(data=st.data(), exit_status=st.sampled_from([0, 1]))
    def a_script_ends(self, data: st.DataObject, exit_status: int) -> None:
        run_id = data.draw(st.sampled_from(self.machine.running()))
        self.machine.executions[run_id].end(exit_status)

    @rule(how=st.sampled_from(["crash", "crash", "stop", "reboot"]))
    def another_worker_takes_over(self, how: str) -> None:
        if how == "stop" and self._alive():
            self.process.stop(drain=False)
        self._crash()
        if how == "reboot":
            self.machine.reboot()
        self._start()

    def _crash(self) -> None:
        if self.process is not None:
            self.process.die()
            self.process = None

    # What holds at any time.

    @invariant()
    def nothing_broke(self) -> None:
        assert not self.complaints.seen
        assert not self.errors

    @invariant()
    def every_slot_is_free_or_somebody_s(self) -> None:
        if self._alive():
            worker = self.process.worker
            taken = [live for live in worker._runs.values() if live._on_end]
            assert worker.free_slots == SLOTS - len(taken)

    @invariant()
    def no_more_scripts_run_than_there_are_slots(self) -> None:
        assert len(self.machine.running()) <= SLOTS

    @invariant()
    def no_patch_follows_the_last_one(self) -> None:
        if not hasattr(self, "api"):
            return
        for number in range(self._checked_requests, len(self.api.requests)):
            request = self.api.requests[number]
            if request.method != "PATCH" or "/run/" not in request.path:
                continue
            if request.body.get("with_job") and request.status == 409:
                continue  # So our own server is asked whether a run is to be had.
            assert request.run_id not in self._over, "after the end:\n" + "\n".join(
                str(each) for each in self.api.requests[: number + 1]
            )
            is_taken = request.carried_out or number in self.api.ends_refused
            if request.body.get("return_dts") and is_taken:
                self._over.add(request.run_id)
        self._checked_requests = len(self.api.requests)

    # The end of a history.

    def teardown(self) -> None:
        try:
            if hasattr(self, "api"):
                self._finish()
        finally:
            if self.process is not None:
                self.process.die()
            for on, name, value in self._undo:
                setattr(on, name, value)
            logging.getLogger("job_runner_worker").removeHandler(self.complaints)
            shutil.rmtree(self.place)

    def _finish(self) -> None:
        """Let everything go well from now on; then nothing may be left over."""
        self.api.down = False
        self.api.faults.clear()
        if not self._alive():
            self._crash()
            self._start()
        self._say(*(Enqueue(run_id) for run_id in self.run_ids))
        self._say(*self._unheard_kills())
        self._turn(300)  # what has been said is heard, what was left is taken up
        try:
            turn_until(self._is_over, "every run ends and is reported")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._situation()}") from None
        self.every_slot_is_free_or_somebody_s()
        self.no_patch_follows_the_last_one()
        self.nothing_broke()
        assert self.process is not None
        assert self.process.worker.free_slots == SLOTS
        for run_id in self.run_ids:
            self._check_run(run_id)
        for order in self.kill_orders:
            self._check_kill(order.kill_request_id)
        self.process.stop(drain=True)
        left = [path.name for path in (self.place / "spool").glob("[0-9]*")]
        assert not left
        kept = {int(path.name) for path in (self.place / "spool/failed").glob("[0-9]*")}
        assert kept <= self.lost

    def _situation(self) -> str:
        assert self.process is not None
        worker = self.process.worker
        states = {run_id: live.state for run_id, live in worker._runs.items()}
        return "\n".join(
            [
                f"in hand: {states}, waiting: {list(worker.waiting)}",
                f"kills: {worker._kills._is_under_way}",
                f"left: {[each for each in self.run_ids if not self._ended(each)]}",
                f"orders: {self._unheard_kills()}",
                f"scripts: {self.machine.running()} of {self.machine.begun}",
                f"runs: {[self.api.run(run_id) for run_id in self.run_ids]}",
                *(str(request) for request in self.api.requests[-60:]),
            ]
        )

    def _unheard_kills(self) -> list[Kill]:
        return [
            order
            for order in self.kill_orders
            if self.api.kill_request(order.kill_request_id)["enqueue_dts"] is None
        ]

    def _is_over(self) -> bool:
        assert self.process is not None
        assert self._alive(), self.process.error
        for run_id in self.machine.running():
            self.machine.executions[run_id].end()
        waiting = self.process.worker.waiting or self.process.worker._kills.under_way
        if self.process.worker._runs or waiting:
            return False
        left = [
            run_id
            for run_id in self.run_ids
            if not self._ended(run_id) and run_id not in self.lost
        ]
        unheard = self._unheard_kills()
        if self.process.source._queue.empty():
            # As a broadcaster does, until it is heard.
            self._say(*(Enqueue(run_id) for run_id in left), *unheard)
            self._turn(20)
        return not left and not unheard

    def _check_run(self, run_id: int) -> None:
        if run_id in self.lost:
            return
        ends = [
            request
            for request in self.api.requests_like("PATCH", RUN_PATH, run_id)
            if request.carried_out and request.body.get("return_dts")
        ]
        assert len(ends) == 1
        script = self.machine.executions.get(run_id)
        if script is not None:
            assert (self.api.log(run_id) or "").startswith(script.printed)
            assert script.outcome is not None
            assert self.api.run(run_id)["return_success"] is script.outcome.success

    def _check_kill(self, number: int) -> None:
        row = self.api.kill_request(number)
        assert row["enqueue_dts"] is not None
        assert row["execute_dts"] is not None


def test_any_history_ends_with_exactly_one_report_of_each_run() -> None:
    run_state_machine_as_test(
        WorkerModel, settings=examples(150, stateful_step_count=30)
    )
