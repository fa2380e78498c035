"""Who is measured: the peers and how they are started, bare spawning, this worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Kind:
    """One contestant, and how it is started; ``words`` follow the virtual
    environment's bin folder. {queue} and {redis} are filled in.
    """

    key: str
    name: str
    module: str = ""
    broker: str = "redis"
    words: tuple[str, ...] = ()
    can_kill: bool = False
    why_no_kill: str = "has no order that ends a task which runs"

    @property
    def is_peer(self) -> bool:
        """Whether it has a broker, and a virtual environment with others."""
        return bool(self.words)

    @property
    def is_ours(self) -> bool:
        """Whether it is this worker."""
        return self.key.startswith("ours")

    @property
    def has_worker(self) -> bool:
        """Whether something waits for orders."""
        return self.key not in ("bare", "shim")


_CELERY = (
    "celery -A celery_peer worker -P prefork -c 4 -l WARNING -n bench@%h"
    " --without-gossip --without-mingle"
)
_RQ = "rq worker-pool -n 4 -q -l WARNING -u {redis} -w {class} {queue}"
_DRAMATIQ = "dramatiq -p 2 -t 2 dramatiq_peer"
_HUEY = "huey_consumer -q -w 4 -k process huey_peer.huey"


def _words(text: str, worker_class: str = "") -> tuple[str, ...]:
    return tuple(text.replace("{class}", worker_class).split())


KINDS = (
    Kind("bare", "bare posix_spawn"),
    Kind("shim", "a plain sh shim"),
    Kind("ours", "job_runner_worker", can_kill=True),
    Kind("ours_own", "the same, own server's protocol", can_kill=True),
    Kind(
        "celery_rabbitmq",
        "Celery prefork, RabbitMQ",
        "celery_peer",
        "amqp",
        _words(_CELERY),
        can_kill=True,
    ),
    Kind(
        "celery_redis",
        "Celery prefork, Redis",
        "celery_peer",
        "redis",
        _words(_CELERY),
        can_kill=True,
    ),
    Kind(
        "rq_simple",
        "RQ SimpleWorker",
        "rq_peer",
        words=_words(_RQ, "rq.SimpleWorker"),
        why_no_kill="stops a job only by its work horse, which it has none",
    ),
    Kind(
        "rq_fork",
        "RQ Worker (forks)",
        "rq_peer",
        words=_words(_RQ, "rq.Worker"),
        can_kill=True,
    ),
    Kind(
        "dramatiq_rabbitmq",
        "Dramatiq, RabbitMQ",
        "dramatiq_peer",
        "amqp",
        _words(_DRAMATIQ),
    ),
    Kind(
        "dramatiq_redis",
        "Dramatiq, Redis",
        "dramatiq_peer",
        "redis",
        _words(_DRAMATIQ),
    ),
    Kind(
        "huey",
        "Huey, Redis",
        "huey_peer",
        words=_words(_HUEY),
        why_no_kill="revokes only tasks that have not begun",
    ),
)


@dataclass(frozen=True)
class Begun:
    """A run that was ordered at ``sent_ns``."""

    run_id: str
    sent_ns: int


class Contestant(Protocol):
    """One of them, started; scripts are given as text."""

    start_ms: float | None
    """From the process's start to the first instruction of its first script."""

    def begin(self, script: str) -> Begun:
        """Order one run."""

    def wait(self, begun: Begun) -> None:
        """Wait until its end is stored."""

    def runs_per_second(self, script: str, count: int) -> float:
        """Order many runs at once, wait until all are stored."""

    def kill(self, begun: Begun) -> int:
        """Order a kill; return when that was."""

    def state(self, begun: Begun) -> str:
        """Return what is stored of a run, in one word."""

    def pids(self) -> list[int]:
        """Return all its processes, those of scripts too."""

    def everything_cpu_seconds(self) -> float | None:
        """Return the CPU time of all that it ever started, where that is known."""

    def count_requests(self) -> int | None:
        """Return how many HTTP requests it has sent so far, None if it sends none."""

    def settle(self) -> None:
        """Wait until nothing is left to do behind a run's end."""

    def crash(self, script_pids: set[int]) -> None:
        """Kill every process of the worker, but no script."""

    def restart(self) -> None:
        """Start the worker again."""
