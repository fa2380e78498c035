"""What the peers need: a virtual environment of their own, Redis and RabbitMQ."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from central import ROOT, BenchmarkError

VENV = ROOT / ".venv-peers"
APPS = Path(__file__).with_name("peer_apps")
REQUIREMENTS = (
    "celery[redis]",
    "rq",
    "dramatiq[rabbitmq,redis]",
    "huey",
    "redis",
    "packaging",
)
DISTRIBUTIONS = ("celery", "rq", "dramatiq", "huey", "redis", "pika", "kombu")
AMQP_URL = "amqp://guest:guest@127.0.0.1:5672/%2F"
HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 20.0
INSTALL_SECONDS = 300.0


@dataclass(frozen=True)
class Service:
    """A server that listens on this machine, or can be made to."""

    port: int
    package: str
    command: tuple[str, ...]


REDIS = Service(
    6379,
    "redis-server",
    ("redis-server", "--bind", HOST, "--save", "", "--appendonly", "no"),
)
RABBITMQ = Service(5672, "rabbitmq-server", ("rabbitmq-server",))


@dataclass(frozen=True)
class Site:
    """Where the peers find queues and results, under a name that nobody else has."""

    queue: str
    redis_url: str

    def queue_of(self, key: str) -> str:
        """Return the queue of a peer: they do not agree what a queue is."""
        return f"{self.queue}_{key}"

    def environment(self, key: str, broker: str) -> dict[str, str]:
        """Return what the modules in peer_apps read."""
        return {
            **os.environ,
            "PYTHONPATH": str(APPS),
            "JRW_BENCH_QUEUE": self.queue_of(key),
            "JRW_BENCH_REDIS_URL": self.redis_url,
            "JRW_BENCH_AMQP_URL": AMQP_URL,
            "JRW_BENCH_BROKER": broker,
        }


def install() -> dict[str, str]:
    """Make the virtual environment if it is not there; return the versions in it."""
    python = VENV / "bin" / "python"
    stamp = VENV / ".installed"
    wanted = "\n".join(REQUIREMENTS)
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {', '.join(REQUIREMENTS)} ...", file=sys.stderr)
        _do([sys.executable, "-m", "venv", str(VENV)])
        _do([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS])
        stamp.write_text(wanted)
    code = (
        "import json, importlib.metadata as m;"
        f"print(json.dumps({{n: m.version(n) for n in {DISTRIBUTIONS!r}}}))"
    )
    found: dict[str, str] = json.loads(_do([str(python), "-c", code]))
    return found


@contextmanager
def site(keys: Sequence[str]) -> Iterator[Site]:
    """Yield a place for peers with these keys in Redis and RabbitMQ.

    What is in it is deleted afterwards.
    """
    queue = f"job_runner_bench_{secrets.token_hex(6)}"
    tidy = [str(VENV / "bin" / "python"), str(APPS / "tidy.py")]
    with ExitStack() as stack:
        for service in (REDIS, RABBITMQ):
            stack.enter_context(_running(service))
        number = _do([*tidy, "claim", queue]).strip()
        try:
            yield Site(queue, f"redis://{HOST}:6379/{number}")
        finally:
            _do([*tidy, "release", queue, number, AMQP_URL, *keys])


@contextmanager
def _running(service: Service) -> Iterator[None]:
    """Start a service if nobody listens; then it is also stopped."""
    if _listens(service.port):
        yield
        return
    _need(service)
    if _listens(service.port):
        # Its package has started it: it stays, as an installed service does.
        yield
        return
    environment = {
        **os.environ,
        "RABBITMQ_NODE_IP_ADDRESS": HOST,
        "RABBITMQ_LOGS": "-",
    }
    with tempfile.TemporaryDirectory(prefix="job_runner_bench_") as folder:
        log_path = Path(folder) / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                service.command,
                cwd="/" if service is RABBITMQ else folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        try:
            _wait_for(service, process, log_path)
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


def _need(service: Service) -> None:
    if shutil.which(service.command[0]):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise BenchmarkError(
            f"nobody listens on {HOST}:{service.port} and there is no"
            f" {service.command[0]}: as root, apt-get install {service.package}"
        )
    print(f"installing {service.package} ...", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    _do(["apt-get", "update", "-qq"], environment)
    _do(["apt-get", "install", "-y", "-qq", service.package], environment)


def _wait_for(
    service: Service, process: subprocess.Popen[bytes], log_path: Path
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _listens(service.port):
        if process.poll() is not None or time.monotonic() > deadline:
            log = log_path.read_text(errors="replace").splitlines()
            raise BenchmarkError("\n".join([f"no {service.package}:", *log[-10:]]))
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with socket.socket() as end:
        return end.connect_ex((HOST, port)) == 0


def _do(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
        raise BenchmarkError(f"{' '.join(command[:4])} failed:\n{last}")
    return done.stdout
