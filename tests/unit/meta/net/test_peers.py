"""Connections between voters: greeting, certificates, refusals, bounds, and coming back."""

from __future__ import annotations

import socket
import ssl
import time
import uuid

import pytest

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.frames import FrameReader, frame
from awsomefsd.base.limits import (
    GREETINGS_PER_NODE_MAX,
    NS_PER_MS,
    PEER_QUEUE_BYTES_MAX,
    PEER_STUCK_MS_MAX,
    PEERS_MAX,
    RPC_FRAME_BYTES_MAX,
    STANDING_MS,
)
from awsomefsd.meta.net.peers import address_text, parse_address
from awsomefsd.meta.raft.messages import Append, Heartbeat
from awsomefsd.meta.voter.peer_messages import Announce, Message, PeerHello, decode_message, peer_encode
from tests.rigs.free_ports import free_ports
from tests.rigs.peer_net import CLUSTER, A, B, Net
from tests.rigs.voter_certificates import Authority


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def beat(number: int) -> Heartbeat:
    return Heartbeat("a/i", "b/i", 3, number, 0)


@pytest.mark.parametrize("secure", [False, True])
def test_messages_arrive_in_order_with_their_sender(net: Net, authority: Authority, secure: bool) -> None:
    for node in (A, B):
        net.start(node, authority.tls(node) if secure else None)
    net.until(lambda: net.connected(A) and net.connected(B))
    big = Append("a/i", "b/i", 3, 1, 1, 0, [(2, 3, bytes(3 << 20))])
    sent: list[Message] = [beat(1), big, *(beat(number) for number in range(2, 200))]
    for message in sent:
        net.peers[A].send(B, message)
    net.peers[B].send(A, Announce(B, "i", "address", True))
    net.until(lambda: len(net.got[B]) == len(sent) and bool(net.got[A]))
    assert net.got[B] == [(A, message) for message in sent]
    assert net.got[A] == [(B, Announce(B, "i", "address", True))]


def test_it_comes_back_after_a_restart(net: Net) -> None:
    net.start(A)
    net.start(B)
    net.until(lambda: net.connected(A) and net.connected(B))
    net.stop(B)
    net.until(lambda: not net.connected(A))
    net.peers[A].send(B, beat(1))
    assert net.peers[A].dropped == 1, "nobody is there to take it"
    net.listen(B)
    net.start(B)
    net.until(lambda: net.connected(A) and net.connected(B))
    net.peers[A].send(B, beat(2))
    net.until(lambda: bool(net.got[B]))
    assert net.got[B] == [(A, beat(2))]


def test_who_takes_nothing_is_not_waited_for(net: Net) -> None:
    a = net.start(A)
    net.start(B)
    net.until(lambda: net.connected(A))
    stopped = net.peers.pop(B)  # it reads no more
    message = Append("a/i", "b/i", 3, 1, 1, 0, [(2, 3, bytes(1 << 20))])
    for _ in range(60):
        a.send(B, message)
    assert a.dropped > 0
    wire = a._outgoing[B].wire
    assert wire is not None and wire.queued_bytes <= PEER_QUEUE_BYTES_MAX
    net.peers[B] = stopped
    net.until(lambda: len(net.got[B]) == 60 - a.dropped)
    assert all(got == (A, message) for got in net.got[B])


def test_a_connection_with_nothing_to_say_wakes_nobody(net: Net) -> None:
    """Two voters that follow have no word for each other.  Their deadline was that of a connection that is stuck: a wake-up each ms."""
    a = net.start(A)
    net.start(B)
    net.until(lambda: net.connected(A) and net.connected(B))
    later = time.monotonic_ns() + 10 * PEER_STUCK_MS_MAX * NS_PER_MS
    a._monotonic_ns = lambda: later  # type: ignore[method-assign]
    a.tick()
    assert net.connected(A) and a.next_deadline_ns() - later == STANDING_MS * NS_PER_MS
    a.send(B, beat(1))
    net.until(lambda: bool(net.got[B]))
    assert net.connected(A), "the time of silence does not count"


def test_a_voter_that_moved_is_dialled_where_it_says(net: Net) -> None:
    """B moved while everybody was down: A still believes the old place.  Only B reaches A, and tells."""
    authority = Authority()
    nowhere = ("127.0.0.1", free_ports(1)[0])
    a = net.start(A, authority.tls(A), addresses={A: net.addresses[A], B: nowhere})
    net.start(B, authority.tls(B), address=address_text(net.addresses[B]))
    net.until(lambda: net.connected(B))
    net.until(lambda: net.connected(A))
    a.send(B, beat(1))
    net.until(lambda: net.got[B] == [(A, beat(1))])
    assert a.address_of(B) == address_text(net.addresses[B]) and a.address_of("stranger") == ""


