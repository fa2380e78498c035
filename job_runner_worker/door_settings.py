"""What the operator says about the ways in which a worker gets its orders."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from job_runner_worker.setting_rules import SWITCH, Rule, read_host, seconds, setting


def _is_url(text: str) -> bool:
    url = urlsplit(text)
    return bool(read_host(url.hostname or "")) and url.port != 0


_CHANNEL_URL = Rule(
    "an address that begins with ws:// or wss://, without password and #",
    r"(?i:wss?)://((?![#@\\])[!-~])+",
    is_right=_is_url,
)


@dataclass(frozen=True, kw_only=True)
class DoorSettings:
    """A part of settings.Settings."""

    channel_url: str | None = setting(
        "The WebSocket of our own server over which orders come and events go.",
        _CHANNEL_URL,
        None,
        example="wss://jobs.example.com/ws/worker/",
    )
    channel_ping_seconds: float = seconds(
        15.0, 0.05, 3600, "How often a silent channel is tested, and for how long."
    )
    broadcast: bool = setting(
        "Whether ZeroMQ is used; `no` needs channel_url, or cron mode.", SWITCH, True
    )
    batches: bool = setting(
        "Whether requests go out together, to a server that says it takes them so.",
        SWITCH,
        True,
    )
    lock_wait_seconds: float = seconds(
        50.0, 0, 3600, "How long a command of cron mode waits for another one."
    )
