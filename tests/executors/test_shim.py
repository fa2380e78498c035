"""The shim: every row of the table in docs/architecture, with real scripts."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from conftest import OPTIONS, fill_disk
from waiting import alive_below, eventually

from job_runner_worker.errors import StartError
from job_runner_worker.executors import local_execution
from job_runner_worker.executors.launch import SHELL
from job_runner_worker.executors.local_execution import SHIM_LOST
from job_runner_worker.executors.process_tree import is_alive

ROOT = Path(__file__).resolve().parents[2]
GROUP_SIGNALS = [
    *("HUP", "INT", "QUIT", "USR1", "USR2", "PIPE", "ALRM", "TERM"),
    *("TSTP", "TTIN", "TTOU", "XFSZ"),
]
SIGNAL_STATE = "#!/bin/sed -n /^Sig[BIC]/p /proc/self/status\n"
"""Prints what the script's own main process blocks, ignores and catches."""
NOTHING_SET = {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}


def signal_state(log):
    return {name: int(mask, 16) for name, mask in re.findall(r"(Sig\w+):\s(\w+)", log)}


# Output


@pytest.mark.parametrize("name", ["/dev/stderr", "/dev/stdout", "/proc/self/fd/1"])
def test_a_script_that_opens_its_output_again_loses_nothing(local, name):
    script, outcome = local.run(
        f"#!/bin/sh\necho 1\necho 2 > {name}\necho 3 | tee {name}\necho 4\n"
    )
    assert outcome.success
    assert sorted(script.log.split()) == ["1", "2", "3", "3", "4"]
    assert script.log.startswith("1\n2\n")
    assert script.log.endswith("4\n")


def test_stdout_and_stderr_are_one_stream_in_order(local):
    script, _ = local.run("#!/bin/sh\nfor i in 1 2 3; do echo $i; echo e$i >&2; done\n")
    assert script.log == "1\ne1\n2\ne2\n3\ne3\n"


@pytest.mark.parametrize("name", ["KILL", "TERM", "INT", "SEGV", "HUP", "PIPE"])
def test_a_death_by_signal_is_in_the_exit_status_and_not_in_the_log(local, name):
    script, outcome = local.run(f"#!/bin/sh\necho before\nkill -{name} $$\nsleep 60\n")
    assert script.log == "before\n"
    assert outcome.exit_status == 128 + signal.Signals[f"SIG{name}"]
    assert outcome.reason == ""
    assert not outcome.success


def test_output_of_any_bytes_arrives_as_it_is(local):
    script, _ = local.run("#!/bin/sh\nprintf 'a\\000\\377\\001\\036b'\n")
    assert script.raw_output.startswith(b"a\0\xff\x01\x1eb\x1e")
    assert script.log == "a\ufffd\ufffd\x01\x1eb"


def test_the_log_of_a_script_that_prints_nothing_is_empty(local):
    script, outcome = local.run("#!/bin/true\n")
    assert outcome.success
    assert script.log == ""


def test_a_script_that_prints_its_own_end_mark_keeps_its_log(local):
    # For example one that shows the command line of its parent.
    script, _ = local.run(
        "#!/bin/sh\necho 1\ntr '\\0' ' ' </proc/$PPID/cmdline\necho 2\n"
    )
    assert script.log.startswith(f"1\n{SHELL} ")
    assert script.log.endswith("2\n")


# Signals


@pytest.mark.parametrize("name", GROUP_SIGNALS)
def test_a_script_that_signals_its_group_keeps_its_exit_status(local, name):
    script, outcome = local.run(
        f"#!/bin/sh\ntrap '' {name}\nkill -{name} 0\necho after\nexit 3\n"
    )
    assert script.log == "after\n"
    assert (outcome.exit_status, outcome.reason) == (3, "")


def test_a_script_that_kills_its_group_as_it_exits_has_an_end(local):
    script, outcome = local.run(
        "#!/bin/sh\ntrap 'kill 0' EXIT\nsleep 60 &\necho $!\nexit 3\n"
    )
    assert outcome.exit_status == 128 + signal.SIGTERM
    eventually(lambda: not alive_below(script.folder.path), "nobody is left")


def test_a_script_starts_with_default_signals_and_an_empty_mask(local):
    script, _ = local.run(SIGNAL_STATE)
    assert signal_state(script.log) == NOTHING_SET


def test_a_worker_that_ignores_and_blocks_signals_keeps_that_to_itself(local):
    folder = local.folder(SIGNAL_STATE)
    code = f"""
import signal
from pathlib import Path
from conftest import OPTIONS, fill_disk
from job_runner_worker.executors.local import LocalExecutor
from job_runner_worker.run_folder import RunFolder
for name in ("INT", "QUIT", "HUP", "PIPE", "TERM", "CHLD"):
    signal.signal(signal.Signals["SIG" + name], signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
folder = RunFolder.load(Path({str(folder.path)!r}))
executor = LocalExecutor(OPTIONS)
executor.start(folder.run, folder).wait()
executor.close()
"""
    path = f"{ROOT}:{ROOT / 'tests'}"
    env = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=20)
    assert signal_state(folder.log(final=True)) == NOTHING_SET


