"""What the operator decides: the ini section ``[job_runner_worker]``.

Each setting is declared once, as a field of `Settings`: type, default, and in its
metadata help, unit and rule. Error messages and the example file are made from that.
"""

from __future__ import annotations

import configparser
import difflib
import hashlib
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from job_runner_worker import run_options
from job_runner_worker.door_settings import DoorSettings
from job_runner_worker.errors import ConfigError
from job_runner_worker.launcher_settings import LauncherSettings
from job_runner_worker.limit_settings import LimitSettings
from job_runner_worker.run_options import NOTHING
from job_runner_worker.secret_file import SecretFileError, find_secret
from job_runner_worker.security_settings import SecuritySettings
from job_runner_worker.setting_rules import (
    HOST,
    KEY,
    NAMES,
    PORT,
    RESOURCE,
    SECRET,
    SWITCH,
    URL,
    Rule,
    number,
    read_host,
)
from job_runner_worker.setting_rules import seconds as _seconds
from job_runner_worker.setting_rules import setting as _setting

SECTION = "job_runner_worker"
MASK = "********"
_LONGEST_FOLDER_NAME = 200
_LONGEST_SHOWN_VALUE = 80

LogLevel = Literal["debug", "info", "warning", "error"]
InterruptedRuns = Literal["reschedule", "fail"]
LeftoverProcesses = Literal["leave", "kill"]
ProcessTracking = Literal["auto", "subreaper"]
_CENTRAL = ("api_base_url", "secret")


def _one_of(choices: object, default: str, help: str) -> Any:
    names = get_args(choices)
    return _setting(help, Rule(" or ".join(names), "|".join(names)), default)


def _resource(objects: str, default: str) -> Any:
    return _setting(f"Where the central server has {objects}.", RESOURCE, default)


def _server(help: str) -> Any:
    return _setting(help, HOST, derived="the host of api_base_url")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """The settings of a worker, but for those of other modules."""

    api_base_url: str = _setting(
        "The central server.", URL, example="https://jobs.example.com"
    )
    api_key: str = _setting(
        "The worker's name at the central server.", KEY, example="my-worker"
    )
    secret: str = _setting(
        "The key that requests are signed with.", SECRET, example="change-me"
    )
    concurrent_jobs: int = _setting(
        "How many runs go on at once.", number(int, 1, 10000), 4
    )
    log_level: LogLevel = _one_of(LogLevel, "info", "How much is told on stderr.")
    max_log_bytes: int = _setting(
        "Of a longer output the first 20 % and the last 80 % of this are kept.",
        number(int, 1024, float("inf")),
        819200,
        unit="bytes",
    )
    ws_server_hostname: str = _server("The WebSocket server, which takes events.")
    ws_server_port: int = _setting(
        "The port of the WebSocket server for events.", PORT, 5555
    )
    script_temp_path: Path = _setting(
        "Where it is given and spool_path is not, the spool is below this folder.",
        Rule("the absolute path of a folder that exists", "/.*", Path, os.path.isdir),
        Path("/tmp"),
    )
    broadcaster_server_hostname: str = _server("The broadcaster, which sends orders.")
    broadcaster_server_port: int = _setting("The broadcaster's port.", PORT, 5556)
    reconnect_after_inactivity: float = _seconds(
        600.0, 0.1, 86400, "After how long a silence of the broadcaster to reconnect."
    )
    worker_resource_uri: str = _resource("workers", "/api/v1/worker/")
    run_resource_uri: str = _resource("runs", "/api/v1/run/")
    run_log_resource_uri: str = _resource("logs", "/api/v1/run_log/")
    kill_request_resource_uri: str = _resource("kill orders", "/api/v1/kill_request/")
    job_resource_uri: str = _resource("jobs", "/api/v1/job/")
    spool_path: Path = _setting(
        "Where runs are kept until they are reported; has to survive a reboot.",
        Rule("an absolute path", "/[^\0]*", Path),
        derived="<script_temp_path>/job_runner_worker/<api_key> where script_temp_path"
        " is given, else <api_key> in systemd's $STATE_DIRECTORY, else"
        " job_runner_worker/<api_key> in $XDG_STATE_HOME or ~/.local/state",
    )
    log_flush_seconds: float = _seconds(
        1.0, 0.05, 3600, "How often the log of a live run is sent, if it grew."
    )
    offer_ttl_seconds: float = _seconds(
        4.0, 0.1, 3600, "How long an offer is remembered while every slot is taken."
    )
    kill_grace_seconds: float = _seconds(
        5.0, 0, 3600, "How long a killed run has between TERM and KILL."
    )
    interrupted_runs: InterruptedRuns = _one_of(
        InterruptedRuns, "reschedule", "What becomes of runs that a reboot cut short."
    )
    leftover_processes: LeftoverProcesses = _one_of(
        LeftoverProcesses, "leave", "What becomes of processes that outlive a script."
    )
    verify_ssl: bool = _setting(
        "Whether the certificate of an https server has to be valid.", SWITCH, True
    )
    ca_bundle: Path | None = _setting(
        "Certificates of the authorities to trust instead of the usual ones.",
        Rule("the absolute path of a file that exists", "/.*", Path, os.path.isfile),
        None,
    )
    http_timeout_seconds: float = _seconds(
        30.0, 0.1, 3600, "How long the central server may take for a request."
    )
    zmq_heartbeat_seconds: float = _seconds(
        15.0, 0, 3600, "How often ZeroMQ connections are tested; 0 for never."
    )
    process_tracking: ProcessTracking = _one_of(
        ProcessTracking, "auto", "Whether runs get a cgroup v2 where one is possible."
    )
    environment: tuple[str, ...] = _setting(
        "Which of the worker's own environment variables scripts get.",
        NAMES,
        ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_*", "TZ"),
    )
    drain_report_seconds: float = _seconds(
        10.0, 0, 3600, "How long an ordered stop waits for due reports to be taken."
    )
    spool_min_free_bytes: int = _setting(
        "With less than this left for spool_path no new run is claimed; 0 for never.",
        number(int, 0, float("inf")),
        104857600,
        unit="bytes",
    )


