"""The doctor on a real cluster of three nodes: sound, it has no finding; each planted fault is found with evidence and fix, and ends again.

One cluster for all of them, since the faults are taken back: a fault that stays would be a finding of the next test.
"""

from __future__ import annotations

import contextlib
import datetime
import mmap
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from awsomefsd import __version__
from awsomefsd.admin.client import AdminClient
from awsomefsd.keeper import mount_syscalls
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.node.health.rules import MAP_FULL_PERCENT, QUARANTINE_PERCENT, VOTER_LAG_MAX
from buildtools import procs
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from buildtools.say import CHECKOUT, BuildError
from tests.cluster.metadata_clients import Objects, new_client
from tests.conftest import making_clusters
from tests.rigs.network_namespaces import found_by_join
from tests.rigs.other_build import copy_package

MIB = 1 << 20
WAIT_S = 120
DEVICE_BYTES = 256 * MIB
SECOND, OWN = "second.img", "own-name.img"
SMALL_MAP_BYTES = 256 << 10
VALUE = bytes(3 << 10)  # of an attribute: three of four are a page of the map
WRITERS = 16
BEHIND = VOTER_LAG_MAX * 2  # entries that a voter lacks; when it has half of them, it does not lag any more
LARGE_VALUE = bytes(8 << 10)  # of an attribute: so large that the entries take the voter several Appends, each with a slow sync
Finding = dict[str, str]


def examine(node: Node, *words: str) -> dict[str, Finding]:
    """The findings of the doctor on a node, by code; of two with one code the last."""
    found = node.ask("doctor", *words, accept=(0, 3))
    return {row["code"]: row for row in found["findings"]}


def seen(node: Node, code: str, *words: str, fix: str = "") -> Finding:
    """Waits until the doctor on a node has this finding, with these words in its evidence."""

    def look() -> Finding | None:
        row = examine(node).get(code)
        return row if row and all(word in row["evidence"] for word in words) else None

    row: Finding = await_true(f"{code} with {words}", look, WAIT_S, 0.3)
    assert row["what"] and fix in row["fix"] and row["fix"], row
    return row


