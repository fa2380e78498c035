"""What a script asks for is what it gets, or its run fails with the reason."""

import os
import pwd
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import gevent
import pytest
from conftest import NO_OTHER_USER, Local, Script, another_user
from waiting import alive_below, eventually

from job_runner_worker import run_options, run_usage
from job_runner_worker.errors import StartError
from job_runner_worker.executors import cgroup, launch
from job_runner_worker.executors.local_execution import SHIM_LOST
from job_runner_worker.run_options import RunOptions

KILLED, TERMINATED = 128 + signal.SIGKILL, 128 + signal.SIGTERM
WAITS = "mkfifo go; read -r _ <go; "
NO_CONTROLLER = (
    "the cgroup of a run has no {} controller: run the tests in a scope of systemd's "
    "with Delegate=yes"
)


def script(*lines, then):
    block = "".join(f"# job-runner: {line}\n" for line in lines)
    return f"#!/bin/sh\n{block}{then}\n"


# The time limit


def test_a_run_is_killed_at_its_time_limit_with_its_tree(tracked):
    text = script("timeout_seconds=0.2", then="setsid sleep 60 & sleep 60")
    started, outcome = tracked.run(text)
    assert outcome.exit_status == TERMINATED
    assert outcome.reason == "killed by the time limit: timeout_seconds=0.2"
    assert not started.members()


def test_a_run_that_ends_before_its_time_limit_is_left_alone(local):
    _, outcome = local.run(script("timeout_seconds=3600", then="exit 3"))
    assert (outcome.exit_status, outcome.reason) == (3, "")


def test_a_script_that_ends_well_when_its_time_is_over_has_failed(local):
    text = script("timeout_seconds=0.2", then="trap 'exit 0' TERM; sleep 60 & wait")
    _, outcome = local.run(text)
    assert outcome.exit_status == 0
    assert not outcome.success


def test_the_kill_grace_of_the_script_holds_at_its_time_limit(local):
    # That of the executor is longer than the test waits.
    text = script(
        "timeout_seconds=0.2",
        "kill_grace_seconds=0.1",
        then="trap '' TERM; while :; do sleep 60; done",
    )
    assert local.run(text)[1].exit_status == KILLED


def test_a_kill_on_request_comes_before_the_time_limit(local):
    started = local.start(script("timeout_seconds=3600", then="sleep 60"))
    started.execution.kill("killed on request 1")
    assert started.end().reason == "killed on request 1"


def test_the_time_limit_counts_from_the_scripts_start_over_a_restart(local):
    executor = local.executor()
    limit_seconds = 2
    began = time.monotonic()
    text = script(f"timeout_seconds={limit_seconds}", then="sleep 60")
    started = local.start(text, executor)
    executor.close()
    # The time of the file, which is that of the machine's clock, says otherwise.
    os.utime(started.folder.path / "pid", (time.time() + 3600,) * 2)
    eventually(lambda: time.monotonic() > began + limit_seconds, "the limit is over")
    execution = local.executor().attach(started.folder.run, started.folder)
    attached = time.monotonic()
    outcome = Script(started.folder, execution).end()
    assert outcome.reason.startswith("killed by the time limit: ")
    assert time.monotonic() < attached + limit_seconds


def test_why_a_run_was_killed_is_known_to_the_next_worker(local):
    executor = local.executor()
    text = script(
        "timeout_seconds=0.5", then="mkfifo go\n"
        "trap 'echo ending; read -r _ <go; exit 5' TERM; sleep 60 & wait"
    )  # fmt: skip
    started = local.start(text, executor)
    started.wait_for_output("ending")
    executor.close()
    started.let_go()
    eventually(lambda: started.folder.exit_status() == 5, "its exit status")
    execution = local.executor().attach(started.folder.run, started.folder)
    outcome = Script(started.folder, execution).end()
    assert outcome.reason == "killed by the time limit: timeout_seconds=0.5"


# What the script finds


def test_without_options_nothing_more_is_written_or_started(local):
    started = local.start("#!/bin/sh\nexec sleep 60\n")
    names = set(os.listdir(started.folder.path))
    alive = {process.pid for process in alive_below(started.folder.path)}
    assert "launch" not in names
    assert alive == {
        started.shim_pid,
        started.relay_pid,
        started.execution.native_id,
    }