# Start


@pytest.mark.parametrize(
    "shebang", ["/no/such/interpreter", "no-such-command -x", "/etc/passwd", "/tmp"]
)
def test_a_script_without_an_interpreter_is_a_start_failure_without_a_pid(
    local, shebang
):
    with pytest.raises(StartError, match="does not exist") as failure:
        local.start(f"#!{shebang}\n")
    assert not failure.value.transient
    [folder] = local.folders
    assert folder.shim() is None
    assert folder.script_process() is None


def test_two_shims_for_one_folder_run_the_script_once(local):
    folder = local.folder("#!/bin/sh\necho once >>times; echo once\n")
    folder.prepare(folder.run.script.encode())
    starts = [
        gevent.spawn(local.executor().start, folder.run, folder) for _ in range(4)
    ]
    for start in starts:
        outcome = start.get(timeout=20).wait(20)
        assert outcome is not None
        assert outcome.success
    eventually(lambda: not alive_below(folder.path), "all shims are gone")
    assert (folder.path / "work" / "times").read_text() == "once\n"
    assert folder.log(final=True) == "once\n"


def test_a_script_that_has_begun_is_not_begun_again(local):
    script, _ = local.run("#!/bin/sh\necho once >>times; echo once\n")
    again = local.executor().start(script.folder.run, script.folder)
    assert again.wait(20) == script.execution.wait(0)
    eventually(lambda: not alive_below(script.folder.path), "both shims are gone")
    assert (script.work_path / "times").read_text() == "once\n"
    assert script.log == "once\n"


# End


@pytest.mark.parametrize("status", [0, 3, 255])
def test_the_exit_status_of_a_script_is_that_of_its_run(local, status):
    _, outcome = local.run(f"#!/bin/sh\nexit {status}\n")
    assert outcome.exit_status == status
    assert outcome.success is (status == 0)


def test_children_left_behind_do_not_hold_the_run(local):
    script, outcome = local.run(
        "#!/bin/sh\nmkfifo go\n(read -r _ <go; echo later; echo >end) &\necho now\n"
    )
    assert outcome.success
    assert len(script.members()) == 1
    script.let_go()
    eventually((script.work_path / "end").exists, "the child has printed")
    eventually(lambda: not alive_below(script.folder.path), "shim and relay are gone")
    assert script.log == "now\n"


def test_what_children_left_behind_print_takes_no_disk_and_does_not_end_them(local):
    script, _ = local.run(
        "#!/bin/sh\nmkfifo go\n"
        "(read -r _ <go; yes | head -c 1000000; echo >end) &\necho now\n"
    )
    size = script.folder.output.size()
    script.let_go()
    eventually((script.work_path / "end").exists, "the child has printed")
    eventually(lambda: not alive_below(script.folder.path), "shim and relay are gone")
    assert script.folder.output.size() == size
    assert script.log == "now\n"


def test_a_child_left_behind_that_prints_without_end_does_not_hold_the_run(local):
    script, outcome = local.run("#!/bin/sh\necho now\nyes &\n")
    assert outcome.success
    assert script.folder.has_end_mark()
    assert script.log.startswith("now\n")
    assert len(script.members()) == 1


def test_children_left_behind_are_killed_where_that_is_configured(local):
    script, outcome = local.run(
        "#!/bin/sh\nsleep 60 &\n(env -i setsid sleep 60 >/dev/null 2>&1 &)\necho now\n",
        kill_leftovers=True,
    )
    assert not script.members()
    assert outcome.success
    assert script.log == "now\n"
    eventually(lambda: not alive_below(script.folder.path), "shim and relay are gone")


def test_a_killed_shim_makes_the_run_fail_and_nobody_stays(local):
    script = local.start("#!/bin/sh\necho now\nsleep 60 & sleep 60\n")
    script.wait_for_output("now")
    script.wait_for_members(3)
    os.kill(script.shim_pid, signal.SIGKILL)
    outcome = script.end()
    assert (outcome.exit_status, outcome.reason) == (None, SHIM_LOST)
    assert not outcome.success
    assert not script.members()
    assert script.log.startswith("now\n")
    assert script.folder.failure() == outcome


def test_what_was_printed_before_the_shim_was_killed_is_in_the_log(local):
    script, outcome = local.run("#!/bin/sh\nseq 5000\nkill -9 $PPID\nsleep 60\n")
    assert outcome.reason == SHIM_LOST
    assert "\n5000\n" in script.log


def test_a_killed_session_makes_the_run_fail(local):
    script = local.start("#!/bin/sh\nsleep 60\n")
    script.wait_for_members(2)
    os.killpg(script.shim_pid, signal.SIGKILL)
    outcome = script.end()
    assert (outcome.exit_status, outcome.reason) == (None, SHIM_LOST)
    eventually(lambda: not alive_below(script.folder.path), "nobody is left")


