"""How long to wait before a request is tried again. Pure.

Full jitter: each wait is drawn between nothing and a bound that doubles, so that
workers that lost one server at one moment do not come back at one moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

FIRST_BOUND_SECONDS = 0.5
MAX_BOUND_SECONDS = 60.0


def bounds(
    first_seconds: float = FIRST_BOUND_SECONDS,
    max_seconds: float = MAX_BOUND_SECONDS,
) -> Iterator[float]:
    """Yield the upper bounds of the waits, in seconds, without end."""
    bound = first_seconds
    while True:
        yield min(bound, max_seconds)
        bound = min(bound * 2, max_seconds)


def waits(
    first_seconds: float = FIRST_BOUND_SECONDS,
    max_seconds: float = MAX_BOUND_SECONDS,
    uniform: Callable[[float, float], float] = random.uniform,
) -> Iterator[float]:
    """Yield the waits themselves, in seconds, without end."""
    for bound in bounds(first_seconds, max_seconds):
        yield uniform(0.0, bound)
