"""What this worker has given up or found wrong since its start, for `status`."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

MAX_REMEMBERED = 1_000
"""Of the runs of another host; an order is repeated, the memory is bounded."""


class Ledger:
    """Counts, and nothing that has to outlive the process."""

    def __init__(self) -> None:
        self.given_up: Counter[str] = Counter()
        """How often, by what it was: "reports refused", "folders set aside" ..."""
        self.claimed_elsewhere: dict[int, datetime] = {}
        """Runs that were claimed with our key and not by us, and when it was seen."""

    def gave_up(self, what: str, times: int = 1) -> None:
        """Count something that nobody will try again by himself."""
        self.given_up[what] += times

    def saw_claim_elsewhere(self, run_id: int) -> bool:
        """Note a run that somebody else has claimed as us; return whether it is new."""
        if run_id in self.claimed_elsewhere:
            return False
        if len(self.claimed_elsewhere) >= MAX_REMEMBERED:
            del self.claimed_elsewhere[next(iter(self.claimed_elsewhere))]
        self.claimed_elsewhere[run_id] = datetime.now(UTC)
        return True