@dataclass(frozen=True, kw_only=True)
class Settings(
    DoorSettings, LauncherSettings, LimitSettings, SecuritySettings, WorkerSettings
):
    """The effective settings of a worker; `load` and `parse` make them."""

    @property
    def has_central_server(self) -> bool:
        """Whether orders come from a central server, too."""
        return bool(self.api_base_url)


def load(path: str | os.PathLike[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings in an ini file.

    ``environ`` says where the spool is by default (STATE_DIRECTORY, XDG_STATE_HOME,
    HOME). Raises ConfigError, whose message is one line without the secret.
    """
    origin = os.fspath(path)
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(Path(path).read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        # Without its cause: that one shows lines of the file, perhaps the secret's.
        place = getattr(error, "section", ""), getattr(error, "option", "")
        raise _error(origin, _why_unreadable(error), *place) from None
    for name in parser.sections():
        if name != SECTION:
            raise _error(origin, f"unknown, {_remedy(name, [SECTION])}", name)
    if not parser.has_section(SECTION):
        raise _error(origin, "no such section, add it", SECTION)
    return parse(parser[SECTION], environ, origin)


def parse(
    options: Mapping[str, str], environ: Mapping[str, str], origin: str = "settings"
) -> Settings:
    """Return the settings in names and texts; ``origin`` begins error messages.

    An empty text stands for the default where that is derived or none at all.
    """
    known = {each.name: each for each in fields(Settings)}
    for name in options:
        if name not in known:
            raise _error(origin, f"unknown, {_remedy(name, known)}", SECTION, name)
    try:
        options = {**options, "secret": find_secret(options, environ)}
    except SecretFileError as error:
        raise _error(origin, str(error), SECTION, error.option) from None
    # With the launcher alone there is nobody to be known to.
    alone = "launcher_bind" in options and not any(map(options.get, _CENTRAL))
    values: dict[str, Any] = dict.fromkeys(_CENTRAL, "") if alone else {}
    for name, each in known.items():
        text = options.get(name, "").strip()
        if text or (name in options and each.default not in (MISSING, None)):
            values[name] = _value(origin, each, text)
        elif alone and is_required(each):
            values.setdefault(name, "launcher")
        elif is_required(each):
            raise _error(origin, f"is missing, add `{name} = ...`", SECTION, name)
    _check_callers(origin, values)
    _check_limits(origin, values)
    if values.get("curve_key_file") and not values.get("curve_server_key"):
        what = "is missing beside curve_key_file, add it"
        raise _error(origin, what, SECTION, "curve_server_key")
    host = urllib.parse.urlsplit(values["api_base_url"]).hostname or ""
    host = read_host(host) if host else ""
    values.setdefault("ws_server_hostname", host)
    values.setdefault("broadcaster_server_hostname", host)
    if "spool_path" not in values:
        values["spool_path"] = _default_spool_path(origin, values, environ)
    return Settings(**values)


def describe(settings: Settings) -> list[tuple[str, str]]:
    """Return names and values as an ini file has them, the secret masked."""
    return [
        (each.name, text_of(value) if each.repr or not value else MASK)
        for each in fields(settings)
        for value in [getattr(settings, each.name)]
    ]


def is_required(setting: Field[Any]) -> bool:
    """Return whether a field of Settings has to stand in the file."""
    return setting.default is MISSING and not setting.metadata["derived"]


def text_of(value: object) -> str:
    """Return a setting's value as an ini file has it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    if isinstance(value, tuple):
        gap = ":" if any(isinstance(each, Path) for each in value) else " "
        return gap.join(map(str, value))
    return "" if value is None else str(value)


def _value(origin: str, setting: Field[Any], text: str) -> Any:
    """Read a text; one of several lines is not shown: the secret may be among them."""
    rule: Rule = setting.metadata["rule"]
    try:
        return rule.read(text)
    except ValueError:
        shown = re.sub("//.*@", f"//{MASK}@", text)[:_LONGEST_SHOWN_VALUE]
        got = f", got {shown!r}" if setting.repr else ""
        if "\n" in text:
            got = ", got several lines, unindent the lower ones"
    raise _error(origin, f"must be {rule.allowed}{got}", SECTION, setting.name)


def _check_callers(origin: str, values: Mapping[str, Any]) -> None:
    """Whoever may give jobs may run anything: not everybody in a network may."""
    bind = values.get("launcher_bind")
    if bind is None or bind.is_loopback:
        return
    if not (values.get("launcher_tokens") or values.get("launcher_macs")):
        what = (
            f"{bind} can be reached from other machines, add launcher_tokens or "
            "launcher_macs, or bind to 127.0.0.1"
        )
        raise _error(origin, what, SECTION, "launcher_bind")


def _check_limits(origin: str, values: Mapping[str, Any]) -> None:
    options = values.get("run_defaults", NOTHING), values.get("run_ceilings", NOTHING)
    if what := run_options.above(*options):
        raise _error(origin, what, SECTION, "run_defaults")


def _default_spool_path(
    origin: str, values: Mapping[str, Any], environ: Mapping[str, str]
) -> Path:
    places = (
        (values.get("script_temp_path", ""), SECTION),
        (environ.get("STATE_DIRECTORY", "").split(":")[0], ""),
        (environ.get("XDG_STATE_HOME", ""), SECTION),
        (environ.get("HOME", ""), f".local/state/{SECTION}"),
    )
    for place, below in places:
        if os.path.isabs(place):
            return Path(place, below, _folder_name(values["api_key"]))
    remedy = "has no default without $HOME, give an absolute path"
    raise _error(origin, remedy, SECTION, "spool_path")


def _folder_name(api_key: str) -> str:
    """Return one folder's name that no other key has."""
    name = urllib.parse.quote(api_key, safe="")
    if len(name) > _LONGEST_FOLDER_NAME:
        return f"{name[:100]}%sha256-{hashlib.sha256(api_key.encode()).hexdigest()}"
    return name if name.strip(".") else name.replace(".", "%2E")


def _why_unreadable(error: Exception) -> str:
    match error:
        case IsADirectoryError():
            return "is a folder, give the path of an ini file"
        case OSError():
            return f"{error.strerror}, give the path of an ini file that can be read"
        case UnicodeDecodeError():
            return f"byte {error.start} is not UTF-8, save it as text in UTF-8"
        case configparser.DuplicateSectionError() | configparser.DuplicateOptionError():
            return f"again in line {error.lineno}, keep one of the two"
        case configparser.MissingSectionHeaderError():
            return f"no ini file: line {error.lineno} stands before [{SECTION}]"
        case configparser.ParsingError():
            return f"line {error.errors[0][0]} is not `name = value`, correct it"
    return "no ini file"


def _remedy(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, 1)
    return f"did you mean {near[0]}?" if near else "remove it"


def _error(origin: str, what: str, section: str = "", option: str = "") -> ConfigError:
    names = section and f"[{section[:_LONGEST_SHOWN_VALUE]}]", option
    place = " ".join(name[:_LONGEST_SHOWN_VALUE] for name in names if name)
    line = f"{origin}: {place}{': ' if place else ''}{what}"
    one_line = line if line.isprintable() else repr(line)[1:-1]
    return ConfigError(one_line, section, option)
