"""ZeroMQ's CURVE on sockets: making keys, using them, and why a handshake failed.

Source: ZeroMQ RFC 26 (CURVE) and zmq_socket_monitor(3).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import zmq

from job_runner_worker.curve_keys import ClientKeys, KeyPair

HEARS_ORDERS, TELLS_EVENTS = zmq.SUB, zmq.PUB
HANDSHAKE_MILLISECONDS = 3000
"""How long an encrypted handshake may take. A server that refuses keys says nothing."""
HANDSHAKE_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
PROTOCOL_ERROR_CRYPTOGRAPHIC = 0x11000001


def generate() -> KeyPair:
    """Return a new pair of keys."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


def protect(socket: zmq.Socket[bytes], keys: ClientKeys | None) -> None:
    """Let a socket that is going to connect encrypt; plain where there are no keys."""
    if keys is None:
        return
    own = keys.own or generate()
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MILLISECONDS)
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server.encode("ascii"))
    socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode("ascii"))
    socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode("ascii"))


def zmq_address(hostname: str, port: int) -> str:
    """Return an address as ZeroMQ has it."""
    host = f"[{hostname}]" if ":" in hostname else hostname
    return f"tcp://{host}:{port}"


def monitor_event(frames: Sequence[bytes]) -> int:
    """Return what a monitor tells of.

    pyzmq's own function for that imports asyncio. Source: zmq_socket_monitor(3).
    """
    event: int = struct.unpack_from("=H", frames[0])[0]
    return event


def failure(event: int, *, is_curve: bool) -> str:
    """Return why a client's handshake failed and the remedy, "" where it did not."""
    match event:
        case zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return ""
        case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL if is_curve:
            return (
                "the server does not speak CURVE: start it with --curve, or remove "
                "curve_server_key"
            )
        case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL if is_curve:
            return (
                "the server refuses the keys: curve_server_key has to be what it prints"
                " when it starts, and the public key in curve_key_file has to stand in"
                " curve/workers of its data folder; its log says which"
            )
    return (
        "the handshake failed: is that a ZeroMQ server, and does it want "
        "curve_server_key?"
    )


def try_handshake(
    address: str, kind: int, keys: ClientKeys | None, timeout_seconds: float
) -> str:
    """Return why no connection comes about, "" where one does.

    ``kind`` of socket: SUB to a broadcaster, PUB to who hears events. The whole
    process waits meanwhile.
    """
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.linger = 0
        socket.setsockopt(zmq.IPV6, 1)
        protect(socket, keys)
        monitor = socket.get_monitor_socket(HANDSHAKE_EVENTS)
        try:
            socket.connect(address)
            if not monitor.poll(int(timeout_seconds * 1000)):
                return "nothing is answered"
            event = monitor_event(monitor.recv_multipart())
            return failure(event, is_curve=keys is not None)
        finally:
            socket.disable_monitor()
            monitor.close(linger=0)
