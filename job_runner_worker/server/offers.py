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
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, QuerySet

from job_runner_worker.server import lifecycle
from job_runner_worker.server.models import Run, Worker
from job_runner_worker.server.pulse import Pulse

OFFER_SECONDS = 5.0
DEFAULT_SLOTS = 4
"""Of a worker that has not said yet how many it has."""
MAX_NOTED_LAPSES = 500
MAX_BATCHES = 50
_OFFER = timedelta(seconds=OFFER_SECONDS)


@dataclass(frozen=True, slots=True)
class Offer:
    """A run that one worker may claim, until another is asked."""

    run_id: int
    api_key: str
    until: datetime
    job_id: int = 0
    schedule_id: int | None = None


@dataclass(slots=True)
class Candidate:
    """A worker that listens, and how much it may be offered."""

    worker: Worker
    free: int
    room: int
    pools: set[int] = field(default_factory=set)

    def take(self) -> None:
        """Count an offer."""
        self.free -= 1
        self.room -= 1


class OfferBook:
    """The offers that stand. Of what it remembers, nothing is needed for long."""

    def __init__(
        self,
        choose: Callable[[Sequence[Candidate]], Candidate] = random.choice,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._choose = choose
        self._pulse = Pulse(monotonic)
        self._standing: dict[int, Offer] = {}
        self._lapsed: dict[int, None] = {}
        """Runs that a worker with free slots did not claim: others go first."""
        self.is_short = False
        """Whether runs wait because every worker has as much as it may have."""

    def forget(self, run_id: int) -> None:
        """Note that a run does not wait any more."""
        self._standing.pop(run_id, None)
        self._lapsed.pop(run_id, None)

    def drop(self, api_key: str) -> None:
        """Note that a worker did not hear what it was offered, nor pings."""
        self._pulse.begin_again(api_key)
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
            candidates = self._candidates(listening)
            self._let_lapse(now, candidates)
            made = []
            self.is_short = False
            turns = {each.job_id: each.schedule_id for each in self._standing.values()}
            for run in self._due(now, candidates):
                candidate = self._pick(run, candidates.values())
                turn = turns.get(run["job"], run["schedule_id"])
                if candidate is None or turn != run["schedule_id"]:
                    continue
                if lifecycle.offer(run["id"], candidate.worker, now):
                    candidate.take()
                    key = candidate.worker.api_key
                    turns[run["job"]] = run["schedule_id"]
                    made.append(Offer(run["id"], key, now + _OFFER, run["job"], turn))
        self._standing.update({offer.run_id: offer for offer in made})
        return made

    def _refresh(self, now: datetime) -> None:
        """Learn what others have offered; nobody else does where there is one book."""

    def _candidates(self, listening: Collection[str]) -> dict[int, Candidate]:
        workers = Worker.objects.filter(api_key__in=listening, enqueue_is_enabled=True)
        found = {
            each.pk: _candidate(each)
            for each in workers
            if not self._pulse.is_silent(each)
        }
        if not found:
            return found
        held = (
            Run.objects.filter(
                worker__in=found, enqueue_dts__isnull=False, return_dts=None
            )
            .order_by()
            .values_list("worker")
            .annotate(Count("id"))
        )
        for worker_id, count in held:
            found[worker_id].free -= count
            found[worker_id].room -= count
        pools = Worker.worker_pools.through.objects.filter(
            worker__in=found, workerpool__enqueue_is_enabled=True
        )
        for worker_id, pool_id in pools.values_list("worker_id", "workerpool_id"):
            found[worker_id].pools.add(pool_id)
        return found

    def _let_lapse(self, now: datetime, candidates: Mapping[int, Candidate]) -> None:
        """End old offers; count the others."""
        by_key = {each.worker.api_key: each for each in candidates.values()}
        standing: Counter[str] = Counter()
        for offer in tuple(self._standing.values()):
            # One that holds longer than any can was made before the clock went back.
            if now < offer.until <= now + 2 * _OFFER:
                standing[offer.api_key] += 1
                continue
            del self._standing[offer.run_id]
            candidate = by_key.get(offer.api_key)
            if candidate is not None and candidate.free > 0:
                self._lapsed[offer.run_id] = None
        for run_id in list(self._lapsed)[:-MAX_NOTED_LAPSES]:
            del self._lapsed[run_id]
        for api_key, count in standing.items():
            if api_key in by_key:
                by_key[api_key].free -= count
                by_key[api_key].room -= count

    def _due(
        self, now: datetime, candidates: Mapping[int, Candidate]
    ) -> Iterable[dict[str, Any]]:
        """Yield due runs that nobody is asked about, in the order they are due.

        One batch after another: a pool whose workers are busy does not keep those
        of other pools waiting.
        """
        seen: set[int] = set()
        lapsed = tuple(self._lapsed)
        for group in (~Q(pk__in=lapsed), Q(pk__in=lapsed)) if lapsed else (Q(),):
            for _ in range(MAX_BATCHES):
                roomy = [each for each in candidates.values() if each.room > 0]
                room = sum(each.room for each in roomy)
                if not room:
                    self.is_short = True
                    return
                batch = list(
                    _waiting(now)
                    .filter(
                        group,
                        Q(worker=None) | Q(worker__in=[each.worker for each in roomy]),
                        job__worker_pool__in=_pools(roomy),
                    )
                    .exclude(pk__in=self._standing.keys() | seen)[:room]
                )
                seen.update(run["id"] for run in batch)
                yield from batch
                if len(batch) < room:
                    break

    def _pick(
        self, run: Mapping[str, Any], candidates: Iterable[Candidate]
    ) -> Candidate | None:
        possible = [
            each
            for each in candidates
            if run["job__worker_pool"] in each.pools
            and each.room > 0
            and run["worker"] in (None, each.worker.pk)
        ]
        free = [each for each in possible if each.free > 0]
        for group in (free, possible):
            others = [each for each in group if each.worker.pk != run["offered_to"]]
            if others or group:
                return self._choose(others or group)
        return None


def holds_until(offered_at: datetime) -> datetime:
    """Return when an offer ends."""
    return offered_at + _OFFER


def _candidate(worker: Worker) -> Candidate:
    slots = worker.concurrent_jobs or DEFAULT_SLOTS
    return Candidate(worker, free=slots, room=2 * slots)


def next_due(now: datetime) -> datetime | None:
    """Return when the next run is due that is not due yet."""
    later = Run.objects.filter(enqueue_dts=None, schedule_dts__gt=now)
    due: datetime | None = (
        later.order_by("schedule_dts").values_list("schedule_dts", flat=True).first()
    )
    return due


def _pools(candidates: Iterable[Candidate]) -> set[int]:
    return {pool for each in candidates for pool in each.pools}


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
