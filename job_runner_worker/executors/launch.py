"""How a script begins that asks for more than to be run.

What the shim itself must not be subject to comes between it and the script: niceness, a
user, a folder, variables. A small shell reads it from a private file on its standard
input, after the change of user; so no value stands on a command line.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from job_runner_worker.errors import StartError
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.run_options import RunOptions
from job_runner_worker.shim_lines import ProcessId

SHELL = "/bin/sh"
NOTHING_TO_READ = "/dev/null"
_FILE = "launch"
_CPU_PERIOD_MICROSECONDS = 100_000
_OWN_PROCESSES = 2
"""Shim and relay are in the run's cgroup, too."""
_ENTER = 0o1


@dataclass(frozen=True, slots=True)
class Launch:
    """``prefix`` stands before the script's command, ``stdin`` is what that reads."""

    prefix: tuple[str, ...] = ()
    stdin: str = NOTHING_TO_READ
    umask: str = ""
    owner: pwd.struct_passwd | None = None
    """Whose the script's files and its output are; None for the worker's own user."""


def plan(options: RunOptions, users: tuple[str, ...]) -> Launch:
    """Return how a script begins. Raises StartError where that is impossible here.

    ``users`` are those whom a script may name.
    """
    prefix: list[str] = []
    if options.nice:
        prefix += [_tool("nice", "nice"), "-n", str(options.nice)]
    owner = None
    if options.run_as_user is not None:
        owner = _user(options.run_as_user, users)
        prefix += [
            _tool("setpriv", "run_as_user"),
            f"--reuid={owner.pw_uid}",
            f"--regid={owner.pw_gid}",
            "--init-groups",
        ]
    if options.cwd is not None and not os.path.isdir(options.cwd):
        raise StartError(f"cwd={options.cwd} is no folder of this machine")
    is_shell_needed = owner or options.cwd is not None or options.env
    if is_shell_needed:
        prefix += [SHELL, "-s"]
    return Launch(
        tuple(prefix),
        f"../{_FILE}" if is_shell_needed else NOTHING_TO_READ,
        "" if options.umask is None else f"{options.umask:04o}",
        owner,
    )


def prepare(launch: Launch, options: RunOptions, folder: RunFolder) -> None:
    """Write what the launch reads, and hand the script's files to its user.

    Raises OSError, and StartError where the user cannot get to the files.
    """
    if launch.stdin == NOTHING_TO_READ:
        return
    variables = dict(options.env)
    if (owner := launch.owner) is not None:
        names = {"USER": owner.pw_name, "LOGNAME": owner.pw_name}
        variables = {"HOME": owner.pw_dir, **names, **variables}
        _hand_over(folder, owner)
    lines = []
    if options.cwd is not None:
        lines.append(f"cd {shlex.quote(options.cwd)} || exit 125\nunset OLDPWD\n")
    lines += [
        f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()
    ]
    text = "".join([*lines, f'exec "$@" <{NOTHING_TO_READ}\n'])
    # One compound command is read as a whole before any of it is done.
    folder.files.write_atomically(_FILE, f"{{\n{text}}}\n".encode())


def order(
    launch: Launch,
    folder: RunFolder,
    shim: ProcessId,
    variables: Mapping[str, str],
    command: Sequence[str],
) -> bytes:
    """Return what a shim is told: how a script begins, and what is done at its end.

    One compound command: a part of it is nothing. ``variables`` are the script's own.
    """
    note = folder.note
    told = {
        "jrw_identity": f"{shim.pid} {shim.start_ticks}",
        "jrw_folder": str(folder.path),
        "jrw_end_mark": note.end_mark.strip("\x1e\n"),
        "jrw_leftovers": "kill" if note.kill_leftovers else "leave",
        "jrw_script_umask": launch.umask or _umask(),
        "jrw_stdin": launch.stdin,
    }
    lines = [
        "{",
        _assignments(told),
        f"export {_assignments(variables)}",
        f"set -- {shlex.join([*launch.prefix, *command])}",
        "return",
        "}\n",
    ]
    return os.fsencode("\n".join(lines))


def _assignments(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in values.items())


def _umask() -> str:
    """Return the worker's umask, which its scripts inherit: there is no other way."""
    mask = os.umask(0o077)
    os.umask(mask)
    return f"{mask:04o}"


def cgroup_limits(options: RunOptions) -> Mapping[str, tuple[str, str]]:
    """Return what to write to which file of a cgroup, and the option that asks for it.

    Source: the kernel's Documentation/admin-guide/cgroup-v2.
    """
    limits = {}
    if options.memory_max_bytes is not None:
        limits["memory.max"] = (str(options.memory_max_bytes), "memory_max_bytes")
    if options.cpu_max is not None:
        quota = round(options.cpu_max * _CPU_PERIOD_MICROSECONDS)
        limits["cpu.max"] = (f"{quota} {_CPU_PERIOD_MICROSECONDS}", "cpu_max")
    if options.pids_max is not None:
        limits["pids.max"] = (str(options.pids_max + _OWN_PROCESSES), "pids_max")
    return limits


def _tool(name: str, option: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise StartError(f"{option} needs the command {name}, which is not installed")
    return found


def _user(name: str, users: tuple[str, ...]) -> pwd.struct_passwd:
    if name not in users:
        raise StartError(
            f"run_as_user={name} is not allowed: the operator has to name the user in "
            "run_as_users"
        )
    if os.geteuid() != 0:
        raise StartError(
            f"run_as_user={name} is possible only where the worker is root's"
        )
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise StartError(f"run_as_user={name}: this machine has no such user") from None


def _hand_over(folder: RunFolder, owner: pwd.struct_passwd) -> None:
    """Let a user get to the script, its working folder and its TMPDIR, to no more."""
    groups = {*os.getgrouplist(owner.pw_name, owner.pw_gid)}
    os.chown(folder.path, -1, owner.pw_gid)
    folder.path.chmod(0o710)
    for path in (folder.script_path, folder.work_path, folder.temporary_path):
        os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    for parent in folder.path.parents:
        if not _may_enter(parent, owner.pw_uid, groups):
            raise StartError(
                f"run_as_user={owner.pw_name}: the user may not enter {parent}: "
                "spool_path has to be below folders that everybody may enter"
            )


def _may_enter(path: Path, user: int, groups: set[int]) -> bool:
    status = path.stat()
    shift = 0
    if status.st_uid == user:
        shift = 6
    elif status.st_gid in groups:
        shift = 3
    return user == 0 or bool(status.st_mode >> shift & _ENTER)
