"""The control port over real TLS on loopback: joins, good and bad; renewals; who may call what; nonsense; a man in the middle."""

from __future__ import annotations

import datetime
import logging
import queue
import resource
import socket
import ssl
import struct
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from awsomefsd.base import identity
from awsomefsd.base.errors import AlreadyExists, FsError, NotLeading, Refused, Unavailable
from awsomefsd.base.levels import LEVEL
from awsomefsd.base.limits import CONTROL_CONNECTIONS_MAX
from awsomefsd.base.types import node_mount
from awsomefsd.cluster import endpoints
from awsomefsd.cluster import messages as m
from awsomefsd.cluster.control.client import ControlConnection, WrongAuthority, of_member, trusting_nobody
from awsomefsd.cluster.control.join import join
from awsomefsd.cluster.control.server import ControlMethod, ControlServer, Needs, ServerTls, methods
from awsomefsd.cluster.founding.founder import enter_founder
from awsomefsd.cluster.pki import ca, token
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.cluster.pki.renewal import Renewal
from awsomefsd.cluster.pki.signing import Signing
from awsomefsd.config.settings import Settings, load
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Failed, Propose
from awsomefsd.meta.api.messages.nodes import GetSigner, ListNodes, ListTokens
from awsomefsd.meta.machine.queries import answer
from tests.rigs.machine_driver import Drive

WAIT_S = 60


class Cluster:
    """A founder's files, a state machine instead of the metadata service, and its control port on a thread."""

    server: ControlServer

    def __init__(self, directory: Path) -> None:
        self.settings = settings_of(directory)
        self.files = PkiFiles(directory)
        self.node = identity.init(directory, prepare=lambda made: self.files.found(made.cluster, made.node))
        self.drive = Drive()
        self.drive.now = int(ca.now().timestamp() * 1e9)
        self.lock = threading.Lock()
        self.elsewhere: str | None = None  # the control port of who leads, if not this node
        enter_founder(self.settings, self.node, self.propose)
        self.pin = ca.id_of(ca.load(self.files.read_bundle()))
        self.left: list[tuple[str, bool]] = []
        self.signing = Signing(self.node.cluster, 7, self.ask)
        self.port = 0
        self.calls: list[str] = []

    def ask(self, body: Any) -> Any:
        with self.lock:
            if self.elsewhere is not None:
                raise NotLeading("other")
            if isinstance(body, Propose):
                reply = self.drive.apply(body.command)
                if isinstance(reply, Failed):
                    raise FsError(reply.errno, reply.detail)
                return reply
            self.drive.machine.flush()
            reply = answer(self.drive.machine, body)
            if isinstance(reply, Failed):
                raise FsError(reply.errno, reply.detail)
            return reply

    def propose(self, command: Any) -> Any:
        return self.ask(Propose(0, 0, 0, [], command))

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def token(self, uses: int = 1, role: str = "node", ttl_s: float = 3_600, endpoint: str = "") -> token.JoinToken:
        made = token.make(self.node.cluster, self.pin, (endpoint or self.endpoint,), role, int((ca.now().timestamp() + ttl_s) * 1_000))
        self.propose(c.PutToken(made.id, "join", role, made.verifier, made.expires_ms, uses))
        return made

    def states(self) -> dict[str, str]:
        return {row.node: row.state for row in self.ask(ListNodes(True)).nodes}

    @contextmanager
    def serving(self, tls: Any = None, table: dict[type, ControlMethod] | None = None) -> Iterator[ControlServer]:
        own = table or methods(self.signing, self.files.read_bundle, lambda who, force: self.left.append((who, force)))
        server = ControlServer(
            tls or ServerTls(self.files.bundle, self.files.certificate, self.files.key), own, self.signing.member,
            lambda _node: self.elsewhere or "",
        )  # fmt: skip
        started: queue.Queue[Any] = queue.Queue()

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                self.port = await nursery.start(server.serve, "127.0.0.1", 0)
                scope = nursery.cancel_scope
                started.put((trio.lowlevel.current_trio_token(), scope))

        thread = threading.Thread(target=trio.run, args=(main,))
        thread.start()
        token_, scope = started.get(timeout=WAIT_S)
        try:
            yield server
        finally:
            token_.run_sync_soon(scope.cancel)
            thread.join(WAIT_S)


