"""Where the server is, who we are there, and what it says in words.

The first of these that is given: ``--server`` with credentials, ``--config-path`` (a
worker's configuration), ``--data`` (a server's folder on this machine); then the
default folder and $CONFIG_PATH.
"""

from __future__ import annotations

import argparse
import ast
import getpass
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent

from job_runner_worker import data_folder, settings, worker_log
from job_runner_worker.api import ApiClient, ApiOptions
from job_runner_worker.data_folder import DataFolder, read_json
from job_runner_worker.errors import ApiError, ConfigError, JobRunnerError

ROOT = "/api/v1/"
LOGIN = "/login/"
PATIENCE_SECONDS = 120.0
"""How long a server is waited for that does not answer."""
SERVER_VARIABLE = "JOB_RUNNER_SERVER"
USER_VARIABLE = "JOB_RUNNER_USER"
PASSWORD_VARIABLE = "JOB_RUNNER_PASSWORD"
KEY_VARIABLE = "JOB_RUNNER_API_KEY"
SECRET_VARIABLE = "JOB_RUNNER_SECRET"
CONFIG_PATH_VARIABLE = "CONFIG_PATH"
PROGRAM = "job_runner_worker"
TIMEOUT_SECONDS = 15.0
MAX_ANSWER_BYTES = 512 * 1024 * 1024
"""A log is as long as the worker's max_log_bytes allows."""
RETRY_SECONDS = 0.5
EXIT_INTERRUPTED = 130
_UNAUTHORIZED = 401
_FORBIDDEN = 403
_NOT_FOUND = 404
_TOO_MANY = 429


class ClientError(JobRunnerError):
    """What was asked for was not done; the message is one line for a person."""

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class PersonClient(ApiClient):
    """Requests to the central API in the name of somebody who is logged in."""

    def __init__(self, base_url: str, session_key: str = "") -> None:
        super().__init__(
            ApiOptions(
                base_url,
                api_key="",
                secret="",
                timeout_seconds=TIMEOUT_SECONDS,
                max_answer_bytes=MAX_ANSWER_BYTES,
            )
        )
        self._base_url = base_url
        self._session_key = session_key
        # Any will do: it has to be the same in the cookie and in the header, which
        # pages of other servers cannot send.
        self._csrf_token = secrets.token_hex(16)

    def log_in(self, user: str, password: str) -> None:
        """Begin a session, as the login page does. Raises ClientError, ApiError."""
        import requests

        answer = requests.post(
            self._base_url + LOGIN,
            data={
                "username": user,
                "password": password,
                "csrfmiddlewaretoken": self._csrf_token,
            },
            headers={
                "Content-Type": "application/x-www-form-urlencoded",
                **self.identify("POST", LOGIN, b""),
            },
            timeout=TIMEOUT_SECONDS,
            allow_redirects=False,
        )
        if answer.status_code == _TOO_MANY:
            raise ClientError(
                f"{self._base_url} lets nobody in as {user} for a while, after too many"
                " wrong passwords from here",
                os.EX_NOPERM,
            )
        self._session_key = answer.cookies.get("sessionid") or ""
        if not self._session_key:
            raise ClientError(
                f"{self._base_url} does not let {user} in: wrong name or password",
                os.EX_NOPERM,
            )

    def identify(self, method: str, target: str, body: bytes) -> dict[str, bytes]:
        """Send the session's cookie instead of a signature."""
        cookie = f"csrftoken={self._csrf_token}"
        if self._session_key:
            cookie += f"; sessionid={self._session_key}"
        return {
            "Cookie": cookie.encode(),
            "X-CSRFToken": self._csrf_token.encode(),
            "Referer": f"{self._base_url}/".encode(),
        }


