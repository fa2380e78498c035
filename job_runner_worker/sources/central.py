"""What all sources of central orders share: claims over REST."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from job_runner_worker.models import Kill, Run
from job_runner_worker.sources.base import Offer, Source

FAMILY = ("broadcast", "channel", "polling")
"""The names of these sources: each takes up the runs of the others."""


class Claims(Protocol):
    """The part of claims.CentralClaims that a source of central orders needs."""

    def offered(self, run_id: int) -> Offer:
        """See sources.base.Source."""

    def look(self, run_id: int, *, patient: bool) -> Offer:
        """See sources.base.Source."""

    def claim(self, offer: Offer, at: datetime) -> bool:
        """See sources.base.Source."""

    def fetch(self, offer: Offer) -> Run:
        """See sources.base.Source."""

    def unfinished(self) -> list[Offer]:
        """See sources.base.Source."""

    def hand_back(self, offer: Offer) -> None:
        """See sources.base.Source."""

    def kill_target(self, order: Kill) -> int | None:
        """See sources.base.Source."""


class CentralSource(Source):
    """Base of the sources whose runs are the central server's."""

    sender = "central"

    def __init__(self, claims: Claims) -> None:
        self._claims = claims

    def takes_up(self, name: str) -> bool:
        """See sources.base.Source. By which way a run came does not matter later."""
        return name in FAMILY

    def offered(self, run_id: int) -> Offer:
        """See sources.base.Source."""
        return self._claims.offered(run_id)

    def look(self, run_id: int, *, patient: bool = False) -> Offer:
        """See sources.base.Source."""
        return self._claims.look(run_id, patient=patient)

    def claim(self, offer: Offer, at: datetime) -> bool:
        """See sources.base.Source."""
        return self._claims.claim(offer, at)

    def fetch(self, offer: Offer) -> Run:
        """See sources.base.Source."""
        return self._claims.fetch(offer)

    def unfinished(self) -> list[Offer]:
        """See sources.base.Source."""
        return self._claims.unfinished()

    def hand_back(self, offer: Offer) -> None:
        """See sources.base.Source."""
        self._claims.hand_back(offer)

    def kill_target(self, order: Kill) -> int | None:
        """See sources.base.Source."""
        return self._claims.kill_target(order)