def settings_of(directory: Path) -> Settings:
    environ = {"AWSOMEFSD_STATE_DIR": str(directory), "AWSOMEFSD_CLUSTER_ADVERTISE": "127.0.0.1", "AWSOMEFSD_CLUSTER_NAME": directory.name}
    return load(environ=environ)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "founder")
    with made.serving() as made.server:
        yield made


def text(made: token.JoinToken) -> str:
    return token.print_token(made)


def test_a_join(cluster: Cluster, tmp_path: Path) -> None:
    made = join(settings_of(tmp_path / "n2"), text(cluster.token()))
    assert made == identity.load(tmp_path / "n2") and (made.cluster, made.site, made.role, made.founder) == (
        cluster.node.cluster,
        7,
        "node",
        False,
    )
    files = PkiFiles(tmp_path / "n2")
    assert ca.identity(files.read_certificate()).node == made.node and files.read_bundle() == cluster.files.read_bundle()
    assert cluster.states() == {cluster.node.node: "active", made.node: "active"}
    assert set(endpoints.read(tmp_path / "n2")) == {cluster.node.node, made.node}
    assert cluster.ask(ListTokens()).tokens[0].uses_left == 0
    with pytest.raises(AlreadyExists, match="already"):
        join(settings_of(tmp_path / "n2"), text(cluster.token()))
    client = join(settings_of(tmp_path / "n3"), text(cluster.token(role="client")))
    assert client.role == identity.load(tmp_path / "n3").role == "client" == ca.identity(PkiFiles(tmp_path / "n3").read_certificate()).role


def test_every_bad_token_says_what_is_wrong(cluster: Cluster, tmp_path: Path) -> None:
    fresh = settings_of(tmp_path / "n2")
    used, expired, revoked, unknown = cluster.token(), cluster.token(ttl_s=-1), cluster.token(), cluster.token()
    join(settings_of(tmp_path / "n1"), text(used))
    cluster.propose(c.RevokeToken(revoked.id))
    wrong_secret = token.JoinToken(unknown.cluster, unknown.id, unknown.pin, unknown.endpoints, "node", unknown.expires_ms, b"x" * 32)
    elsewhere = token.make(cluster.node.cluster, cluster.pin, (cluster.endpoint,), "node", unknown.expires_ms)
    foreign = token.make("0" * 32, "ab" * 32, (cluster.endpoint,), "node", unknown.expires_ms)
    pinned = token.make(cluster.node.cluster, "ab" * 32, (cluster.endpoint,), "node", unknown.expires_ms)
    for bad, why in (
        (text(used), "used up"), (text(expired), "expired"), (text(revoked), "revoked"), (text(wrong_secret), "secret is wrong"),
        (text(elsewhere), "does not know the token"), (text(foreign), "check the token and the endpoint"),
        (text(pinned), "another machine answers in its place"),
        (text(used)[:-9], "truncated"), (text(used)[:60] + "zz" + text(used)[62:], "altered"), ("hello", "not a token"),
        ("afs7-abc", "version 7"),
    ):  # fmt: skip
        with pytest.raises(Refused, match=why):
            join(fresh, bad)
        assert not (tmp_path / "n2" / "node.json").exists()
    assert join(fresh, text(cluster.token())).cluster == cluster.node.cluster, "and a good one still works there"


def test_nobody_joins_under_the_number_of_another_nodes_daemon(cluster: Cluster) -> None:
    """The joiner chooses its UUID: a client with the last 63 bits of a node's was taken for that node's daemon."""
    evil = str(uuid.UUID(int=uuid.UUID(cluster.node.node).int ^ (1 << 127)))
    assert node_mount(evil) == node_mount(cluster.node.node)
    held = cluster.token(role="client")
    asked = m.Join(held.id, held.secret, evil, "evil", ca.make_request(ca.make_key(), evil), "", "", {}, "1", LEVEL)
    with pytest.raises(Refused, match="UUID"):
        cluster.signing.join(asked)
    assert evil not in cluster.states()


