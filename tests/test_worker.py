"""The worker between stand-ins: offers, slots and claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from in_process import LIMIT_SECONDS, core, let_pass
from waiting import eventually

from job_runner_worker.errors import ApiError
from job_runner_worker.models import Enqueue
from job_runner_worker.sources.base import Holder
from job_runner_worker.testing import ScriptedSource

DOWN = ApiError("down", 503, transient=True)
UNSURE = ApiError("no answer", transient=True)
REFUSED = ApiError("refused", 403)
pytestmark = pytest.mark.usefixtures("greenlet_errors")


def source_with(*run_ids: int) -> ScriptedSource:
    source = ScriptedSource()
    for run_id in run_ids:
        source.add_run(run_id)
    return source


def test_an_offered_run_is_claimed_executed_and_reported(tmp_path: Path) -> None:
    with core(tmp_path, source=source_with(3)) as worker:
        worker.say(Enqueue(3))
        execution = worker.executor.wait_for_start(3)
        execution.print("hello\n")
        execution.end()
        assert worker.reporter.wait_for_finish(3).success
        worker.wait_until_idle()
        names = [name for name in worker.reporter.names_for(3) if name != "logged"]
        assert names == ["enqueued", "started", "finished"]
        assert worker.reporter.calls_for(3)[-2] == ("logged", 3, "hello\n", True)
        assert worker.source.done_commands == [Enqueue(3)]
        assert worker.folders() == []
        assert execution.run == worker.source.runs[3].run


def test_an_offer_that_is_repeated_is_claimed_once(tmp_path: Path) -> None:
    with core(tmp_path, source=source_with(3)) as worker:
        worker.say(*[Enqueue(3)] * 5)
        execution = worker.executor.wait_for_start(3)
        worker.say(*[Enqueue(3)] * 5)
        execution.end()
        worker.wait_until_idle()
        worker.say(Enqueue(3))
        worker.wait_until_idle()
        assert [name for name, _ in worker.source.calls].count("claim") == 1
        assert worker.executor.starts == [3]


def test_nothing_is_asked_about_an_offer_while_every_slot_is_taken(
    tmp_path: Path,
) -> None:
    with core(tmp_path, source=source_with(1, 2, 3, 4, 5)) as worker:
        worker.say(*map(Enqueue, (1, 2, 3, 4, 5)))
        for run_id in (1, 2):
            worker.executor.wait_for_start(run_id)
        assert {run_id for _, run_id in worker.source.calls} == {0, 1, 2}
        for run_id in (1, 2, 3, 4, 5):
            worker.executor.wait_for_start(run_id).end()
            worker.reporter.wait_for_finish(run_id)
        assert sorted(worker.executor.starts) == [1, 2, 3, 4, 5]
        assert worker.executor.starts[2:] == [3, 4, 5]


def test_an_offer_that_has_waited_too_long_is_forgotten(tmp_path: Path) -> None:
    with core(
        tmp_path, source=source_with(1, 2), concurrent_jobs=1, offer_ttl_seconds=0.05
    ) as worker:
        worker.say(Enqueue(1))
        execution = worker.executor.wait_for_start(1)
        worker.say(Enqueue(2))
        let_pass(0.1)
        execution.end()
        worker.wait_until_idle()
        assert ("look", 2) not in worker.source.calls
        worker.say(Enqueue(2))
        worker.executor.wait_for_start(2).end()


def test_a_repeated_offer_waits_anew(tmp_path: Path) -> None:
    with core(
        tmp_path, source=source_with(1, 2), concurrent_jobs=1, offer_ttl_seconds=0.2
    ) as worker:
        worker.say(Enqueue(1))
        execution = worker.executor.wait_for_start(1)
        for _ in range(4):
            worker.say(Enqueue(2))
            let_pass(0.1)
        worker.say(Enqueue(2))
        execution.end()
        worker.executor.wait_for_start(2).end()


def test_no_claim_is_sent_when_the_look_took_too_long(tmp_path: Path) -> None:
    source = source_with(1, 2)
    offer = source._offer

    def slow_look(run_id: int) -> Any:
        let_pass(0.1)
        return offer(run_id)

    source.overrides["look"] = slow_look
    with core(tmp_path, source=source, offer_ttl_seconds=0.05) as worker:
        worker.say(Enqueue(1))
        eventually(lambda: ("look", 1) in source.calls, "the look")
        worker.wait_until_idle()
        assert ("claim", 1) not in source.calls


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_claim_without_an_answer_is_looked_at_before_anything_else(
    tmp_path: Path, is_stored: bool
) -> None:
    source = source_with(3)

    def claim(*_: object) -> bool:
        del source.overrides["claim"]
        if is_stored:
            source.runs[3].holder = Holder.THIS_WORKER
        raise UNSURE

    source.overrides["claim"] = claim
    with core(tmp_path, source=source) as worker:
        worker.say(Enqueue(3))
        worker.executor.wait_for_start(3, LIMIT_SECONDS).end()
        worker.wait_until_idle()
    asked = [name for name, _ in source.calls if name in ("look", "claim")]
    again = [] if is_stored else ["claim"]
    assert asked == ["look", "claim", "look", *again]
    assert worker.executor.starts == [3]


def test_a_claim_without_an_answer_is_not_repeated_after_the_offer_s_time(
    tmp_path: Path,
) -> None:
    source = source_with(3)

    def claim(*_: object) -> bool:
        let_pass(0.1)
        raise UNSURE

    source.overrides["claim"] = claim
    with core(tmp_path, source=source, offer_ttl_seconds=0.05) as worker:
        worker.say(Enqueue(3))
        eventually(lambda: source.calls.count(("look", 3)) == 2, "the second look")
        worker.wait_until_idle()
        assert source.calls.count(("claim", 3)) == 1
        assert worker.folders() == []


@pytest.mark.parametrize("is_taken_meanwhile", [False, True])
def test_a_claim_that_arrives_after_it_was_given_up_is_handed_back(
    tmp_path: Path, is_taken_meanwhile: bool
) -> None:
    source = source_with(3)

    def claim(*_: object) -> bool:
        del source.overrides["claim"]
        let_pass(0.6)
        raise UNSURE

    source.overrides["claim"] = claim
    options = {"offer_ttl_seconds": 0.5, "late_claim_seconds": 0.7}
    with core(tmp_path, source=source, **options) as worker:
        worker.say(Enqueue(3))
        eventually(lambda: source.refusals, "the offer to be given up")
        if is_taken_meanwhile:
            worker.say(Enqueue(3))
            execution = worker.executor.wait_for_start(3)
            let_pass(0.8)
            execution.end()
            assert worker.reporter.wait_for_finish(3).success
            assert ("hand_back", 3) not in source.calls
        else:
            source.runs[3].holder = Holder.THIS_WORKER  # the claim arrives
            eventually(lambda: ("hand_back", 3) in source.calls, "the run handed back")
            worker.wait_until_idle()
            assert worker.worker.free_slots == worker.worker.options.concurrent_jobs
            assert worker.executor.starts == []


@pytest.mark.parametrize(
    "holder", [Holder.ANOTHER_WORKER, Holder.THIS_WORKER, Holder.NOBODY]
)
def test_a_run_that_is_not_free_is_left_alone(tmp_path: Path, holder: Holder) -> None:
    source = source_with(3)
    source.runs[3].holder = holder
    source.runs[3].ended = holder is Holder.NOBODY
    source.overrides["unfinished"] = lambda: []
    with core(tmp_path, source=source) as worker:
        worker.say(Enqueue(3))
        eventually(lambda: ("look", 3) in source.calls, "the look")
        worker.wait_until_idle()
        assert ("claim", 3) not in source.calls
        assert worker.folders() == []


def test_whoever_comes_second_lets_go(tmp_path: Path) -> None:
    source = source_with(3, 4)
    source.overrides["claim"] = lambda offer, at: offer.run_id == 4
    with core(tmp_path, source=source, concurrent_jobs=1) as worker:
        worker.say(Enqueue(3), Enqueue(4))
        worker.executor.wait_for_start(4).end()
        worker.wait_until_idle()
        assert worker.executor.starts == [4]
        assert worker.folders() == []


@pytest.mark.parametrize("method", ["look", "claim"])
@pytest.mark.parametrize("error", [DOWN, REFUSED])
def test_an_offer_that_cannot_be_claimed_frees_its_slot(
    tmp_path: Path, method: str, error: ApiError
) -> None:
    source = source_with(3, 4)

    def fail(*_: object) -> Any:
        raise error

    source.overrides[method] = fail
    with core(
        tmp_path, source=source, concurrent_jobs=1, offer_ttl_seconds=0.3
    ) as worker:
        worker.say(Enqueue(3))
        eventually(lambda: (method, 3) in source.calls, f"the {method}")
        worker.wait_until_idle()
        del source.overrides[method]
        worker.say(Enqueue(4))
        worker.executor.wait_for_start(4).end()
        worker.reporter.wait_for_finish(4)


def test_a_job_that_cannot_be_read_fails_the_run(tmp_path: Path) -> None:
    source = source_with(3)
    source.fail_next("fetch", ApiError("GET job: 401", 401))
    with core(tmp_path, source=source) as worker:
        worker.say(Enqueue(3))
        outcome = worker.reporter.wait_for_finish(3)
        assert outcome.reason == "the job cannot be read: GET job: 401"
        assert not outcome.success
        assert ("started", 3, None) in worker.reporter.calls
        assert worker.executor.starts == []
