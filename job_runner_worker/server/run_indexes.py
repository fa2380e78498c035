"""Which questions about runs are answered by an index, with a million of them as well.

An index of few runs has their condition: who asks, asks with the same one.
"""

from django.db import models
from django.db.models import Q

ALL = (
    # The broadcaster's question, of which few of a million runs are.
    models.Index(
        name="run_waiting",
        fields=["schedule_dts"],
        condition=Q(enqueue_dts=None),
    ),
    # A worker's question at its start, and the health check's.
    models.Index(
        name="run_held",
        fields=["worker"],
        condition=Q(enqueue_dts__isnull=False, return_dts=None),
    ),
    # One question at each claim and end: what else is there of its job?
    models.Index(
        name="run_active_of_job",
        fields=["job"],
        condition=Q(enqueue_dts__isnull=False, return_dts=None),
    ),
    models.Index(
        name="run_waiting_of_job",
        fields=["job", "schedule_dts"],
        condition=Q(enqueue_dts=None),
    ),
    models.Index(name="run_last_of_job", fields=["job", "-return_dts"]),
    # The dashboard's pages of what has ended, and of what has failed.
    models.Index(
        name="run_ended",
        fields=["-return_dts", "-id"],
        condition=Q(return_dts__isnull=False),
    ),
    models.Index(
        name="run_failed",
        fields=["-return_dts", "-id"],
        condition=Q(return_success=False),
    ),
    models.Index(name="run_schedule_id", fields=["schedule_id"]),
)
