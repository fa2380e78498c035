"""How many examples a fuzz test draws: few and always the same ones, or many.

FAULT_EXAMPLES=2000 draws that many, other ones each time; a failure says with which
`@reproduce_failure` it comes back.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

VARIABLE = "FAULT_EXAMPLES"


def examples(few: int, **more: Any) -> settings:
    """Return the settings of a test that draws ``few`` examples unless told more."""
    asked_for = int(os.environ.get(VARIABLE, "0"))
    return settings(
        max_examples=asked_for or few,
        derandomize=not asked_for,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        **more,
    )