def test_a_join_that_lost_its_answer_is_the_same_node(cluster: Cluster, tmp_path: Path) -> None:
    one = cluster.token()
    fresh = settings_of(tmp_path / "n2")
    first = join(fresh, text(one))
    (tmp_path / "n2" / "node.json").unlink()  # as after a crash just before the end
    (tmp_path / "n2" / "pki" / "pending.json").write_text('{"node": "' + first.node + '"}')
    assert join(fresh, text(one)) == first and len(cluster.states()) == 2


def test_a_replayed_join_is_worth_nothing_without_the_key(cluster: Cluster, tmp_path: Path) -> None:
    """Somebody who recorded the whole call (which TLS does not let him) gets a certificate whose key he lacks, or is refused."""
    one = cluster.token()
    made = join(settings_of(tmp_path / "n2"), text(one))
    request = ca.make_request(PkiFiles(tmp_path / "n2").own_key(), made.node)
    recorded = m.Join(one.id, one.secret, made.node, "x", request, "", "", {}, "", LEVEL)
    with ControlConnection(cluster.endpoint, trusting_nobody()) as thief:
        answer = thief.call(recorded)
        assert ca.fits(PkiFiles(tmp_path / "n2").own_key(), answer.certificate)
        with pytest.raises(Refused, match="another key"):
            thief.call(m.Join(one.id, one.secret, made.node, "x", ca.make_request(ca.make_key(), made.node), "", "", {}, "", LEVEL))
        other = "00000000-0000-4000-8000-000000000000"
        with pytest.raises(Refused, match="used up"):
            thief.call(m.Join(one.id, one.secret, other, "x", ca.make_request(ca.make_key(), other), "", "", {}, "", LEVEL))
    assert len(cluster.states()) == 2


def test_a_man_in_the_middle_with_another_authority_learns_no_secret(cluster: Cluster, tmp_path: Path) -> None:
    """He greets with the true bundle or with his own; what reaches him is recorded."""
    his = PkiFiles(tmp_path / "his")
    his.found(cluster.node.cluster, "00000000-0000-4000-8000-000000000000")
    heard: list[Any] = []
    bundles = [his.read_bundle(), cluster.files.read_bundle(), his.read_bundle() + cluster.files.read_bundle(), "", "nonsense"]

    def greet(body: Any, caller: Any) -> m.ControlMessage:
        heard.append(body)
        return m.Greeting(m.VERSION, cluster.node.cluster, bundles[0])

    def record(body: Any, caller: Any) -> m.ControlMessage:
        heard.append(body)
        return m.CallDone()

    middle = Cluster(tmp_path / "middle")
    table = {kind: ControlMethod(Needs.NOTHING, greet if kind is m.Greet else record) for kind in (m.Greet, m.Join, m.RenewCertificate)}
    with middle.serving(ServerTls(his.bundle, his.certificate, his.key), table):
        one = cluster.token(endpoint=middle.endpoint)
        while bundles:
            with pytest.raises(WrongAuthority, match="not sent"):
                join(settings_of(tmp_path / "n2"), text(one))
            bundles.pop(0)
    assert len(heard) == 5 and {type(body) for body in heard} == {m.Greet}
    assert not any(one.secret in m.frame(body) for body in heard)


def test_a_redirect_leads_to_the_leader_and_the_pin_is_checked_again(cluster: Cluster, tmp_path: Path) -> None:
    follower = Cluster(tmp_path / "follower")
    for name in ("ca.pem", "node.pem", "node.key"):
        (tmp_path / "follower" / "pki" / name).write_bytes((cluster.files.directory / name).read_bytes())
    follower.signing.cluster = cluster.node.cluster
    with follower.serving():
        follower.elsewhere = cluster.endpoint
        join(settings_of(tmp_path / "n2"), text(cluster.token(endpoint=follower.endpoint)))
        impostor = Cluster(tmp_path / "impostor")
        with impostor.serving():
            follower.elsewhere = impostor.endpoint
            with pytest.raises(WrongAuthority):
                join(settings_of(tmp_path / "n3"), text(cluster.token(endpoint=follower.endpoint)))
        follower.elsewhere = ""
        with pytest.raises(Unavailable, match="no node that leads"):
            join(settings_of(tmp_path / "n3"), text(cluster.token(endpoint=follower.endpoint)), deadline_s=0.3)