def test_without_a_certificate_nobody_is_believed_to_have_moved(net: Net) -> None:
    net.start(A)
    net.start(B, address="127.0.0.1:9")
    net.until(lambda: net.connected(A) and net.connected(B))
    assert net.peers[A].figures()["peers_dials"] == 1
    for text in ("", "host:1", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:²", "[::1]:x", ":7"):
        assert parse_address(text) is None
    assert parse_address("[::1]:7441") == ("::1", 7441) and parse_address("10.0.0.1:1") == ("10.0.0.1", 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 0}, "protocol 0"),
        ({"cluster": "other"}, "cluster other"),
        ({"to": "other"}, "for node other"),
        ({"node": "stranger"}, "not among the voters"),
    ],
)
def test_a_greeting_that_does_not_fit_is_refused_with_a_reason(net: Net, change: dict, reason: str) -> None:
    b = net.start(B)
    hello = PeerHello(**{"version": 1, "cluster": CLUSTER, "node": A, "to": B, "incarnation": "i", **change})
    with socket.create_connection(net.addresses[B]) as sock:
        sock.sendall(frame(peer_encode(hello)))
        sock.settimeout(60)
        net.until(lambda: b.refused == 1)
        (answer,) = FrameReader().feed(sock.recv(65_536))
        assert reason in answer.decode(errors="replace")
        assert sock.recv(1) == b""


@pytest.mark.parametrize(
    "raw",
    [b"\xff\xff\xff\xff", frame(b"nonsense"), frame(peer_encode(beat(1))), frame(b""), (RPC_FRAME_BYTES_MAX + 1).to_bytes(4, "little")],
)
def test_nonsense_ends_the_connection_only(net: Net, raw: bytes) -> None:
    net.start(B)
    with socket.create_connection(net.addresses[B]) as sock:
        sock.sendall(raw)
        sock.setblocking(False)
        ended = []

        def closed() -> bool:
            try:
                ended.append(sock.recv(1))
            except BlockingIOError:
                return False
            except ConnectionResetError:
                ended.append(b"")
            return ended[-1] == b""

        net.until(closed)
    net.start(A)
    net.until(lambda: net.connected(A))


def test_certificates_prove_the_node(net: Net, authority: Authority) -> None:
    """One with another node's certificate, one of another authority, one without TLS: none is heard, and none is spoken to."""
    b = net.start(B, authority.tls(B))
    a = net.start(A, authority.tls(str(uuid.UUID(int=9))))
    net.until(lambda: b.refused == 1)
    assert not net.connected(A) and not net.connected(B)
    net.stop(A)
    for tls in (Authority().tls(A), None):
        net.listen(A)
        a = net.start(A, tls)
        net.until(lambda peers=a: bool(peers._outgoing[B].reason))
        assert not net.connected(A) and not net.connected(B)
        net.stop(A)
    assert net.got[B] == []


def test_who_may_be_no_voter_takes_no_place(net: Net, authority: Authority) -> None:
    """A client's certificate, and a voter's that greets never, open more connections than there are places."""
    client, holder = (str(uuid.UUID(int=number)) for number in (8, 9))
    b = net.start(B, authority.tls(B), refusal=lambda who: "a client" if who is not None and who.role == "client" else "")
    socks = []
    try:
        for number in range(2 * PEERS_MAX):
            tls = authority.tls(client, "client") if number % 2 else authority.tls(holder)
            raw = socket.create_connection(net.addresses[B])
            raw.setblocking(False)
            socks.append(tls().peer.wrap_socket(raw, server_hostname=B, do_handshake_on_connect=False))

            def shaken(sock: ssl.SSLSocket = socks[-1]) -> bool:
                try:
                    sock.do_handshake()
                except ssl.SSLWantReadError:
                    return False
                return True

            net.until(shaken)
        net.until(lambda: b.refused == PEERS_MAX)
        assert len(b._by_fd) <= GREETINGS_PER_NODE_MAX + 1, "and one that this node dials itself"
        net.start(A, authority.tls(A))
        net.until(lambda: net.connected(A))
    finally:
        for sock in socks:
            sock.close()


def test_decoding_is_strict(seed: int) -> None:
    import random

    rng = random.Random(seed)
    good = peer_encode(Append("a/i", "b/i", 3, 1, 1, 0, [(2, 3, b"entry")]))
    for _ in range(2_000):
        raw = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        try:
            decode_message(bytes(raw[: rng.randrange(len(raw) + 1)]))
        except ProtocolError:
            pass