def test_a_script_has_the_umask_and_niceness_that_it_asks_for(local):
    text = script("umask=0027", "nice=7", then="umask; nice; ps -o nice= -p $PPID")
    started, _ = local.run(text)
    own = os.nice(0)
    assert started.log.split() == ["0027", str(min(own + 7, 19)), str(own)]
    modes = [entry.stat().st_mode for entry in os.scandir(started.folder.path)]
    assert not any(mode & 0o077 for mode in modes)


def test_a_script_begins_in_the_folder_that_it_asks_for(local, tmp_path):
    folder = tmp_path / "it's a $folder"
    folder.mkdir()
    started, _ = local.run(script(f"cwd={folder}", then='pwd; echo "$PWD$OLDPWD"'))
    assert started.log == f"{folder}\n" * 2


def test_variables_arrive_as_they_were_written(local):
    value = "a 'b' \"c\" $HOME `id` \\ \u20ac; exit 9"
    text = script(f"env.TEXT={value}", "env.EMPTY=", then='printf %s "$TEXT${EMPTY-x}"')
    assert local.run(text)[0].log == value


def test_variables_are_not_those_of_the_shim_and_its_relay(local):
    text = script("env.PATH=/nowhere", "env.OTHER=x", then="echo $PATH $OTHER")
    started, outcome = local.run(text)
    assert outcome.success
    assert started.log == "/nowhere x\n"


def test_an_interpreter_is_looked_for_where_the_script_says(local, tmp_path):
    (tmp_path / "own-shell").symlink_to("/bin/sh")
    text = script(f"env.PATH={tmp_path}:/usr/bin:/bin", then="echo $0")
    started, _ = local.run(text.replace("#!/bin/sh", "#!own-shell"))
    assert started.log == f"{started.folder.script_path}\n"


def test_no_value_of_a_variable_is_on_a_command_line(local):
    text = script("env.TOKEN=hunter2", then=f"{WAITS}true")
    started = local.start(text)
    eventually((started.work_path / "go").exists, "the script runs")
    lines = [
        Path(f"/proc/{process.pid}/cmdline").read_bytes()
        for process in alive_below(started.folder.path)
    ]
    assert not any(b"hunter2" in line for line in lines)
    assert (started.folder.path / "launch").stat().st_mode & 0o777 == 0o600


def test_the_pid_and_the_standard_input_stay_the_scripts_own(local):
    text = script("nice=1", "env.A=1", then="echo $$; readlink /proc/self/fd/0")
    started, _ = local.run(text)
    assert started.log == f"{started.execution.native_id}\n/dev/null\n"


def test_defaults_hold_where_the_script_says_nothing(local):
    defaults = run_options.of_words("umask=0007 env.A=1")
    started, _ = local.run("#!/bin/sh\numask; echo $A\n", run_defaults=defaults)
    assert started.log == "0007\n1\n"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("timeout=5", "line 2 of the script: 'timeout' is no option of a run"),
        ("timeout_seconds=61", "is above this worker's ceiling of 60"),
        ("cwd=/no/such/folder", "is no folder of this machine"),
        ("cwd=/etc/passwd", "is no folder of this machine"),
        ("memory_max_bytes=9000000", "memory_max_bytes cannot be honoured: .* no cgro"),
        ("cpu_max=1", "cpu_max cannot be honoured: this worker may make no cgroup"),
        ("pids_max=10", "pids_max cannot be honoured: this worker may make no cgroup"),
        ("run_as_user=root", "not allowed: .* has to name the user in run_as_users"),
    ],
)
def test_what_cannot_be_honoured_fails_the_run_with_the_reason(local, line, complaint):
    ceilings = RunOptions(timeout_seconds=60)
    with pytest.raises(StartError, match=complaint) as error:
        local.start(script(line, then="echo never"), run_ceilings=ceilings)
    assert not error.value.transient
    [folder] = local.folders
    assert folder.shim() is None


# Another user


@pytest.fixture
def nobody():
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        pytest.skip("there is no user `nobody`")


