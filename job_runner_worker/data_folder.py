"""The folder of an embedded server: who finds what in it. Private to its user.

server.json    where the server listens, while it runs; written by the server
worker.ini     the configuration of the worker that `standalone` runs
client.json    the credentials of the command line
admin.json     the first administrator and the password made for him
spool/         the runs of that worker
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from job_runner_worker.errors import ConfigError

NAME = "job_runner_worker"
_PRIVATE = 0o600


def default_path(environ: Mapping[str, str]) -> Path:
    """Return the folder in XDG's data home. ConfigError where there is no home."""
    for place, below in (
        (environ.get("XDG_DATA_HOME", ""), ""),
        (environ.get("HOME", ""), ".local/share"),
    ):
        if os.path.isabs(place):
            return Path(place, below, NAME)
    raise ConfigError("no $HOME: say with --data where the server's folder is")


class DataFolder:
    """The files of one server."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server_json = path / "server.json"
        self.worker_ini = path / "worker.ini"
        self.client_json = path / "client.json"
        self.admin_json = path / "admin.json"
        self.spool = path / "spool"

    def make(self) -> None:
        """Make the folder, and make it private. Raises ConfigError."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise ConfigError(
                f"--data {self.path} cannot be used: {error.strerror}: choose a folder"
                " that this user may create and write"
            ) from error

    @contextlib.contextmanager
    def locked(self, by: str) -> Any:
        """Hold the folder against another ``by``; the lock dies with the process.

        Raises ConfigError where somebody has it.
        """
        path = self.path / f"{by}.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 64, 0).decode("ascii", "replace").strip()
                raise ConfigError(
                    f"{self.path} is in use by the {by} with pid {holder or 'unknown'}:"
                    " stop that one, or choose another folder with --data"
                ) from None
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
            yield
        finally:
            os.close(lock)


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 so that it is there as a whole or not at all."""
    draft = path.with_name(f"{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(draft, flags, _PRIVATE), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), _PRIVATE)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a private JSON file."""
    write_private(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file, None where there is none or not a whole one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
