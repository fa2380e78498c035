"""Offers that several broadcasters make out of one PostgreSQL, none of them twice.

Whoever makes offers holds a lock of the database meanwhile, and first reads which
offers stand: its own and those of others.
"""

from __future__ import annotations

from datetime import datetime

from django.db import connection
from django.utils import timezone

from job_runner_worker.server.models import Run
from job_runner_worker.server.offers import Offer, OfferBook, holds_until

_LOCK_KEY = 0x4A52_6F66
"""Any number that nobody else locks in this database."""


class SharedOfferBook(OfferBook):
    """An `OfferBook` whose standing offers are those in the database."""

    def __init__(self) -> None:
        super().__init__()
        self._dropped: dict[str, datetime] = {}
        """Until when offers to a worker were lost on their way."""

    def drop(self, api_key: str) -> None:
        """See OfferBook; also what other broadcasters have offered it."""
        super().drop(api_key)
        self._dropped[api_key] = timezone.now()

    def _refresh(self, now: datetime) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK_KEY])
        found = {}
        rows = Run.objects.filter(
            enqueue_dts=None,
            return_dts=None,
            offered_dts__gt=now - (holds_until(now) - now),
            # What was noted before the clock went back does not hold.
            offered_dts__lte=holds_until(now),
        )
        for run_id, api_key, at, job_id, schedule_id in rows.order_by().values_list(
            "id", "offered_to__api_key", "offered_dts", "job", "schedule_id"
        ):
            lost_until = self._dropped.get(api_key)
            if api_key is not None and (lost_until is None or at > lost_until):
                until = holds_until(at)
                found[run_id] = Offer(run_id, api_key, until, job_id, schedule_id)
        lapsed = {
            key: each for key, each in self._standing.items() if each.until <= now
        }
        self._standing = lapsed | found
        for api_key, at in tuple(self._dropped.items()):
            if holds_until(at) <= now:
                del self._dropped[api_key]


def offer_book() -> OfferBook:
    """Return the book for the database that there is."""
    return SharedOfferBook() if connection.vendor == "postgresql" else OfferBook()
