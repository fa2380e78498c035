"""Where a worker may make cgroups, and that none of them stays."""

import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest
from waiting import eventually

from job_runner_worker.executors import cgroup

SPOOL = Path("/var/lib/job_runner_worker")
PARENT = f"job_runner_worker-{hashlib.sha256(os.fsencode(SPOOL)).hexdigest()[:12]}"


class Machine:
    """A made-up /proc/self, and folders where cgroups would be."""

    def __init__(self, path):
        self.proc = path / "proc"
        self.mount = path / "cgroup"
        self.proc.mkdir()

    def says(self, mountinfo, memberships):
        (self.proc / "mountinfo").write_text(mountinfo.format(mount=self.mount))
        (self.proc / "cgroup").write_text(memberships)

    def add(self, path, files=("cgroup.procs",)):
        """Make a folder look like a cgroup."""
        made = self.mount / path
        made.mkdir(parents=True, exist_ok=True)
        for name in files:
            (made / name).touch()
        return made

    def add_parent(self, path):
        """The kernel would put cgroup.kill into a cgroup that is made."""
        self.add(path)
        return self.add(Path(path) / PARENT, ["cgroup.kill"])

    def find(self):
        return cgroup.find(SPOOL, self.proc)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


V2 = "31 23 0:28 / {mount} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
ROOT = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
CONTAINER = "31 23 0:28 /kubepods/pod7 {mount} ro master:3 - cgroup2 cgroup rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "memberships", "own"),
    [
        (ROOT + V2, "0::/\n", "."),
        (ROOT + V2, "0::/user.slice/a.scope\n", "user.slice/a.scope"),
        (V1 + V2, "9:cpu:/elsewhere\n0::/here\n", "here"),
        (V1 + V2, "4:memory:/x/y\n1:name=systemd:/z\n0::/\n", "."),
        (CONTAINER, "0::/kubepods/pod7\n", "."),
        (CONTAINER, "0::/kubepods/pod7/mine\n", "mine"),
        (V2.replace(" shared:9", ""), "0::/a b\n", "a b"),
        (V2.replace("shared:9", "shared:9 master:1"), "0::/x\n", "x"),
    ],
)
def test_the_parent_is_made_in_the_workers_own_cgroup(
    machine, mountinfo, memberships, own
):
    machine.says(mountinfo, memberships)
    parent = machine.add_parent(own)
    made = machine.find().make("run-5")
    assert made == parent / "run-5"
    assert made.is_dir()


@pytest.mark.parametrize(
    ("mountinfo", "memberships"),
    [
        (ROOT + V1, "1:cpu:/\n"),
        (ROOT + V1, "0::/\n"),
        (ROOT + V2, "1:cpu:/\n"),
        (ROOT + V2, "0::/gone\n"),
        (CONTAINER, "0::/../../elsewhere\n"),
        ("", ""),
    ],
)
def test_where_there_is_no_cgroup_v2_of_its_own_none_is_found(
    machine, mountinfo, memberships
):
    machine.mount.mkdir()
    machine.says(mountinfo, memberships)
    assert machine.find() is None


def test_without_proc_none_is_found(machine):
    assert machine.find() is None


def test_a_kernel_without_cgroup_kill_gets_none_and_nothing_is_left(machine):
    machine.says(V2, "0::/\n")
    own = machine.add(".")
    assert machine.find() is None
    assert os.listdir(own) == ["cgroup.procs"]


def test_a_cgroup_in_which_nothing_can_be_made_is_none(machine):
    machine.says(V2, "0::/\n")
    (machine.add(".") / PARENT).write_text("a file is in the way")
    assert machine.find() is None


def test_each_spool_has_a_parent_of_its_own_and_always_the_same(contained, tmp_path):
    spools = tmp_path / "a", tmp_path / "b", tmp_path / "a"
    found = [cgroup.find(spool) for spool in spools]
    paths = [cgroups.make("run-1") for cgroups in found]
    assert paths[0] == paths[2] != paths[1]
    for cgroups in found:
        cgroups.sweep()
    assert not any(path.parent.exists() for path in paths)


def test_what_a_worker_left_that_never_came_back_is_removed_when_it_is_old(machine):
    machine.says(ROOT + V2, "0::/a\n")
    machine.add_parent("a")
    old, fresh, busy = (
        machine.add(f"a/{cgroup.PARENT_PREFIX}{name}/run-1", ())
        for name in ("old", "fresh", "busy")
    )
    other = machine.add("a/other/run-1", ())
    # What is in a cgroup keeps it, as a process does.
    (busy / "somebody").touch()
    long_ago = time.time() - cgroup.ABANDONED_SECONDS - 1
    for path in (old, old.parent, busy, busy.parent, other, other.parent, fresh.parent):
        os.utime(path, (long_ago, long_ago))

    machine.find().sweep_abandoned()

    assert not old.parent.exists()
    assert fresh.exists() and busy.exists() and other.exists()


def test_a_parent_that_was_swept_away_is_made_again(contained):
    contained.cgroups.make("run-77")
    contained.cgroups.sweep()

    made = contained.cgroups.make("run-78")

    assert made.is_dir()
    assert cgroup.remove(made)


# The real thing


def test_a_script_and_everything_it_starts_is_born_in_the_runs_cgroup(contained):
    script = contained.start(
        "#!/bin/sh\n(env -i setsid sleep 60 >/dev/null 2>&1 &)\nsleep 60\n"
    )
    script.wait_for_members(3)
    made = Path(script.folder.note.cgroup)
    pids = {int(pid) for pid in (made / "cgroup.procs").read_text().split()}
    assert pids == script.members() | {script.shim_pid, script.relay_pid}


def test_a_runs_cgroup_is_removed_when_the_run_has_ended(contained):
    executor = contained.executor()
    script = contained.start("#!/bin/true\n", executor)
    made = Path(script.folder.note.cgroup)
    assert script.end().success
    eventually(lambda: not made.exists(), "the cgroup is removed")
    executor.close()
    assert not made.parent.exists()


def test_a_cgroup_with_somebody_in_it_stays_until_nobody_is(contained):
    made = contained.cgroups.make("run-77")
    with subprocess.Popen(["sleep", "60"]) as process:
        (made / "cgroup.procs").write_text(str(process.pid))
        assert cgroup.remove(made) is False
        contained.cgroups.sweep()
        assert made.exists()
        process.kill()
    eventually(lambda: cgroup.remove(made), "it is empty")
    contained.cgroups.sweep()
    assert not made.parent.exists()


def test_a_run_whose_cgroup_has_vanished_starts_all_the_same(contained):
    executor = contained.executor()
    folder = contained.folder("#!/bin/sh\nexit 4\n")
    folder.update_note(cgroup="/sys/fs/cgroup/no/such/cgroup")
    assert contained.begin(folder, executor).end().exit_status == 4
    assert Path(folder.note.cgroup).parent.exists()
