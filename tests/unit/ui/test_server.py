"""The socket of the page under hostile bytes: what is no plain, small request is refused, and nobody keeps others out."""

from __future__ import annotations

import http.client
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.errors import ConfigError
from awsomefsd.cluster.pki import ca
from awsomefsd.ui import server as module
from awsomefsd.ui import web
from awsomefsd.ui.running import RunningUi
from awsomefsd.ui.server import NodeCertificate, UiServer, listen
from awsomefsd.ui.sign_in import READER, SignIn
from awsomefsd.ui.web import PageRequest, PageResponse
from buildtools.nodes import await_true
from tests.rigs.ui_daemon import UiDaemon

WAIT_S = 60.0


class Served:
    """A running server that answers what it was asked, and keeps it."""

    def __init__(self, tls: NodeCertificate | None = None) -> None:
        self.seen: list[PageRequest] = []
        self.listener = listen("--listen", "127.0.0.1:0")
        self.address = self.listener.getsockname()
        self.server = UiServer(self.listener, self.answer, tls)
        self.server.start()

    def answer(self, request: PageRequest) -> PageResponse:
        self.seen.append(request)
        if request.path == "/bug":
            raise KeyError("a bug")
        return web.plain(200, "fine")

    def send(self, raw: bytes) -> bytes:
        """What comes back until the end of the connection."""
        with socket.create_connection(self.address, WAIT_S) as connection:
            try:
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # refused before all of it was sent
            got = bytearray()
            try:
                while part := connection.recv(65_536):
                    got += part
            except ConnectionResetError:
                pass  # the rest of what we sent was not read
            return bytes(got)


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    made = Served()
    yield made
    made.server.close()


@pytest.fixture
def served(running: Served) -> Served:
    running.seen.clear()
    return running


def status_of(answer: bytes) -> int:
    return int(answer.split()[1])


def test_a_plain_request_is_answered_with_all_headers_of_the_policy(served: Served) -> None:
    answer = served.send(b"GET /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: a=b\r\n\r\n")
    assert status_of(answer) == 200 and answer.endswith(b"fine\n")
    for name, value in web.SECURITY.items():
        assert f"\r\n{name}: {value}\r\n".encode() in answer
    assert b"Server:" not in answer and "'unsafe" not in web.SECURITY["Content-Security-Policy"]
    assert b"Connection: close" in answer
    (seen,) = served.seen
    assert (seen.path, seen.headers["cookie"], seen.address, seen.secure) == ("/x", "a=b", "127.0.0.1", False)


def test_head_has_no_body(served: Served) -> None:
    answer = served.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"Content-Length: 5" in answer and answer.endswith(b"\r\n\r\n")


def test_a_form_has_its_body(served: Served) -> None:
    assert status_of(served.send(b"POST /s HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\ncode=1more")) == 200
    assert served.seen[0].body == b"code=1", "and nothing of what follows"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET \xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/9\r\nHost: a\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nabcde", 411),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20000, 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", 417),
        (b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 10_000 + b"\r\n", 431),
    ],
)
def test_what_is_no_plain_request_is_refused_before_anybody_looks(served: Served, raw: bytes, status: int) -> None:
    answer = served.send(raw)
    assert status_of(answer) == status and not served.seen
    assert b"Content-Security-Policy" in answer and b"evil" not in answer and b"\xff" not in answer


@pytest.mark.parametrize("raw", [b"", b"\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"])
def test_who_goes_away_gets_nothing(served: Served, raw: bytes) -> None:
    served.send(raw)
    assert not served.seen


