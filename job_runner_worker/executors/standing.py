"""Shims that stand by: started ahead, in folders made ahead, for scripts to come.

Whatever takes time at the start of a script is done before there is one: a process is
forked and becomes a shell, its relay runs, its cgroup and its files are there. The
worker holds the writing end of the pipe from which the order will come; if the worker
goes away, whoever waits for an order ends. So a shim that stands by never begins
anything by itself, and leaves only its folder, which the next worker sweeps.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import posix
import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import gevent
from gevent.event import Event
from gevent.socket import wait_read, wait_write

from job_runner_worker.errors import StartError
from job_runner_worker.executors import cgroup
from job_runner_worker.executors.spawner import Spawned, Spawner
from job_runner_worker.made_ahead import MadeAhead, furnish
from job_runner_worker.private_files import PrivateFolder, remove_tree
from job_runner_worker.run_folder import RunFolder

_OUTPUT_PIPE = 5
_END_SECONDS = 5.0
_CGROUP_PAUSES_SECONDS = (0.0, 0.001, 0.01, 0.1)
_log = logging.getLogger(__name__)


class StandingShim:
    """A shim that waits for its order in ``path``."""

    def __init__(self, path: Path, cgroup_path: Path | None, spawned: Spawned) -> None:
        self.path = path
        self.cgroup = cgroup_path
        self.process = spawned.process
        self.is_in_cgroup = spawned.is_in_cgroup
        self._order = spawned.order
        self._heard: int | None = spawned.begun
        os.set_blocking(self._order, False)

    def own_output(self, user: int) -> None:
        """Let a user open the output again: the pipe is his. Raises OSError."""
        os.chown(f"/proc/{self.process.pid}/fd/{_OUTPUT_PIPE}", user, -1)

    def order(self, order: bytes) -> None:
        """Say what is to be run; once. Raises StartError where nobody listens."""
        left = memoryview(order)
        try:
            while left:
                with contextlib.suppress(BlockingIOError):
                    left = left[posix.write(self._order, left) :]
                if left:
                    wait_write(self._order)
        except OSError as error:
            raise StartError(f"the shim is gone: {error}", transient=True) from error
        finally:
            self._end_order()

    def wait_until_begun(self) -> bool:
        """Return whether it has begun the script; else it has ended, or will now."""
        if self._heard is None:
            return False
        wait_read(self._heard)
        has_begun = os.read(self._heard, 1) != b""
        self._stop_hearing()
        return has_begun

    def dismiss(self) -> None:
        """Let it end without a script. May be repeated."""
        self._end_order()

    def wait_until_gone(self) -> None:
        """Return when nobody of it is left, after `dismiss`; or after a while."""
        if self._heard is not None:
            with contextlib.suppress(TimeoutError):
                wait_read(self._heard, _END_SECONDS, TimeoutError())
            self._stop_hearing()
        if self.cgroup is not None:
            # The kernel takes a moment to see the last one off.
            for pause in _CGROUP_PAUSES_SECONDS:
                gevent.sleep(pause)
                if cgroup.remove(self.cgroup):
                    break

    def _end_order(self) -> None:
        if self._order >= 0:
            # Not gevent's, which would close it some time later.
            posix.close(self._order)
            self._order = -1

    def _stop_hearing(self) -> None:
        if self._heard is not None:
            posix.close(self._heard)
            self._heard = None


class StandingShims:
    """Keeps ``count`` shims standing by, below ``path``; none where there is no path.

    ``argv`` is that of a shim; ``environment`` is what all of its scripts get.
    """

    def __init__(
        self,
        spawner: Spawner,
        cgroups: cgroup.Cgroups | None,
        argv: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        self._spawner = spawner
        self._cgroups = cgroups
        self._argv = argv
        self._environment = environment
        self._path: Path | None = None
        self._count = 0
        self._numbers = itertools.count(1)
        self._ready: list[StandingShim] = []
        # Whose folders have become a run's, by where they were.
        self._given: dict[str, StandingShim] = {}
        self._wanted = Event()
        self._filling: gevent.Greenlet[..., None] | None = None

    def open(self, path: Path, count: int) -> None:
        """Keep some from now on. What an earlier worker left below is removed."""
        self._path, self._count = path, count
        with contextlib.suppress(OSError):
            remove_tree(path)
        self._wanted.set()
        self._filling = gevent.spawn(self._keep_filled)

    def close(self) -> None:
        """Let all of them go; return when they are gone."""
        if self._filling is not None:
            self._filling.kill()
        leaving = [*self._ready, *self._given.values()]
        self._ready, self._given = [], {}
        for shim in leaving:
            shim.dismiss()
        for shim in leaving:
            shim.wait_until_gone()
        if self._path is not None:
            with contextlib.suppress(OSError):
                remove_tree(self._path)

    def take_folder(self) -> MadeAhead | None:
        """Return a folder with a shim in it, to be renamed; None if there is none."""
        if not self._ready:
            self._wanted.set()
            return None
        shim = self._ready.pop(0)
        self._given[str(shim.path)] = shim
        own_cgroup = str(shim.cgroup or "")
        return MadeAhead(shim.path, own_cgroup, partial(self._abandon, str(shim.path)))

    @contextlib.contextmanager
    def shim_in(self, folder: RunFolder) -> Iterator[StandingShim]:
        """Yield the shim that stands in a folder, or one that is started there.

        It is let go where what is done with it fails. Raises OSError, and StartError
        where none could be started.
        """
        shim = None
        if folder.made_ahead is not None:
            shim = self._given.pop(str(folder.made_ahead.path), None)
        if shim is None:
            own_cgroup = None
            if self._cgroups is not None:
                own_cgroup = self._cgroups.make(f"run-{folder.note.run_id}")
            shim = self._start(folder.path, own_cgroup)
        try:
            yield shim
        except BaseException:
            self._see_off(shim)
            raise

    def refill(self) -> None:
        """Make up for those that were taken, soon."""
        if self._path is not None:
            self._wanted.set()

    def _abandon(self, path: str) -> None:
        shim = self._given.pop(path, None)
        if shim is not None:
            self._see_off(shim)

    def _see_off(self, shim: StandingShim) -> None:
        shim.dismiss()
        gevent.spawn(shim.wait_until_gone)

    def _keep_filled(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            try:
                while len(self._ready) < self._count:
                    self._ready.append(self._make())
            except (OSError, StartError) as error:
                # Runs begin all the same, if they can at all; the next one tries again.
                _log.debug("no shim is started ahead: %s", error)

    def _make(self) -> StandingShim:
        assert self._path is not None
        path = self._path / str(next(self._numbers))
        try:
            path.mkdir(mode=0o700)
        except FileNotFoundError:
            self._path.mkdir(mode=0o700)
            path.mkdir(mode=0o700)
        own_cgroup = None
        try:
            files = PrivateFolder(path)
            files.hold()
            furnish(files)
            files.close()
            if self._cgroups is not None:
                # Another worker's script may be in one of an earlier number.
                own_cgroup = self._cgroups.make(f"ahead-{secrets.token_hex(6)}")
            return self._start(path, own_cgroup)
        except (OSError, StartError):
            remove_tree(path)
            if own_cgroup is not None:
                cgroup.remove(own_cgroup)
            raise

    def _start(self, path: Path, own_cgroup: Path | None) -> StandingShim:
        spawned = self._spawner.spawn(
            path, self._argv, self._environment, str(own_cgroup or "")
        )
        return StandingShim(path, own_cgroup, spawned)
