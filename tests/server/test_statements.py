"""Statements that go to the database together."""

from datetime import UTC, datetime

import pytest
from django.db import DatabaseError, connection, transaction

from job_runner_worker.server import job_lock
from job_runner_worker.server.models import Run, RunLog
from job_runner_worker.server.statements import flushed_together

AT = datetime(2026, 11, 27, 21, 40, 2, 71305, tzinfo=UTC)


@pytest.fixture
def only_postgresql(database):
    if database.kind != "postgresql":
        pytest.skip("on SQLite these are executed one by one, within the process")


def test_what_is_known_of_several_runs_is_read_at_once(site):
    runs = [site.run().pk for _ in range(3)]
    job_lock.claim(runs[1], site.worker.pk, AT)

    known = job_lock.known(*runs, max(runs) + 1)

    assert list(known) == runs
    assert [each.is_claimed for each in known.values()] == [False, True, False]


def test_of_several_offers_those_are_made_whose_runs_wait(site):
    runs = [site.run().pk for _ in range(3)]
    job_lock.claim(runs[1], site.worker.pk, AT)

    offered = job_lock.offer(dict.fromkeys(runs, site.other_worker.pk), AT)

    assert offered == {runs[0], runs[2]}
    to = Run.objects.order_by("pk").values_list("offered_to", flat=True)
    assert list(to) == [site.other_worker.pk, None, site.other_worker.pk]


def test_where_the_end_fails_there_is_no_log_either(site, only_postgresql):
    run = site.run().pk
    job_lock.claim(run, site.worker.pk, AT)
    out_of_range = job_lock.End(AT, True, exit_status=1 << 40, log="lost")

    with pytest.raises(DatabaseError):
        job_lock.finish(run, site.worker.pk, out_of_range, AT)

    assert not RunLog.objects.exists()
    assert Run.objects.get(pk=run).return_dts is None


def test_a_connection_goes_on_after_a_statement_that_failed(site):
    run = site.run().pk
    job_lock.claim(run, site.worker.pk, AT)

    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as it:
        it.execute("SELECT 1 FROM server_nothing")

    assert job_lock.start(run, site.worker.pk, AT, 4711, "node7")


def test_a_new_connection_knows_the_statements_too(site):
    run = site.run().pk
    job_lock.claim(run, site.worker.pk, AT)

    connection.close()

    assert job_lock.known(run)[run].is_claimed


def test_what_is_flushed_together_is_on_the_disk_afterwards(site, only_postgresql):
    run = site.run().pk
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit TO on")
        try:
            with flushed_together():
                job_lock.claim(run, site.worker.pk, AT)
                job_lock.start(run, site.worker.pk, AT, 4711, "node7")
                cursor.execute("SELECT pg_current_wal_insert_lsn()")
                ((written,),) = cursor.fetchall()
            cursor.execute("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", [written])
            ((is_flushed,),) = cursor.fetchall()
            cursor.execute("SHOW synchronous_commit")
            ((mode,),) = cursor.fetchall()
        finally:
            cursor.execute("RESET synchronous_commit")

    assert is_flushed
    assert mode == "on"


def test_only_what_is_flushed_together_does_not_wait_for_the_disk(
    site, only_postgresql
):
    run = site.run().pk
    modes = []
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit TO on")
        try:
            for together in (True, False):
                with transaction.atomic():
                    if together:
                        with flushed_together():
                            job_lock.claim(run, site.worker.pk, AT)
                            modes += shown(cursor)
                    else:
                        job_lock.start(run, site.worker.pk, AT, 4711, "node7")
                        modes += shown(cursor)
        finally:
            cursor.execute("RESET synchronous_commit")

    assert modes == ["off", "on"]


def shown(cursor):
    cursor.execute("SHOW synchronous_commit")
    return [mode for (mode,) in cursor.fetchall()]