def member_call(cluster: Cluster, files: PkiFiles, body: m.ControlMessage) -> Any:
    with ControlConnection(cluster.endpoint, of_member(files)) as connection:
        return connection.call(body)


def test_renewal_keeps_node_and_key(cluster: Cluster, tmp_path: Path) -> None:
    join(settings_of(tmp_path / "n2"), text(cluster.token()))
    files = PkiFiles(tmp_path / "n2")
    clock = [ca.now()]
    renewal = Renewal(files, lambda body: member_call(cluster, files, body), lambda: clock[0], lambda: 0.0)
    before = renewal.identity()
    wait_s = renewal.step()
    assert renewal.renewed == 0 and wait_s == pytest.approx((before.renew_at() - clock[0]).total_seconds(), abs=1)
    clock[0] = before.renew_at()
    renewal.step()
    after = renewal.identity()
    assert renewal.renewed == 1 and (after.node, after.role, after.key) == (before.node, before.role, before.key)
    assert after.ends >= before.ends
    renewal.step(at_once=True)
    assert renewal.renewed == 2 and renewal.issuer() == cluster.pin
    cluster.propose(c.SetNodeState(before.node, "removed"))
    assert renewal.step(at_once=True) > 1 and renewal.failed == 1, "a removed node gets none"


def test_a_rotation_reaches_a_node_by_renewal(cluster: Cluster, tmp_path: Path) -> None:
    join(settings_of(tmp_path / "n2"), text(cluster.token()))
    files = PkiFiles(tmp_path / "n2")
    renewal = Renewal(files, lambda body: member_call(cluster, files, body), spread=lambda: 0.0)
    made = member_call(cluster, files, m.RotateCa()).id
    renewal.step(at_once=True)
    assert renewal.issuer() == cluster.pin and len(ca.load_bundle(files.read_bundle())) == 2
    cluster.propose(c.PutCa(made, "", "", "active"))
    cluster.files.write_bundle(files.read_bundle())  # what the agent does
    renewal.step(at_once=True)
    assert renewal.issuer() == made
    renewal.step(at_once=True)  # the new certificate is believed by the server too
    cluster.propose(c.DropCa(cluster.pin))
    assert renewal.renewed == 3


def test_who_may_call_what(cluster: Cluster, tmp_path: Path) -> None:
    """Every method of the table, with no, a foreign, an expired, a removed and a client's certificate."""
    for name, role in (("n2", "node"), ("n3", "client"), ("n4", "node")):
        join(settings_of(tmp_path / name), text(cluster.token(role=role)))
    good, client, removed = (PkiFiles(tmp_path / name) for name in ("n2", "n3", "n4"))
    cluster.propose(c.SetNodeState(ca.identity(removed.read_certificate()).node, "removed"))
    foreign, expired, stolen = PkiFiles(tmp_path / "foreign"), PkiFiles(tmp_path / "expired"), PkiFiles(tmp_path / "stolen")
    foreign.found(cluster.node.cluster, cluster.node.node)
    authority = ca.Authority(cluster.pin, cluster.files.read_bundle(), cluster.drive.ask(GetSigner()).key)
    long_ago = ca.now() - datetime.timedelta(days=40)
    for files, at in ((expired, long_ago), (stolen, ca.now())):  # signed by the right authority, the second for a key nobody joined with
        files.write_bundle(cluster.files.read_bundle())
        files.write_certificate(ca.sign(authority, ca.make_request(files.own_key(), cluster.node.node), cluster.node.node, "node", at))
    renew, leave, rotate = m.RenewCertificate(ca.make_request(good.own_key(), "x")), m.Leave(), m.RotateCa()
    table = methods(cluster.signing, str, lambda who, force: None)
    assert set(table) - {m.Greet, m.Join} == {type(body) for body in (renew, leave, rotate)}
    for body in (renew, leave, rotate):
        with ControlConnection(cluster.endpoint, trusting_nobody()) as nobody, pytest.raises(Refused, match="needs the certificate"):
            nobody.call(body)
        for files in (foreign, expired):
            with pytest.raises(Unavailable):
                _unverified(cluster, files, body)
        with pytest.raises(Refused, match="was removed"):
            member_call(cluster, removed, body)
        with pytest.raises(Refused, match="not the one it has"):
            member_call(cluster, stolen, body)
    with pytest.raises(Refused, match=r"may not do this \(RotateCa\); run the command on a machine with the role node"):
        member_call(cluster, client, rotate)
    with pytest.raises(Refused, match="for the key it joined with"):
        member_call(cluster, client, renew)
    assert isinstance(member_call(cluster, good, renew), m.Renewed) and isinstance(member_call(cluster, client, leave), m.CallDone)
    assert cluster.left == [(ca.identity(client.read_certificate()).node, False)]


