"""A server that is killed (-9) at one step after another, and started again each time.

A program: ``killed_server.py FOLDER STEP...``. A step is ``before`` or ``after``, a
colon, and a function in the server, such as ``after:lifecycle.claim``. The last
server lives until TERM. All are forked by a process that has imported everything: a
start takes a tenth of a second.
"""

from gevent import monkey

if __name__ == "__main__":
    # As the command does; but to fork and to wait is plain here.
    monkey.patch_all(os=False, signal=False)

import ctypes
import functools
import importlib
import os
import signal
import sys
from pathlib import Path

from job_runner_worker import cli
from job_runner_worker.data_folder import DataFolder, read_json
from job_runner_worker.server import serve

_PR_SET_PDEATHSIG = 1


def keep(folder, steps):
    """Fork a server that dies at each step; return the last one's exit status."""
    prepare(folder)
    ports = ["--http-port=0", "--broadcast-port=0", "--events-port=0"]
    ports.append("--websocket-port=0")
    for number, step in enumerate([*steps, ""], 1):
        pid = os.fork()
        if not pid:
            words = ["server", f"--data={folder.path}", *ports]
            os._exit(live(words, step))
        print(f"server started (pid {pid}), until {step or 'TERM'}", flush=True)
        signal.signal(signal.SIGTERM, lambda *_, pid=pid: os.kill(pid, signal.SIGTERM))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(f"server {number} ended: {status}", flush=True)
        if status != -signal.SIGKILL:
            return status
        ports = serve.Ports(**read_json(folder.server_json)["ports"]).arguments()
    return 1


def prepare(folder):
    """Do once what every start does alike."""
    from job_runner_worker.server import django_settings

    database = os.environ.get(serve.DATABASE_VARIABLE)
    django_settings.configure(folder.path, database)
    django_settings.configure = lambda *arguments, **options: None
    for name in ("composition", "urls"):
        importlib.import_module(f"job_runner_worker.server.{name}")


def live(words, step):
    """Be a server; die at a step, and with the parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if step:
        die_at(step)
    try:
        return cli.main(words)
    finally:
        sys.stdout.flush()


def die_at(step):
    when, _, name = step.partition(":")
    module_name, *names, last = name.split(".")
    owner = importlib.import_module(f"job_runner_worker.server.{module_name}")
    for each in names:
        owner = getattr(owner, each)
    function = getattr(owner, last)

    @functools.wraps(function)
    def fatal(*args, **kwargs):
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        # Nothing done is not that step.
        if result is None or result:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, last, fatal)


if __name__ == "__main__":
    sys.exit(keep(DataFolder(Path(sys.argv[1])), sys.argv[2:]))