def gone(node: Node, *codes: str) -> None:
    await_true(f"the end of {codes}", lambda: not set(codes) & set(examine(node)), WAIT_S, 0.3)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes that vote, one shared device of 512 MiB, a volume that each mounts; node 3 keeps its state on a small disk of its own."""
    for make in making_clusters():
        made = make(3, faults=True, size_bytes=512 * MIB)
        for node in made.nodes:
            node.settings["AWSOMEFSD_METRICS_LISTEN"] = "unix"
        with (made.directory / SECOND).open("wb") as file:
            file.truncate(DEVICE_BYTES)
        os.link(made.directory / SECOND, made.nodes[1].directory / OWN)
        small = made.nodes[2].state
        mount_syscalls._call("mount", b"tmpfs", os.fsencode(small), b"tmpfs", 0, b"size=1g,mode=700")
        try:
            made.share()
            for node in made.nodes:
                own = made.nodes[1].directory / OWN if node is made.nodes[1] else made.directory / SECOND
                words = [node.settings.get("AWSOMEFSD_DEVICES_SCAN", ""), str(own)]
                node.settings["AWSOMEFSD_DEVICES_SCAN"] = ",".join(filter(None, words))
            copy_package(CHECKOUT / "awsomefsd", made.directory / "build" / "awsomefsd")  # node 3 has an installation of its own
            made.nodes[2].settings["PYTHONPATH"] = str(made.directory / "build")
            found_by_join(made)
            made.provision()
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(Node.mount, made.nodes))
            yield made
        finally:
            made.network.heal()
            for node in made.nodes:
                node.end()
            mount_syscalls.umount(str(small), mount_syscalls.MNT_DETACH)


def test_a_sound_cluster_has_nothing(cluster: Cluster) -> None:
    def sound() -> bool:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(examine, cluster.nodes))
        if any(found):
            print(found)
        return not any(found)

    await_true("three sound nodes", sound, WAIT_S, 1)
    told = ""

    def in_words() -> bool:
        """A heartbeat may be late just now."""
        nonlocal told
        told = cluster.nodes[0].cli("doctor", accept=(0, 3))
        return told == "nothing is wrong\n"

    with contextlib.suppress(BuildError):
        await_true("a sound node", in_words, WAIT_S, 1)
    assert told == "nothing is wrong\n"


def test_the_way_to_each_other_node_is_measured(cluster: Cluster) -> None:
    """`awsomefsd bench`: here because it wants three nodes that report."""
    told = cluster.nodes[1].ask("bench", "--only", "network", "--only", "metadata")
    assert not told["skipped"]
    rows = [(row["name"], row["of"]) for row in told["rows"]]
    others = [node["name"] for node in cluster.nodes[1].ask("node", "ls") if node["node"] != cluster.nodes[1].uuid()]
    assert sorted(rows) == [("metadata.ask", "the daemon"), *(("network.connect", name) for name in sorted(others))] and len(others) == 2


# --- the host and its files --------------------------------------------------------------------------------------------------
def test_a_key_that_others_may_read(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    key = node.state / "pki" / "node.key"
    key.chmod(0o644)
    try:
        seen(node, "PERMISSIONS", str(key), "0644", fix=f"chmod 600 {key}")
    finally:
        key.chmod(0o600)
    gone(node, "PERMISSIONS")


def test_the_disk_of_the_state_is_full(cluster: Cluster) -> None:
    node = cluster.nodes[2]
    fill = node.state / "fill"
    with fill.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(node.state).f_bavail * 4096 - 40 * MIB)
    try:
        seen(node, "STATE_DISK_FULL", str(node.state), "free")
    finally:
        fill.unlink()
    gone(node, "STATE_DISK_FULL")


def test_a_slow_disk_of_the_state(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    node.settings["AWSOMEFSD_FAULTS"] = str(node.faults)
    node.inject("journal.sync=delay:150ms")
    try:
        seen(node, "SLOW_FSYNC", str(node.state), "ms")
    finally:
        node.inject("")
        del node.settings["AWSOMEFSD_FAULTS"]
    gone(node, "SLOW_FSYNC")


def test_settings_that_are_wrong(cluster: Cluster) -> None:
    """Those of the doctor's own environment: the daemon keeps the ones it began with."""
    node = cluster.nodes[0]
    before = dict(node.settings)
    file = node.directory / "broken.toml"
    file.write_text("[memory\n")
    others = node.directory / "small.toml"
    others.write_text('[memory]\ndaemon = "200T"\nworker = "128MiB"\n[cluster]\nadvertise = "no-such-host.invalid"\n')
    try:
        node.settings["AWSOMEFSD_CONFIG"] = str(file)
        seen(node, "CONFIG_UNREADABLE", str(file), fix="config check")
        node.settings["AWSOMEFSD_CONFIG"] = str(others)
        found = examine(node)
        assert "memory.worker = 128" in found["MEMORY_BUDGET_SMALL"]["evidence"]
        assert "memory.daemon = 200" in found["MEMORY_SHORT"]["evidence"]
        assert "no-such-host.invalid" in found["NAME_UNRESOLVED"]["evidence"]
    finally:
        node.settings = before
    gone(node, "CONFIG_UNREADABLE", "MEMORY_BUDGET_SMALL", "MEMORY_SHORT", "NAME_UNRESOLVED")


# --- the network -------------------------------------------------------------------------------------------------------------
def test_an_interface_with_another_mtu(cluster: Cluster) -> None:
    node, other = cluster.nodes[:2]
    inside = [*cluster.network.entering(2), "ip", "link", "set", "eth0", "mtu"]
    subprocess.run([*inside, "1300"], check=True)
    try:
        row = seen(node, "MTU_WRONG", "1500 bytes", other.directory.name, "1300 bytes arrive")
        assert "mtu 1500" in row["fix"]
    finally:
        subprocess.run([*inside, "1500"], check=True)
    gone(node, "MTU_WRONG")


def test_a_path_that_is_cut(cluster: Cluster) -> None:
    """Two of three nodes do not reach each other, and the third one both."""
    leader = cluster.await_leader()
    one, other = (cluster.machine(node) for node in cluster.nodes if node is not leader)
    cluster.network.cut([one], [other])
    try:
        name = cluster.nodes[other - 1].directory.name
        seen(cluster.nodes[one - 1], "PEER_UNREACHABLE", f"node {name}", cluster.network.address(other))
    finally:
        cluster.network.heal()
    gone(cluster.nodes[one - 1], "PEER_UNREACHABLE")


