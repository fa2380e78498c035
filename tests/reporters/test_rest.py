"""What the central API is told, against its rules in memory."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from job_runner_worker import __version__, backoff
from job_runner_worker.errors import ApiError
from job_runner_worker.models import Outcome, Run, Usage
from job_runner_worker.reporters.rest import RestOptions, RestReporter
from job_runner_worker.testing import FakeApi, Fault

NOW = datetime(2026, 11, 22, 2, 26, 2, 104471, tzinfo=UTC)
AT = "2026-11-22 02:26:02.104471+00:00"
END = Outcome(0, "", NOW)
QUICK_BOUNDS = [0.5, 1, 2, 4, 8, 16, 32, 60]


class Reported:
    """A reporter, the API it tells, and how long it slept."""

    def __init__(self, original: bool, is_ours: bool = False) -> None:
        self.api = FakeApi(original=original)
        self.sleeps: list[float] = []
        self.on_sleep = lambda: None
        options = RestOptions("/api/v1/run_log/", "/api/v1/kill_request/", 4)
        self.reporter = RestReporter(
            self.api,
            options,
            self.api.worker_uri,
            self._sleep,
            is_of_our_server=lambda: is_ours,
        )
        self.run = self.add_run()

    def add_run(self) -> Run:
        job_id = self.api.add_job("#!/bin/sh\n")
        run_id = self.api.add_run(job_id, enqueue_dts=AT, worker=self.api.worker_uri())
        uri = f"/api/v1/run/{run_id}/"
        return Run(run_id, uri, str(job_id), "", "#!/bin/sh\n")

    def fail(self, kind: Any, method: str, path: str = "", **more: Any) -> Fault:
        return self.api.faults.add(Fault(kind, method, path, **more))

    def asked(self) -> list[str]:
        return [f"{r.method} {r.path}" for r in self.api.requests]

    def _sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        assert len(self.sleeps) < 100, "this goes on for ever"
        self.on_sleep()


@pytest.fixture(params=[True, False], ids=["original", "ours"])
def told(request: pytest.FixtureRequest) -> Reported:
    return Reported(request.param)


def test_it_says_that_it_counts() -> None:
    assert RestReporter.acknowledges


@pytest.mark.parametrize("pid", [4711, None])
def test_start_and_pid_are_one_patch(told: Reported, pid: int | None) -> None:
    told.reporter.started(told.run, pid, NOW)
    assert told.api.patches_of(told.run.id) == [{"start_dts": AT, "pid": pid}]


def test_the_first_log_is_posted_and_the_next_ones_patched(told: Reported) -> None:
    for content in ("a", "ab", "abc"):
        told.reporter.logged(told.run, content, final=content == "abc")
    assert told.api.log(told.run.id) == "abc"
    assert told.asked() == ["POST /api/v1/run_log/", *["PATCH /api/v1/run_log/1/"] * 2]


def test_a_log_that_the_run_came_with_is_patched(told: Reported) -> None:
    uri = told.api.add_log(told.run.id, "old", log_id=25)
    run = Run(told.run.id, told.run.uri, "1", "", "", uri)
    told.reporter.logged(run, "new", final=True)
    assert told.asked() == ["PATCH /api/v1/run_log/25/"]
    assert told.api.log(run.id) == "new"


def test_a_live_log_is_tried_once(told: Reported) -> None:
    told.fail("status", "POST", status=503)
    with pytest.raises(ApiError) as raised:
        told.reporter.logged(told.run, "a", final=False)
    assert raised.value.transient
    assert (told.api.count("POST"), told.sleeps) == (1, [])


@pytest.mark.parametrize("kind", ["drop", "lose_answer", "status", "status_after"])
def test_a_post_without_a_good_answer_leaves_one_log(told: Reported, kind: str) -> None:
    told.fail(kind, "POST", status=500)
    told.reporter.logged(told.run, "a", final=True)
    assert told.api.log(told.run.id) == "a"
    stored = [r for r in told.api.requests_like("POST") if r.carried_out]
    assert len(stored) == 1
    # Looked at before it was tried again.
    assert told.asked()[1] == f"GET {told.run.uri}"


def test_a_log_that_somebody_made_meanwhile_is_patched(told: Reported) -> None:
    told.api.add_log(told.run.id, "somebody's")
    told.reporter.logged(told.run, "ours", final=True)
    assert told.api.log(told.run.id) == "ours"
    assert len(told.api.requests_like("POST")) == 1


def test_what_is_unsure_after_a_live_log_is_sorted_out_by_the_next(
    told: Reported,
) -> None:
    told.fail("lose_answer", "POST")
    with pytest.raises(ApiError):
        told.reporter.logged(told.run, "a", final=False)
    told.reporter.logged(told.run, "ab", final=True)
    assert told.api.log(told.run.id) == "ab"
    assert told.api.count("POST") == 1


def test_logs_of_many_runs_are_kept_apart(told: Reported) -> None:
    runs = [told.run, told.add_run(), told.add_run()]
    for _ in range(2):
        for run in runs:
            told.reporter.logged(run, f"of {run.id}", final=True)
    assert [told.api.log(run.id) for run in runs] == [f"of {run.id}" for run in runs]


@pytest.mark.parametrize("status", [400, 401, 404, 413])
def test_a_refused_log_is_not_repeated(told: Reported, status: int) -> None:
    told.fail("status", "POST", status=status)
    with pytest.raises(ApiError) as raised:
        told.reporter.logged(told.run, "a", final=True)
    assert (raised.value.status, raised.value.transient) == (status, False)
    assert told.api.count("POST") == 1


def test_a_final_log_waits_as_long_as_it_takes(told: Reported) -> None:
    told.fail("drop", "POST", times=20)
    told.reporter.logged(told.run, "a", final=True)
    assert told.api.log(told.run.id) == "a"
    assert len(told.sleeps) == 20
    bounds = [*QUICK_BOUNDS, *[60.0] * 12]
    assert all(0 <= s <= b for s, b in zip(told.sleeps, bounds, strict=True))


@pytest.mark.parametrize(
    ("outcome", "success"),
    [
        (END, True),
        (Outcome(3, "", NOW), False),
        (Outcome(143, "killed on request 1", NOW), False),
        (Outcome(None, "no such interpreter", NOW), False),
    ],
)
def test_the_end_carries_status_and_reason(
    told: Reported, outcome: Outcome, success: bool
) -> None:
    told.reporter.finished(told.run, outcome)
    assert told.api.patches_of(told.run.id) == [
        {
            "return_dts": AT,
            "return_success": success,
            "exit_status": outcome.exit_status,
            "reason": outcome.reason,
        }
    ]


@pytest.mark.parametrize("kind", ["lose_answer", "status_after"])
def test_an_end_that_was_stored_is_not_sent_again(told: Reported, kind: str) -> None:
    told.fail(kind, "PATCH", status=502)
    told.reporter.finished(told.run, END)
    assert told.asked() == [f"PATCH {told.run.uri}", f"GET {told.run.uri}"]
    assert told.sleeps == []


def test_an_unsure_end_is_not_sent_again_before_the_run_has_been_seen(
    told: Reported,
) -> None:
    told.fail("lose_answer", "PATCH", body_has="return_dts")
    told.fail("status", "GET", status=401, times=2)
    for _ in range(2):
        with pytest.raises(ApiError, match="401"):
            told.reporter.finished(told.run, END)
    told.reporter.finished(told.run, END)
    assert len(told.api.patches_of(told.run.id)) == 1


def test_an_end_that_was_not_stored_is_sent_until_it_is(told: Reported) -> None:
    told.fail("drop", "PATCH", times=5)
    told.reporter.finished(told.run, END)
    assert told.asked() == [f"PATCH {told.run.uri}", f"GET {told.run.uri}"] * 5 + [
        f"PATCH {told.run.uri}"
    ]
    assert told.api.run(told.run.id)["return_success"] is True


def test_a_run_that_ended_before_is_taken_for_acknowledged() -> None:
    told = Reported(original=False)
    told.api.change_run(told.run.id, return_dts=AT, return_success=False)
    told.reporter.finished(told.run, END)
    assert told.asked() == [f"PATCH {told.run.uri}", f"GET {told.run.uri}"]
    assert told.api.run(told.run.id)["return_success"] is False


def test_a_run_that_somebody_handed_back_is_claimed_again_and_then_ended() -> None:
    told = Reported(original=False)
    told.api.change_run(told.run.id, enqueue_dts=None, start_dts=None)
    told.reporter.finished(told.run, END)
    run = told.api.run(told.run.id)
    assert run["enqueue_dts"] and run["return_success"] is True


def test_an_end_that_conflicts_with_another_worker_s_run_is_refused() -> None:
    told = Reported(original=False)
    told.fail("status", "PATCH", f"/run/{told.run.id}/", status=409)
    with pytest.raises(ApiError):
        told.reporter.finished(told.run, END)


def test_a_log_that_conflicts_though_there_is_none_is_refused() -> None:
    told = Reported(original=False)
    told.fail("status", "POST", status=409, times=None)
    with pytest.raises(ApiError):
        told.reporter.logged(told.run, "log", final=True)


@pytest.mark.parametrize("status", [400, 401, 404, 410])
def test_an_end_that_is_refused_is_not_repeated_here(
    told: Reported, status: int
) -> None:
    told.fail("status", "PATCH", status=status)
    with pytest.raises(ApiError) as raised:
        told.reporter.finished(told.run, END)
    assert raised.value.status == status
    assert told.api.count("PATCH") == 1


def test_retry_after_is_the_least_wait_for_an_end(told: Reported) -> None:
    told.fail("status", "PATCH", status=503, headers={"retry-after": "90"})
    told.reporter.finished(told.run, END)
    (wait,) = told.sleeps
    assert 90 <= wait <= 90 + backoff.FIRST_BOUND_SECONDS


USAGE = Usage(0.5, 0.02, 12 * 2**20, 3, 6)


@pytest.mark.parametrize("outcome", [replace(END, usage=USAGE), END])
def test_only_our_server_is_told_what_a_run_has_used(outcome: Outcome) -> None:
    original, ours = Reported(original=True), Reported(False, is_ours=True)
    for told in (original, ours):
        told.reporter.finished(told.run, outcome)
    (plain,) = original.api.patches_of(original.run.id)
    (full,) = ours.api.patches_of(ours.run.id)
    assert plain.keys() == {"return_dts", "return_success", "exit_status", "reason"}
    used = {"usage": asdict(USAGE)} if outcome.usage else {}
    assert full == {**plain, **used}


def test_both_times_of_a_kill_are_patched(told: Reported) -> None:
    kill = told.api.add_kill_request(told.run.id)
    told.reporter.kill_requested(kill, NOW)
    told.reporter.kill_executed(kill, NOW)
    patches = told.api.requests_like("PATCH", f"/kill_request/{kill}/$")
    assert [each.body for each in patches] == [{"enqueue_dts": AT}, {"execute_dts": AT}]


def test_a_ping_tells_time_version_and_slots(told: Reported) -> None:
    told.reporter.pinged(NOW)
    (patch,) = told.api.requests_like("PATCH")
    assert patch.path == told.api.worker_uri()
    assert patch.body == {
        "ping_response_dts": AT,
        "worker_version": __version__,
        "concurrent_jobs": 4,
    }


def test_nothing_is_remembered_of_a_run_that_has_ended(told: Reported) -> None:
    told.fail("lose_answer", "POST")
    told.reporter.logged(told.run, "a", final=True)
    told.reporter.finished(told.run, END)
    told.api.requests.clear()
    other = told.add_run()
    told.reporter.logged(Run(told.run.id, other.uri, "2", "", ""), "b", final=True)
    assert told.asked() == ["POST /api/v1/run_log/"]