class Connection:
    """An API client, and the address it was made for."""

    def __init__(self, api: ApiClient, url: str) -> None:
        self.api = api
        self.url = url
        self._told = ""

    def get(self, path: str, *, patient: bool = False) -> dict[str, Any]:
        """Return the object at a path below /api/v1/, or at a whole one.

        A ``patient`` call waits for a server that is away; ClientError when that has
        taken too long.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                found = self.api.get(_whole(path), patient=False)
            except ApiError as error:
                if not (patient and error.transient):
                    raise
                if time.monotonic() > deadline:
                    raise ClientError(
                        f"{self.url} has not answered for {PATIENCE_SECONDS:.0f} s:"
                        " what was asked for may go on; look again when it is back",
                        os.EX_UNAVAILABLE,
                    ) from error
                self._tell(f"{self.url} does not answer: waiting for it")
                gevent.sleep(RETRY_SECONDS)
            else:
                self._told = ""
                return found

    def _tell(self, message: str) -> None:
        if message != self._told:
            self._told = message
            print(f"{PROGRAM}: {message}", file=sys.stderr)

    def post(self, path: str, fields: dict[str, Any]) -> str:
        """Create an object; return its URI."""
        return self.api.post(_whole(path), fields, patient=False) or ""

    def objects(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield all objects of a list, page after page."""
        following: str | None = path
        while following:
            page = self.get(following)
            yield from page["objects"]
            following = page["meta"]["next"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `connect` needs, and ``--json``."""
    where = parser.add_argument_group("where the server is")
    where.add_argument(
        "--server",
        metavar="URL",
        help=f"its address (default: ${SERVER_VARIABLE}); log in with --user, or with"
        f" ${KEY_VARIABLE} and ${SECRET_VARIABLE}",
    )
    where.add_argument(
        "--user",
        metavar="NAME",
        help=f"log in as (default: ${USER_VARIABLE}); the password is asked for, or"
        f" taken from ${PASSWORD_VARIABLE}",
    )
    where.add_argument(
        "--config-path",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="ask in the name of the worker with this configuration",
    )
    where.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the folder of a server on this machine (default: in XDG's data home)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def connect(arguments: argparse.Namespace) -> Connection:
    """Return a connection to the server that is meant. Raises ConfigError."""
    environ = os.environ
    url = arguments.server or environ.get(SERVER_VARIABLE)
    config_path = getattr(arguments, "config_path", None)
    if url:
        return _at(url.rstrip("/"), arguments, environ)
    if config_path:
        return _as_worker(config_path)
    if arguments.data:
        return _local(DataFolder(arguments.data.absolute()))
    folder = DataFolder(data_folder.default_path(environ))
    if not folder.client_json.exists() and environ.get(CONFIG_PATH_VARIABLE):
        return _as_worker(environ[CONFIG_PATH_VARIABLE])
    return _local(folder)


def reported(command: Callable[[], int], what: str = PROGRAM) -> int:
    """Run a command; tell its errors in one line each and return the exit status."""
    # Errors are told below, in one line each.
    worker_log.configure("error")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return command()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ClientError as error:
        message, status = str(error), error.exit_status
    except ApiError as error:
        message, status = in_words(error), _exit_status(error)
    print(f"{what}: {worker_log.one_line(message)}", file=sys.stderr)
    return status


def in_words(error: ApiError) -> str:
    """Return what a refusal or silence means."""
    if error.status is None:
        return "the server does not answer: is it running, is its address right?"
    if error.status == _UNAUTHORIZED:
        return "the server does not accept these credentials, or not for this"
    said = _said(error)
    if error.status == _NOT_FOUND and not said:
        return f"there is no {_asked_for(error)}"
    if error.answered:
        return said or f"the server refuses: {error}"
    return f"the server has a fault: {error}"


def number_of(uri: str) -> int:
    """Return the id in an object's URI."""
    return int(uri.rstrip("/").rpartition("/")[2])


def _exit_status(error: ApiError) -> int:
    if error.status is None:
        return os.EX_UNAVAILABLE
    return os.EX_NOPERM if error.status in (_UNAUTHORIZED, _FORBIDDEN) else 1


def _asked_for(error: ApiError) -> str:
    """Return `run 3` for an error about /api/v1/run/3/."""
    match = re.search(rf"{ROOT}(\w+)/(\w+)/", str(error))
    return " ".join(match.groups()) if match else str(error)


def _said(error: ApiError) -> str:
    """Return the server's own words: the ``error`` in the JSON that it answered."""
    match = re.search(r"answered \d+ (['\"].*)\Z", str(error), re.DOTALL)
    try:
        said = json.loads(ast.literal_eval(match[1])) if match else None
    except (ValueError, SyntaxError):
        return ""
    return str(said.get("error", "")) if isinstance(said, dict) else ""


def _at(url: str, arguments: argparse.Namespace, environ: Any) -> Connection:
    if not re.match(r"https?://[^/]", url):
        raise ConfigError(f"--server is http://HOST:PORT or https://..., got {url!r}")
    user = arguments.user or environ.get(USER_VARIABLE)
    if user:
        password = environ.get(PASSWORD_VARIABLE)
        if password is None:
            password = getpass.getpass(f"Password of {user} at {url}: ")
        person = PersonClient(url)
        person.log_in(user, password)
        return Connection(person, url)
    key, secret = environ.get(KEY_VARIABLE), environ.get(SECRET_VARIABLE)
    if key and secret:
        return _signed(url, key, secret)
    folder = DataFolder(arguments.data or data_folder.default_path(environ))
    known = read_json(folder.client_json) or {}
    if known.get("server") == url and known.get("session"):
        return Connection(PersonClient(url, known["session"]), url)
    raise ConfigError(
        f"no credentials for {url}: give --user NAME, or ${KEY_VARIABLE} and"
        f" ${SECRET_VARIABLE} in the environment"
    )


def _local(folder: DataFolder) -> Connection:
    known = read_json(folder.client_json) or {}
    url, session = known.get("server"), known.get("session")
    if not url or not session:
        raise ConfigError(
            f"no server in {folder.path}: start one with `{PROGRAM} standalone`, or say"
            " where one is with --server, --data or --config-path"
        )
    return Connection(PersonClient(url, session), url)


def _as_worker(path: str) -> Connection:
    found = settings.load(path, os.environ)
    return _signed(found.api_base_url, found.api_key, found.secret)


def _signed(url: str, key: str, secret: str) -> Connection:
    options = ApiOptions(
        url,
        key,
        secret,
        timeout_seconds=TIMEOUT_SECONDS,
        max_answer_bytes=MAX_ANSWER_BYTES,
    )
    return Connection(ApiClient(options), url)


def _whole(path: str) -> str:
    return path if path.startswith("/") else ROOT + path
