"""The first start of a server: something to work with, and the keys to it.

Everything is made at once or not at all, and never again: who deletes the pool has
none. The secrets are in files of mode 0600 before they are in the database, so that
a start that is cut short can be repeated.
"""

from __future__ import annotations

import re
import secrets
import socket
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
)
from django.db import transaction
from django.utils.crypto import constant_time_compare

from job_runner_worker.data_folder import (
    DataFolder,
    read_json,
    write_json,
    write_private,
)
from job_runner_worker.server.curve_guard import CurveGuard
from job_runner_worker.server.models import JobTemplate, Project, Worker, WorkerPool

WORKER_KEY = "local"
ADMIN_NAME = "admin"
TITLE = "default"
PASSWORD_BYTES = 12
SESSION_SECONDS = 10 * 365 * 24 * 3600
_MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"
_SECTION = "job_runner_worker"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server can be reached; ``url`` is HTTP's."""

    url: str
    host: str
    broadcast_port: int
    events_port: int
    guard: CurveGuard | None = None
    """Whose keys the worker needs; None where orders and events are plain."""


def first_objects(folder: DataFolder) -> str | None:
    """Make what a new server needs; return the administrator's password if it is new.

    A server is new as long as it has neither a worker nor a user. One that has workers
    and nobody at all who could log in gets an administrator.
    """
    users = get_user_model().objects
    if users.exists():
        return None
    has_workers = Worker.objects.exists()
    known = read_json(folder.admin_json) or {}
    password = known.get("password") or secrets.token_urlsafe(PASSWORD_BYTES)
    write_json(folder.admin_json, {"user": ADMIN_NAME, "password": password})
    with transaction.atomic():
        users.create_superuser(ADMIN_NAME, password=password)
        if has_workers:
            return str(password)
        project = Project.objects.create(title=TITLE)
        pool = WorkerPool.objects.create(title=TITLE)
        project.worker_pools.add(pool)
        JobTemplate.objects.create(title=TITLE, project=project)
        worker = Worker.objects.create(title=_host_name(), api_key=WORKER_KEY)
        pool.workers.add(worker)
    return str(password)


def write_worker_ini(folder: DataFolder, addresses: Addresses) -> bool:
    """Write the configuration of this machine's worker, where it has one here.

    What an operator has changed or added in it is kept, but for where the server is.
    """
    worker = Worker.objects.filter(api_key=WORKER_KEY).first()
    if worker is None:
        return False
    at_first = {"api_key": worker.api_key, "spool_path": str(folder.spool)}
    at_first["signature"] = "sha256"
    always = {
        "api_base_url": addresses.url,
        "secret": worker.secret,
        "ws_server_hostname": addresses.host,
        "ws_server_port": str(addresses.events_port),
        "broadcaster_server_hostname": addresses.host,
        "broadcaster_server_port": str(addresses.broadcast_port),
    }
    if (guard := addresses.guard) is not None:
        always["curve_server_key"] = guard.server_key
        always["curve_key_file"] = str(guard.local_key_path)
    path = folder.worker_ini
    text = path.read_text("utf-8") if path.exists() else f"[{_SECTION}]\n"
    if guard is None:
        for name in ("curve_server_key", "curve_key_file"):
            text = re.sub(rf"{_line_of(name).pattern}\n?", "", text, flags=re.MULTILINE)
    for name, value in reversed([*at_first.items(), *always.items()]):
        if name in always or not _line_of(name).search(text):
            text = _with(text, name, value)
    _write_if_new(path, text)
    return True


def write_client_json(folder: DataFolder, addresses: Addresses) -> None:
    """Write the credentials of the command line: a session of the first administrator.

    It is renewed where it is not good any more, as after a change of the password.
    """
    known = read_json(folder.client_json) or {}
    session = str(known.get("session", ""))
    if not _is_good(session):
        session = _new_session()
    if session:
        content = {"server": addresses.url, "session": session}
        if content != known:
            write_json(folder.client_json, content)


def _host_name() -> str:
    name = socket.getfqdn()
    return socket.gethostname() if name.startswith("localhost") else name


def _is_good(session_key: str) -> bool:
    session = _store()(session_key)
    user = get_user_model().objects.filter(pk=session.get(SESSION_KEY)).first()
    return (
        user is not None
        and user.is_active
        and user.is_superuser
        and constant_time_compare(
            session.get(HASH_SESSION_KEY, ""), user.get_session_auth_hash()
        )
    )


def _new_session() -> str:
    users = get_user_model().objects.filter(is_superuser=True, is_active=True)
    user = users.order_by("pk").first()
    if user is None:
        return ""
    session = _store()()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = _MODEL_BACKEND
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.set_expiry(SESSION_SECONDS)
    session.create()
    return str(session.session_key)


def _store() -> type:
    store: type = import_module(settings.SESSION_ENGINE).SessionStore
    return store


def _line_of(name: str) -> re.Pattern[str]:
    return re.compile(rf"^{name}[ \t]*[=:].*$", re.MULTILINE)


def _with(text: str, name: str, value: str) -> str:
    line = f"{name} = {value}"
    text, count = _line_of(name).subn(lambda match: line, text, count=1)
    if count:
        return text
    head = f"[{_SECTION}]\n"
    return text.replace(head, f"{head}{line}\n", 1)


def _write_if_new(path: Path, text: str) -> None:
    if not path.exists() or path.read_text("utf-8") != text:
        write_private(path, text)
