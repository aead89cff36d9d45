"""Every request of the metadata port, by everybody who may not: refused, at the server, request by request."""

from __future__ import annotations

import errno
import random
import select
import ssl
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from awsomefsd.base.codec import encode
from awsomefsd.base.frames import frame
from awsomefsd.base.levels import LEVEL
from awsomefsd.base.limits import GREETING_BYTES_MAX, HANDSHAKES_MAX, RPC_FRAME_BYTES_MAX
from awsomefsd.base.types import node_mount
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.server.permissions import COMMANDS, REQUESTS, May
from awsomefsd.meta.voter.peer_messages import PeerHello, peer_encode
from buildtools.nodes import await_true
from tests.rigs.metadata_port import MEMBER, READER, REMOVED, STRANGER, TlsHost, Wire, tls_host
from tests.rigs.metadata_service import CLUSTER, NODE
from tests.rigs.voter_certificates import Authority
from tests.unit.meta.server.test_service import every_body

THEIRS = 9  # a mount of MEMBER


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[TlsHost]:
    with tls_host(tmp_path_factory.mktemp("host"), authority) as made:
        yield made


@pytest.fixture
def wires(host: TlsHost) -> Iterator[Callable[..., Wire]]:
    made: list[Wire] = []

    def connect(who: str, role: str = "node") -> Wire:
        made.append(host.wire(host.authority.tls(who, role)))
        return made[-1]

    yield connect
    for wire in made:
        wire.close()


def everything() -> list[m.Body]:
    bodies = [m.Hello(m.PROTOCOL_VERSION, 0), *every_body()]
    assert {type(body) for body in bodies} == set(REQUESTS)
    assert {type(body.command) for body in bodies if isinstance(body, m.Propose)} == set(COMMANDS)
    return bodies


def one_of_each() -> list[m.Body]:
    """Where all commands fare alike, one stands for them."""
    return list({type(body): body for body in everything()}.values())


def applied(host: TlsHost) -> list[c.Entry]:
    """The log without what leaders write."""
    return [entry for entry in host.log() if not isinstance(entry.command, (c.NoOp, c.ChangeMembership, c.Reap))]


def strangers(authority: Authority) -> dict[str, ssl.SSLContext]:
    long_ago = datetime.now(UTC) - timedelta(days=1)
    bare = authority.bare()
    bare.set_alpn_protocols(["awsomefs-client/1"])
    foreign = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    foreign.set_alpn_protocols(["awsomefs-client/1"])
    other = Authority()
    other._ca.issue_cert(MEMBER, organization_unit_name="node").configure_cert(foreign)
    authority._ca.configure_trust(foreign)  # it believes us, so that it is we who refuse
    return {
        "no certificate": bare,
        "a foreign authority's": foreign,
        "an expired one": authority.tls(MEMBER, not_after=long_ago)().client,
    }


@pytest.mark.parametrize("whose", ["no certificate", "a foreign authority's", "an expired one"])
def test_no_request_is_answered_without_a_certificate_of_the_cluster(host: TlsHost, authority: Authority, whose: str) -> None:
    context = strangers(authority)[whose]
    before = applied(host)
    for body in one_of_each():
        try:
            wire = host.wire(context)
        except OSError:
            continue
        assert wire.ask(body) is None
        wire.close()
    assert applied(host) == before
    assert host.figures()["port_handshakes_failed"] >= len(one_of_each())


@pytest.mark.parametrize(
    ("who", "role", "reason"), [(REMOVED, "node", "removed"), (STRANGER, "node", "not a member"), (MEMBER, "client", "role")]
)
def test_no_request_of_a_node_that_is_no_member_is_answered(host: TlsHost, wires, who: str, role: str, reason: str) -> None:
    before = applied(host)
    greeting = wires(who, role).greet()
    assert isinstance(greeting, m.Failed) and greeting.errno == errno.EACCES and who in greeting.detail and reason in greeting.detail
    for body in one_of_each():
        wire = wires(who, role)
        reply = wire.ask(body)
        assert reply is None or (isinstance(reply, m.Failed) and reply.errno == errno.EACCES), body
        wire.close()
    assert applied(host) == before


def test_a_node_that_is_removed_while_it_is_connected_is_refused_and_cut_off(host: TlsHost, wires) -> None:
    leaver = "00000000-0000-0000-0000-000000000075"
    host.service.propose(c.AddNode(leaver, "l", "node", bytes(31) + b"l", level=LEVEL), 60)
    wire = wires(leaver)
    assert isinstance(wire.greet(), m.Welcome)
    host.service.propose(c.SetNodeState(leaver, "removed"), 60)
    assert wire.ended()
    again = wires(leaver)
    reply = again.greet()
    assert isinstance(reply, m.Failed) and "removed" in reply.detail


def test_a_client_may_do_what_the_table_says_and_nothing_else(host: TlsHost, wires) -> None:
    """Session 1 is another node's here, so everything that names it is refused as well."""
    theirs = wires(MEMBER)
    assert isinstance(theirs.greet(THEIRS), m.Welcome)
    opened = theirs.ask(m.Propose(1, 0, 0, [], c.OpenSession(THEIRS, 1, MEMBER, "boot", 1)))
    assert isinstance(opened, m.SessionOpened) and opened.session == 1, "the number that every_body fills in"
    before = applied(host)
    mine = wires(READER, "client")
    assert isinstance(mine.greet(), m.Welcome)
    open_to_all = {kind for kind, may in REQUESTS.items() if may is May.MEMBER} - {m.Propose, m.Hello}
    for body in everything():
        if isinstance(body, (m.Hello, m.Cancel)) or type(body) in open_to_all:
            continue
        assert not isinstance(theirs.ask(m.Renew(opened.session, opened.epoch, 0)), m.Failed), "it lives, however slow the machine is"
        reply = mine.ask(body)
        assert isinstance(reply, m.Failed) and reply.errno == errno.EACCES, (body, reply)
    for body in everything():
        if type(body) in open_to_all and not isinstance(body, m.Cancel):
            reply = mine.ask(body)
            assert not (isinstance(reply, m.Failed) and reply.errno == errno.EACCES), (body, reply)
    assert applied(host) == before


