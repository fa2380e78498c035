"""Which worker is offered which run; no sockets."""

from datetime import timedelta

import pytest

from job_runner_worker.server import lifecycle

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def now():
    from django.utils import timezone

    return timezone.now()


@pytest.fixture
def book():
    from job_runner_worker.server.offers import OfferBook

    return OfferBook()


@pytest.fixture
def pair(site):
    """The site, with a second worker in the first one's pool."""
    from job_runner_worker.server.models import Worker

    site.second = Worker.objects.create(title="second", api_key="second")
    site.pool.workers.add(site.second)
    return site


def seconds(number):
    return timedelta(seconds=number)


def listening(*workers):
    return {worker.api_key for worker in workers}


def keys(offers):
    return [offer.api_key for offer in offers]


def ids(offers):
    return [offer.run_id for offer in offers]


def test_a_due_run_is_offered_to_one_worker_and_noted(pair, book, now):
    run = pair.run(at=now)

    (offer,) = book.make(now, listening(pair.worker, pair.second))

    run.refresh_from_db()
    assert offer.run_id == run.pk
    assert run.offered_to.api_key == offer.api_key
    assert run.offered_dts == now
    assert run.worker is None


def test_while_an_offer_stands_nobody_else_is_asked(pair, book, now):
    pair.run(at=now)
    there = listening(pair.worker, pair.second)
    book.make(now, there)

    assert book.make(now + seconds(4.9), there) == []


def test_after_five_seconds_another_worker_is_asked_and_then_the_first_again(
    pair, book, now
):
    pair.run(at=now)
    there = listening(pair.worker, pair.second)
    asked = [keys(book.make(now + seconds(5 * each), there))[0] for each in range(4)]

    assert asked[0] != asked[1]
    assert asked[:2] == asked[2:]


def test_the_only_worker_is_asked_again_every_five_seconds(site, book, now):
    run = site.run(at=now)
    there = listening(site.worker)

    for turn in range(4):
        assert ids(book.make(now + seconds(5 * turn), there)) == [run.pk]
        assert book.next_lapse() == now + seconds(5 * turn + 5)


def test_a_claimed_run_is_offered_no_more(site, book, now):
    run = site.run(at=now)
    there = listening(site.worker)
    book.make(now, there)
    lifecycle.claim(run.pk, site.worker, now)
    book.forget(run.pk)

    assert book.make(now + seconds(6), there) == []
    assert book.next_lapse() is None


def test_a_run_whose_time_has_not_come_waits(site, book, now):
    from job_runner_worker.server.offers import next_due

    later = now + timedelta(minutes=5)
    run = site.run(at=later)

    assert book.make(now, listening(site.worker)) == []
    assert next_due(now) == later
    assert ids(book.make(later, listening(site.worker))) == [run.pk]
    assert next_due(later) is None


def test_runs_are_offered_in_the_order_they_are_due(site, book, now):
    late, early = site.run(at=now), site.run(at=now - seconds(60))

    assert ids(book.make(now, listening(site.worker))) == [early.pk, late.pk]


def test_a_worker_that_does_not_listen_is_offered_nothing(site, book, now):
    site.run(at=now)

    assert book.make(now, {}) == []


@pytest.mark.parametrize(
    "switch", ["worker", "pool", "template", "project", "job"], ids=str
)
def test_nothing_is_offered_below_a_switch_that_is_off(site, book, now, switch):
    job = site.job()
    site.run(job, at=now)
    owner = job if switch == "job" else getattr(site, switch)
    owner.enqueue_is_enabled = False
    owner.save()

    assert book.make(now, listening(site.worker)) == []


@pytest.mark.parametrize(("switch", "count"), [("job", 1), ("project", 1), ("pool", 0)])
def test_a_manual_run_minds_only_the_switches_of_workers(
    site, book, now, switch, count
):
    job = site.job()
    site.run(job, at=now, is_manual=True)
    owner = job if switch == "job" else getattr(site, switch)
    owner.enqueue_is_enabled = False
    owner.save()

    assert len(book.make(now, listening(site.worker))) == count


def test_a_worker_of_another_pool_is_offered_nothing(site, book, now):
    site.run(at=now)

    assert book.make(now, listening(site.other_worker)) == []