def test_a_clock_that_is_wrong(cluster: Cluster) -> None:
    leader = cluster.await_leader()
    node = next(one for one in cluster.nodes if one is not leader)
    node.inject("clock=+90")
    try:
        seen(leader, "CLOCK_SKEW", f"{node.directory.name} is ", "ahead of", fix="NTP")
    finally:
        node.inject("")
    gone(leader, "CLOCK_SKEW")


def test_a_port_that_somebody_has(cluster: Cluster) -> None:
    """Before an install: on a host whose port another program has."""
    node = cluster.nodes[1]
    row = examine(node, "--preflight")["PORT_IN_USE"]
    assert "listen = '0.0.0.0:744" in row["evidence"] and f"(pid {node.pid('daemon')})" in row["evidence"]
    assert "PORT_IN_USE" not in examine(node), "of its own daemon"


# --- voters and versions ------------------------------------------------------------------------------------------------------
def test_the_map_of_the_store_is_nearly_full(cluster: Cluster) -> None:
    """Of one voter, whose map is small and is not made larger."""
    node, writer = cluster.nodes[1], cluster.nodes[0]
    node.inject(f"store.map={SMALL_MAP_BYTES}, store.grow=EIO")
    node.replaced("daemon", node.kill("daemon")["daemon"])
    node.await_daemon()
    filling = writer.mountpoint / "attributes"
    filling.mkdir()

    def figures(client: AdminClient) -> dict[str, str]:
        return dict(client.call("GetStatus").figures)

    def fill(client: AdminClient) -> bool:
        """Fills a twentieth of the map and waits for the commit: what is committed at once must not leap over the last tenth."""
        before = figures(client)
        there = len(os.listdir(filling))
        for number in range(int(before["store_map_bytes"]) // 20 // mmap.PAGESIZE):
            file = filling / str(there + number)
            file.touch()
            os.setxattr(file, "user.value", VALUE)
        writer.cli("flush", str(writer.mountpoint))
        await_true("a commit", lambda: figures(client)["store_commits"] != before["store_commits"], WAIT_S)
        return float(figures(client)["store_map_use_percent"]) > MAP_FULL_PERCENT

    try:
        with AdminClient(node.run / "admin.sock") as client:
            await_true("a map that is nearly full", lambda: fill(client), WAIT_S)
        seen(node, "MAP_FULL", "% of the map", str(node.state), fix="free space on the filesystem of state_dir")
    finally:
        node.inject("")
        shutil.rmtree(filling)
    gone(node, "MAP_FULL")


def test_a_voter_that_lags(cluster: Cluster) -> None:
    """It was away while the others went on, and its disk is slow: it is heard, and does not have what they have."""
    leader = cluster.await_leader()
    voter = next(one for one in cluster.nodes if one is not leader)
    machine = cluster.machine(voter)
    others = [cluster.machine(one) for one in cluster.nodes if one is not voter]
    cluster.network.cut([machine], others)
    try:
        write_entries(cluster, BEHIND)
        voter.inject("journal.sync=delay:1000ms")
        cluster.network.heal()
        row = seen(cluster.await_leader(), "VOTER_LAGS", f"voter {voter.directory.name} is ", " entries behind")
        assert "disk and network" in row["fix"]
    finally:
        cluster.network.heal()
        voter.inject("")
    gone(leader, "VOTER_LAGS", "VOTER_GONE", "NODE_GONE")


def write_entries(cluster: Cluster, count: int) -> None:
    """So many changes of the metadata, each an entry of the log."""
    objects = Objects(cluster)
    file = objects.registers[0]

    def write(number: int) -> None:
        client = new_client(cluster)
        try:
            for unique in range(1, count // WRITERS + 1):
                client.call(m.Propose(unique, 0, 0, [], c.SetXattr(objects.volume, file, b"user.%d" % number, LARGE_VALUE)), WAIT_S)
                client.ack(unique)
        finally:
            client.close()

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(WRITERS)))


def test_a_node_of_another_version(cluster: Cluster) -> None:
    node, other = cluster.nodes[2], cluster.nodes[0]
    file = cluster.directory / "build" / "awsomefsd" / "__init__.py"
    before = file.read_text()
    file.write_text(before.replace(f'"{__version__}"', '"0.0.1-older"'))
    try:
        node.replaced("daemon", node.kill("daemon")["daemon"])
        seen(other, "VERSION_SKEW", f"runs {__version__}", f"node {node.directory.name} runs 0.0.1-older", fix="upgrade status")
        seen(node, "VERSION_SKEW", "this daemon runs 0.0.1-older", f"the keeper runs {__version__}", fix="keeper --upgrade")
    finally:
        file.write_text(before)
        node.replaced("daemon", node.kill("daemon")["daemon"])
        node.await_daemon()
    gone(node, "VERSION_SKEW")
    gone(other, "VERSION_SKEW")


