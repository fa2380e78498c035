"""Changes two rows together, one transaction after the other, until told to stop.

A program: ``pair_writer.py DATA DATABASE_URL``. It prints how many there were.
"""

import select
import sys
from pathlib import Path

from job_runner_worker.server import django_settings

if __name__ == "__main__":
    django_settings.configure(Path(sys.argv[1]), sys.argv[2] or None)

    from django.db import connection, transaction

    from job_runner_worker.server.models import WorkerPool

    first, second = WorkerPool.objects.order_by("pk").values_list("pk", flat=True)[:2]
    count = 0
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        count += 1
        with transaction.atomic():
            WorkerPool.objects.filter(pk=first).update(title=f"title {count}")
            WorkerPool.objects.filter(pk=second).update(title=f"title {count}")
        if count == 1:
            print("writing", flush=True)
    print(count)
    connection.close()
    if connection.vendor == "postgresql":
        connection.close_pool()
