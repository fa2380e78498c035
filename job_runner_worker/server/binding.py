"""Ports: given ones, or free ones for 0; for HTTP and for ZeroMQ."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket

import gevent
import gevent.event
import zmq

from job_runner_worker.errors import ConfigError

_BACKLOG = 512
_READABLE = 1


def listen(host: str, port: int, option: str) -> socket.socket:
    """Return a listening TCP socket; ConfigError names the option to change."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise _error(host, port, option, error) from error
    listener.setblocking(False)
    return listener


def bind(end: zmq.Socket[bytes], host: str, port: int, option: str) -> int:
    """Bind a ZeroMQ socket; return its port. ConfigError as `listen` raises it."""
    if ":" in host:
        end.setsockopt(zmq.IPV6, 1)
    try:
        end.bind(f"tcp://{bracketed(host)}:{port or '*'}")
    except zmq.ZMQError as error:
        end.close(linger=0)
        raise _error(host, port, option, error) from error
    return int(end.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])


def allow_descriptors() -> None:
    """Let this process have as many connections as it may have at all."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def wait_readable(
    end: zmq.Socket[bytes], wake: gevent.event.Event, seconds: float
) -> None:
    """Wait for a message, for ``wake`` to be set, or for the end of some time."""
    loop = gevent.get_hub().loop
    # ZeroMQ's descriptor tells of changes only: whatever is there already, not.
    if int(end.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
        return
    watcher = loop.io(int(end.getsockopt(zmq.FD)), _READABLE)
    watcher.start(wake.set)
    try:
        loop.update_now()
        wake.wait(seconds)
    finally:
        watcher.stop()
        watcher.close()


def bracketed(host: str) -> str:
    """Return a host as it stands in an address with a port."""
    return f"[{host}]" if ":" in host else host


def _error(host: str, port: int, option: str, error: Exception) -> ConfigError:
    if getattr(error, "errno", None) in (errno.EADDRINUSE, zmq.Errno.EADDRINUSE):
        return ConfigError(
            f"port {port} on {host} is taken: stop what listens there, or give another"
            f" one with {option} (0: any free one)"
        )
    return ConfigError(
        f"cannot listen on {host}, port {port}: {error}: change --bind or {option}"
    )