def _unverified(cluster: Cluster, files: PkiFiles, body: m.ControlMessage) -> Any:
    """Shows its certificate, and believes whatever it is shown."""
    context = trusting_nobody()
    context.load_cert_chain(str(files.certificate), str(files.key))
    with ControlConnection(cluster.endpoint, context) as connection:
        return connection.call(body)


def test_nonsense_is_dropped_and_counted(cluster: Cluster) -> None:
    server = cluster.server
    frames = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x03abc", b"\0\0\0\x02\x91\x07", b"\0\0\0\x09abc"]
    for number, raw in enumerate(frames, 1):
        plain = socket.create_connection(("127.0.0.1", cluster.port), WAIT_S)
        with trusting_nobody().wrap_socket(plain) as connection:
            connection.sendall(raw)
            if raw[3] == 9:  # a frame that ends in the middle
                connection.shutdown(socket.SHUT_WR)
            assert _received(connection) == b""
        _await(lambda number=number: server.dropped >= number)
    with socket.create_connection(("127.0.0.1", cluster.port), WAIT_S) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while plain.recv(100):
            pass
    _await(lambda: server.dropped == len(frames) + 1)
    with ControlConnection(cluster.endpoint, trusting_nobody()) as good:
        assert good.call(m.Greet(1)).cluster == cluster.node.cluster


def _received(connection: ssl.SSLSocket) -> bytes:
    try:
        return connection.recv(100)
    except OSError:
        return b""


def _await(check: Any) -> None:
    event = threading.Event()
    for _ in range(WAIT_S * 100):
        if check():
            return
        event.wait(0.01)
    pytest.fail("not within a minute")