def test_a_bug_of_ours_shows_nothing_of_itself(served: Served) -> None:
    answer = served.send(b"GET /bug HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status_of(answer) == 500 and b"KeyError" not in answer and b"Traceback" not in answer


def test_random_bytes_never_end_the_server(served: Served, seed: int) -> None:
    dice = random.Random(seed)
    words = [
        b"GET ",
        b"POST ",
        b"/ ",
        b"HTTP/1.1",
        b"\r\n",
        b"Host: a",
        b"Content-Length: ",
        b"5",
        b":",
        b" ",
        b"\0",
        b"\xff",
        b"\n",
        b"\r",
    ]
    for _ in range(200):
        served.send(b"".join(dice.choice([*words, dice.randbytes(3)]) for _ in range(dice.randrange(20))))
    assert status_of(served.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")) == 200


def test_strangers_who_say_nothing_keep_nobody_out(served: Served) -> None:
    strangers = [socket.create_connection(served.address, WAIT_S) for _ in range(3 * module.CONNECTIONS_MAX)]
    try:
        await_true("an answer", lambda: served.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").startswith(b"HTTP/1.1 200"), WAIT_S)
        assert served.server.turned_away >= 2 * module.CONNECTIONS_MAX
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_slow_request_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTION_S", 0.2)
    served = Served()
    try:
        with socket.create_connection(served.address, WAIT_S) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\n")
            slow.settimeout(0.05)
            ended = False
            while not ended:  # a byte now and then, so that no single read is late
                try:
                    slow.sendall(b"X")
                    ended = not slow.recv(1)
                except TimeoutError:
                    continue
                except OSError:
                    ended = True
        assert not served.seen
    finally:
        served.server.close()


# --- TLS ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str, str]:
    """Authority, certificate and key of a node, as files."""
    authority, key = ca.make_authority("c1d1a3b0-0000-4000-8000-000000000001"), ca.make_key()
    node = "c1d1a3b0-0000-4000-8000-000000000002"
    files = {"ca.pem": authority.certificate, "node.pem": ca.sign(authority, ca.make_request(key, node), node, "node"), "node.key": key}
    for name, pem in files.items():
        (tmp_path / name).write_text(pem)
    return str(tmp_path / "ca.pem"), str(tmp_path / "node.pem"), str(tmp_path / "node.key")


def secure_status(served: Served, trust: ssl.SSLContext) -> int:
    """The status of an answer by TLS; 0 if the connection was given up."""
    connection = http.client.HTTPSConnection(*served.address, context=trust, timeout=WAIT_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def test_tls_has_the_certificate_of_the_node(certificate: tuple[str, str, str]) -> None:
    bundle, own, key = certificate
    served = Served(NodeCertificate(own, key))
    try:
        trust = ssl.create_default_context(cafile=bundle)
        trust.check_hostname = False
        connection = http.client.HTTPSConnection(*served.address, context=trust, timeout=WAIT_S)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read() == b"fine\n" and served.seen[0].secure
        assert not served.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").startswith(b"HTTP/1.1 200"), "plain HTTP is no way in"
        old = ssl.create_default_context(cafile=bundle)
        old.check_hostname, old.maximum_version = False, ssl.TLSVersion.TLSv1_2
        with socket.create_connection(served.address, WAIT_S) as plain, pytest.raises(OSError):
            old.wrap_socket(plain)
        assert len(served.seen) == 1
        silent = [socket.create_connection(served.address, WAIT_S) for _ in range(module.CONNECTIONS_MAX)]
        await_true("an answer beside handshakes that never come", lambda: secure_status(served, trust) == 200, WAIT_S)
        for one in silent:
            one.close()
    finally:
        served.server.close()


def test_a_renewed_certificate_is_shown_to_the_next_connection(certificate: tuple[str, str, str]) -> None:
    _bundle, own, key = certificate
    context = NodeCertificate(own, key)
    first = context()
    assert context() is first
    Path(own).write_text(Path(own).read_text() + "\n")
    assert context() is not first
    second = context()
    Path(key).write_text("rubbish")
    assert context() is second, "half a change is none"


def test_without_a_certificate_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot have TLS: .*node.pem: No such file.*127\.0\.0\.1"):
        NodeCertificate(str(tmp_path / "node.pem"), str(tmp_path / "node.key"))()


def test_an_address_that_is_taken_names_the_setting_and_who_has_it(served: Served) -> None:
    host, port = served.address
    with pytest.raises(
        ConfigError, match=rf"ui\.listen = '{host}:{port}': Address already in use; port {port} is used by .*choose another"
    ):
        listen("ui.listen", f"{host}:{port}")


def test_a_page_ends_with_all_its_threads() -> None:
    before = set(threading.enumerate())
    page = RunningUi("--listen", "127.0.0.1:0", UiDaemon().connect, ("", ""), (), SignIn())
    link = page.login(READER)
    assert link.startswith(f"{page.address}/sign-in#") and page.address.startswith("http://127.0.0.1:")
    host, _, port = page.address.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), WAIT_S) as connection:
        connection.sendall(b"GET /sign-in HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        while connection.recv(65_536):
            pass
    page.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT_S)
    assert not set(threading.enumerate()) - before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), WAIT_S)
