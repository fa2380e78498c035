"""Which waiting run is offered to which worker, and when again.

An offer is to one worker of the run's pool and holds for OFFER_SECONDS; then the run
is offered to another one, if there is one. A worker is offered what it has free slots
for, and as much again: it then needs nobody to go on when a script ends. That is
also the bound for an original worker, which claims whatever it hears.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from job_runner_worker.server import lifecycle
from job_runner_worker.server.models import Run, Worker
from job_runner_worker.server.pulse import Pulse
from job_runner_worker.server.roster import Candidate, Look, Roster

OFFER_SECONDS = 5.0
MAX_NOTED_LAPSES = 500
MAX_BATCHES = 50
BATCH = 64
"""How many runs are looked at together."""
_OFFER = timedelta(seconds=OFFER_SECONDS)


@dataclass(frozen=True, slots=True)
class Offer:
    """A run that one worker may claim, until another is asked."""

    run_id: int
    api_key: str
    until: datetime
    job_id: int = 0
    schedule_id: int | None = None


class OfferBook:
    """The offers that stand. Of what it remembers, nothing is needed for long."""

    def __init__(
        self,
        choose: Callable[[Sequence[Candidate]], Candidate] = random.choice,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._choose = choose
        self._roster = Roster(Pulse(monotonic), monotonic)
        self._standing: dict[int, Offer] = {}
        self._lapsed: dict[int, None] = {}
        """Runs that a worker with free slots did not claim: others go first."""
        self.is_short = False
        """Whether runs wait because every worker has as much as it may have."""

    def freed(self, worker_id: int | None) -> None:
        """Note that a worker may have a slot more; None: that anybody may."""
        self._roster.freed(worker_id)

    def forget(self, run_id: int) -> None:
        """Note that a run does not wait any more."""
        self._standing.pop(run_id, None)
        self._lapsed.pop(run_id, None)

    def drop(self, api_key: str) -> None:
        """Note that a worker did not hear what it was offered, nor pings."""
        self._roster.pulse.begin_again(api_key)
        self._roster.begin_again(api_key)
        for offer in tuple(self._standing.values()):
            if offer.api_key == api_key:
                del self._standing[offer.run_id]

    def next_lapse(self) -> datetime | None:
        """Return when the next offer ends."""
        return min((offer.until for offer in self._standing.values()), default=None)

    def make(self, now: datetime, listening: Collection[str]) -> list[Offer]:
        """Return new offers of due runs, noted in the database.

        ``listening``: the keys of workers that hear what is sent.
        """
        with transaction.atomic():
            self._refresh(now)
            look = self._let_lapse(now, listening)
            chosen = {}
            self.is_short = False
            turns = {each.job_id: each.schedule_id for each in self._standing.values()}
            for run in self._due(now, look):
                candidate = self._pick(run, look)
                turn = turns.get(run["job"], run["schedule_id"])
                if candidate is None or turn != run["schedule_id"]:
                    continue
                candidate.take()
                turns[run["job"]] = run["schedule_id"]
                chosen[run["id"]] = candidate.worker, run["job"], turn
            workers = {run_id: each.pk for run_id, (each, *_) in chosen.items()}
            wait = lifecycle.offer(workers, now)
        made = [
            Offer(run_id, worker.api_key, now + _OFFER, job_id, schedule_id)
            for run_id, (worker, job_id, schedule_id) in chosen.items()
            if run_id in wait
        ]
        self._standing.update({offer.run_id: offer for offer in made})
        return made

    def _refresh(self, now: datetime) -> None:
        """Learn what others have offered; nobody else does where there is one book."""

    def _let_lapse(self, now: datetime, listening: Collection[str]) -> Look:
        """End old offers; return who may be made new ones."""
        lapsed: list[Offer] = []
        standing: Counter[str] = Counter()
        for offer in tuple(self._standing.values()):
            # One that holds longer than any can was made before the clock went back.
            if now < offer.until <= now + 2 * _OFFER:
                standing[offer.api_key] += 1
            else:
                del self._standing[offer.run_id]
                lapsed.append(offer)
        asked = {offer.api_key for offer in lapsed}
        rows = Worker.objects.filter(api_key__in=asked).order_by() if asked else ()
        numbers = {each.api_key: each.pk for each in rows}
        for worker_id in numbers.values():
            self._roster.freed(worker_id)
        look = Look(self._roster, listening, standing)
        self._note_lapsed(lapsed, look, numbers)
        return look

    def _note_lapsed(
        self, lapsed: Sequence[Offer], look: Look, numbers: Mapping[str, int]
    ) -> None:
        """Note which runs a worker left alone though it had free slots."""
        look.read(numbers.values())
        for offer in lapsed:
            worker_id = numbers.get(offer.api_key)
            candidate = None if worker_id is None else look.worker(worker_id)
            if candidate is not None:
                held_free = candidate.free + look.standing[offer.api_key]
                if held_free > 0:
                    self._lapsed[offer.run_id] = None
        for run_id in list(self._lapsed)[:-MAX_NOTED_LAPSES]:
            del self._lapsed[run_id]

    def _due(self, now: datetime, look: Look) -> Iterable[dict[str, Any]]:
        """Yield due runs that nobody is asked about, in the order they are due.

        One batch after another: a pool whose workers are busy does not keep those
        of other pools waiting.
        """
        seen: set[int] = set()
        lapsed = tuple(self._lapsed)
        for group in (~Q(pk__in=lapsed), Q(pk__in=lapsed)) if lapsed else (Q(),):
            for _ in range(MAX_BATCHES):
                rows = _waiting(now).filter(group)
                rows = rows.exclude(pk__in=self._standing.keys() | seen)
                if look.full_pools:
                    rows = rows.exclude(job__worker_pool__in=look.full_pools)
                if look.away:
                    rows = rows.filter(Q(worker=None) | ~Q(worker__in=look.away))
                batch = list(rows[:BATCH])
                seen.update(run["id"] for run in batch)
                look.prepare(
                    Counter(
                        run["job__worker_pool"]
                        for run in batch
                        if run["worker"] is None
                    )
                )
                yield from batch
                if len(batch) < BATCH:
                    break
        self.is_short |= bool(look.full_pools)

    def _pick(self, run: Mapping[str, Any], look: Look) -> Candidate | None:
        pool_id, only = run["job__worker_pool"], run["worker"]
        if only is None:
            known = look.of_pool(pool_id)
        else:
            found = look.worker(only)
            known = [found] if found is not None and pool_id in found.pools else []
        possible = [each for each in known if each.room > 0]
        free = [each for each in possible if each.free > 0]
        for group in (free, possible):
            others = [each for each in group if each.worker.pk != run["offered_to"]]
            if others or group:
                return self._choose(others or group)
        if only is not None:
            look.away.add(only)
            self.is_short |= bool(known)
        elif look.has_no_room(pool_id):
            self.is_short = True
        return None


def holds_until(offered_at: datetime) -> datetime:
    """Return when an offer ends."""
    return offered_at + _OFFER


def next_due(now: datetime) -> datetime | None:
    """Return when the next run is due that is not due yet."""
    later = Run.objects.filter(enqueue_dts=None, schedule_dts__gt=now)
    due: datetime | None = (
        later.order_by("schedule_dts").values_list("schedule_dts", flat=True).first()
    )
    return due


def _waiting(now: datetime) -> QuerySet[Run, dict[str, Any]]:
    """Return runs that are due and may be offered: not to hosts, which ask."""
    return (
        due(now)
        .filter(Q(host="") | Q(worker__isnull=False))
        .order_by("schedule_dts", "id")
        .values("id", "worker", "offered_to", "job", "schedule_id", "job__worker_pool")
    )


def due(now: datetime) -> QuerySet[Run]:
    """Return runs that are due; a manual run minds no switch but those of workers.

    Those of a job that is run just now wait, but for runs that were scheduled together.
    """
    enabled = Q(is_manual=True) | Q(
        job__enqueue_is_enabled=True,
        job__template__enqueue_is_enabled=True,
        job__template__project__enqueue_is_enabled=True,
    )
    others = Run.objects.filter(
        job=OuterRef("job"), enqueue_dts__isnull=False, return_dts=None
    ).exclude(schedule_id=OuterRef("schedule_id"))
    return Run.objects.filter(
        enabled,
        ~Exists(others),
        enqueue_dts=None,
        return_dts=None,
        schedule_dts__lte=now,
    )
