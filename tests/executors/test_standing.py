"""Shims that stand by: they begin at once, or never, and leave nothing behind."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import OPTIONS, Script
from waiting import alive_below, eventually

from job_runner_worker.executors.launch import Launch, order
from job_runner_worker.executors.local import LocalExecutor
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.spool import STANDING

ROOT = Path(__file__).resolve().parents[2]


class Ahead:
    """An executor whose shims stand by, and the folders of its runs."""

    def __init__(self, local, count=2):
        self.local = local
        self.path = local.spool_path / STANDING
        self.executor = local.executor(standing_path=self.path, standing_shims=count)
        self.count = count

    def wait_until_filled(self):
        eventually(
            lambda: len(self.executor._standing._ready) == self.count, "shims stand by"
        )
        # Each with its relay, and with what will be the script.
        eventually(
            lambda: len(alive_below(self.path)) == 3 * self.count, "all are forked"
        )

    def folder(self, script):
        """Return the folder of a run that has been claimed, made ahead."""
        made = self.executor.folder_made_ahead()
        assert made is not None
        template = self.local.folder(script)
        note, path = template.note, template.path
        template.remove()
        folder = RunFolder.create(path, note, made)
        self.local.folders.append(folder)
        return folder

    def start(self, script):
        self.wait_until_filled()
        return self.local.begin(self.folder(script), self.executor)


@pytest.fixture
def ahead(local):
    return Ahead(local)


def test_a_script_begins_in_a_shim_that_was_there_before(ahead):
    ahead.wait_until_filled()
    standing = {process.pid for process in alive_below(ahead.path)}
    script = ahead.start('#!/bin/sh\necho "$JOB_RUNNER_RUN_ID $TMPDIR"; pwd\nexit 3\n')
    assert script.end().exit_status == 3
    assert {script.shim_pid, script.relay_pid, script.execution.native_id} <= standing
    path = script.folder.path
    assert script.log.split() == [
        str(script.folder.run.id),
        f"{path}/tmp",
        f"{path}/work",
    ]


def test_what_was_taken_is_made_up_for(ahead):
    for _ in range(5):
        assert ahead.start("#!/bin/true\n").end().success
    ahead.wait_until_filled()


def test_more_scripts_than_shims_begin_all_the_same(ahead):
    ahead.wait_until_filled()
    folders = [ahead.folder("#!/bin/sh\necho x\n") for _ in range(ahead.count)]
    assert ahead.executor.folder_made_ahead() is None
    folders.append(ahead.local.folder("#!/bin/sh\necho x\n"))
    scripts = [ahead.local.begin(each, ahead.executor) for each in folders]
    assert [(script.end().success, script.log) for script in scripts] == [
        (True, "x\n")
    ] * len(folders)


def test_a_shim_that_was_killed_while_it_stood_by_costs_the_run_one_try(ahead):
    ahead.wait_until_filled()
    folder = ahead.folder("#!/bin/sh\necho x\n")
    for process in alive_below(folder.path):
        os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not alive_below(folder.path), "the shim is dead")
    with pytest.raises(Exception, match="the shim is gone") as failure:
        ahead.executor.start(folder.run, folder)
    assert failure.value.transient
    script = ahead.local.begin(folder, ahead.executor)
    assert script.end().success
    assert script.log == "x\n"


def test_a_run_that_is_not_begun_lets_its_shim_go(ahead):
    ahead.wait_until_filled()
    folder = ahead.folder("#!/bin/sh\necho never\n")
    assert alive_below(folder.path)
    folder.leave()
    eventually(lambda: not alive_below(folder.path), "the shim has ended")
    assert folder.shim() is None
    assert folder.output.size() == 0


def test_a_closed_executor_leaves_neither_shims_nor_folders(ahead):
    ahead.wait_until_filled()
    given = ahead.folder("#!/bin/sh\necho never\n")
    ahead.executor.close()
    eventually(lambda: not alive_below(ahead.local.spool_path), "nobody is left")
    assert not ahead.path.exists()
    assert given.shim() is None


def test_what_a_killed_worker_left_standing_is_swept(local):
    left = local.spool_path / STANDING / "1" / "work"
    left.mkdir(parents=True)
    (left / "x").touch()
    ahead = Ahead(local)
    ahead.wait_until_filled()
    assert not (left / "x").exists()


def test_cgroups_are_made_ahead_and_removed(contained):
    ahead = Ahead(contained)
    script = ahead.start("#!/bin/sh\ncat /proc/self/cgroup\n")
    own_cgroup = Path(script.folder.note.cgroup)
    assert script.end().success
    assert own_cgroup.name.startswith("ahead-")
    assert script.log.rstrip().endswith(own_cgroup.name)
    eventually(lambda: not own_cgroup.exists(), "the cgroup of the run is removed")
    ahead.wait_until_filled()
    parent = own_cgroup.parent
    ahead.executor.close()
    eventually(lambda: not parent.exists(), "all cgroups are removed")


STANDS = """
from pathlib import Path
import gevent
from conftest import OPTIONS
from dataclasses import replace
from job_runner_worker.executors.local import LocalExecutor
path = Path({path!r})
executor = LocalExecutor(replace(OPTIONS, standing_path=path, standing_shims=2))
executor.open()
while len(executor._standing._ready) < 2:
    gevent.sleep(0.01)
{then}
"""


def test_shims_that_stand_by_end_with_a_worker_that_is_killed(tmp_path):
    code = STANDS.format(
        path=str(tmp_path / "s"), then="print('up', flush=True); input()"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as worker:
        assert worker.stdout.readline() == b"up\n"
        assert alive_below(tmp_path)
        worker.kill()
    eventually(lambda: not alive_below(tmp_path), "nobody stands by any more")
    folders = list((tmp_path / "s").iterdir())
    assert len(folders) == 2
    assert not any((folder / "began").exists() for folder in folders)


@pytest.mark.parametrize("kept", [0, 1, 20, -2])
def test_a_part_of_an_order_begins_nothing(ahead, kept):
    ahead.wait_until_filled()
    folder = ahead.folder("#!/bin/sh\necho never\n")
    folder.prepare(folder.run.script.encode())
    command = ["/bin/sh", str(folder.script_path)]
    with (
        pytest.raises(RuntimeError),
        ahead.executor._standing.shim_in(folder) as shim,
    ):
        whole = order(Launch(), folder, shim.process, {"TMPDIR": "x"}, command)
        shim.order(whole[:kept])
        assert not shim.wait_until_begun()
        raise RuntimeError
    eventually(lambda: not alive_below(folder.path), "the shim has ended")
    assert folder.shim() is None


def test_an_order_that_was_given_is_carried_out_though_the_worker_is_gone(ahead):
    ahead.wait_until_filled()
    folder = ahead.folder("#!/bin/sh\necho x\nexit 3\n")
    folder.prepare(folder.run.script.encode())
    command = ["/bin/sh", str(folder.script_path)]
    with ahead.executor._standing.shim_in(folder) as shim:
        shim._stop_hearing()
        variables = {"TMPDIR": "x"}
        shim.order(order(Launch(), folder, shim.process, variables, command))
    eventually(lambda: folder.exit_status() is not None, "the script has ended")
    execution = ahead.executor.attach(folder.run, folder)
    assert Script(folder, execution).end().exit_status == 3
    assert folder.log(final=True) == "x\n"


def test_what_a_title_or_a_path_holds_is_quoted(tmp_path, ahead):
    title = "a 'title' \"$HOME\" `id` \\ \n* é"
    ahead.wait_until_filled()
    folder = ahead.folder('#!/bin/sh\nprintf %s "$JOB_RUNNER_JOB_TITLE"\n')
    folder.note = replace(
        folder.note, run=replace(folder.run, job_title=title, job_id="'; exit 9 '")
    )
    script = ahead.local.begin(folder, ahead.executor)
    assert script.end().success
    assert script.log == title


def test_the_executor_stands_nobody_up_unless_it_is_told_where():
    executor = LocalExecutor(OPTIONS)
    assert executor.folder_made_ahead() is None