@pytest.fixture
def passable(greenlet_errors):
    """Executors whose spool everybody may pass through."""
    if os.geteuid() != 0:
        pytest.skip(NO_OTHER_USER)
    folder = tempfile.mkdtemp(prefix="job-runner-test-")
    os.chmod(folder, 0o711)
    made = Local(Path(folder))
    yield made
    made.close()
    shutil.rmtree(folder)


def test_a_script_runs_as_the_user_that_it_names_and_its_shim_does_not(
    passable, nobody
):
    text = script(
        "run_as_user=nobody",
        then='id -un; id -G; echo "$USER $LOGNAME $HOME"; echo x >"$TMPDIR/x"\n'
        'pwd >here; cat here; echo again >/dev/stderr; head -1 "$0"',
    )
    started, outcome = passable.run(text, run_as_users=("nobody",))
    groups = " ".join(map(str, os.getgrouplist("nobody", nobody.pw_gid)))
    assert started.log.splitlines() == [
        "nobody",
        groups,
        f"nobody nobody {nobody.pw_dir}",
        str(started.work_path),
        "again",
        "#!/bin/sh",
    ]
    assert outcome.success
    assert (started.work_path / "here").stat().st_uid == nobody.pw_uid


def test_a_user_gets_to_nothing_of_the_run_but_its_own_files(passable):
    text = script(
        "run_as_user=nobody",
        then='for f in run.json output exit_status pid began launch; do\n'
        'cat "../$f" 2>/dev/null && echo "reads $f"\n'
        '(echo >"../$f") 2>/dev/null && echo "writes $f"; done\n'
        "ls .. 2>/dev/null; touch ../new 2>/dev/null; true",
    )  # fmt: skip
    started, outcome = passable.run(text, run_as_users=("nobody",))
    assert (started.log, outcome.success) == ("", True)
    assert "new" not in os.listdir(started.folder.path)


def test_variables_of_a_script_have_no_power_over_the_change_of_its_user(
    passable, tmp_path
):
    # The linker of whoever is root would complain that it cannot be loaded.
    text = script(
        "run_as_user=nobody", f"env.LD_PRELOAD={tmp_path}/no.so", then="exec id -un"
    )
    started, _ = passable.run(text, run_as_users=("nobody",))
    [name] = [line for line in started.log.splitlines() if "LD_PRELOAD" not in line]
    assert name == "nobody"
    # By the script's own shell and by `id`, but not by setpriv and the first shell.
    assert started.log.count("LD_PRELOAD") == 2


def test_a_kill_ends_the_processes_of_another_user(passable):
    text = script("run_as_user=nobody", then="setsid sleep 60 & sleep 60")
    started = passable.start(text, run_as_users=("nobody",))
    started.wait_for_members(3)
    started.execution.kill("a reason")
    assert not started.members()
    assert started.end().exit_status == TERMINATED


def test_a_kill_ends_a_fork_bomb_without_any_controller(passable):
    """Its user's limit holds it; a kill outruns who forks and ends at once."""
    bash = shutil.which("bash")
    if bash is None or "games" not in {each.pw_name for each in pwd.getpwall()}:
        pytest.skip("the bomb needs bash, which limits processes, and the user `games`")
    bomb = "ulimit -u 60; f() { f | f & }; while :; do f; done 2>/dev/null"
    text = script("run_as_user=games", then=bomb).replace("/bin/sh", bash, 1)
    started = passable.start(
        text, run_as_users=("games",), kill_grace_seconds=0.2, kill_leftovers=True
    )
    started.wait_for_members(20)
    started.execution.kill("a reason")
    assert not started.members()
    assert started.end().reason == "a reason"


def test_a_spool_that_the_user_cannot_pass_through_fails_the_run(passable):
    passable.spool_path.chmod(0o700)
    text = script("run_as_user=nobody", then="true")
    with pytest.raises(StartError, match=f"may not enter {passable.spool_path}: "):
        passable.start(text, run_as_users=("nobody",))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no-such-user-1", "no-such-user-1: this machine has no such user"),
        ("other", "other is not allowed"),
    ],
)
def test_a_user_that_cannot_be_fails_the_run(name, complaint):
    if os.geteuid() != 0:
        pytest.skip(NO_OTHER_USER)
    with pytest.raises(StartError, match=complaint):
        launch.plan(RunOptions(run_as_user=name), ("no-such-user-1",))


