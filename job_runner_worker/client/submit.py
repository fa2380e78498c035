"""``job_runner_worker submit``: a script becomes a job, and the job a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from job_runner_worker.client import connection, follow, listing
from job_runner_worker.client.connection import ClientError, Connection, number_of
from job_runner_worker.errors import ApiError

DEFAULT = "default"
MAX_TITLE = 255


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    parser.add_argument("script", metavar="SCRIPT", help="a file, or - for stdin")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="print the log as it grows and wait for the end; exit status 0 for"
        " success, 1 for failure; Ctrl-C asks to kill the run (130)",
    )
    parser.add_argument(
        "--title", metavar="T", help="the job's title (default: the file's name)"
    )
    parser.add_argument(
        "--pool", metavar="P", help="the worker pool's title (default: the only one)"
    )
    parser.add_argument(
        "--host",
        metavar="H",
        help="only the worker with this title or key runs it, or `launch-scheduled` on"
        " the host of this name",
    )
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Submit a script; return the exit status."""
    return connection.reported(lambda: _submit(arguments))


def _submit(arguments: argparse.Namespace) -> int:
    script = read_script(arguments.script)
    title = arguments.title or _title_of(arguments.script)
    central = connection.connect(arguments)
    pool = _pick("worker pool", list(central.objects("worker_pool/")), arguments.pool)
    fields: dict[str, Any] = {"is_manual": True}
    job: dict[str, Any] = {
        "title": title[:MAX_TITLE],
        "script_content_partial": script,
        "job_template": _template(central, pool)["resource_uri"],
        "worker_pool": pool["resource_uri"],
    }
    if arguments.host:
        job["host"] = arguments.host
        fields["worker"] = _worker_uri(central, pool, arguments.host)
    fields["job"] = central.post("job/", job)
    run_id = number_of(central.post("run/", fields))
    if not arguments.follow:
        if arguments.json:
            listing.print_json({"run": run_id, "job": number_of(fields["job"])})
        else:
            print(f"run {run_id}")
        return 0
    return _follow(central, run_id, as_json=arguments.json)


def read_script(name: str) -> str:
    """Return a script's text. Raises ClientError where a worker could not run it."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise ClientError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ClientError(f"{name} is no text in UTF-8: {error}") from error
    if not text.startswith("#!"):
        raise ClientError(f"{name}: the first line has to begin with #!, as #!/bin/sh")
    return text


def _follow(central: Connection, run_id: int, *, as_json: bool) -> int:
    if not as_json:
        print(f"run {run_id}", file=sys.stderr, flush=True)
    write = (lambda text: None) if as_json else None
    try:
        ended = follow.follow(central, run_id, write)
    except KeyboardInterrupt:
        _ask_to_kill(central, run_id)
        return connection.EXIT_INTERRUPTED
    if as_json:
        listing.print_json({**ended, "log": follow.log_of(central, ended)})
    else:
        print(follow.summary(ended), file=sys.stderr)
    return follow.exit_status_of(ended)


def _ask_to_kill(central: Connection, run_id: int) -> None:
    try:
        central.post("kill_request/", {"run": f"{connection.ROOT}run/{run_id}/"})
    except ApiError as error:
        message = f"run {run_id} may go on: {connection.in_words(error)}"
    else:
        message = f"run {run_id} is to be killed"
    print(f"\n{message}", file=sys.stderr)


def _title_of(name: str) -> str:
    return "stdin" if name == "-" else Path(name).name


def _pick(what: str, found: list[dict[str, Any]], title: str | None) -> dict[str, Any]:
    """Return the one that is meant, or the only one, or the one called default."""
    wanted = [each for each in found if title in (None, each["title"])]
    if len(wanted) > 1:
        wanted = [each for each in wanted if each["title"] == DEFAULT][:1] or wanted
    if len(wanted) == 1:
        return wanted[0]
    titles = ", ".join(sorted(each["title"] for each in found)) or "none"
    if title is None:
        raise ClientError(f"which {what}? There are: {titles}")
    raise ClientError(f"there is no {what} {title!r}; there are: {titles}")


def _template(central: Connection, pool: dict[str, Any]) -> dict[str, Any]:
    """Return a template of a project that uses the pool, the plain one if possible."""
    projects = {
        each["resource_uri"]
        for each in central.objects("project/")
        if pool["resource_uri"] in each["worker_pools"]
    }
    found = [
        each for each in central.objects("job_template/") if each["project"] in projects
    ]
    if not found:
        raise ClientError(f"no project with a job template uses pool {pool['title']!r}")
    found.sort(key=lambda each: (each["title"] != DEFAULT, each["id"]))
    return found[0]


def _worker_uri(central: Connection, pool: dict[str, Any], host: str) -> str | None:
    """Return the worker of a host; None where only cron mode can start runs there."""
    workers = [
        each
        for each in central.objects("worker/")
        if each["resource_uri"] in pool["workers"]
    ]
    for worker in workers:
        if host in (worker["title"], worker["api_key"]):
            return str(worker["resource_uri"])
    titles = ", ".join(sorted(each["title"] for each in workers)) or "none"
    print(
        f"pool {pool['title']!r} has no worker {host!r} ({titles}): the run waits for"
        f" `launch-scheduled` on a host of that name",
        file=sys.stderr,
    )
    return None