def test_a_run_for_one_worker_is_offered_to_no_other(pair, book, now):
    run = pair.run(at=now, worker=pair.second)

    assert book.make(now, listening(pair.worker)) == []
    both = listening(pair.worker, pair.second)
    for turn in range(3):
        offers = book.make(now + seconds(5 * turn), both)
        assert (ids(offers), keys(offers)) == ([run.pk], ["second"])


def test_a_free_worker_is_preferred_to_a_busy_one(pair, book, now):
    pair.worker.concurrent_jobs = 1
    pair.worker.save()
    held = pair.run(at=now)
    lifecycle.claim(held.pk, pair.worker, now)
    for _ in range(3):
        pair.run(at=now)

    offers = book.make(now, listening(pair.worker, pair.second))

    assert keys(offers) == ["second"] * 3


def test_a_worker_is_offered_its_slots_and_as_much_again(site, book, now):
    site.worker.concurrent_jobs = 2
    site.worker.save()
    runs = [site.run(at=now) for _ in range(6)]
    there = listening(site.worker)

    assert ids(book.make(now, there)) == [run.pk for run in runs[:4]]
    assert book.is_short
    for run in runs[:2]:
        lifecycle.claim(run.pk, site.worker, now)
        book.forget(run.pk)
    assert book.make(now, there) == []
    lifecycle.finish(runs[0].pk, site.worker, now, success=True)
    book.freed(site.worker.pk)
    assert ids(book.make(now, there)) == [runs[4].pk]


def test_a_busy_pool_does_not_keep_another_waiting(site, book, now):
    site.worker.concurrent_jobs = 1
    site.worker.save()
    for _ in range(30):
        site.run(at=now - seconds(60))
    run = site.run(site.job(other=True), at=now)

    offers = book.make(now, listening(site.worker, site.other_worker))

    assert keys(offers).count("testworker") == 2
    assert ids(offers)[-1] == run.pk


def test_runs_that_a_free_worker_leaves_alone_let_others_pass(site, book, now):
    site.worker.concurrent_jobs = 1
    site.worker.save()
    stuck = [site.run(at=now - seconds(60)) for _ in range(2)]
    fresh = [site.run(at=now) for _ in range(2)]
    there = listening(site.worker)
    assert ids(book.make(now, there)) == [run.pk for run in stuck]

    assert ids(book.make(now + seconds(5), there)) == [run.pk for run in fresh]
    assert len(book.make(now + seconds(10), there)) == 2


def test_an_offer_does_not_stand_for_an_hour_when_the_clock_is_put_back(
    site, book, now
):
    run = site.run(at=now - timedelta(hours=2))
    there = listening(site.worker)
    assert ids(book.make(now, there)) == [run.pk]

    assert ids(book.make(now - timedelta(hours=1), there)) == [run.pk]


def test_what_a_worker_could_not_hear_is_offered_again_at_once(site, book, now):
    run = site.run(at=now)
    book.make(now, listening(site.worker))

    book.drop("testworker")

    assert ids(book.make(now + seconds(1), listening(site.worker))) == [run.pk]


def test_a_worker_that_does_not_answer_pings_is_offered_nothing(site, now):
    from job_runner_worker.server.offers import OfferBook

    clock = [0.0]
    book = OfferBook(monotonic=lambda: clock[0])
    site.run(at=now)
    site.run(at=now + seconds(1))
    there = listening(site.worker)
    assert len(book.make(now, there)) == 1

    clock[0] = 916.0
    assert book.make(now + seconds(10), there) == []

    site.worker.ping_response_dts = now - timedelta(hours=1)  # its clock is wrong
    site.worker.save()
    assert len(book.make(now + seconds(10), there)) == 2


def test_a_worker_that_subscribes_anew_has_not_been_silent(site, now):
    from job_runner_worker.server.offers import OfferBook

    clock = [0.0]
    book = OfferBook(monotonic=lambda: clock[0])
    site.run(at=now)
    book.make(now, listening(site.worker))
    clock[0] = 916.0
    book.drop("testworker")

    assert len(book.make(now + seconds(10), listening(site.worker))) == 1


def test_a_run_that_is_handed_back_is_offered_to_its_worker_again(pair, book, now):
    run = pair.run(at=now)
    lifecycle.claim(run.pk, pair.worker, now)
    lifecycle.reset(run.pk, pair.worker)

    both = listening(pair.worker, pair.second)
    assert keys(book.make(now, both)) == ["testworker"]
