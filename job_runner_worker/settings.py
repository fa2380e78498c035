"""What the operator decides: the ini section ``[job_runner_worker]``.

Each setting is declared once, as a field of `Settings`: its type, its default, and in
its metadata what it is for, its unit and which values are allowed. The example file
and the error messages are made from that.
"""

from __future__ import annotations

import configparser
import difflib
import hashlib
import ipaddress
import os
import re
import textwrap
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from job_runner_worker.errors import ConfigError

SECTION = "job_runner_worker"
MASK = "********"
_LONGEST_KEY_FOLDER_CHARACTERS = 200
_SHOWN_CHARACTERS = 80
_EXAMPLE_COLUMNS = 80

LogLevel = Literal["debug", "info", "warning", "error"]
InterruptedRuns = Literal["reschedule", "fail"]
LeftoverProcesses = Literal["leave", "kill"]
ProcessTracking = Literal["auto", "subreaper"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Which texts a setting takes: ``read`` raises ValueError for all others.

    ``allowed`` completes the sentence "must be ...".
    """

    allowed: str
    read: Callable[[str], Any]


def _matching(allowed: str, pattern: str, read: Callable[[str], Any] = str) -> Rule:
    def checked(text: str) -> Any:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return read(text)

    return Rule(allowed, checked)


def _number(
    kind: type[int] | type[float], low: float, high: float, also: str = ""
) -> Rule:
    noun, digits = {
        int: ("a whole number", r"\d{1,15}"),
        float: ("a number", r"(\d{1,15}(\.\d*)?|\.\d+)"),
    }[kind]
    last = f" to {high:.0f}" if high < float("inf") else " upwards"

    def bounded(text: str) -> float:
        number = kind(text)
        if not low <= number <= high:
            raise ValueError(text)
        return number

    return _matching(f"{noun} from {low:g}{last}{also}", f"(?a:{digits})", bounded)


def _one_of(choices: object) -> Rule:
    names = get_args(choices)
    return _matching(" or ".join(names), "|".join(names))


def _read_host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        return str(ipaddress.IPv6Address(text[1:-1]))
    if ":" in text:
        return str(ipaddress.IPv6Address(text))
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}", text):
        raise ValueError(text)
    return text


def _read_url(text: str) -> str:
    url = urllib.parse.urlsplit(text)
    if not re.fullmatch("[!-~]+", text) or re.search(r"[?#@\\]", text):
        raise ValueError(text)
    if url.scheme not in ("http", "https") or url.port == 0:
        raise ValueError(text)
    _read_host(url.hostname or "")
    return text.rstrip("/")


def _read_path(text: str) -> Path:
    if not os.path.isabs(text) or "\0" in text:
        raise ValueError(text)
    return Path(text)


def _read_folder(text: str) -> Path:
    if not os.path.isdir(_read_path(text)):
        raise ValueError(text)
    return Path(text)


def _read_file(text: str) -> Path:
    if not os.path.isfile(_read_path(text)):
        raise ValueError(text)
    return Path(text)


def _read_switch(text: str) -> bool:
    try:
        return configparser.ConfigParser.BOOLEAN_STATES[text.lower()]
    except KeyError as error:
        raise ValueError(text) from error


def _read_names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PORT = _number(int, 1, 65535)
_HOST = Rule("a host name or an IP address, without scheme and port", _read_host)
_RESOURCE = _matching(
    "an ASCII path that begins and ends with a slash, without a query",
    r"/((?!\.\.?/)[A-Za-z0-9._~-]+/)*",
)


def _about(
    help: str,
    rule: Rule,
    *,
    unit: str = "",
    derived: str = "",
    placeholder: str = "",
) -> dict[str, Any]:
    """Return a field's metadata. ``derived`` says what the default follows from."""
    return {
        "help": help,
        "rule": rule,
        "unit": unit,
        "derived": derived,
        "placeholder": placeholder,
    }


def _seconds(help: str, low: float, high: float = 86400, off: str = "") -> Any:
    return _about(help, _number(float, low, high, off), unit="seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The effective settings of a worker. Made by `load` or `parse`."""

    api_base_url: str = field(
        metadata=_about(
            "The address of the central server; the *_resource_uri below follow it.",
            Rule(
                "an address that starts with http:// or https://, with a host,"
                " without password and query",
                _read_url,
            ),
            placeholder="https://jobs.example.com",
        )
    )
    api_key: str = field(
        metadata=_about(
            "The worker's name at the central server.",
            _matching("one word without a colon", r"[^:\s\x00-\x1f\x7f-\x9f]+"),
            placeholder="my-worker",
        )
    )
    secret: str = field(
        repr=False,
        metadata=_about(
            "What the worker signs its requests with; as given at the central"
            " server. Everything after the equals sign counts, also # and ; and %.",
            _matching(
                "one line without control characters", r"[^\x00-\x1f\x7f-\x9f]+"
            ),
            placeholder="change-me",
        ),
    )
    concurrent_jobs: int = field(
        default=4,
        metadata=_about("How many runs go on at once.", _number(int, 1, 10000)),
    )
    log_level: LogLevel = field(
        default="info",
        metadata=_about(
            "From which level on the worker tells what it does, on stderr.",
            _one_of(LogLevel),
        ),
    )
    max_log_bytes: int = field(
        default=819200,
        metadata=_about(
            "What is kept of a longer output: the first 20 % and the last 80 % of"
            " this.",
            _number(int, 1024, float("inf")),
            unit="bytes",
        ),
    )
    ws_server_hostname: str = field(
        metadata=_about(
            "Where the WebSocket server takes events.",
            _HOST,
            derived="the host of api_base_url",
        )
    )
    ws_server_port: int = field(
        default=5555,
        metadata=_about("The port of the WebSocket server for events.", _PORT),
    )
    script_temp_path: Path = field(
        default=Path("/tmp"),
        metadata=_about(
            "A folder. Where it is given here and spool_path is not, the spool is"
            " in it.",
            Rule("the absolute path of a folder that exists", _read_folder),
        ),
    )
    broadcaster_server_hostname: str = field(
        metadata=_about(
            "Where the broadcaster sends orders from.",
            _HOST,
            derived="the host of api_base_url",
        )
    )
    broadcaster_server_port: int = field(
        default=5556,
        metadata=_about("The port of the broadcaster.", _PORT),
    )
    reconnect_after_inactivity: float = field(
        default=600.0,
        metadata=_seconds(
            "After how long without a word from the broadcaster the worker connects"
            " anew. A broadcaster says something every 300 seconds.",
            0.1,
        ),
    )
    worker_resource_uri: str = field(
        default="/api/v1/worker/",
        metadata=_about("The path of workers at the central server.", _RESOURCE),
    )
    run_resource_uri: str = field(
        default="/api/v1/run/",
        metadata=_about("The path of runs at the central server.", _RESOURCE),
    )
    run_log_resource_uri: str = field(
        default="/api/v1/run_log/",
        metadata=_about("The path of logs at the central server.", _RESOURCE),
    )
    kill_request_resource_uri: str = field(
        default="/api/v1/kill_request/",
        metadata=_about("The path of kill requests at the central server.", _RESOURCE),
    )
    job_resource_uri: str = field(
        default="/api/v1/job/",
        metadata=_about("The path of jobs at the central server.", _RESOURCE),
    )
    spool_path: Path = field(
        metadata=_about(
            "Where runs are kept until everything about them is reported. It has to"
            " survive a reboot.",
            Rule("an absolute path", _read_path),
            derived="<script_temp_path>/job_runner_worker/<api_key> where"
            " script_temp_path is given; else <api_key> in systemd's"
            " $STATE_DIRECTORY; else job_runner_worker/<api_key> in $XDG_STATE_HOME"
            " or ~/.local/state",
        )
    )
    log_flush_seconds: float = field(
        default=1.0,
        metadata=_seconds(
            "How often the log of a run that goes on is sent, if it grew.", 0.05, 3600
        ),
    )
    offer_ttl_seconds: float = field(
        default=4.0,
        metadata=_seconds(
            "How long an offered run is remembered while every slot is taken. An"
            " original broadcaster offers it again after 5 seconds.",
            0,
            3600,
        ),
    )
    kill_grace_seconds: float = field(
        default=5.0,
        metadata=_seconds(
            "How long a killed run has between TERM and KILL.",
            0,
            3600,
            ", 0 for KILL at once",
        ),
    )
    interrupted_runs: InterruptedRuns = field(
        default="reschedule",
        metadata=_about(
            "What becomes of runs that a reboot cut short: they are offered again,"
            " or they have failed.",
            _one_of(InterruptedRuns),
        ),
    )
    leftover_processes: LeftoverProcesses = field(
        default="leave",
        metadata=_about(
            "What becomes of processes that a script leaves behind when it ends.",
            _one_of(LeftoverProcesses),
        ),
    )
    verify_ssl: bool = field(
        default=True,
        metadata=_about(
            "Whether the certificate of an https server has to be valid.",
            Rule("yes or no", _read_switch),
        ),
    )
    ca_bundle: Path | None = field(
        default=None,
        metadata=_about(
            "The certificates of the authorities to trust instead of the usual ones.",
            Rule("the absolute path of a file that exists", _read_file),
        ),
    )
    http_timeout_seconds: float = field(
        default=30.0,
        metadata=_seconds(
            "How long the central server may be silent during a request.", 0.1, 3600
        ),
    )
    zmq_heartbeat_seconds: float = field(
        default=15.0,
        metadata=_seconds(
            "How often the ZeroMQ connections are tested.", 0, 3600, ", 0 for never"
        ),
    )
    process_tracking: ProcessTracking = field(
        default="auto",
        metadata=_about(
            "How the processes of a run are told from others: auto makes a cgroup v2"
            " for each run where the worker may write one, beside the subreaping"
            " shim that every run has; subreaper never makes a cgroup.",
            _one_of(ProcessTracking),
        ),
    )
    environment: tuple[str, ...] = field(
        default=("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_*", "TZ"),
        metadata=_about(
            "Which of the worker's own environment variables scripts get.",
            _matching(
                "names or patterns such as LC_*, with spaces between them",
                r"[^=,]*",
                _read_names,
            ),
        ),
    )
    drain_report_seconds: float = field(
        default=10.0,
        metadata=_seconds(
            "How long an ordered stop waits until the central server has taken the"
            " reports that are due. The next worker reports the others.",
            0,
            3600,
        ),
    )