def test_only_a_worker_of_roots_can_change_the_user(nobody):
    with another_user(), pytest.raises(StartError, match="the worker is root's"):
        launch.plan(RunOptions(run_as_user="nobody"), ("nobody",))


def test_a_missing_command_fails_the_run(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StartError, match="nice needs the command nice"):
        launch.plan(RunOptions(nice=1), ())


# A folder that looks like a cgroup


class Made:
    """Folders in the place of cgroups; what the kernel would make is made here."""

    def __init__(self, path):
        self.path = path
        self.parent = path / "parent"
        self.parent.mkdir(parents=True)
        self.cgroups = cgroup.Cgroups(self.parent)

    def add(self, name, content="", run_id=1):
        folder = self.parent / f"run-{run_id}"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(content)

    def read(self, name, run_id=1):
        return (self.parent / f"run-{run_id}" / name).read_text()


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path / "cgroup")


LIMITS = RunOptions(memory_max_bytes=50_000_000, cpu_max=1.5, pids_max=20)


def test_limits_are_written_to_the_files_of_the_cgroup(made):
    for name in ("memory.max", "memory.swap.max", "cpu.max", "pids.max"):
        made.add(name, "max and more\n")
    cgroup.limit(made.cgroups.make("run-1"), launch.cgroup_limits(LIMITS))
    assert made.read("memory.max") == "50000000"
    assert made.read("memory.swap.max") == "0"
    assert made.read("cpu.max") == "150000 100000"
    # The shim and the relay are in it, too.
    assert made.read("pids.max") == "22"


def test_controllers_are_handed_on_before_the_first_run(made):
    for path in (made.path, made.parent):
        (path / "cgroup.subtree_control").touch()
    made.cgroups.make("run-1")
    for path in (made.path, made.parent):
        # The kernel would add up what is written there, one after the other.
        assert (path / "cgroup.subtree_control").read_text() == "+pids"


@pytest.mark.parametrize("missing", ["memory", "cpu", "pids"])
def test_a_controller_that_is_missing_fails_the_run_and_nothing_is_made(made, missing):
    for name in {"memory", "cpu", "pids"} - {missing}:
        made.add(f"{name}.max")
    complaint = f"cannot be honoured: the cgroup of the run has no {missing} controller"
    with pytest.raises(StartError, match=complaint):
        cgroup.limit(made.cgroups.make("run-1"), launch.cgroup_limits(LIMITS))
    assert not (made.parent / f"run-1/{missing}.max").exists()


def test_a_run_with_limits_that_cannot_be_born_in_its_cgroup_is_not_begun(local, made):
    made.add("pids.max")
    executor = executor_with(local, made)
    with pytest.raises(StartError, match="could not be born in"):
        local.start(script("pids_max=5", then="echo never"), executor)
    assert made.read("pids.max") == "7"
    assert local.folders[0].shim() is None


def executor_with(local, made):
    local.cgroups = made.cgroups
    executor = local.executor()
    local.cgroups = None
    return executor


EVENTS = "low 0\nhigh 3\nmax 17\noom 2\noom_kill {}\noom_group_kill 0\n"


def end_with_oom(local, made, then, killed):
    started = local.start(f"#!/bin/sh\n{WAITS}{then}\n", executor_with(local, made))
    made.add("memory.events", EVENTS.format(killed))
    started.let_go()
    return started.end()


def test_a_run_whose_processes_the_kernel_killed_for_memory_says_so(local, made):
    outcome = end_with_oom(local, made, "kill -9 $$", 2)
    assert outcome.exit_status == KILLED
    assert outcome.reason == (
        "memory limit: 2 processes were killed by the kernel for want of memory"
    )


def test_a_script_that_gets_over_it_has_not_failed_but_its_log_says_so(local, made):
    outcome = end_with_oom(local, made, "exit 0", 1)
    assert outcome.success
    assert outcome.remark.startswith("memory limit: a process was killed by the kernel")


def test_a_run_that_fails_by_itself_is_not_said_to_lack_memory(local, made):
    outcome = end_with_oom(local, made, "exit 4", 0)
    assert (outcome.exit_status, outcome.reason) == (4, "")


