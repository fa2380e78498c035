#!/usr/bin/env python3
"""Shows the whole way of three runs on this machine; ``make demo`` starts it.

A central server and a worker (`job_runner_worker standalone`), on free ports and in a
temporary folder. The command line submits the scripts of this folder, shows what they
print as it reaches the server, and kills one. Exits with 0 if everything ended as it
should. With ``--stay`` (``make run``) both stay until Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from job_runner_worker import data_folder
from job_runner_worker.data_folder import DataFolder, read_json
from job_runner_worker.errors import ConfigError
from job_runner_worker.server import serve

EXAMPLES = Path(__file__).resolve().parent
SUCCEEDS, FAILS, IS_KILLED = (
    "prints_for_seconds.sh",
    "fails.py",
    "killed_half_way.sh",
)
HALF_WAY = "3 %"
"""The third script is killed once it has printed this."""
EXPECTED = {SUCCEEDS: ("success", 0), FAILS: ("failed", 3), IS_KILLED: ("killed", None)}
TIMEOUT_SECONDS = 30.0
LOOK_SECONDS = 0.05
TITLE_WIDTH = max(map(len, EXPECTED))
COMMAND = [sys.executable, "-m", "job_runner_worker"]
LOG_NAME = "demo.log"


class DemoError(Exception):
    """What went otherwise than it should, for a person."""


class Demo:
    """Three runs, from the hand-over to the table of how they ended."""

    def __init__(self, folder: DataFolder) -> None:
        self.folder = folder
        self.run_ids: dict[str, int] = {}
        self._commands: list[subprocess.Popen[str]] = []
        self._lines: queue.Queue[tuple[str, str | None]] = queue.Queue()

    def hand_over(self) -> None:
        """Submit the scripts; their logs are followed from then on."""
        submitting = [
            (title, self._begin("submit", "--follow", str(EXAMPLES / title)))
            for title in EXPECTED
        ]
        for title, command in submitting:
            assert command.stderr is not None
            told = command.stderr.readline()
            number = re.fullmatch(r"run (\d+)\n", told)
            if number is None:
                raise DemoError(f"{title} was not submitted: {told.strip()}")
            self.run_ids[title] = int(number[1])
            threading.Thread(target=self._read, args=(title, command)).start()

    def show_until_the_end(self) -> None:
        """Print what arrives until every run has ended; kill one of them half-way."""
        going = set(EXPECTED)
        while going:
            try:
                title, line = self._lines.get(timeout=TIMEOUT_SECONDS)
            except queue.Empty:
                raise DemoError(f"nothing from {', '.join(sorted(going))}") from None
            if line is None:
                going.remove(title)
                continue
            print(f"{title:<{TITLE_WIDTH}} | {line.rstrip()}", flush=True)
            if title == IS_KILLED and line.strip() == HALF_WAY:
                print(f"{title:<{TITLE_WIDTH}} * the server orders a kill", flush=True)
                self._finish(self._begin("kill", str(self.run_ids[title])))

    def print_ends(self) -> list[str]:
        """Print a table of how the runs ended; return what is not as it should be."""
        found = json.loads(self._finish(self._begin("runs", "--json", "--limit=100")))
        by_id = {run["id"]: run for run in found}
        form = f"{{:<{TITLE_WIDTH}}}  {{:<8}}  {{:>11}}  {{:>8}}  {{}}"
        print()
        print(form.format("title", "ended", "exit status", "duration", "reason"))
        complaints = []
        for title, run_id in self.run_ids.items():
            run = by_id[run_id]
            how, status = how_ended(run), run["exit_status"]
            shown = "" if status is None else status
            row = (title, how, shown, duration_of(run), run["reason"])
            print(form.format(*row).rstrip())
            wanted, wanted_status = EXPECTED[title]
            if how != wanted or wanted_status not in (None, status):
                complaints.append(f"{title}: {how}, {status}; expected {wanted}")
        return complaints

    def close(self) -> None:
        """Let nothing go on where the demo ends early: Ctrl-C asks for kills."""
        for command in self._commands:
            command.send_signal(signal.SIGINT)
        for command in self._commands:
            command.wait(TIMEOUT_SECONDS)

    def _begin(self, *words: str) -> subprocess.Popen[str]:
        """Start one of the commands for people."""
        command = subprocess.Popen(
            [*COMMAND, words[0], f"--data={self.folder.path}", *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C is for the demo, which then stops everybody in order.
            process_group=0,
        )
        self._commands.append(command)
        return command

    def _finish(self, command: subprocess.Popen[str]) -> str:
        out, err = command.communicate(timeout=TIMEOUT_SECONDS)
        if command.returncode != 0:
            raise DemoError(err.strip())
        return out

    def _read(self, title: str, command: subprocess.Popen[str]) -> None:
        assert command.stdout is not None and command.stderr is not None
        with command.stdout, command.stderr:
            for line in command.stdout:
                self._lines.put((title, line))
        command.wait()
        self._lines.put((title, None))


def how_ended(run: dict[str, Any]) -> str:
    """Return how a run ended, in one word."""
    if run["return_success"]:
        return "success"
    return "killed" if run["reason"].startswith("killed on request") else "failed"


def duration_of(run: dict[str, Any]) -> str:
    """Return how long a run took."""
    if not run["start_dts"] or not run["return_dts"]:
        return ""
    began, ended = (
        datetime.fromisoformat(run[name]) for name in ("start_dts", "return_dts")
    )
    return f"{(ended - began).total_seconds():.1f} s"


class Standalone:
    """A server and a worker, and where they write what they do."""

    def __init__(self, folder: DataFolder) -> None:
        folder.make()
        self.folder = folder
        self.log_path = folder.path / LOG_NAME
        ports = ("http", "broadcast", "events", "websocket")
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(*COMMAND, "standalone", f"--data={folder.path}"),
                    *(f"--{name}-port=0" for name in ports),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                process_group=0,
            )

    @property
    def log(self) -> str:
        """What they have written so far."""
        return self.log_path.read_text("utf-8", errors="replace")

    def wait_for_worker(self) -> int:
        """Return the worker's pid once the server answers and the worker is there."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            found = re.search(r"worker started \(pid (\d+)\)", self.log)
            if found:
                return int(found[1])
            if self.process.poll() is not None:
                break
            time.sleep(LOOK_SECONDS)
        raise DemoError("the server and the worker did not start")

    def stop(self, number: signal.Signals) -> int:
        """Stop both with a signal; return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            # Those that it has started follow it.
            self.process.kill()
            return self.process.wait()


@contextmanager
def data_in(path: Path | None) -> Iterator[DataFolder]:
    """Yield a folder to work in: a temporary one, unless another is named."""
    if path is not None:
        yield DataFolder(path.absolute())
        return
    with tempfile.TemporaryDirectory(prefix="job_runner_demo_") as name:
        yield DataFolder(Path(name))


def show(standalone: Standalone) -> list[str]:
    """Show three runs; return what went otherwise than it should."""
    folder = standalone.folder
    pid = standalone.wait_for_worker()
    url = (read_json(folder.server_json) or {})["url"]
    print(f"A server answers at {url}; its data is in {folder.path}.")
    print(f"A worker (pid {pid}) listens to it; it gets 3 scripts.\n", flush=True)
    demo = Demo(folder)
    try:
        demo.hand_over()
        demo.show_until_the_end()
        return demo.print_ends()
    finally:
        demo.close()


def stay(standalone: Standalone) -> None:
    """Tell how to go on, and wait for Ctrl-C."""
    folder = standalone.folder
    url = (read_json(folder.server_json) or {})["url"]
    admin = read_json(folder.admin_json) or {}
    print(f"\nThe dashboard is at {url}/")
    print(f"    user      {admin.get('user', '?')}")
    print(f"    password  {admin.get('password', '?')}")
    option = "" if folder.path == _default() else f" --data={folder.path}"
    command = f"{Path(sys.executable).parent}/job_runner_worker submit --follow{option}"
    print(f"To run another script: {command} SCRIPT")
    print(f"What happens is written to {standalone.log_path}. Ctrl-C ends it.")
    sys.stdout.flush()
    standalone.process.wait()
    raise DemoError("the server and the worker have ended")


def left_in(folder: DataFolder) -> list[str]:
    """Return complaints about what is left when everything is stopped."""
    names = {path.name for path in folder.spool.iterdir()} - {"lock", "spool.json"}
    found = [f"{name} is left in the worker's spool" for name in sorted(names)]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            place = Path(os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)"))
        except OSError:
            continue
        if place.is_relative_to(folder.path):
            found.append(f"process {pid} of a script is left")
    return found


def run(folder: DataFolder, stays: bool) -> list[str]:
    """Show the demo in a folder; return what went otherwise than it should."""
    standalone = Standalone(folder)
    number = signal.SIGTERM
    try:
        found = show(standalone)
        if stays and not found:
            # As of `standalone` itself: Ctrl-C leaves scripts to the next start.
            number = signal.SIGINT
            stay(standalone)
    except DemoError as error:
        found = [str(error), f"the log:\n{standalone.log}"]
    finally:
        status = standalone.stop(number)
    print(f"\nServer and worker were stopped with TERM: exit status {status}.")
    if status != 0:
        found.append(f"their exit status is {status}, not 0")
    return found or left_in(folder)


def main() -> int:
    """Run the demo; return the exit status."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _leave)
    began = time.monotonic()
    try:
        serve.require_extra()
        path = arguments.data or (_default() if arguments.stay else None)
        with data_in(path) as folder:
            found = run(folder, arguments.stay)
    except ConfigError as error:
        print(f"demo: {error}", file=sys.stderr)
        return os.EX_CONFIG
    except KeyboardInterrupt:
        print("\nInterrupted; everything is stopped.")
        return 0 if arguments.stay else 130
    for line in found:
        print(f"NOT AS EXPECTED: {line}")
    if not found:
        print(f"Everything as it should be, after {time.monotonic() - began:.0f} s.")
    return 1 if found else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Shows three runs on this machine.")
    parser.add_argument(
        "--stay",
        action="store_true",
        help="keep the server and the worker until Ctrl-C, and their data",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="keep the data there (default: a temporary folder; with --stay, the one"
        " that `job_runner_worker standalone` uses)",
    )
    return parser.parse_args()


def _default() -> Path:
    return data_folder.default_path(os.environ)


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
