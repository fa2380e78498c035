"""Takes an empty Redis database for a benchmark, and leaves nothing behind.

``tidy.py claim QUEUE`` prints the number of a database that is empty and now taken;
``tidy.py release QUEUE NUMBER AMQP_URL KEY...`` empties it and deletes what the peers
with these keys have made in RabbitMQ.
"""

from __future__ import annotations

import random
import sys
from contextlib import suppress

import amqp
import redis
from kombu import Connection

HOST = "127.0.0.1"
OWNER = "job_runner_bench_owner"
DATABASES = 15
OWNER_SECONDS = 3600


def claim(queue: str) -> None:
    """Take a database; 0 is left to others."""
    for number in random.sample(range(1, DATABASES + 1), DATABASES):
        client = redis.Redis(HOST, db=number)
        if client.dbsize() == 0 and client.set(OWNER, queue, nx=True, ex=OWNER_SECONDS):
            print(number)
            return
    sys.exit(f"none of Redis' databases 1 to {DATABASES} is empty: empty one")


def release(base: str, number: str, amqp_url: str, *keys: str) -> None:
    """Empty the database if it is ours, and delete queues and exchanges."""
    client = redis.Redis(HOST, db=int(number))
    if client.get(OWNER) == base.encode():
        client.flushdb()
    for queue in (base, *(f"{base}_{key}" for key in keys)):
        pidbox = f"{queue}.pidbox"
        for name in (queue, f"{queue}.DQ", f"{queue}.XQ"):
            _delete(amqp_url, "queue_delete", name)
        for name in (queue, pidbox, f"reply.{pidbox}", f"{queue}.events"):
            _delete(amqp_url, "exchange_delete", name)


def _delete(amqp_url: str, method: str, name: str) -> None:
    with suppress(amqp.exceptions.AMQPError), Connection(amqp_url) as connection:
        getattr(connection.default_channel, method)(name)


if __name__ == "__main__":
    {"claim": claim, "release": release}[sys.argv[1]](*sys.argv[2:])
