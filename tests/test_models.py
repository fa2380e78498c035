"""The words: states and what may follow them, outcomes."""

import dataclasses
from datetime import UTC, datetime

import pytest

from job_runner_worker.models import TRANSITIONS, Enqueue, Outcome, RunState

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def reachable_from(state):
    found, waiting = set(), [state]
    while waiting:
        for follower in TRANSITIONS[waiting.pop()] - found:
            found.add(follower)
            waiting.append(follower)
    return found


def test_every_state_has_its_followers_and_all_followers_are_states():
    assert set(TRANSITIONS) == set(RunState)
    assert set().union(*TRANSITIONS.values()) <= set(RunState)


def test_every_state_is_reached_from_an_offer():
    assert reachable_from(RunState.OFFERED) == set(RunState) - {RunState.OFFERED}


@pytest.mark.parametrize("state", sorted(set(RunState) - {RunState.REPORTED}))
def test_every_state_leads_to_reported(state):
    assert RunState.REPORTED in reachable_from(state)


@pytest.mark.parametrize("state", RunState)
def test_no_state_comes_back(state):
    assert state not in reachable_from(state)


def test_nothing_follows_reported():
    assert TRANSITIONS[RunState.REPORTED] == frozenset()


def test_nothing_is_reported_before_it_has_ended():
    into_reported = {
        state for state in RunState if RunState.REPORTED in TRANSITIONS[state]
    }
    assert into_reported == {RunState.ENDED}


def test_nothing_starts_before_it_is_claimed():
    into_starting = {
        state for state in RunState if RunState.STARTING in TRANSITIONS[state]
    }
    assert into_starting == {RunState.CLAIMED}


@pytest.mark.parametrize(
    ("exit_status", "reason", "success"),
    [
        (0, "", True),
        (1, "", False),
        (143, "", False),
        (0, "killed", False),
        (143, "killed", False),
        (None, "", False),
        (None, "no such interpreter", False),
    ],
)
def test_success_is_status_0_of_the_scripts_own_accord(exit_status, reason, success):
    assert Outcome(exit_status, reason, NOW).success is success


def test_words_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Enqueue(1).run_id = 2
