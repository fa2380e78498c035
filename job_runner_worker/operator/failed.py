"""``job_runner_worker failed``: what was set aside is listed, tried again, deleted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from job_runner_worker.client import listing
from job_runner_worker.control import MAX_REQUEST_BYTES
from job_runner_worker.errors import JobRunnerError
from job_runner_worker.failed_folders import FailedFolders
from job_runner_worker.operator import place
from job_runner_worker.spool import without_worker
from job_runner_worker.status import of_spool

MAX_NAMES = MAX_REQUEST_BYTES // 512
"""In one request; a name has 255 bytes at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    parser.add_argument("action", choices=("list", "retry", "discard"))
    parser.add_argument("names", metavar="NAME", nargs="*", help="as in the list")
    parser.add_argument("--all", action="store_true", help="all that are there")
    parser.add_argument(
        "--yes", action="store_true", help="discard without being asked"
    )
    place.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """List, retry or discard; return 1 where something could not be done."""
    path = place.spool_path(arguments)
    if arguments.action == "list":
        return _list(path, as_json=arguments.json)
    names = _names(arguments, FailedFolders(path))
    if arguments.action == "discard":
        _confirm(names, is_sure=arguments.yes)
        done, errors = _discard(path, names)
    else:
        done, errors = _retry(path, names)
    if arguments.json:
        listing.print_json({"done": done, "errors": errors})
    else:
        word = "discarded" if arguments.action == "discard" else "is taken up again"
        for name in done:
            print(f"{name} {word}")
    place.complain(errors.values())
    return 1 if errors else 0


def _list(path: Path, *, as_json: bool) -> int:
    found = of_spool(path)["failed"]
    if as_json:
        listing.print_json(found)
        return 0
    for each in found:
        at = each["set_aside"]
        when = listing.time_of(at["at"]) if at else "unknown time"
        print(
            f"{each['name']}  run {each['run'] or 'unknown'}  {when}  "
            f"{each['disk_bytes']} bytes\n    {_one_line(each['reason'])}"
        )
    return 0


def _names(arguments: argparse.Namespace, failed: FailedFolders) -> list[str]:
    if bool(arguments.names) == arguments.all:
        raise JobRunnerError(
            f"failed {arguments.action}: give names as in `failed list`, or --all"
        )
    known = [each.name for each in failed.entries()]
    names = known if arguments.all else list(dict.fromkeys(arguments.names))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise JobRunnerError(f"not in {failed.path}: {', '.join(unknown)}")
    return names


def _confirm(names: list[str], *, is_sure: bool) -> None:
    if is_sure or not names:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise JobRunnerError("failed discard: not a terminal: say --yes to delete")
    print(f"{', '.join(names)}: delete for good? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise JobRunnerError("failed discard: nothing was deleted")


def _discard(path: Path, names: list[str]) -> tuple[list[str], dict[str, str]]:
    failed, errors = FailedFolders(path), {}
    for name in names:
        try:
            failed.discard(name)
        except JobRunnerError as error:
            errors[name] = str(error)
    return [name for name in names if name not in errors], errors


def _retry(path: Path, names: list[str]) -> tuple[list[str], dict[str, str]]:
    done: list[str] = []
    errors: dict[str, str] = {}
    for first in range(0, len(names), MAX_NAMES):
        some = names[first : first + MAX_NAMES]
        answer = place.ask(path, {"command": "retry", "names": some})
        if answer is None:
            more, failed = _retry_without_worker(path, some)
        else:
            more, failed = list(answer["retried"]), answer["errors"]
        done += more
        errors |= failed
    return done, errors


def _retry_without_worker(
    path: Path, names: list[str]
) -> tuple[list[str], dict[str, str]]:
    failed, errors = FailedFolders(path), {}
    with without_worker(path):
        for name in names:
            try:
                failed.retry(name)
            except JobRunnerError as error:
                errors[name] = str(error)
    return [name for name in names if name not in errors], errors


def _one_line(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)