@pytest.mark.parametrize("killed", [0, 1])
def test_a_shim_that_is_lost_is_the_memory_limits_doing_where_that_was_met(
    local, made, killed
):
    outcome = end_with_oom(local, made, "kill -9 $PPID; sleep 60", killed)
    assert outcome.exit_status is None
    assert (outcome.reason == SHIM_LOST) is (killed == 0)
    assert outcome.reason.startswith("memory limit: ") is (killed == 1)


def test_what_a_cgroup_has_counted_is_the_runs_usage(local, made):
    started = local.start(f"#!/bin/sh\n{WAITS}echo 12345\n", executor_with(local, made))
    made.add("cpu.stat", "usage_usec 1250000\nuser_usec 1000000\nsystem_usec 250000\n")
    made.add("memory.peak", "4096000\n")
    made.add("pids.peak", "4\n")
    assert run_usage.of_run(started.folder).cpu_seconds == 1.25
    started.let_go()
    usage = started.end().usage
    assert (usage.cpu_seconds, usage.peak_memory_bytes) == (1.25, 4096000)
    assert (usage.peak_processes, usage.output_bytes) == (4, 6)


# The real thing


def test_cpu_time_and_output_are_known_of_every_run(tracked):
    text = f"#!{sys.executable} -IS\nimport time\nwhile time.process_time() < 0.2: pass"
    _, outcome = tracked.run(f"{text}\nprint('12345')\n")
    usage = outcome.usage
    # The shell counts in hundredths, some in ticks.
    assert 0.15 <= usage.cpu_seconds < 20
    assert 0.1 < usage.wall_seconds < 60
    assert usage.output_bytes == 6
    assert re.match(r"\d+\.\d\d s in all, CPU \d+\.\d\d s, ", run_usage.describe(usage))


def test_memory_is_said_not_to_be_known_where_nobody_counts_it(local):
    usage = local.run("#!/bin/true\n")[1].usage
    assert (usage.peak_memory_bytes, usage.peak_processes) == (None, None)
    assert "peak memory not known" in run_usage.describe(usage)


def has_controller(contained, name):
    path = contained.cgroups.make("run-999")
    found = (path / f"{name}.max").exists()
    assert cgroup.remove(path)
    return found


@pytest.mark.parametrize(
    ("line", "controller"),
    [
        ("pids_max=9", "pids"),
        ("memory_max_bytes=90000000", "memory"),
        ("cpu_max=1", "cpu"),
    ],
)
def test_a_limit_without_its_controller_fails_the_run(contained, line, controller):
    if has_controller(contained, controller):
        pytest.skip("the controller is there")
    with pytest.raises(StartError, match=f"has no {controller} controller"):
        contained.start(script(line, then="echo never"))
    assert not any(Path(made.note.cgroup).name for made in contained.folders)


def test_a_fork_bomb_is_held_by_pids_max_and_killed(contained):
    if not has_controller(contained, "pids"):
        pytest.skip(NO_CONTROLLER.format("pids"))
    bomb = "f() { f | f & }; while :; do f 2>/dev/null; done"
    started = contained.start(script("pids_max=30", then=bomb), kill_grace_seconds=0.2)
    started.wait_for_members(10)
    assert len(started.members()) <= 30
    started.execution.kill("a reason")
    assert not started.members()
    assert started.end().usage.peak_processes <= 32


def test_a_script_that_takes_too_much_memory_is_killed_and_says_so(contained):
    if not has_controller(contained, "memory"):
        pytest.skip(NO_CONTROLLER.format("memory"))
    text = f"#!{sys.executable} -IS\n# job-runner: memory_max_bytes=60000000\n"
    _, outcome = contained.run(f"{text}x = b'x' * 200_000_000\n")
    assert outcome.exit_status == KILLED
    assert outcome.reason.startswith("memory limit: ")


def test_a_timer_that_is_over_leaves_nothing_behind(local):
    started = local.start(script("timeout_seconds=3600", then=f"{WAITS}true"))
    timer = started.execution._timer
    started.let_go()
    assert started.end().success
    eventually(lambda: timer.dead, "nobody waits for the limit any more")
    assert isinstance(timer, gevent.Greenlet)