# --- mounts ------------------------------------------------------------------------------------------------------------------
def test_a_mount_that_nobody_serves(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    place = node.directory / "orphan"
    place.mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount_syscalls.mount_fuse(fd, str(place), "lost", [], "")
    os.close(fd)
    try:
        seen(node, "ORPHAN_MOUNT", str(place), "lost", fix=f"umount -l {place}")
    finally:
        mount_syscalls.umount(str(place), mount_syscalls.MNT_DETACH)
    gone(node, "ORPHAN_MOUNT")


def test_a_mount_that_another_namespace_has(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    with subprocess.Popen(["unshare", "-m", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"\n"
            assert node.ask("umount", str(node.mountpoint))["detached"]
            seen(node, "MOUNT_PINNED", f"(pid {holder.pid}", str(node.mountpoint), fix=f"kill {holder.pid}")
        finally:
            holder.kill()
            holder.wait()
    gone(node, "MOUNT_PINNED")
    node.mount()


def test_a_worker_that_ends_again_and_again(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    for _ in range(3):
        node.strike(["worker"])
        await_true("a mount that is served", lambda: [row["state"] for row in node.ask("mount")] == ["serving"], WAIT_S, 0.1)
    seen(node, "WORKER_RESTARTS", str(node.mountpoint), "3 times")
    node.umount()
    node.mount()
    gone(node, "WORKER_RESTARTS")


def test_a_worker_that_hangs(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    pid = node.pid("worker")
    os.kill(pid, signal.SIGSTOP)
    try:
        await_true("a stopped worker", lambda: procs.state(pid) == "T", WAIT_S)
        told = [one for one in node.ask("status", accept=(3,))["health"] if one["code"] == "MOUNT_HUNG"]
        assert len(told) == 1 and str(node.mountpoint) in told[0]["what"] and f"kill -CONT {pid}" in told[0]["fix"], told
        seen(node, "MOUNT_HUNG", str(node.mountpoint), f"(pid {pid}) is stopped", fix=f"kill -CONT {pid}")
    finally:
        os.kill(pid, signal.SIGCONT)
    gone(node, "MOUNT_HUNG")


def test_conflicts(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    place = node.state / "conflicts" / "v"
    place.mkdir(parents=True)
    (place / "data").write_text("x")
    seen(node, "CONFLICT_FILES", "1 file", str(node.state))
    (place / "data").unlink()
    gone(node, "CONFLICT_FILES")


# --- devices and data --------------------------------------------------------------------------------------------------------
def test_a_device_that_one_node_does_not_see_or_takes_for_another(cluster: Cluster) -> None:
    """Node 2 has a name of its own for the second device: it goes, then it leads to another disk, then it is right again."""
    first, node = cluster.nodes[:2]
    own = node.directory / OWN
    first.cli("device", "add", "--shared", str(cluster.directory / SECOND), timeout_s=WAIT_S)
    await_true("all to see it", lambda: [row["state"] for row in node.ask("device", "ls")] == ["ok", "ok"], WAIT_S, 0.3)
    own.unlink()
    node.replaced("daemon", node.kill("daemon")["daemon"])
    node.await_daemon()
    seen(node, "DEVICE_MISSING", "not found on this node", fix="device scan")
    stranger = node.directory / "stranger.img"
    stranger.write_bytes(os.urandom(MIB))
    os.truncate(stranger, DEVICE_BYTES)
    os.link(cluster.directory / SECOND, own)
    node.cli("device", "scan")
    gone(node, "DEVICE_MISSING")
    stranger.rename(own)
    node.replaced("daemon", node.kill("daemon")["daemon"])
    node.await_daemon()
    seen(node, "DEVICE_WRONG", str(own), fix="connect the right device")
    own.unlink()
    os.link(cluster.directory / SECOND, own)
    gone(node, "DEVICE_WRONG", "DEVICE_MISSING")


def test_wrong_bytes_of_a_file(cluster: Cluster) -> None:
    node, reader = cluster.nodes[:2]
    pattern = os.urandom(4096)
    (node.mountpoint / "damaged").write_bytes(pattern * 16)
    node.cli("flush", str(node.mountpoint))
    with contextlib.ExitStack() as stack:
        for image in (node.image, cluster.directory / SECOND):
            file = stack.enter_context(image.open("r+b", buffering=0))
            raw = stack.enter_context(mmap.mmap(file.fileno(), 0))
            at = raw.find(pattern)
            if at >= 0:
                raw[at + 100] ^= 1
    with contextlib.suppress(OSError):
        (reader.mountpoint / "damaged").read_bytes()
    seen(reader, "DAMAGED_FILE", "file /damaged", "at offset 0", fix="restore the file")
    (reader.mountpoint / "damaged").unlink()


def test_a_device_that_is_nearly_full(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    filling = node.mountpoint / "filling"
    try:
        with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
            while True:
                file.write(os.urandom(4 * MIB))
        seen(node, "DEVICE_FULL", "segments left", fix="add a device")
    finally:
        filling.unlink()
    gone(node, "DEVICE_FULL")


def test_a_certificate_that_has_expired(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    file = node.state / "pki" / "node.pem"
    before = file.read_bytes()
    file.write_bytes(expired(before))
    try:
        seen(node, "CERTIFICATE_EXPIRES", "expired 24 hours ago", fix="awsomefsd join")
    finally:
        file.write_bytes(before)
    gone(node, "CERTIFICATE_EXPIRES")


def expired(pem: bytes) -> bytes:
    """The certificate again, with a life that ended a day ago, signed by nobody who counts."""
    held = x509.load_pem_x509_certificate(pem)
    day, key = datetime.timedelta(days=1), ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(
        held.issuer, held.subject, held.public_key(), 7, now - 9 * day, now - day - datetime.timedelta(minutes=5)
    )
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_bundle_has_no_secret_of_the_cluster(cluster: Cluster) -> None:
    secrets = [cluster.nodes[0].cli("token", "create", "--role", "node").strip()]
    for node in cluster.nodes:
        secrets += [line for line in (node.state / "pki" / "node.key").read_text().splitlines()[1:-1] if len(line) > 12]
    for node in cluster.nodes:
        with (node.log / "daemon.log").open("a") as log:  # as a library that is too talkative would
            log.write("\n".join(secrets[:1]) + "\n" + (node.state / "pki" / "node.key").read_text())
        target = node.directory / "bundle.tar.gz"
        node.cli("doctor", "--bundle", str(target), accept=(0, 3))
        with tarfile.open(target) as archive:
            found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        everything = b"\n".join(found.values())
        assert b"PRIVATE KEY" not in everything and not [secret for secret in secrets if secret.encode() in everything]
        assert b"[hidden]" in next(raw for name, raw in found.items() if name.endswith("-daemon.log"))
        assert any("worker-" in name for name in found) and b'"metadata"' in found["awsomefsd-doctor/status.json"]


def further_mount(node: Node, volume: str) -> Path:
    place = node.directory / volume
    place.mkdir()
    node.cli("volume", "create", volume)
    node.cli("mount", volume, str(place), "-O", "shared")
    return place


# --- nodes that are gone: the last test, for nothing of it is taken back -------------------------------------------------------
@pytest.mark.soak  # half a minute, and test_health.py plants the same for `status`
def test_nodes_that_are_gone(cluster: Cluster) -> None:
    first, second, third = cluster.nodes
    segments = sum(int(row["segments"]) for row in first.ask("device", "ls"))
    writing = [third.mountpoint, *(further_mount(third, f"late{number}") for number in range(segments * QUARANTINE_PERCENT // 100))]
    for place in writing:  # each has a segment of its own
        with (place / "late").open("wb", buffering=0) as file:
            file.write(bytes(MIB))
            os.fsync(file.fileno())
    third.kill_everything()
    seen(first, "VOTER_GONE", third.directory.name, fix="start its daemon")
    seen(first, "NODE_GONE", third.directory.name, fix="node remove")
    assert "ONE_FAILURE_FROM_LOSS" in examine(first)
    seen(first, "QUARANTINE_GROWS", "segments are in quarantine", third.directory.name, fix="quarantine ls")
    second.kill_everything()
    seen(first, "NO_LEADER", "changes and lookups wait")
    seen(first, "NO_QUORUM", "connected to 0 of the 2 others", fix="start the other voters")
    first.kill_everything()
    assert "no daemon answers" in seen(first, "DAEMON_GONE")["evidence"]
