#!/usr/bin/env python3
"""Shows the whole way of three runs on this machine; ``make demo`` starts it.

A stand-in for a central server and a real worker, on free ports and in a temporary
folder: the server hands over the scripts of this folder, the worker runs them, and
what they print is shown as it reaches the server. Exits with 0 if everything ended
as it should.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from job_runner_worker.testing import StandInServer

EXAMPLES = Path(__file__).resolve().parent
SUCCEEDS, FAILS, IS_KILLED = (
    "prints_for_seconds.sh",
    "fails.py",
    "killed_half_way.sh",
)
HALF_WAY = "3 %"
"""The third script is killed once it has printed this."""
TIMEOUT_SECONDS = 30.0
STOP_SECONDS = 15.0
TITLE_WIDTH = max(map(len, (SUCCEEDS, FAILS, IS_KILLED)))


@dataclass(slots=True)
class Shown:
    """One run, and how much of its log is on the screen."""

    title: str
    run_id: int
    length: int = 0


class Demo:
    """Three runs, from the hand-over to the table of how they ended."""

    def __init__(self, server: StandInServer) -> None:
        self.server = server
        self.runs: list[Shown] = []
        self.kill_request_id: int | None = None

    def hand_over(self) -> None:
        """Give the scripts to the server, which offers them to the worker."""
        for title in (SUCCEEDS, FAILS, IS_KILLED):
            script = (EXAMPLES / title).read_text()
            self.runs.append(Shown(title, self.server.submit(script, title)))

    def show_until_the_end(self) -> None:
        """Print what arrives until every run has ended; kill one of them half-way."""
        api = self.server.api
        while True:
            seen = self._progress()
            ended = all(api.run(shown.run_id)["return_dts"] for shown in self.runs)
            for shown in self.runs:
                self._print_news(shown, everything=ended)
            if ended:
                return
            self._kill_half_way()
            self._wait_for_more_than(seen)

    def print_ends(self) -> None:
        """Print a table of how the runs ended."""
        form = f"{{:<{TITLE_WIDTH}}}  {{:<8}}  {{:>11}}  {{:>8}}  {{}}"
        print()
        print(form.format("title", "ended", "exit status", "duration", "reason"))
        for shown in self.runs:
            run = self.server.api.run(shown.run_id)
            began, ended = (
                datetime.fromisoformat(run[name])
                for name in ("start_dts", "return_dts")
            )
            print(
                form.format(
                    shown.title,
                    self._how_ended(shown),
                    run["exit_status"],
                    f"{(ended - began).total_seconds():.1f} s",
                    run["reason"],
                ).rstrip()
            )

    def disappointments(self) -> list[str]:
        """Return what ended otherwise than it should."""
        expected = {SUCCEEDS: ("success", 0), FAILS: ("failed", 3)}
        found = []
        for shown in self.runs:
            how = self._how_ended(shown)
            status = self.server.api.run(shown.run_id)["exit_status"]
            wanted, wanted_status = expected.get(shown.title, ("killed", status))
            if (how, status) != (wanted, wanted_status):
                found.append(f"{shown.title}: {how}, {status}; expected {wanted}")
        return found

    def kill_all(self) -> None:
        """Let nothing go on when the demo ends early."""
        for shown in self.runs:
            if not self.server.api.run(shown.run_id)["return_dts"]:
                self.server.kill(shown.run_id, with_run_id=True)

    def _progress(self) -> tuple[int, ...]:
        """Return what differs when there is something to show."""
        api = self.server.api
        lengths = (len(api.log(shown.run_id) or "") for shown in self.runs)
        return (len(api.runs("completed")), *lengths)

    def _wait_for_more_than(self, seen: tuple[int, ...]) -> None:
        self.server.api.wait_for(
            lambda: self._progress() != seen, "something to happen", TIMEOUT_SECONDS
        )

    def _print_news(self, shown: Shown, *, everything: bool) -> None:
        log = self.server.api.log(shown.run_id) or ""
        # Half a line waits for its other half.
        end = len(log) if everything else log.rfind("\n") + 1
        for line in log[shown.length : end].splitlines():
            print(f"{shown.title:<{TITLE_WIDTH}} | {line}", flush=True)
        shown.length = max(shown.length, end)

    def _kill_half_way(self) -> None:
        third = self.runs[-1]
        log = self.server.api.log(third.run_id) or ""
        if self.kill_request_id is None and HALF_WAY in log:
            print(f"{third.title:<{TITLE_WIDTH}} * the server orders a kill")
            self.kill_request_id = self.server.kill(third.run_id)

    def _how_ended(self, shown: Shown) -> str:
        if self.server.api.run(shown.run_id)["return_success"]:
            return "success"
        number = self.kill_request_id
        if shown is not self.runs[-1] or number is None:
            return "failed"
        executed = self.server.api.kill_request(number)["execute_dts"]
        return "killed" if executed else "failed"


@contextmanager
def running_worker(config_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a worker, its log going to worker.log beside the configuration."""
    command = [sys.executable, "-m", "job_runner_worker"]
    with config_path.with_name("worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [*command, "--config-path", config_path],
            stdin=subprocess.DEVNULL,
            stderr=log,
            # Ctrl-C is for the demo, which then stops the worker in order.
            process_group=0,
        )
        try:
            yield worker
        finally:
            worker.terminate()
            try:
                worker.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def run(folder: Path) -> list[str]:
    """Show the demo in a folder; return what went otherwise than it should."""
    with StandInServer() as server:
        config_path = server.write_config(folder, kill_grace_seconds=1)
        print(f"A stand-in server answers at {server.api_base_url}.")
        with running_worker(config_path) as worker:
            demo = Demo(server)
            try:
                server.wait_for_subscriber()
                print(
                    f"A worker (pid {worker.pid}) listens to it; it gets 3 scripts.\n"
                )
                demo.hand_over()
                demo.show_until_the_end()
                server.wait_for_event(kind="kill_request", event="executed")
            except BaseException:
                demo.kill_all()
                raise
            demo.print_ends()
    left = {path.name for path in (folder / "spool").iterdir()}
    left -= {"lock", "spool.json"}
    found = demo.disappointments()
    print(f"\nThe worker was stopped with TERM: exit status {worker.returncode}.")
    if worker.returncode != 0:
        found.append(f"the worker's exit status is {worker.returncode}, not 0")
    if left:
        found.append(f"the worker left {', '.join(sorted(left))} in its spool")
    return found


def main() -> int:
    """Run the demo; return the exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="job_runner_demo_") as name:
        log = Path(name) / "worker.log"
        try:
            found = run(Path(name))
        except KeyboardInterrupt:
            print("\nInterrupted; everything is stopped.")
            return 130
        except AssertionError as error:
            found = [str(error)]
        if found and log.exists():
            print(f"\nThe worker's log:\n{log.read_text(errors='replace')}")
    for line in found:
        print(f"NOT AS EXPECTED: {line}")
    if not found:
        print(f"Everything as it should be, after {time.monotonic() - began:.0f} s.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
