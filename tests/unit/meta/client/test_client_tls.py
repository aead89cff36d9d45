"""The metadata client over TLS: many threads on one connection, deaths of the service, changed certificates, and who is refused."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.base.types import node_mount
from awsomefsd.base.wait import Signal, block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.meta.client.endpoints import Endpoints, endpoint_of, split
from awsomefsd.meta.machine.nodes import WAS_REMOVED
from awsomefsd.node.metadata_access import LeaderAccess
from awsomefsd.worker.config import WorkerConfig, endpoints_of
from tests.rigs.metadata_port import MEMBER, READER, REMOVED, STRANGER, tls_host
from tests.rigs.metadata_service import NODE
from tests.rigs.voter_certificates import Authority

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def clients() -> Iterator[Callable[..., MetaClient]]:
    made: list[MetaClient] = []

    def connect(places: Endpoints, mount: int = 5) -> MetaClient:
        made.append(MetaClient(places, mount))
        made[-1].start()
        return made[-1]

    yield connect
    for client in made:
        client.close()


def awaited(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_many_threads_large_and_small_both_ways_over_crashes(tmp_path, authority, clients, seed):
    """Every request is done once, every answer is whole, though all threads share one TLS state and the service dies under them."""
    with tls_host(tmp_path, authority) as host:
        client = clients(host.places(MEMBER))
        client.start_session(c.OpenSession(5, 1, MEMBER, "boot", 1), 60)
        failed: list[BaseException] = []

        def work(thread: int) -> None:
            dice = random.Random(seed + thread)
            try:
                for number in range(25):
                    unique = 1_000 + thread * 100 + number
                    size = dice.choice((1, 200, 20_000, 60_000))
                    made = block_on(client.propose(c.Create(1, 1, b"%d" % unique, 0o100644, 0, 0), unique), 60)
                    client.ack(unique)
                    value = dice.randbytes(size)
                    name = b"user.x"
                    block_on(client.propose(c.SetXattr(1, made.attr.ino, name, value), unique + 50_000), 60)
                    client.ack(unique + 50_000)
                    assert client.call(m.GetXattr(1, made.attr.ino, name), 60).data == value
            except BaseException as err:
                failed.append(err)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for number in range(2):
            client.call(m.Follow(60 + 60 * number, 1, 30_000), 60)
            host.crash()
            host.start()
        for thread in threads:
            thread.join()
        assert not failed, failed
        made = [entry.unique for entry in host.log() if isinstance(entry.command, c.Create)]
        assert len(made) >= 100 and len(set(made)) == 100
        client.call(m.GetStatus(), 60)  # over the last connection
        assert client.reconnects >= 3
        assert host.figures()["protocol_errors"] == 0


def test_a_service_that_does_not_read_blocks_no_submitter(tmp_path, authority, clients):
    with tls_host(tmp_path, authority) as host:
        client = clients(host.places(MEMBER))
        client.start_session(c.OpenSession(5, 1, MEMBER, "boot", 1), 60)
        signals = []
        for unique in range(100, 220):  # 7 MB
            signals.append(Signal())
            client.submit(m.Propose(unique, client.session, client.epoch, [], c.SetXattr(1, 1, b"user.x", bytes(60_000))), signals[-1].fire)
        for signal in signals:
            block_on(signal, 60)


def test_renewed_certificates_are_used_by_the_next_connection(tmp_path, authority, clients):
    with tls_host(tmp_path, authority) as host:
        directory = tmp_path / "pki"
        directory.mkdir()
        files = authority.write(MEMBER, directory)
        address = host.endpoint.partition("@")[2]
        config = WorkerConfig(
            volume=1, boot_id="boot", state_dir=str(tmp_path), meta_sock=str(tmp_path / "none"), node=MEMBER,
            tls=tuple(map(str, files)), places={NODE: address}, read_only=False,
        )  # fmt: skip
        places = endpoints_of(config)
        client = clients(places)
        client.call(m.GetAttr(1, 1), 60)
        loads = places.tls().loads
        fresh = tmp_path / "fresh"
        fresh.mkdir()
        for old, new in zip(files, authority.write(MEMBER, fresh), strict=True):
            new.replace(old)
        assert client.call(m.GetAttr(1, 1), 60) and client.reconnects == 1, "the open connection goes on"
        host.crash()
        host.start()
        client.call(m.GetAttr(1, 1), 60)
        assert places.tls().loads == loads + 1


@pytest.mark.parametrize(
    ("node", "role", "reason"),
    [(REMOVED, "node", "was removed"), (STRANGER, "node", "not a member"), (READER, "node", "the role node"), (MEMBER, "client", "role")],
)
def test_who_is_no_member_is_refused_by_name(tmp_path, authority, clients, node, role, reason):
    with tls_host(tmp_path, authority) as host:
        client = clients(host.places(node, role))
        awaited(lambda: reason in client.trouble)
        assert node in client.trouble and not client.connected


def test_a_removed_node_is_cut_off(tmp_path, authority, clients):
    with tls_host(tmp_path, authority) as host:
        client = clients(host.places(MEMBER))
        client.call(m.GetAttr(1, 1), 60)
        host.service.propose(c.SetNodeState(MEMBER, "removed"), 60)
        awaited(lambda: "was removed" in client.trouble)
        assert not client.connected


# --- what the daemon's parts use --------------------------------------------------------------------------------------------------
def test_the_daemon_asks_from_a_node_without_metadata_and_its_commands_are_done_once(tmp_path, authority):
    with tls_host(tmp_path, authority) as host:
        access = LeaderAccess(host.places(MEMBER), MEMBER, tmp_path, lambda: None)
        try:
            assert access.ask(m.GetStatus()).figures["leading"] == 1
            for number in range(5):
                access.propose(c.CreateVolume(f"v{number}", f"u{number}"))
            with pytest.raises(FsError) as caught:
                access.propose(c.CreateVolume("v1", "other"))
            assert caught.value.errno == errno.EEXIST
            host.crash()
            host.start()
            access.propose(c.CreateVolume("late", "late"))
        finally:
            access.close()
        machine = host.replica.machine
        held = machine.results_held(node_mount(MEMBER))
        assert 0 < held < 5, "acknowledged with later commands"
        again = LeaderAccess(host.places(MEMBER), MEMBER, tmp_path, lambda: None)
        try:
            again.propose(c.CreateVolume("later", "later"))
            assert machine.results_held(node_mount(MEMBER)) == 1, "what the run before left is forgotten"
        finally:
            again.close()


def test_a_removed_node_is_told_so(tmp_path, authority, monkeypatch):
    from awsomefsd.node import metadata_access as module

    monkeypatch.setattr(module, "GRACE_S", 0.5)
    with tls_host(tmp_path, authority) as host:
        access = LeaderAccess(host.places(REMOVED), REMOVED, tmp_path, lambda: None)
        try:
            awaited(lambda: access.trouble.endswith("(an empty state directory)"))
            with pytest.raises(FsError, match=WAS_REMOVED) as caught:
                access.ask(m.GetVolumes())
            assert caught.value.errno == errno.EACCES
        finally:
            access.close()


def test_without_anybody_to_ask_calls_end_soon_with_the_reason(tmp_path, authority, monkeypatch):
    from awsomefsd.node import metadata_access as module

    monkeypatch.setattr(module, "GRACE_S", 0.2)
    access = LeaderAccess(Endpoints(tmp_path / "none.sock"), MEMBER, tmp_path, lambda: lambda body, timeout: m.Status({"role": "alone"}))
    try:
        with pytest.raises(Unavailable, match=r"none\.sock"):
            access.ask(m.GetVolumes())
        assert access.ask(m.GetStatus()).figures == {"role": "alone"}
        with pytest.raises(Unavailable, match=r"none\.sock"):
            access.ask(m.GetStatus(of_leader=True))
    finally:
        access.close()


# --- endpoints --------------------------------------------------------------------------------------------------------------------
def test_endpoints_come_from_the_file_as_it_is_now(tmp_path):
    file = tmp_path / "endpoints.json"
    places = Endpoints("/run/meta.sock", node="a", file=file, fixed={"x": "10.0.0.9:1"})
    assert places.now() == ["/run/meta.sock", "x@10.0.0.9:1"]
    file.write_text(
        '{"version": 1, "cluster": "c", "nodes": {"b": {"name": "b", "control": "10.0.0.2:1", "metadata": "10.0.0.2:2", "carries": true},'
        '"a": {"metadata": "10.0.0.1:2", "carries": true}, "c": {"metadata": "10.0.0.3:2", "carries": false}}}'
    )
    assert places.now() == ["/run/meta.sock", "b@10.0.0.2:2"]
    assert places.resolve("a@10.0.0.1:2") == "/run/meta.sock" and places.resolve("b@10.0.0.2:2") == "b@10.0.0.2:2"
    for damaged in ("", "[]", '{"nodes": 3}', '{"nodes": {"b": {}}}', '{"nodes": {"b": {"carries": true, "metadata": 3}}}'):
        file.write_text(damaged)
        assert places.now() == ["/run/meta.sock", "b@10.0.0.2:2"], "what cannot be read changes nothing"
    with pytest.raises(OSError):
        places.tls()


def test_endpoint_texts():
    assert endpoint_of("n", "10.0.0.1:7441") == "n@10.0.0.1:7441" and endpoint_of("n", "/n") == "/n" and endpoint_of("", "") == ""
    assert split("n@[fd00::1]:7441") == ("n", "fd00::1", 7441)
    for wrong in ("n", "n@", "n@host", "@h:1", "n@h:x", "n@h:99999"):
        with pytest.raises(ConnectionRefusedError):
            split(wrong)


def test_tls_is_loaded_only_when_it_is_needed():
    code = "import sys, awsomefsd.worker.process; print([name for name in ('ssl', 'awsomefsd.base.tls', 'asyncio') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"

