"""Several broadcasters at one PostgreSQL: each run is broadcast once in an offer."""

from datetime import timedelta

import pytest
from django.utils import timezone

from job_runner_worker.server import lifecycle
from job_runner_worker.server.models import Worker

# SQLite has one broadcaster: `--only` is refused there.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.parametrize("database", ["postgresql"], indirect=True),
]
RUNS = 60


@pytest.fixture
def books():
    from job_runner_worker.server.shared_offers import SharedOfferBook

    return SharedOfferBook(), SharedOfferBook()


@pytest.fixture
def roomy(site):
    Worker.objects.update(concurrent_jobs=RUNS)
    return {site.worker.api_key}


def test_what_one_has_offered_the_other_does_not(site, books, roomy):
    run = site.run()
    now = timezone.now()

    assert [each.run_id for each in books[0].make(now, roomy)] == [run.pk]
    assert books[1].make(now, roomy) == []
    assert books[0].make(now, roomy) == []


def test_an_offer_that_has_lapsed_is_made_by_either(site, books, roomy):
    run = site.run()
    now = timezone.now()
    books[0].make(now, roomy)

    later = now + timedelta(seconds=6)
    assert [each.run_id for each in books[1].make(later, roomy)] == [run.pk]
    assert books[0].make(later, roomy) == []


def test_a_worker_has_no_more_offers_of_two_than_of_one(site, books, roomy):
    Worker.objects.update(concurrent_jobs=1)
    for _ in range(6):
        site.run()
    now = timezone.now()

    made = [*books[0].make(now, roomy), *books[1].make(now, roomy)]

    assert len(made) == 2


def test_runs_of_one_job_are_not_offered_by_two_at_once(site, books, roomy):
    job = site.job()
    first, second = site.run(job), site.run(job)
    now = timezone.now()

    assert [each.run_id for each in books[0].make(now, roomy)] == [first.pk]
    assert books[1].make(now, roomy) == []
    lifecycle.claim(first.pk, site.worker, now)
    lifecycle.finish(first.pk, site.worker, now, True)
    assert [each.run_id for each in books[1].make(now, roomy)] == [second.pk]


def test_who_subscribes_anew_is_offered_again_what_another_had_offered(
    site, books, roomy
):
    run = site.run()
    books[0].make(timezone.now(), roomy)

    books[1].drop(site.worker.api_key)

    again = books[1].make(timezone.now(), roomy)
    assert [each.run_id for each in again] == [run.pk]
    assert books[1].make(timezone.now(), roomy) == []


def test_a_claimed_run_stands_no_more(site, books, roomy):
    run = site.run()
    now = timezone.now()
    books[0].make(now, roomy)
    lifecycle.claim(run.pk, site.worker, now)

    books[1].make(now, roomy)

    assert books[1].next_lapse() is None
