"""The metadata port: who gets in, who is given up and when, and that it never costs more than it may."""

from __future__ import annotations

import os
import random
import resource
import selectors
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from awsomefsd.base.limits import HANDSHAKE_MS_MAX, HANDSHAKES_MAX, NS_PER_MS, PORT_DEAF_MS
from awsomefsd.base.tls import CLIENT_PROTOCOL, PEER_PROTOCOL, PeerIdentity, TlsFiles
from awsomefsd.meta.net.connection import Wire
from awsomefsd.meta.net.listener import MetadataPort
from tests.rigs.voter_certificates import Authority

SERVER, CLIENT = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


class Rig:
    """A port, a clock that a test moves, and what came through."""

    def __init__(self, authority: Authority) -> None:
        self.now_ns = time.monotonic_ns()
        self.authority = authority
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = MetadataPort(listener, authority.tls(SERVER), lambda: self.now_ns)
        self.got: list[Wire] = []
        self.socks: list[socket.socket] = []

    def turn(self) -> None:
        self.port.tick()
        self.got += self.port.poll()

    def until(self, so: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        with selectors.DefaultSelector() as look:
            look.register(self.port.fd, selectors.EVENT_READ)
            while not so():
                assert time.monotonic() < end, "it never became so"
                look.select(0.01)
                self.turn()

    def knock(self, source: str = "127.0.0.1") -> socket.socket:
        sock = socket.create_connection(self.port.address, source_address=(source, 0))
        self.socks.append(sock)
        return sock

    def shake(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """A client's side of a handshake, as far as it goes."""
        sock = self.knock()
        sock.setblocking(False)
        wrapped = context.wrap_socket(sock, server_hostname=SERVER, do_handshake_on_connect=False)
        self.socks.append(wrapped)
        done: list[bool] = []

        def step() -> bool:
            try:
                wrapped.do_handshake()
                done.append(True)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            except OSError:
                done.append(False)
            return True

        self.until(step)
        return wrapped

    def close(self) -> None:
        for sock in self.socks:
            sock.close()
        for wire in self.got:
            wire.close()
        self.port.close()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def rig(authority: Authority) -> Iterator[Rig]:
    made = Rig(authority)
    yield made
    made.close()


def test_a_connection_is_for_what_its_protocol_says_and_of_whom_its_certificate_names(rig: Rig, authority: Authority) -> None:
    tls = authority.tls(CLIENT, "client")()
    rig.shake(tls.client)
    rig.shake(tls.peer)
    rig.until(lambda: len(rig.got) == 2)
    assert [wire.protocol for wire in rig.got] == [CLIENT_PROTOCOL, PEER_PROTOCOL]
    assert {wire.identity for wire in rig.got} == {PeerIdentity(CLIENT, "client")}
    assert rig.port.figures()["port_handshakes"] == 0 and rig.port.failed == 0


def test_who_cannot_prove_himself_does_not_get_in(rig: Rig, authority: Authority) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=1)
    strangers = [
        authority.bare(),
        Authority().tls(CLIENT)().client,
        authority.tls(CLIENT, not_after=long_ago)().client,
    ]
    no_protocol = authority.tls(CLIENT)().client
    no_protocol.set_alpn_protocols(["http/1.1"])
    for number, context in enumerate([*strangers, no_protocol], 1):
        rig.shake(context)
        rig.until(lambda number=number: rig.port.failed == number)
    old = authority.tls(CLIENT)().client
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    rig.shake(old)
    rig.until(lambda: rig.port.failed == 5)
    assert rig.got == []


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\r\n\r\n", bytes(4096), b"\x16\x03\x01\xff\xff", b"\xff" * 70_000])
def test_nonsense_is_dropped_and_counted(rig: Rig, raw: bytes, seed: int) -> None:
    """Random bytes come after what looks like something."""
    sock = rig.knock()
    sock.sendall(raw + random.Random(seed).randbytes(512))
    rig.until(lambda: rig.port.failed == 1)
    assert rig.got == [] and rig.port.figures()["port_handshakes"] == 0


def test_half_handshakes_end_and_crowd_nobody_out(rig: Rig, authority: Authority) -> None:
    for _ in range(HANDSHAKES_MAX + 40):
        rig.knock().send(b"\x16")  # the first byte of a handshake, and no more
    rig.until(lambda: rig.port.accepted == HANDSHAKES_MAX + 40)
    assert rig.port.figures()["port_handshakes"] == HANDSHAKES_MAX and rig.port.crowded_out == 40
    rig.shake(authority.tls(CLIENT)().client)
    rig.until(lambda: len(rig.got) == 1)
    rig.now_ns += HANDSHAKE_MS_MAX * NS_PER_MS
    due = rig.port.next_deadline_ns()
    assert due is not None and due <= rig.now_ns
    rig.turn()
    assert rig.port.figures()["port_handshakes"] == 0


def test_a_burst_of_strangers_leaves_room_in_the_kernels_queue(authority: Authority) -> None:
    """Before the thread comes to accept them: where the queue is full the kernel ignores a member, who tries again after 1, 3 and 7 s."""
    port = MetadataPort.listen(("127.0.0.1", 0), authority.tls(SERVER))
    strangers = []
    try:
        for _ in range(500):
            strangers.append(socket.socket())
            strangers[-1].setblocking(False)
            strangers[-1].connect_ex(port.address)
        with socket.create_connection(port.address, 20):
            assert port.accepted == 0
    finally:
        for sock in strangers:
            sock.close()
        port.close()


def test_one_address_crowds_out_itself(rig: Rig) -> None:
    honest = rig.knock("127.0.0.2")
    for number in range(HANDSHAKES_MAX + 8):
        rig.knock()
        rig.until(lambda count=number + 2: rig.port.accepted == count)
    honest.setblocking(False)
    with pytest.raises(BlockingIOError):  # it stands; whoever is dropped reads the end
        honest.recv(1)
    assert rig.port.figures()["port_crowded_out"] == 9 and rig.socks[1].recv(1) == b""


def test_without_descriptors_it_rests_and_comes_back(rig: Rig, authority: Authority) -> None:
    context = authority.tls(CLIENT)().client
    sock = rig.knock()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 1, hard))
    try:
        while True:  # the free ones below the bound
            try:
                held.append(os.dup(0))
            except OSError:
                break
        rig.port.poll()
        assert rig.port.deaf == 1
        for _ in range(100):
            rig.turn()
        assert rig.port.deaf == 1, "it does not try again in every turn"
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    sock.close()
    rig.now_ns += PORT_DEAF_MS * NS_PER_MS
    rig.shake(context)
    rig.until(lambda: len(rig.got) == 1)


def test_files_are_read_again_when_they_change_and_kept_while_they_do_not_fit(authority: Authority, tmp_path: Path) -> None:
    ca, certificate, key = authority.write(CLIENT, tmp_path)
    files = TlsFiles(ca, certificate, key)
    first = files()
    assert files() is first and files.loads == 1
    (tmp_path / "new").mkdir()
    new = authority.write(CLIENT, tmp_path / "new")
    os.replace(new[1], certificate)
    assert files() is first, "the key does not fit yet"
    os.replace(new[2], key)
    assert files() is not first and files.loads == 2
    key.unlink()
    second = files()
    assert files() is second
    with pytest.raises(OSError):
        TlsFiles(ca, certificate, key)()