def test_a_new_connection_takes_the_place_of_the_oldest(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("awsomefsd.cluster.control.server.CONTROL_CONNECTIONS_MAX", 2)
    join(settings_of(tmp_path / "n2"), text(cluster.token()))
    server, files = cluster.server, PkiFiles(tmp_path / "n2")
    with of_member_connection(cluster, files) as member:
        assert member.call(m.Greet(1)).version == m.VERSION
        turned_away = server.turned_away
        held = [ControlConnection(cluster.endpoint, trusting_nobody()) for _ in range(3)]
        _await(lambda: server.turned_away == turned_away + 1)
        with held[0] as oldest, pytest.raises(Unavailable):
            oldest.call(m.Greet(1))
        for stranger in held[1:]:
            with stranger:
                assert stranger.call(m.Greet(1)).version == m.VERSION
        assert member.call(m.Greet(1)).version == m.VERSION, "strangers take no place of a member"


def test_one_address_turns_away_itself(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.cluster.control.server.CONTROL_CONNECTIONS_MAX", 4)
    turned_away = cluster.server.turned_away
    plain = socket.create_connection(("127.0.0.1", cluster.port), WAIT_S, source_address=("127.0.0.2", 0))
    with trusting_nobody().wrap_socket(plain) as joiner:
        strangers = [ControlConnection(cluster.endpoint, trusting_nobody()) for _ in range(8)]
        _await(lambda: cluster.server.turned_away == turned_away + 5)
        joiner.sendall(m.frame(m.Greet(1)))
        assert joiner.recv(4), "an answer, and not the end"
    for stranger in strangers:
        with stranger:
            pass


def test_who_opens_and_closes_at_once_fills_no_log(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that was reset before it is served has no address any more."""
    caplog.set_level(logging.INFO)
    dropped = cluster.server.dropped
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", cluster.port), WAIT_S) as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _await(lambda: cluster.server.dropped == dropped + 50)
    assert not [record for record in caplog.records if record.levelno > logging.INFO], "it is no fault of the port"
    _await(lambda: cluster.server.figures()["control_connections"] == 0)


def test_strangers_fill_no_log(cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.cluster.control.server.LOG_PAUSE_S", 3_600.0)
    caplog.set_level(logging.INFO, "awsomefsd.cluster.control.server")
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", cluster.port), WAIT_S) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while plain.recv(100):
                pass
    _await(lambda: cluster.server.dropped == 20)
    assert [record.message for record in caplog.records] == ["a control connection was dropped"]


def of_member_connection(cluster: Cluster, files: PkiFiles) -> ControlConnection:
    return ControlConnection(cluster.endpoint, of_member(files))


def test_a_stranger_does_not_stay_however_politely_it_asks(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    join(settings_of(tmp_path / "n2"), text(cluster.token()))
    monkeypatch.setattr("awsomefsd.cluster.control.server.CONTROL_STRANGER_MS", 3_000)
    with ControlConnection(cluster.endpoint, trusting_nobody()) as stranger, pytest.raises(Unavailable):
        greet_for_ever(stranger)
    files = PkiFiles(tmp_path / "n2")
    with of_member_connection(cluster, files) as member, ControlConnection(cluster.endpoint, trusting_nobody()) as clock:
        with pytest.raises(Unavailable):
            greet_for_ever(clock)
        assert member.call(m.Greet(1)).version == m.VERSION, "it came before that stranger, and stays"


def greet_for_ever(connection: ControlConnection) -> None:
    while True:
        connection.call(m.Greet(1))


def test_members_join_and_renew_under_a_thousand_half_open_strangers(cluster: Cluster, tmp_path: Path) -> None:
    """Silent ones, halves of a handshake, handshakes without a call, and halves of a call."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8_192)), hard))
    join(settings_of(tmp_path / "n1"), text(cluster.token()))
    files = PkiFiles(tmp_path / "n1")
    renew = m.RenewCertificate(ca.make_request(files.own_key(), "x"))
    strangers: list[socket.socket] = []
    try:
        for turn in range(5):
            for number in range(200):
                plain = socket.create_connection(("127.0.0.1", cluster.port), WAIT_S)
                strangers.append(plain)
                with suppress(OSError):
                    if number % 10 == 1:
                        plain.sendall(b"\x16\x03\x01\x02\x00\x01")
                    elif number % 10 == 2:
                        strangers[-1] = tls = trusting_nobody().wrap_socket(plain)
                        tls.sendall(b"\0\0\0\x09ab"[: 6 * (number % 20 == 2)])
            with of_member_connection(cluster, files) as member:
                assert isinstance(member.call(renew), m.Renewed)
            made = join(settings_of(tmp_path / f"new-{turn}"), text(cluster.token(role="client")))
            assert cluster.states()[made.node] == "active"
            assert cluster.server.figures()["control_connections"] <= 2 * CONTROL_CONNECTIONS_MAX
    finally:
        for stranger in strangers:
            stranger.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_node_whose_certificate_has_expired_joins_again_as_the_same(cluster: Cluster, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "n2")
    made = join(settings, text(cluster.token()))
    files = PkiFiles(tmp_path / "n2")
    authority = ca.Authority(cluster.pin, cluster.files.read_bundle(), cluster.drive.ask(GetSigner()).key)
    request = ca.make_request(files.own_key(), made.node)
    files.write_certificate(ca.sign(authority, request, made.node, "node", ca.now() - datetime.timedelta(days=40)))
    again = cluster.token()
    assert join(settings, text(again)) == made and ca.identity(files.read_certificate()).ends > ca.now()
    assert len(cluster.states()) == 2
    left = {row.id: row.uses_left for row in cluster.ask(ListTokens()).tokens}
    assert left[again.id] == 1, "it was a member already: nothing is used up"
