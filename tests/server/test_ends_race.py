"""Four processes at the same job: one run at a time, and one child after the last.

Started as a program, this file forks them, as test_claim_race does.
"""

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

PROCESSES = 4
ROUNDS = 15
LIMIT_SECONDS = 100


def observed(site, database, what):
    from job_runner_worker.server.models import Worker

    for number in range(PROCESSES):
        worker = Worker.objects.create(title="racer", api_key=f"racer{number}")
        site.pool.workers.add(worker)
    where = [what, str(database.data_path), database.url or ""]
    program = [sys.executable, __file__, *where]
    return json.loads(subprocess.check_output(program, timeout=LIMIT_SECONDS))


def test_of_runs_of_one_job_that_are_claimed_at_once_one_is_run(site, database):
    job = site.job()
    for _ in range(PROCESSES):
        site.run(job)

    found = observed(site, database, "claim")

    assert sorted(found) == [1] * ROUNDS


def test_of_runs_that_end_at_once_one_is_the_last(site, database):
    site.job(parent=site.job(title="parent", run_on_all_workers=True), title="child")
    site.pool.workers.clear()

    found = observed(site, database, "end")

    assert found == [1] * ROUNDS


def race(what, data_path, url):
    from job_runner_worker.server import django_settings

    django_settings.configure(Path(data_path), url or None)
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(PROCESSES), fork.Queue()
    act = {"claim": claim_all, "end": end_all}[what]
    racers = [
        fork.Process(target=run_rounds, args=(act, number, barrier, results))
        for number in range(PROCESSES)
    ]
    for racer in racers:
        racer.start()
    found = results.get(timeout=LIMIT_SECONDS)
    for racer in racers:
        racer.join()
    print(json.dumps(found))


def run_rounds(act, number, barrier, results):
    from django.db import connection

    from job_runner_worker.server.models import Worker

    worker = Worker.objects.get(api_key=f"racer{number}")
    found = [
        act(number, worker, lambda: barrier.wait(LIMIT_SECONDS)) for _ in range(ROUNDS)
    ]
    if number == 0:
        results.put(found)
    connection.close()
    if connection.vendor == "postgresql":
        connection.close_pool()


def claim_all(number, worker, wait):
    """Claim a run each; return how many have got one, and let all wait again."""
    from django.utils import timezone

    from job_runner_worker.server import lifecycle
    from job_runner_worker.server.models import Run

    run_id = Run.objects.order_by("pk").values_list("pk", flat=True)[number]
    wait()
    persistently(lambda: lifecycle.claim(run_id, worker, timezone.now()))
    wait()
    count = Run.objects.filter(enqueue_dts__isnull=False).count()
    wait()
    persistently(lambda: lifecycle.reset(run_id, worker))
    wait()
    return count


def end_all(number, worker, wait):
    """End a run each of those scheduled together; return how many children follow."""
    from django.utils import timezone

    from job_runner_worker.server import lifecycle, planning
    from job_runner_worker.server.models import Job, Run

    child = Run.objects.filter(job__title="child")
    wait()
    if number == 0:
        Run.objects.all().delete()
        planning.run_now(Job.objects.get(title="parent"))
    wait()
    run_id = Run.objects.get(worker=worker).pk
    persistently(lambda: lifecycle.claim(run_id, worker, timezone.now()))
    wait()
    persistently(lambda: lifecycle.finish(run_id, worker, timezone.now(), True))
    wait()
    return child.count()


def persistently(step):
    from django.db import OperationalError

    from job_runner_worker.server.refusals import Conflict

    while True:
        try:
            return step()
        except Conflict:
            return None
        except OperationalError as error:
            # SQLite is busy: the API answers 503, and the worker tries again.
            assert "locked" in str(error)
            time.sleep(0.01)


if __name__ == "__main__":
    race(*sys.argv[1:])
