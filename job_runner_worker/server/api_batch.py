"""Many requests of a worker in one: ``POST batch/``.

Each item is a request in short, and means what that one means by itself: it is done
by the same view, for the same caller, in its turn, and its refusal is its own. What
Django and its REST framework do about a request is done once for all.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import gevent
from django.db import OperationalError, connection, transaction
from django.http import HttpResponse
from rest_framework import exceptions, serializers

from job_runner_worker.server import job_lock
from job_runner_worker.server.api_base import JSON_TYPE, ApiView
from job_runner_worker.server.api_item import Item
from job_runner_worker.server.api_schema import BatchSchema
from job_runner_worker.server.models import Worker
from job_runner_worker.server.serializers import API_ROOT, MAX_ID, Text
from job_runner_worker.server.statements import flushed_together

MAX_ITEMS = 100
MAX_ANSWERS_BYTES = 4 * 1024 * 1024
"""A worker reads 8 MiB of an answer; what is longer is to be asked for by itself."""
ITEMS_PER_TRANSACTION = 16
"""While SQLite is in one nobody else is served."""
TOO_LONG = 413
METHODS = ("GET", "PATCH", "POST")
_RUN = re.compile(re.escape(API_ROOT) + r"run/([0-9]{1,19})/")
_PATH = re.compile(re.escape(API_ROOT) + r"(\w+)/(?:([^/]+)/)?")
_log = logging.getLogger(__name__)

Find = Callable[[str, str | None], ApiView | None]
"""From a resource and an id, None for the list, to a view of it."""


class ItemSerializer(serializers.Serializer):
    """A request in short; ``path`` has its query."""

    method = serializers.ChoiceField(choices=METHODS)
    path = Text()
    body = serializers.DictField(required=False)


class AnswerSerializer(serializers.Serializer):
    """An answer in short."""

    status = serializers.IntegerField()
    body = serializers.DictField(required=False)
    location = serializers.CharField(required=False)
    retry_after = serializers.IntegerField(required=False)


class BatchSerializer(serializers.Serializer):
    """Requests, in the order in which they are done."""

    items = ItemSerializer(many=True)


class BatchAnswerSerializer(serializers.Serializer):
    """An answer for each request, in the same order."""

    answers = AnswerSerializer(many=True)


class Batch(ApiView):
    """Many requests of a worker."""

    resource, model, methods = "batch", Worker, ("POST",)
    serializer_class, answer_class = BatchSerializer, BatchAnswerSerializer
    schema = BatchSchema()
    find: Find | None = None

    def post(self, request: Any) -> HttpResponse:
        """Do what each item asks for, and answer each."""
        worker = self.the_worker()
        items = [_item(each, worker) for each in _items_in(self.body())]
        answers: list[bytes] = []
        for first in range(0, len(items), ITEMS_PER_TRANSACTION):
            if answers:
                # Whoever waits for SQLite may have it now.
                gevent.sleep(0)
            some = items[first : first + ITEMS_PER_TRANSACTION]
            with _transaction(len(some)):
                _look_ahead(some)
                for item in some:
                    room = MAX_ANSWERS_BYTES - sum(map(len, answers))
                    answers.append(self._answer(item, room))
        content = b'{"answers":[' + b",".join(answers) + b"]}"
        return HttpResponse(content, content_type=JSON_TYPE)

    def _answer(self, item: Item, room: int) -> bytes:
        try:
            answer = self._done(item)
        except OperationalError as error:
            answer = self.handle_exception(error)
        except Exception:
            _log.exception("batch: %s %s", item.method, item.path)
            answer = HttpResponse(status=500)
        short: dict[str, Any] = {"status": answer.status_code}
        if "Location" in answer:
            short["location"] = answer["Location"]
        if "Retry-After" in answer:
            short["retry_after"] = int(answer["Retry-After"])
        is_json = answer.content and answer["Content-Type"] == JSON_TYPE
        if is_json and len(answer.content) <= room:
            text = json.dumps(short).encode("ascii")
            return text[:-1] + b',"body":' + answer.content + b"}"
        if is_json and item.method == "GET":
            short["status"] = TOO_LONG
        return json.dumps(short).encode("ascii")

    def _done(self, item: Item) -> HttpResponse:
        """Return what the view of a resource answers."""
        match = _PATH.fullmatch(item.path)
        assert self.find is not None
        view = self.find(match[1], match[2]) if match else None
        if view is None or match is None:
            return HttpResponse(status=404)
        view.request = item
        words = () if match[2] is None else (match[2],)
        try:
            if item.method not in view.methods:
                raise exceptions.MethodNotAllowed(item.method)
            return getattr(view, item.method.lower())(item, *words)
        except OperationalError:
            raise
        except Exception as error:
            return view.handle_exception(error)


def _transaction(items: int) -> AbstractContextManager[object]:
    """Return one for some items, where that saves time and harms nobody.

    What each does is a transaction already, which becomes a savepoint in this one. On
    PostgreSQL it would hold the locks of many jobs, taken in any order; there they
    share the wait for the disk.
    """
    if items == 1:
        return nullcontext()
    is_alone = connection.vendor == "sqlite"
    return transaction.atomic() if is_alone else flushed_together()


def _look_ahead(items: Sequence[Item]) -> None:
    """Read the runs that will be changed, in one trip to the database."""
    paths = (_RUN.fullmatch(each.path) for each in items if each.method == "PATCH")
    numbers = {min(int(path[1]), MAX_ID) for path in paths if path}
    if len(numbers) > 1:
        known = job_lock.known(*numbers)
        for item in items:
            item.ahead = known


def _items_in(fields: dict[str, Any]) -> list[Any]:
    items = fields.get("items")
    if not isinstance(items, list) or not 0 < len(items) <= MAX_ITEMS:
        message = f"is a list of 1 to {MAX_ITEMS} requests"
        raise exceptions.ValidationError({"items": [message]})
    return items


def _item(given: Any, worker: Worker) -> Item:
    """Return a request; nothing is done of a batch with one that is none."""
    if not isinstance(given, dict):
        raise exceptions.ValidationError({"items": ["each is a JSON object"]})
    method, target = given.get("method"), given.get("path")
    if method not in METHODS:
        message = f"`method` is one of {', '.join(METHODS)}"
        raise exceptions.ValidationError({"items": [message]})
    if not isinstance(target, str):
        raise exceptions.ValidationError({"items": ["`path` is a text"]})
    path, _, query = target.partition("?")
    return Item(worker, method, path, query, given.get("body"))
