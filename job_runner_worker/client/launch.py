"""``job_runner_worker launch``: a job for the launcher of a worker."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent

from job_runner_worker import settings
from job_runner_worker.client import connection
from job_runner_worker.client.connection import ClientError

DEFAULT_URL = "http://127.0.0.1:9998"
TOKEN_VARIABLE = "JOB_RUNNER_LAUNCHER_TOKEN"
POLL_SECONDS = 0.2
TIMEOUT_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    parser.add_argument("executable", metavar="EXECUTABLE")
    parser.add_argument(
        "arguments", metavar="ARG", nargs="*", help="after -- if one begins with a -"
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="wait for the end and print its output; the exit status is the job's;"
        " Ctrl-C cancels the job (130)",
    )
    parser.add_argument(
        "--jobdir", type=Path, default=Path(), help="where its files are (default: .)"
    )
    parser.add_argument(
        "--environment", metavar="NAME=VALUE", action="append", default=[]
    )
    parser.add_argument("--prestage", metavar="FILE", action="append", default=[])
    parser.add_argument("--poststage", metavar="FILE", action="append", default=[])
    parser.add_argument("--stdout", default="stdout.txt", metavar="FILE")
    parser.add_argument("--stderr", default="stderr.txt", metavar="FILE")
    parser.add_argument("--callback", metavar="URL", help="where its states are PUT")
    parser.add_argument("--max-time", type=float, metavar="SECONDS")
    parser.add_argument(
        "--url",
        help="the launcher (default: that of the worker of --config-path, else"
        f" {DEFAULT_URL}); its token is taken from ${TOKEN_VARIABLE}",
    )
    parser.add_argument(
        "--config-path",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="the worker's ini file, which has the address and the token",
    )


def run(arguments: argparse.Namespace) -> int:
    """Launch a job; return the exit status."""
    return connection.reported(lambda: _launch(arguments))


class _Launcher:
    """One launcher, and the token that it takes."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token

    def ask(self, method: str, target: str, body: object = None) -> tuple[str, Any]:
        """Return Location and content of an answer. Raises ClientError."""
        parts = urlsplit(self._url)
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        kind: type[http.client.HTTPConnection] = http.client.HTTPConnection
        if parts.scheme == "https":
            kind = http.client.HTTPSConnection
        link = kind(parts.netloc, timeout=TIMEOUT_SECONDS)
        try:
            data = None if body is None else json.dumps(body)
            link.request(method, target, data, headers)
            answer = link.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(
                f"{self._url} does not answer ({error}): is launcher_bind set, and does"
                " the worker run?"
            ) from error
        finally:
            link.close()
        try:
            found = json.loads(content) if content else None
        except ValueError as error:
            raise ClientError(f"{self._url} is no launcher") from error
        if not 200 <= answer.status < 300:
            why = found.get("error") if isinstance(found, dict) else ""
            raise ClientError(f"the launcher answered {answer.status}: {why}")
        return answer.headers.get("Location", ""), found


def _launch(arguments: argparse.Namespace) -> int:
    launcher = _connect(arguments)
    location, _ = launcher.ask("POST", "/job", _request(arguments))
    if not arguments.follow:
        print(location)
        return 0
    path = urlsplit(location).path
    try:
        status = _wait(launcher, path)
    except KeyboardInterrupt:
        launcher.ask("DELETE", path)
        raise
    jobdir = arguments.jobdir.absolute()
    outputs = {arguments.stdout: sys.stdout, arguments.stderr: sys.stderr}
    for name, stream in outputs.items():
        file = jobdir / name
        if file.is_file():
            stream.write(file.read_text("utf-8", "replace"))
            stream.flush()
    why = f": {status['exception']}" if status["exception"] else ""
    print(f"{status['state']}, exit status {status['exitCode']}{why}", file=sys.stderr)
    if status["state"] == "STOPPED" and status["exitCode"] is not None:
        return int(status["exitCode"])
    return 1


def _wait(launcher: _Launcher, path: str) -> dict[str, Any]:
    while True:
        _, found = launcher.ask("GET", path)
        status: dict[str, Any] = found["status"]
        if status["done"]:
            return status
        gevent.sleep(POLL_SECONDS)


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    environment = {}
    for assignment in arguments.environment:
        name, sign, value = assignment.partition("=")
        if not sign:
            raise ClientError(f"--environment {assignment}: must be NAME=VALUE", 2)
        environment[name] = value
    return {
        "jobdir": str(arguments.jobdir.absolute()),
        "executable": arguments.executable,
        "arguments": arguments.arguments,
        "environment": environment,
        "prestaged": arguments.prestage,
        "poststaged": arguments.poststage,
        "stdout": arguments.stdout,
        "stderr": arguments.stderr,
        "status_callback_url": arguments.callback,
        "max_time_seconds": arguments.max_time,
    }


def _connect(arguments: argparse.Namespace) -> _Launcher:
    token = os.environ.get(TOKEN_VARIABLE, "")
    config_path = getattr(arguments, "config_path", None)
    url = arguments.url or DEFAULT_URL
    if config_path and not arguments.url:
        found = settings.load(config_path, os.environ)
        if found.launcher_bind is None:
            raise ClientError(f"{config_path} has no launcher_bind")
        url = f"http://{found.launcher_bind}"
        token = token or next(iter(found.launcher_tokens), "")
    return _Launcher(url, token)
