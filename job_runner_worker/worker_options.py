"""What of the settings the core needs; it may change while the worker runs."""

from __future__ import annotations

from dataclasses import dataclass

from job_runner_worker.redaction import Redactor


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the operator decides about the core."""

    concurrent_jobs: int
    max_log_bytes: int
    log_flush_seconds: float
    offer_ttl_seconds: float
    drain_report_seconds: float
    reschedule_interrupted: bool
    spool_min_free_bytes: int = 0
    late_claim_seconds: float = 60.0
    """How long after a claim was given up it is asked whether it has arrived."""
    redactor: Redactor | None = None
