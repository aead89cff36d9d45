"""The metadata port under a thousand strangers that hold on: members come, ask and renew, and what the strangers hold is bounded."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from awsomefsd.base.limits import HANDSHAKES_MAX, PEERS_MAX
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages import devices, nodes
from awsomefsd.meta.client.client import MetaClient
from tests.rigs.descriptors import many_descriptors
from tests.rigs.metadata_port import MEMBER, READER, STRANGER, WAIT_S, TlsHost, tls_host
from tests.rigs.voter_certificates import Authority

STRANGERS, WAVES = 1_000, 4


@pytest.fixture
def descriptors() -> Iterator[None]:
    with many_descriptors():
        yield


@pytest.fixture
def node(tmp_path: Path, descriptors: None) -> Iterator[TlsHost]:
    with tls_host(tmp_path, Authority()) as made:
        yield made


def half_open(node: TlsHost, number: int) -> socket.socket:
    """Silent, half of a handshake; and, with a certificate of the cluster's authority for nobody it knows, as client or voter: no greeting,
    half of one."""
    plain = socket.create_connection(node.address, WAIT_S)
    kind = number % 50
    if kind not in (1, 2, 3):
        with suppress(OSError):
            plain.sendall(b"\x16\x03\x01\x02\x00\x01"[: 6 * (kind % 2)])
        return plain
    tls = node.authority.tls(STRANGER)()
    context: ssl.SSLContext = tls.peer if kind == 3 else tls.client
    try:
        wrapped = context.wrap_socket(plain, server_hostname=node.service._node.node if node.service else None)
        wrapped.sendall(b"\x00\x01\x00\x00ab"[: 6 * (kind == 2)])
        return wrapped
    except OSError:
        return plain  # it was crowded out on the way


def test_members_come_ask_and_renew_under_a_thousand_half_open_strangers(node: TlsHost) -> None:
    assert node.service is not None
    staying = MetaClient(node.places(READER, "client"), 40)
    strangers: list[socket.socket] = []
    try:
        staying.start()
        opened = staying.call(m.Propose(1, 0, 0, [], c.OpenSession(40, 1, READER, "boot", 1)), WAIT_S)
        assert isinstance(opened, m.SessionOpened)
        greetings = staying._core.connections
        for wave in range(WAVES):
            strangers += [half_open(node, number) for number in range(STRANGERS // WAVES)]
            status = node.service.query(m.GetStatus())
            assert isinstance(status, m.Status)
            assert int(status.figures["port_handshakes"]) <= HANDSHAKES_MAX and int(status.figures["peers_incoming"]) <= PEERS_MAX
            assert isinstance(staying.call(m.Renew(opened.session, opened.epoch, 0), WAIT_S), m.Done)
            made = staying.call(
                m.Propose(10 + wave, opened.session, opened.epoch, [], c.Create(1, 1, b"%d" % wave, 0o100644, 0, 0)), WAIT_S
            )
            assert isinstance(made, m.Found)
            coming = MetaClient(node.places(MEMBER), 0)
            coming.start()
            assert isinstance(coming.call(m.GetVolumes(), WAIT_S), m.Volumes)
            coming.close()
        assert staying._core.connections == greetings, "a connection that stands is not concerned"
    finally:
        staying.close()
        for stranger in strangers:
            stranger.close()


def report(**said: object) -> nodes.NodeReport:
    plain = {"node": READER, "boot_id": "boot", "version": "1", "level": 1, "name": "n", "control": "", "metadata": "", "labels": {}}
    return nodes.NodeReport(**{**plain, "carries": False, **said})  # type: ignore[arg-type]


HUGE = "x" * (3 << 20)


@pytest.mark.parametrize(
    "said", [{"name": HUGE}, {"control": HUGE}, {"version": HUGE}, {"labels": {HUGE: ""}}, {"bundle": HUGE}, {"issuer": HUGE}]
)
def test_a_report_of_a_node_has_bounds(node: TlsHost, said: dict[str, object]) -> None:
    """The row that it changes is an entry, and all nodes are listed in one answer: it ended the leader's service, or all administration."""
    assert node.service is not None
    wire = node.wire(node.authority.tls(READER, "client"))
    wire.greet()
    assert isinstance(wire.ask(report()), nodes.NodeOrders)
    reply = wire.ask(report(**said))
    assert isinstance(reply, m.Failed) and reply.errno == errno.EINVAL
    other = node.wire(node.authority.tls(MEMBER))
    other.greet()
    assert isinstance(other.ask(nodes.ListNodes()), nodes.Nodes) and not node.service.failed.done
    wire.close()
    other.close()


def test_reports_of_devices_and_workers_have_bounds(node: TlsHost) -> None:
    wire = node.wire(node.authority.tls(READER, "client"))
    wire.greet(40)
    assert isinstance(wire.ask(devices.ReportDevices(READER, [devices.Sighting("uuid", HUGE, 1, "ok")])), m.Failed)
    assert isinstance(wire.ask(m.Report({HUGE: 1})), m.Failed)
    other = node.wire(node.authority.tls(MEMBER))
    other.greet()
    assert isinstance(other.ask(devices.GetSightings()), devices.Sightings) and isinstance(other.ask(m.GetReports()), m.Reports)
    wire.close()
    other.close()


def test_what_workers_of_another_node_report_does_not_fill_the_answer(node: TlsHost) -> None:
    """Reports of 64 mounts of a client made it larger than a frame: the status and the metrics of every node failed."""
    theirs, ours = node.wire(node.authority.tls(READER, "client")), node.wire(node.authority.tls(MEMBER))
    theirs.greet(41)
    ours.greet(42)
    assert isinstance(theirs.ask(m.Report({"of": 1})), m.Done) and isinstance(ours.ask(m.Report({"of": 2})), m.Done)
    assert ours.ask(m.GetReports()) == m.Reports({42: {"of": 2}})
    assert theirs.ask(m.GetReports()) == m.Reports({41: {"of": 1}})
    theirs.close()
    ours.close()


def test_nobody_acts_in_a_session_that_another_node_is_about_to_open(node: TlsHost) -> None:
    """Numbers of sessions are counted, so the next one is known: a request that names it was judged before it was another node's, and
    executed after, in the middle of a volume that the other node holds alone."""
    theirs, ours = node.wire(node.authority.tls(READER, "client")), node.wire(node.authority.tls(MEMBER))
    theirs.greet(50)
    ours.greet(60)
    assert node.service is not None
    made = node.service.propose(c.CreateVolume("next", "b" * 8 + "-aaaa-aaaa-aaaa-aaaaaaaaaaab"), WAIT_S)
    assert isinstance(made, m.Made)
    opened = ours.ask(m.Propose(1, 0, 0, [], c.OpenSession(60, made.number, MEMBER, "boot", 1)))
    assert isinstance(opened, m.SessionOpened)
    create = c.Create(made.number, 1, b"x", 0o100644, 0, 0)
    for session in (opened.session, opened.session + 1):
        reply = theirs.ask(m.Propose(1, session, opened.epoch + 1, [], create))
        assert isinstance(reply, m.Failed) and reply.errno == errno.EACCES, session
    lock = c.SetLock(made.number, 1, 0, 1, 1, 1, 0, 9)
    reply = theirs.ask(m.WaitLock(2, opened.session + 1, opened.epoch + 1, [], lock))
    assert isinstance(reply, m.Failed) and reply.errno == errno.EACCES, "it would wait until the session is there"
    theirs.close()
    ours.close()
