"""A look for workers costs what it offers, however many workers there are."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from job_runner_worker.server import lifecycle
from job_runner_worker.server.models import Run, Worker, WorkerPool
from job_runner_worker.server.offers import OfferBook
from job_runner_worker.server.roster import FIRST_READ, FULL_SECONDS, MEMORY_SECONDS

MANY = 200


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def book(clock):
    return OfferBook(monotonic=lambda: clock[0])


@pytest.fixture
def now():
    from django.utils import timezone

    return timezone.now()


@pytest.fixture
def crowd(site):
    """The keys of many workers in the site's pool, beside the first."""
    workers = Worker.objects.bulk_create(
        Worker(title=f"crowd {n}", api_key=f"crowd{n}", concurrent_jobs=1)
        for n in range(MANY)
    )
    site.pool.workers.set(workers)
    return {worker.api_key for worker in workers}


def read_by(act):
    """Return what was done, and how many rows of workers were read for it."""
    with CaptureQueriesContext(
        connection,
    ) as queries:
        found = act()
    read = [each["sql"] for each in queries if 'FROM "server_worker" ' in each["sql"]]
    numbers = [sql.partition(" IN (")[2].partition(")")[0] for sql in read]
    return found, sum(len(each.split(",")) for each in numbers)


def test_a_look_reads_only_as_many_workers_as_it_needs(site, book, crowd, now):
    for count in (1, 3):
        runs = [site.run(at=now).pk for _ in range(count)]
        offers, read = read_by(lambda: book.make(now, crowd))
        assert [offer.run_id for offer in offers] == runs
        assert read <= FIRST_READ


def test_a_look_without_a_due_run_reads_no_worker(site, book, crowd, now):
    site.run(at=now + timedelta(hours=1))
    offers, read = read_by(lambda: book.make(now, crowd))
    assert (offers, read) == ([], 0)


def test_a_free_worker_is_found_among_many_that_are_busy(site, book, crowd, now):
    job = site.job()
    busy = list(Worker.objects.filter(api_key__in=crowd))[:-1]
    Run.objects.bulk_create(
        Run(job=job, worker=each, enqueue_dts=now, schedule_id=1) for each in busy
    )
    site.run(at=now)
    (offer,) = book.make(now, crowd)
    assert offer.api_key not in {each.api_key for each in busy}


def test_a_full_pool_is_left_alone_but_for_who_ends_a_run(
    site, book, crowd, now, clock
):
    job = site.job()
    workers = list(Worker.objects.filter(api_key__in=crowd))
    held = Run.objects.bulk_create(
        Run(job=job, worker=each, enqueue_dts=now, schedule_id=1)
        for each in workers + workers
    )
    waiting = site.run(at=now)
    offers, read = read_by(lambda: book.make(now, crowd))
    assert (offers, read) == ([], MANY)
    assert book.is_short
    assert read_by(lambda: book.make(now, crowd)) == ([], 0)

    ended = Run.objects.get(pk=held[7].pk)
    lifecycle.finish(ended.pk, ended.worker, now, success=True)
    book.freed(ended.worker_id)
    (offer,), read = read_by(lambda: book.make(now, crowd))
    assert (offer.run_id, offer.api_key, read) == (
        waiting.pk,
        ended.worker.api_key,
        1,
    )


def test_a_full_pool_is_looked_at_again_after_a_moment(site, book, crowd, now, clock):
    workers = Worker.objects.filter(api_key__in=crowd)
    Run.objects.bulk_create(
        Run(job=site.job(), worker=each, enqueue_dts=now, schedule_id=1)
        for each in [*workers, *workers]
    )
    run = site.run(at=now)
    assert book.make(now, crowd) == []
    Run.objects.exclude(pk=run.pk).delete()
    assert book.make(now, crowd) == []
    clock[0] += FULL_SECONDS
    assert [offer.run_id for offer in book.make(now, crowd)] == [run.pk]


def test_a_newcomer_is_offered_runs_at_once(site, book, crowd, now):
    pool = WorkerPool.objects.create(title="another")
    run = site.run(site.job(worker_pool=pool), at=now)
    assert book.make(now, crowd) == []
    newcomer = Worker.objects.create(title="newcomer", api_key="newcomer")
    pool.workers.add(newcomer)
    book.drop("newcomer")
    (offer,) = book.make(now, crowd | {"newcomer"})
    assert (offer.run_id, offer.api_key) == (run.pk, "newcomer")


def test_who_is_put_into_a_pool_is_found_after_some_seconds(
    site, book, crowd, now, clock
):
    pool = WorkerPool.objects.create(title="another")
    run = site.run(site.job(worker_pool=pool), at=now)
    assert book.make(now, crowd) == []
    pool.workers.add(Worker.objects.get(api_key="crowd5"))
    clock[0] += MEMORY_SECONDS
    (offer,) = book.make(now, crowd)
    assert (offer.run_id, offer.api_key) == (run.pk, "crowd5")


def test_who_has_left_a_pool_is_not_offered_its_runs(site, book, crowd, now):
    site.run(at=now)
    (first,) = book.make(now, crowd)
    site.pool.workers.remove(*Worker.objects.exclude(api_key="crowd9"))
    site.run(at=now)
    offers = book.make(now, crowd)
    assert {offer.api_key for offer in offers} <= {"crowd9"}


def test_a_worker_that_has_gone_is_offered_nothing(site, book, crowd, now):
    site.run(at=now)
    book.make(now, crowd)
    site.run(at=now)
    (offer,) = book.make(now, {"crowd3"})
    assert offer.api_key == "crowd3"
