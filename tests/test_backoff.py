"""Waits before another try."""

from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from job_runner_worker import backoff

FEW_EXAMPLES = settings(max_examples=50, deadline=None)


def test_bounds_double_up_to_a_minute():
    assert list(islice(backoff.bounds(), 9)) == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_bounds_never_end_and_never_overflow():
    assert list(islice(backoff.bounds(), 5000, 5001)) == [60.0]


def test_a_first_bound_above_the_maximum_is_the_maximum():
    assert list(islice(backoff.bounds(10.0, 3.0), 3)) == [3.0, 3.0, 3.0]


def test_a_wait_is_drawn_between_nothing_and_its_bound():
    drawn_from = []

    def uniform(low, high):
        drawn_from.append((low, high))
        return high / 4

    waits = list(islice(backoff.waits(1.0, 4.0, uniform), 4))

    assert drawn_from == [(0.0, 1.0), (0.0, 2.0), (0.0, 4.0), (0.0, 4.0)]
    assert waits == [0.25, 0.5, 1.0, 1.0]


@FEW_EXAMPLES
@given(st.floats(0.001, 10), st.floats(0.001, 100))
def test_no_wait_is_negative_or_above_its_bound(first, most):
    bounds = islice(backoff.bounds(first, most), 20)
    for bound, wait in zip(bounds, backoff.waits(first, most), strict=False):
        assert 0 <= wait <= bound <= most


def test_two_workers_do_not_wait_alike():
    assert list(islice(backoff.waits(), 5)) != list(islice(backoff.waits(), 5))
