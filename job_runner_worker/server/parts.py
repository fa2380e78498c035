"""What a server is made of, for `--only`: each part may be a process of its own."""

from __future__ import annotations

import argparse
from typing import Any

from job_runner_worker.errors import ConfigError

WEB = "web"
BROADCASTER = "broadcaster"
EVENTS = "events"
HEALTH = "health"
PLANNER = "planner"
PARTS = (WEB, BROADCASTER, EVENTS, HEALTH, PLANNER)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option that names parts."""
    parser.add_argument(
        "--only",
        type=_parts,
        metavar="PART,...",
        help=f"be only these parts of a server: {', '.join(PARTS)}; others are other"
        " processes, at the same PostgreSQL",
    )


def check_database(parts: tuple[str, ...] | None, vendor: str) -> None:
    """Raise ConfigError where several processes cannot share a database."""
    if parts is not None and vendor != "postgresql":
        raise ConfigError(
            "--only needs PostgreSQL: give --database; with SQLite a server is one"
            " process"
        )


def where(only: tuple[str, ...], ports: Any, url: str) -> str:
    """Return where the parts of a process listen, in words."""
    places = {
        WEB: f"web at {url}/",
        BROADCASTER: f"broadcaster (orders: port {ports.broadcast})",
        EVENTS: f"events (events: port {ports.events}, WebSocket: port"
        f" {ports.websocket})",
    }
    return ", ".join(places.get(name, name) for name in only)


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no part of a server: {', '.join(PARTS)}"
            )
    return names
