"""Who may be offered runs: workers that listen, found without reading all of them.

Which worker is in which pool is remembered between looks, in no particular order.
Whoever is to be offered something is then read from the database, with the number of
runs that it has: a few at a time, beginning anywhere, until there is room enough. So a
look costs what it offers, however many workers there are. A pool whose workers have
all been found full is left alone for a moment, but for those that have ended a run.
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from django.db.models import Count

from job_runner_worker.server.models import Run, Worker
from job_runner_worker.server.pulse import Pulse

DEFAULT_SLOTS = 4
"""Of a worker that has not said yet how many it has."""
MEMORY_SECONDS = 10.0
"""How long it is remembered who is in which pool; newcomers are read at once."""
FULL_SECONDS = 1.0
FIRST_READ = 8
MOST_READ = 512
MAX_NEWCOMERS = 100
_MEMBERS = Worker.worker_pools.through.objects.order_by()


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


class Roster:
    """Workers by pool, as they were last read."""

    def __init__(
        self, pulse: Pulse, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.pulse = pulse
        self._monotonic = monotonic
        self._pools: dict[int, list[tuple[int, str]]] = {}
        """Of each pool (id of a worker, its key)."""
        self._read_at = float("-inf")
        self._newcomers: set[str] = set()
        self._full_until: dict[int, float] = {}
        self._freed: dict[int, set[int]] = defaultdict(set)
        """Of pools that are full, the workers that have ended a run since."""

    def begin_again(self, api_key: str) -> None:
        """Note that a worker has just begun to listen."""
        self._newcomers.add(api_key)

    def freed(self, worker_id: int | None) -> None:
        """Note that a worker may have a slot more; None: that anybody may."""
        if worker_id is None:
            self._full_until.clear()
            return
        for pool_id in self._full_until:
            self._freed[pool_id].add(worker_id)

    def is_full(self, pool_id: int) -> bool:
        """Return whether nobody of a pool has room, as far as is known."""
        return self._full_until.get(pool_id, 0.0) > self._monotonic()

    def note_full(self, pool_id: int) -> None:
        """Leave a pool alone for a moment."""
        self._full_until[pool_id] = self._monotonic() + FULL_SECONDS

    def full_pools(self) -> set[int]:
        """Return the pools that are left alone in this look."""
        now = self._monotonic()
        for pool_id, until in tuple(self._full_until.items()):
            if until <= now:
                del self._full_until[pool_id]
                self._freed.pop(pool_id, None)
        return {each for each in self._full_until if not self._freed.get(each)}

    def some_of(
        self, pool_id: int, listening: Collection[str]
    ) -> Iterator[list[tuple[int, str]]]:
        """Yield the workers of a pool that listen, some at a time, each once."""
        self._read(listening)
        members = self._pools.get(pool_id, [])
        if self.is_full(pool_id):
            freed = self._freed.pop(pool_id, set())
            members = [each for each in members if each[0] in freed]
        begin, count, done = random.randrange(len(members) or 1), FIRST_READ, 0
        while done < len(members):
            places = range(begin + done, begin + min(done + count, len(members)))
            some = [members[place % len(members)] for place in places]
            done += len(some)
            count = min(2 * count, MOST_READ)
            yield [each for each in some if each[1] in listening]

    def _read(self, listening: Collection[str]) -> None:
        """Read who is in which pool, or only of newcomers where that is enough."""
        rows = _MEMBERS.filter(workerpool__enqueue_is_enabled=True)
        if self._monotonic() - self._read_at >= MEMORY_SECONDS or (
            len(self._newcomers) > MAX_NEWCOMERS
        ):
            self._pools = {}
            self._read_at = self._monotonic()
        elif self._newcomers:
            rows = rows.filter(worker__api_key__in=self._newcomers)
        else:
            return
        self._newcomers.clear()
        fields = ("workerpool_id", "worker_id", "worker__api_key")
        changed = set()
        for pool_id, worker_id, api_key in rows.values_list(*fields):
            members = self._pools.setdefault(pool_id, [])
            if api_key in listening and (worker_id, api_key) not in members[-1:]:
                members.append((worker_id, api_key))
            changed.add(pool_id)
        for pool_id in changed:
            self._full_until.pop(pool_id, None)
            random.shuffle(self._pools[pool_id])


class Look:
    """The candidates of one look, read as they are needed.

    ``standing`` is how many offers each key has that stand.
    """

    def __init__(
        self, roster: Roster, listening: Collection[str], standing: Counter[str]
    ) -> None:
        self.full_pools = roster.full_pools()
        """Pools in which nobody has room."""
        self.away: set[int] = set()
        """Workers that runs are for, and that cannot be offered any."""
        self.standing = standing
        self._roster = roster
        self._listening = listening
        self._known: dict[int, Candidate | None] = {}
        self._by_pool: dict[int, list[Candidate]] = defaultdict(list)
        self._more: dict[int, Iterator[list[tuple[int, str]]]] = {}

    def prepare(self, wanted: Counter[int]) -> None:
        """Read of each pool so many workers that they have this many free slots."""
        for pool_id, count in wanted.items():
            some: list[tuple[int, str]] | None = []
            if pool_id not in self._more:
                self._more[pool_id] = self._roster.some_of(pool_id, self._listening)
                # Whoever was asked before has been read: let there be others.
                some = next(self._more[pool_id], None)
            while some is not None:
                self.read([worker_id for worker_id, _ in some])
                if sum(max(0, each.free) for each in self._by_pool[pool_id]) >= count:
                    break
                some = next(self._more[pool_id], None)

    def of_pool(self, pool_id: int) -> Sequence[Candidate]:
        """Return those of a pool that have been read."""
        return self._by_pool[pool_id]

    def worker(self, worker_id: int) -> Candidate | None:
        """Return one worker if it can be offered anything."""
        self.read([worker_id])
        return self._known[worker_id]

    def has_no_room(self, pool_id: int) -> bool:
        """Note that a pool is full; return whether it has workers at all."""
        self.full_pools.add(pool_id)
        if self._by_pool[pool_id]:
            self._roster.note_full(pool_id)
        return bool(self._by_pool[pool_id])

    def read(self, worker_ids: Iterable[int]) -> None:
        """Read workers that have not been read in this look."""
        wanted = [each for each in worker_ids if each not in self._known]
        if not wanted:
            return
        self._known.update(dict.fromkeys(wanted))
        found = {
            each.pk: _candidate(each)
            for each in Worker.objects.filter(pk__in=wanted, enqueue_is_enabled=True)
            if each.api_key in self._listening
            and not self._roster.pulse.is_silent(each)
        }
        if not found:
            return
        held = Run.objects.filter(
            worker__in=found, enqueue_dts__isnull=False, return_dts=None
        )
        for worker_id, count in (
            held.order_by().values_list("worker").annotate(Count("id"))
        ):
            found[worker_id].free -= count
            found[worker_id].room -= count
        pools = _MEMBERS.filter(worker__in=found, workerpool__enqueue_is_enabled=True)
        for worker_id, pool_id in pools.values_list("worker_id", "workerpool_id"):
            found[worker_id].pools.add(pool_id)
            self._by_pool[pool_id].append(found[worker_id])
        for candidate in found.values():
            count = self.standing[candidate.worker.api_key]
            candidate.free -= count
            candidate.room -= count
        self._known.update(found)


def _candidate(worker: Worker) -> Candidate:
    slots = worker.concurrent_jobs or DEFAULT_SLOTS
    return Candidate(worker, free=slots, room=2 * slots)
