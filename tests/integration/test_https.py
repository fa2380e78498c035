"""HTTP that does not answer, and TLS (protocol.md, section 5, fault 12)."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from scene import Scene, starting, working
from waiting import eventually

from job_runner_worker.testing import Fault, StandInServer

pytestmark = pytest.mark.integration

BLOCK_BYTES = 65536


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with StandInServer() as server:
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a self-signed certificate for 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command: apt-get install openssl")
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return certificate, key


class TlsFront:
    """Takes TLS connections and passes what is in them on to a plain server.

    With ``clients`` only from who has a certificate that this file vouches for.
    """

    def __init__(
        self, certificate: tuple[Path, Path], port: int, clients: Path | None = None
    ) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        if clients is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(clients)
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.port = self._listener.getsockname()[1]
        self.refusals: list[str] = []
        """Why handshakes failed, as the client told."""

    def __enter__(self) -> TlsFront:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in [self._listener, *self._open]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for end in [self._listener, *self._open]:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            try:
                outer = self._context.wrap_socket(plain, server_side=True)
            except OSError as error:
                self.refusals.append(str(error))
                plain.close()
                continue
            inner = socket.create_connection(("127.0.0.1", self._port))
            self._open += [outer, inner]
            for pair in ((outer, inner), (inner, outer)):
                self._threads.append(threading.Thread(target=_pump, args=pair))
                self._threads[-1].start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(BLOCK_BYTES):
            target.sendall(block)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextmanager
def behind_tls(
    server: StandInServer,
    certificate: tuple[Path, Path],
    folder: Path,
    clients: Path | None = None,
    **more: object,
) -> Iterator[tuple[Scene, TlsFront]]:
    with TlsFront(certificate, server.ports.api, clients) as front:
        url = f"https://127.0.0.1:{front.port}"
        with starting(server, folder, api_base_url=url, **more) as scene:
            yield scene, front


def test_12_a_self_signed_server_is_refused_and_hears_nothing(
    server: StandInServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    with behind_tls(server, certificate, tmp_path) as (scene, front):
        server.wait_for_subscriber()
        scene.wait_for_line("no answer: .*CERTIFICATE_VERIFY_FAILED")
        eventually(lambda: front.refusals, "a refused handshake")
        assert server.api.count() == 0
        scene.worker.terminate()
        assert scene.worker.wait() == 0


def test_12_a_server_that_ca_bundle_vouches_for_is_trusted(
    server: StandInServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = {"ca_bundle": certificate[0]}
    with behind_tls(server, certificate, tmp_path, **bundle) as (scene, _):
        server.wait_for_subscriber()
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True


def test_a_server_that_asks_for_it_sees_the_certificate_of_the_worker(
    server: StandInServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    own, key = certificate
    more = {"ca_bundle": own, "client_certificate": own, "client_key": key}
    with behind_tls(server, certificate, tmp_path, own, **more) as (scene, _):
        server.wait_for_subscriber()
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True


def test_without_the_certificate_that_a_server_asks_for_nothing_is_heard(
    server: StandInServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    own = certificate[0]
    more = {"ca_bundle": own}
    with behind_tls(server, certificate, tmp_path, own, **more) as (scene, front):
        eventually(lambda: front.refusals, "a refused handshake")
        scene.wait_for_line("no answer: ")
        assert server.api.count() == 0


def test_ca_bundle_outweighs_the_one_in_the_environment(
    server: StandInServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    env = {"REQUESTS_CA_BUNDLE": "/etc/hostname", "CURL_CA_BUNDLE": "/etc/hostname"}
    more = {"ca_bundle": certificate[0], "env": env}
    with behind_tls(server, certificate, tmp_path, **more) as (scene, _):
        server.wait_for_subscriber()
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True


def test_without_verify_ssl_any_server_is_trusted_and_the_log_warns(
    server: StandInServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    more = {"verify_ssl": "no"}
    with behind_tls(server, certificate, tmp_path, **more) as (scene, _):
        server.wait_for_subscriber()
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True
        scene.wait_for_line("WARNING verify_ssl is off")


def test_12_a_server_that_never_answers_holds_nothing_up(
    server: StandInServer, tmp_path: Path
) -> None:
    api = server.api
    run_id = api.add_run(api.add_job("#!/bin/sh\ntrue"))
    hours = api.faults.add(
        Fault("delay", "PATCH", f"/run/{run_id}/", "return_dts", seconds=3600)
    )
    with working(server, tmp_path, http_timeout_seconds=0.5) as scene:
        server.enqueue(run_id)
        scene.wait_for_line("no answer: .*timed out")
        assert scene.end_of(run_id)["return_success"] is True
        assert hours.hits == 1
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True
