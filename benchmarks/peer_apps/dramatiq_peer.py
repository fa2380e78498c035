"""Dramatiq's task, and what is asked of Dramatiq."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import ResultMissing, Results
from dramatiq.results.backends import RedisBackend
from script_task import AMQP_URL, IS_ON_REDIS, QUEUE, REDIS_URL, run_script

broker = (
    RedisBroker(url=REDIS_URL, namespace=QUEUE)
    if IS_ON_REDIS
    else RabbitmqBroker(url=AMQP_URL)
)
_results = RedisBackend(url=REDIS_URL)
broker.add_middleware(Results(backend=_results))
dramatiq.set_broker(broker)
_ordered: dict[str, dramatiq.Message] = {}


@dramatiq.actor(queue_name=QUEUE, store_results=True, max_retries=0)
def run(path: str) -> dict[str, object]:
    """Run a script."""
    return run_script(path)


def order(path: str) -> str:
    """Order a run; return its id."""
    message = run.send(path)
    _ordered[message.message_id] = message
    return message.message_id


def state(number: str) -> tuple[str, object]:
    """Return what is stored of a run: its state, and its result."""
    try:
        return "success", _results.get_result(_ordered[number])
    except ResultMissing:
        return "no result", None


def is_done(number: str) -> bool:
    """Return whether a run has a result."""
    return bool(_results.client.exists(_results.build_message_key(_ordered[number])))
