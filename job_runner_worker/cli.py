"""The command ``job_runner_worker``: the daemon, and what helps to run it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from job_runner_worker import __version__, config_file, worker_log
from job_runner_worker import settings as settings_module
from job_runner_worker.errors import (
    ApiError,
    ConfigError,
    JobRunnerError,
    SpoolError,
    SpoolLockedError,
)
from job_runner_worker.settings import Settings

PROGRAM = "job_runner_worker"
CONFIG_PATH_VARIABLE = "CONFIG_PATH"
EXIT_OK = os.EX_OK
EXIT_FAILURE = 1
EXIT_CANNOT_PRINT = os.EX_IOERR
EXIT_LOCKED = os.EX_TEMPFAIL
EXIT_NOT_ALLOWED = os.EX_NOPERM
EXIT_CONFIG = os.EX_CONFIG
_UNAUTHORIZED = 401
_EXIT_CODES = f"""\
exit codes:
  {EXIT_OK:3}  an ordered stop
  {EXIT_FAILURE:3}  something else went wrong; the last line says what
  {EXIT_LOCKED:3}  another worker uses the same spool
  {EXIT_NOT_ALLOWED:3}  the central server does not accept api_key and secret
  {EXIT_CONFIG:3}  the configuration has to be changed; nothing was started
"""
_COMMANDS = {
    "status": ("show how the worker is", "operator.status"),
    "failed": ("list, retry or discard what was set aside", "operator.failed"),
    "pause": ("claim no new run", "operator.pause"),
    "resume": ("claim runs again", "operator.resume"),
    "keygen": ("make keys that encrypt orders and events", "keygen"),
    "launch-scheduled": ("start what is due, for a crontab", "cron.launch_scheduled"),
    "propagate-statuses": (
        "tell the server of ends, and kill, for a crontab",
        "cron.propagate_statuses",
    ),
    "doctor": ("try out what a worker needs, line by line", "doctor"),
    "server": ("the central server", "server.serve"),
    "standalone": ("a central server and one worker", "server.standalone"),
    "submit": ("run a script", "client.submit"),
    "runs": ("show the latest runs", "client.runs"),
    "log": ("show what a run has printed", "client.log"),
    "kill": ("ask for runs to be killed", "client.kill"),
    "workers": ("show the workers", "client.workers"),
    "launch": ("give a job to the launcher of a worker", "client.launch"),
}
"""What there is besides the daemon: its help, and its module below this package.

A module has ``add_arguments(parser)`` and ``run(arguments)``, which returns the exit
status; it is imported when it is meant, so that the daemon starts without it.
"""
_PRINT_COMPLETION = "--print-completion"
_SHELLS = ("bash", "zsh", "tcsh")
_EXAMPLE_COLUMNS = 80
_EXAMPLE_HEADER = """\
# The configuration of job_runner_worker: all settings, those behind a # at
# their default. A # or ; that follows a value belongs to it. What is in force:
#     job_runner_worker check-config --config-path PATH

[job_runner_worker]
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Raises SystemExit where argparse does: for ``-h``, ``--version`` and misuse.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        with _printing():
            parser = _parser(words)
            arguments = parser.parse_args(words)
            if arguments.print_completion:
                print(_completion(parser, arguments.print_completion))
                return EXIT_OK
            if arguments.command in _COMMANDS:
                status: int = arguments.perform(arguments)
                return status
        path = _config_path(arguments)
        settings = settings_module.load(path, os.environ)
        if arguments.command == "check-config":
            if wrong := config_file.exposure(path, settings):
                print(f"{PROGRAM}: {worker_log.one_line(wrong)}", file=sys.stderr)
            with _printing():
                for name, value in settings_module.describe(settings):
                    print(f"{name} = {value}".rstrip())
            return EXIT_OK
        return _run_worker(path, settings)
    except JobRunnerError as error:
        print(f"{PROGRAM}: {worker_log.one_line(str(error))}", file=sys.stderr)
        return exit_code_of(error)


def exit_code_of(error: JobRunnerError) -> int:
    """Return what tells a supervisor whether another try makes sense."""
    match error:
        case SpoolLockedError():
            return EXIT_LOCKED
        case ConfigError() | SpoolError():
            return EXIT_CONFIG
        case ApiError(status=status) if status == _UNAUTHORIZED:
            return EXIT_NOT_ALLOWED
    return EXIT_FAILURE


def example_config() -> str:
    """Return the text of etc/config.ini.example."""
    return "\n".join([_EXAMPLE_HEADER, *map(_example_of, fields(Settings))])


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    # SUPPRESS, since a sub-command's default would replace what stands before it.
    config_path = argparse.ArgumentParser(add_help=False)
    config_path.add_argument(
        "--config-path",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help=f"the ini file (default: ${CONFIG_PATH_VARIABLE})",
    )
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Claims runs of a Job-Runner server and executes their scripts.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[config_path],
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"{PROGRAM} {__version__}"
    )
    parser.add_argument(
        _PRINT_COMPLETION,
        metavar="SHELL",
        choices=_SHELLS,
        help=f"print what makes a shell complete this command: {', '.join(_SHELLS)}",
    )
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="instead of the daemon"
    )
    commands.add_parser(
        "check-config",
        help="check the configuration and print the effective settings",
        parents=[config_path],
        allow_abbrev=False,
    )
    is_completion = any(word.startswith(_PRINT_COMPLETION) for word in words)
    for name, (about, module_name) in _COMMANDS.items():
        command = commands.add_parser(name, help=about, allow_abbrev=False)
        if name in words or is_completion:
            module = importlib.import_module(f"job_runner_worker.{module_name}")
            command.description = f"{about[0].upper()}{about[1:]}."
            module.add_arguments(command)
            command.set_defaults(perform=module.run)
    return parser


def _completion(parser: argparse.ArgumentParser, shell: str) -> str:
    try:
        import shtab
    except ImportError as error:
        raise ConfigError(
            f"{_PRINT_COMPLETION} needs another package: pip install shtab"
        ) from error
    return str(shtab.complete(parser, shell=shell))


def _config_path(arguments: argparse.Namespace) -> str:
    path = getattr(arguments, "config_path", os.environ.get(CONFIG_PATH_VARIABLE))
    if not path:
        raise ConfigError(
            f"no configuration: give its path with --config-path or in"
            f" ${CONFIG_PATH_VARIABLE}"
        )
    return str(path)


def _run_worker(path: str, settings: Settings) -> int:
    worker_log.configure(settings.log_level)
    from job_runner_worker import wiring

    def reread() -> Settings:
        found = settings_module.load(path, os.environ)
        config_file.make_private(path, found)
        return found

    config_file.make_private(path, settings)
    return wiring.run_worker(settings, reread)


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """Exit without a traceback where nobody reads what is printed any more."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_CANNOT_PRINT)


def _example_of(setting: Field[Any]) -> str:
    about = setting.metadata
    text, mark = about["example"], "#"
    if setting.default is not MISSING:
        text = settings_module.text_of(setting.default)
    unit = f", in {about['unit']}" if about["unit"] else ""
    notes = f"{about['help']} Must be {about['rule'].allowed}{unit}."
    if settings_module.is_required(setting):
        mark = ""
    elif not text:
        notes += f" Default: {about['derived'] or 'none'}."
    comment = textwrap.wrap(notes, _EXAMPLE_COLUMNS - 2, break_on_hyphens=False)
    line = f"{mark}{setting.name} = {text}".rstrip()
    return "\n".join([*(f"# {each}" for each in comment), line, ""])