def test_nobody_takes_the_mount_of_another_node(host: TlsHost, wires) -> None:
    wire = wires(MEMBER)
    assert isinstance(wire.greet(77), m.Welcome)
    volume = host.service.propose(c.CreateVolume("of-mount-77", "0" * 31 + "7"), 60)
    assert isinstance(volume, m.Made), "a volume that no other test has mounted"
    assert isinstance(wire.ask(m.Propose(1, 0, 0, [], c.OpenSession(77, volume.number, MEMBER, "boot", 1))), m.SessionOpened)
    assert isinstance(wires(READER, "client").greet(77), m.Failed)


@pytest.mark.parametrize("mount", [node_mount(MEMBER), THEIRS])
def test_numbers_of_others_are_refused_at_the_greeting(host: TlsHost, wires, mount: int) -> None:
    turn = 2 + (mount == THEIRS)
    theirs = wires(MEMBER)  # its session may have expired since another test opened it
    assert isinstance(theirs.greet(THEIRS), m.Welcome)
    assert isinstance(theirs.ask(m.Propose(turn, 0, 0, [], c.OpenSession(THEIRS, 1, MEMBER, "boot", turn))), m.SessionOpened)
    greeting = wires(READER, "client").greet(mount)
    assert isinstance(greeting, m.Failed) and greeting.errno == errno.EACCES


def test_a_client_is_no_voter(host: TlsHost, authority: Authority) -> None:
    for who, role in ((READER, "client"), (REMOVED, "node"), (STRANGER, "node")):
        wire = Wire(host.address, authority.tls(who, role)().peer)
        wire.sock.sendall(frame(peer_encode(PeerHello(1, CLUSTER, who, NODE, "i"))))
        wire.sock.settimeout(60)
        told = b""
        while data := _read(wire):
            told += data
        assert who.encode() in told
        wire.close()


def _read(wire: Wire) -> bytes:
    try:
        return wire.sock.recv(1 << 16)
    except OSError:
        return b""


# --- nonsense of those who have a certificate ---------------------------------------------------------------------------------------
def test_nonsense_ends_the_connection_and_is_counted(host: TlsHost, wires, seed: int) -> None:
    dice = random.Random(seed)
    hello = frame(encode(m.RequestEnvelope(1, m.Hello(m.PROTOCOL_VERSION, 0))))
    before = host.figures()["protocol_errors"]
    pieces = [
        b"\xff" * 64,
        struct.pack("<I", GREETING_BYTES_MAX + 1) + bytes(64),
        frame(bytes(GREETING_BYTES_MAX)),
        hello + struct.pack("<I", RPC_FRAME_BYTES_MAX + 1),
        hello + frame(b"nonsense"),
        hello + hello,
        frame(encode(m.RequestEnvelope(1, m.GetStatus()))),
        hello + frame(dice.randbytes(200)),
    ]
    for raw in pieces:
        wire = wires(MEMBER)
        wire.sock.sendall(raw)
        while _read(wire):
            pass
    assert host.figures()["protocol_errors"] == before + len(pieces)
    assert isinstance(wires(MEMBER).greet(), m.Welcome)


def test_a_large_greeting_is_refused_before_it_is_read(host: TlsHost, wires) -> None:
    wire = wires(MEMBER)
    wire.sock.sendall(struct.pack("<I", RPC_FRAME_BYTES_MAX))
    assert not _read(wire)


def test_slow_strangers_do_not_hold_members_up(host: TlsHost, authority: Authority, wires) -> None:
    """More half handshakes than there is room for, each fed a byte now and then; members come and work in between."""
    import socket

    raw = [socket.create_connection(host.address, 60) for _ in range(HANDSHAKES_MAX + 16)]
    try:
        for turn in range(3):
            poll = select.poll()
            for sock in raw:
                poll.register(sock, select.POLLHUP | select.POLLRDHUP)
            ended = {fd for fd, _ in poll.poll(0)}
            for sock in raw:
                if sock.fileno() not in ended:
                    try:
                        sock.send(b"\x16\x03\x01\x02\x00"[turn : turn + 1])
                    except OSError:
                        pass
            wire = wires(MEMBER)
            assert isinstance(wire.greet(), m.Welcome)
            assert isinstance(wire.ask(m.GetAttr(1, 1)), m.Found)
        assert host.figures()["port_handshakes"] <= HANDSHAKES_MAX
    finally:
        for sock in raw:
            sock.close()


def test_many_connections_of_one_member_are_bounded(host: TlsHost, wires, monkeypatch) -> None:
    from awsomefsd.meta.server import connections

    await_true("the connections of other tests are gone", lambda: host.figures()["connections"] == 0, 60)
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 4)
    refused = host.figures()["peers_refused"]
    greetings = [wires(MEMBER).greet() for _ in range(8)]
    assert sum(isinstance(reply, m.Welcome) for reply in greetings) == 4
    assert host.figures()["peers_refused"] == refused + 4