def test_the_exit_status_survives_a_full_disk(small_disk, local, monkeypatch):
    # No end mark arrives on a full disk: the test need not wait that long for it.
    monkeypatch.setattr(local_execution, "_RELAY_PATIENCE_SECONDS", 0.1)
    script, outcome = local.run("#!/bin/sh\nyes | head -c 1000000\nexit 3\n")
    assert os.statvfs(small_disk).f_bavail == 0
    assert outcome.exit_status == 3
    assert script.log.startswith("y\ny\n")


def test_a_disk_that_is_full_before_the_start_is_a_start_failure(small_disk, local):
    folder = local.folder("#!/bin/sh\necho never\n")
    fill_disk(small_disk)
    with pytest.raises(StartError, match="No space left") as failure:
        local.executor().start(folder.run, folder)
    assert not failure.value.transient
    assert folder.shim() is None


# Surroundings


def test_stdin_is_empty_and_nothing_else_is_open(local):
    extra = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(extra, True)
    try:
        script, _ = local.run("#!/bin/ls -l /proc/self/fd\n")
    finally:
        os.close(extra)
    found = dict(re.findall(r" (\d+) -> (\S+)", script.log))
    # 3 is the folder that ls reads.
    assert found.keys() == {"0", "1", "2", "3"}
    assert found["0"] == "/dev/null"
    assert found["1"] == found["2"]
    assert found["1"].startswith("pipe:")
    assert found["3"].endswith("/fd")


def test_the_working_directory_and_tmpdir_are_private_and_the_runs_own(local):
    script, _ = local.run('#!/bin/sh\npwd; echo "$TMPDIR"; stat -c %a . "$TMPDIR"\n')
    path = script.folder.path
    assert script.log.split() == [f"{path}/work", f"{path}/tmp", "700", "700"]


NAMES_OF_SHIMS = [
    "identity",
    "folder",
    "end_mark",
    "leftovers",
    "stdin",
    "own_pid",
    "relay",
    "said",
]


def test_no_variable_of_a_script_means_anything_to_its_shim(local, tmp_path):
    (tmp_path / "work").mkdir()
    given = {**OPTIONS.environment, "CDPATH": str(tmp_path), "IFS": "/"}
    given |= dict.fromkeys(NAMES_OF_SHIMS, "mine")
    shown = " ".join(f"${name}" for name in NAMES_OF_SHIMS)
    script, outcome = local.run(f"#!/bin/sh\npwd; echo {shown}\n", environment=given)
    assert outcome.success
    place, variables = script.log.splitlines()
    assert place == str(script.folder.path / "work")
    assert variables.split() == ["mine"] * len(NAMES_OF_SHIMS)


def test_the_environment_is_what_is_configured_and_the_runs_own(local):
    given = {**OPTIONS.environment, "LANG": "C", "EMPTY": "", "TEXT": "a 'b'\n\u20ac"}
    script, _ = local.run("#!/bin/cat /proc/self/environ\n", environment=given)
    entries = script.raw_output.split(b"\0#!")[0].decode().split("\0")
    found = dict(entry.split("=", 1) for entry in entries)
    for name in ("PWD", "SHLVL", "_"):  # what a shell adds, bash more than others
        found.pop(name, None)
    assert found == {
        **given,
        "TMPDIR": str(script.folder.temporary_path),
        "JOB_RUNNER_RUN_ID": str(script.folder.run.id),
        "JOB_RUNNER_JOB_ID": "7",
        "JOB_RUNNER_JOB_TITLE": "a title",
        "JOB_RUNNER_WORKER": OPTIONS.worker_name,
    }


@pytest.mark.parametrize(
    ("script", "log", "status"),
    [
        ("#!/bin/echo one 'two  words'\n", "one two  words {path}\n", 0),
        ("#!/usr/bin/env -S sh -eu\necho $0\n$unset\n", "{path}\n", 2),
        ("#! /bin/bash -e\necho a\nfalse\necho b\n", "a\n", 1),
        ("#!/bin/sh\r\necho a\r\nexit 3\r\n", "a\n", 3),
        ("#!sh\nstat -c %a $0", "600\n", 0),
    ],
)
def test_the_interpreter_is_what_the_shebang_says(local, script, log, status):
    started, outcome = local.run(script)
    assert outcome.exit_status == status
    assert started.log.startswith(log.format(path=started.folder.script_path))


def test_the_pid_is_the_scripts_own_and_the_times_are_true(local):
    script, outcome = local.run("#!/bin/sh\necho $$\n")
    process = script.folder.script_process()
    assert script.log == f"{script.execution.native_id}\n"
    assert process.script.pid == script.execution.native_id
    assert not is_alive(process.script)
    assert process.started_at == script.execution.started_at
    assert process.started_at <= outcome.returned_at
