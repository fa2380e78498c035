"""The contract of a source: where orders come from, and whose the runs are."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from job_runner_worker.models import Command, Kill, Run

STOPPING = "stopping"
"""The reason of `Source.refused` where the worker takes nothing any more."""


class Holder(enum.Enum):
    """Whose a run is, as its sender sees it."""

    NOBODY = "nobody"
    THIS_WORKER = "this worker"
    ANOTHER_WORKER = "another worker"


@dataclass(frozen=True, slots=True)
class Offer:
    """What the sender says of a run at this moment. URIs are the sender's names."""

    run_id: int
    uri: str
    job_uri: str
    log_uri: str | None
    holder: Holder
    ended: bool
    is_seen: bool = True
    """False: the sender has not been asked yet; the claim will bring the rest."""


class Source:
    """Base of all sources.

    The worker runs `commands` in a greenlet of its own and calls the other methods
    from many greenlets. Whatever talks to the sender raises ApiError: transient if
    the sender may answer later, permanent if it said no.
    """

    name: str = "source"
    """Stands in run folders: the next worker finds the source of a run by it."""

    sender: str = "central"
    """Who is behind it: reporters of the same sender are told of its runs."""

    offer_ttl_seconds: float | None = None
    """How long an offer stands while every slot is taken; None: as configured."""

    def takes_up(self, name: str) -> bool:
        """Return whether runs from a source of this name are this one's, too."""
        return name == self.name

    def commands(self) -> Iterator[Command]:
        """Yield orders until `close` is called. Called once."""
        raise NotImplementedError

    def wait_until_listening(self) -> None:
        """Return when orders are heard; at once where nobody can tell."""

    def offered(self, run_id: int) -> Offer:
        """Return what is known of a run that is about to be claimed.

        By default the sender is asked. A source whose claims bring all that a look
        would, and are refused where anybody has the run, may do without (`Offer`
        that is not seen).
        """
        return self.look(run_id)

    def look(self, run_id: int, *, patient: bool = False) -> Offer:
        """Return what the sender says of a run now.

        Called before a claim, when one got no answer, and for every run taken up from
        an earlier worker (then ``patient``: wait for the sender for as long as it
        takes).
        """
        raise NotImplementedError

    def claim(self, offer: Offer, at: datetime) -> bool:
        """Make the run this worker's; False where somebody else was faster.

        One try: a transient ApiError means that nobody knows whether it was stored.
        """
        raise NotImplementedError

    def fetch(self, offer: Offer) -> Run:
        """Return the run with its script. Waits for the sender.

        Called while the claim is under way; after it where the offer was not seen.
        """
        raise NotImplementedError

    def unfinished(self) -> list[Offer]:
        """Return the runs that the sender believes to be with this worker.

        Called once, at start. Sources without such a memory return none.
        """
        return []

    def hand_back(self, offer: Offer) -> None:
        """Let the sender offer an interrupted run again."""

    def kill_target(self, order: Kill) -> int | None:
        """Return which run a kill order means, None where nothing is to be done.

        Waits for the sender where the order itself does not say.
        """
        return order.run_id

    def done(self, command: Command) -> None:
        """Take note that an order was carried out."""

    def refused(self, command: Command, reason: str) -> None:
        """Take note that an order was not carried out, and why."""

    def close(self) -> None:
        """End `commands`. Called once, last of all when the worker stops."""
