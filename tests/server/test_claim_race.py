"""Eight processes claim the same 500 runs: each run is claimed once.

Started as a program, this file forks them: Django is set up once, and no connection
is open yet. All begin each ten runs together, or the fastest would be alone ahead.
"""

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

PROCESSES = 8
RUNS = 500
RUNS_AT_A_TIME = 10
LIMIT_SECONDS = 100


def test_no_run_is_claimed_twice_and_each_is_claimed_once(site, database):
    from job_runner_worker.server.models import Run, Worker

    job = site.job()
    Run.objects.bulk_create(Run(job=job) for _ in range(RUNS))
    Worker.objects.bulk_create(
        Worker(title=f"racer {number}", api_key=f"racer{number}")
        for number in range(PROCESSES)
    )
    where = [str(database.data_path), database.url or ""]
    program = [sys.executable, __file__, *where]
    output = subprocess.check_output(program, timeout=LIMIT_SECONDS)
    won = {int(worker_id): runs for worker_id, runs in json.loads(output).items()}

    assert len(won) == PROCESSES
    assert sum(map(len, won.values())) == RUNS
    assert set().union(*won.values()) == set(Run.objects.values_list("pk", flat=True))
    for run in Run.objects.all():
        assert run.enqueue_dts is not None
        assert run.pk in won[run.worker_id]
    assert len([runs for runs in won.values() if runs]) > 1, "there was no race"


def race(data_path, url):
    from job_runner_worker.server import django_settings

    django_settings.configure(Path(data_path), url or None)
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(PROCESSES), fork.Queue()
    racers = [
        fork.Process(target=claim_all, args=(f"racer{number}", barrier, results))
        for number in range(PROCESSES)
    ]
    for racer in racers:
        racer.start()
    won = dict(results.get(timeout=LIMIT_SECONDS) for _ in racers)
    for racer in racers:
        racer.join()
    print(json.dumps(won))


def claim_all(api_key, barrier, results):
    from django.db import connection

    from job_runner_worker.server.models import Run, Worker

    worker = Worker.objects.get(api_key=api_key)
    won = []
    for number, run_id in enumerate(Run.objects.order_by("id").values_list("pk")):
        if number % RUNS_AT_A_TIME == 0:
            barrier.wait(LIMIT_SECONDS)
        if claims(run_id[0], worker):
            won.append(run_id[0])
    results.put((worker.pk, won))
    connection.close()
    if connection.vendor == "postgresql":
        connection.close_pool()


def claims(run_id, worker):
    from django.db import OperationalError
    from django.utils import timezone

    from job_runner_worker.server import lifecycle

    while True:
        try:
            lifecycle.claim(run_id, worker, timezone.now())
        except lifecycle.Conflict:
            return False
        except OperationalError as error:
            # SQLite is busy: the API answers 503, and the worker tries again.
            assert "locked" in str(error)
            time.sleep(0.01)
        else:
            return True


if __name__ == "__main__":
    race(*sys.argv[1:])
