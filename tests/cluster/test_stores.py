"""Stores on real nodes: one command on one node, and the others have it with its keys; these stand nowhere; kills in the middle.

Three nodes and a client at the unfinished level, each in a network namespace; the bucket is in that of the bridge.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from awsomefsd.base.levels import UNFINISHED_VARIABLE
from awsomefsd.tier.object_format import Marker, pack_marker
from awsomefsd.tier.store_work import UUID
from buildtools import procs
from buildtools.cluster import Cluster
from buildtools.netns import GATEWAY
from buildtools.nodes import Node, await_true
from tests.rigs.living_files import contents
from tests.rigs.network_namespaces import found_by_token
from tests.rigs.pool_nodes import is_in_cluster
from tests.rigs.strict_store import StrictStore, strict_store

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
pytest.importorskip("obstore", reason="the library for buckets is not installed: pip install 'awsomefsd[store]'")
KEY_ID, SECRET, TOKEN = "AKOFTHESTORETEST", "Sw0rdfishes+swim/at=night-secret", "a-T0ken-of-a-session-of-the-test"
LATER_ID, LATER = "AKOFTHELATERTEST", "Later+keys/are-as=secret-as-any"
FOREIGN = UUID(int=77)
WAIT_S = 60.0


class Stores:
    """The nodes, the client, and the bucket that all of them reach."""

    def __init__(self, cluster: Cluster, bucket: StrictStore) -> None:
        self.bucket, self.cluster = bucket, cluster
        for node in cluster.nodes:
            node.settings[UNFINISHED_VARIABLE] = "1"
        *self.nodes, self.client = cluster.nodes
        cluster.nodes = self.nodes
        found_by_token(cluster)
        cluster.launch()
        self.all_back()
        self.client.cli("join", "-", stdin=self.nodes[0].cli("token", "create").strip())
        self.client.launch()
        self.client.await_daemon()
        self.eras = json.loads((self.nodes[0].state / "node.json").read_text())["cluster"] + "/e"  # where they are, below a prefix

    def keys(self, node: Node, key_id: str = KEY_ID, secret: str = SECRET, token: str = "") -> str:
        path = node.directory / "keys"
        path.touch(0o600)
        path.write_text(f"{key_id}\n{secret}\n{token}\n")
        return str(path)

    def add(self, node: Node, name: str, url: str, *words: str, **more: Any) -> str:
        reached = ("--endpoint", self.bucket.endpoint, "--access-key-file", self.keys(node))
        return node.cli("store", "add", name, url, *reached, *words, timeout_s=120, **more)

    def all_back(self) -> None:
        """Returns when every node has its daemon and knows a leader."""
        self.cluster.await_leader()
        for node in self.nodes:
            await_true("a daemon of the cluster", partial(is_in_cluster, node), WAIT_S, 0.05)

    def leader(self) -> Node:
        found = next(one for one in self.nodes[0].ask("node", "ls") if one["leader"])
        return next(node for node in self.nodes if node.uuid() == found["node"])


@pytest.fixture(scope="module")
def stores(make_cluster: Callable[..., Cluster]) -> Iterator[Stores]:
    cluster = make_cluster(4)
    with strict_store(host=GATEWAY, namespace=cluster.network.hub()) as bucket:
        bucket.keys = {KEY_ID: SECRET, LATER_ID: LATER}
        made = Stores(cluster, bucket)
        yield made
        cluster.nodes = [*made.nodes, made.client]
        cluster.stop()


def test_the_others_have_it_with_its_keys_and_without_a_file(stores: Stores) -> None:
    first, *others = stores.nodes
    told = stores.add(first, "cold", "s3://bucket/cold", "--seal", "--rpo", "2m", "--keep", "7d")
    assert "ok   marker: the prefix is unused" in told
    assert told.strip().splitlines()[-1].startswith("added store cold: s3://bucket/cold, era 1")
    os.unlink(first.directory / "keys")
    for node in (first, *others):
        [row] = node.ask("store", "ls")
        shown = node.ask("store", "show", "cold")
        assert row == shown and (row["state"], row["credentials"], row["sealed"], row["era_number"]) == ("active", "kept", True, 1)
        assert (int(row["rpo_ms"]), int(row["keep_ms"])) == (120_000, 7 * 86_400_000)
        assert ["cold", "s3://bucket/cold", "active", "yes", "2m", "7d"] in [line.split() for line in node.cli("store", "ls").splitlines()]
        assert "kept by the cluster" in node.cli("store", "show", "cold")
    findings = others[-1].ask("store", "check", "cold", timeout_s=120)
    assert {one["level"] for one in findings} == {"ok"} and findings[0]["words"] == "the prefix is this cluster's"
    assert [name for name in stores.bucket.objects if name.startswith("cold/")] == ["cold/awsomefs", f"cold/{stores.eras}/1"]


def test_a_client_of_the_cluster_gets_no_store(stores: Stores) -> None:
    for words in (("ls",), ("show", "cold"), ("check", "cold"), ("detach", "cold"), ("add", "x", "/tmp")):
        assert "role node" in stores.client.cli_error("store", *words)
    assert [row["name"] for row in stores.nodes[0].ask("store", "ls")] == ["cold"]


@pytest.mark.soak
def test_a_directory_is_a_store_and_one_that_is_not_the_same_is_told(stores: Stores, tmp_path: Path) -> None:
    first, second, _ = stores.nodes
    first.cli("store", "add", "nas", f"file://{tmp_path}", timeout_s=120)
    assert second.ask("store", "check", "nas", timeout_s=120)[0]["level"] == "ok"
    (tmp_path / "awsomefs").rename(tmp_path / "away")  # as where nothing is mounted
    assert "its marker is gone" in second.cli("store", "check", "nas", accept=(1,), timeout_s=120)
    (tmp_path / "away").rename(tmp_path / "awsomefs")
    second.cli("store", "detach", "nas")
    assert "there is no store 'nas'" in first.cli_error("store", "show", "nas") and (tmp_path / "awsomefs").exists()


@pytest.mark.soak
def test_a_prefix_of_another_cluster_is_refused_and_not_touched(stores: Stores) -> None:
    stores.bucket.objects["theirs/awsomefs"] = pack_marker(Marker(FOREIGN, 7))
    before = {name: body for name, body in stores.bucket.objects.items() if name.startswith("theirs/")}
    told = stores.add(stores.nodes[1], "theirs", "s3://bucket/theirs", accept=(1,))
    assert f"bad  marker: the prefix belongs to cluster {FOREIGN}" in told
    assert {name: body for name, body in stores.bucket.objects.items() if name.startswith("theirs/")} == before
    assert "theirs" not in [row["name"] for row in stores.nodes[0].ask("store", "ls")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "x", "ftp://x"), "s3://BUCKET/PREFIX"), (("add", "x", "s3://bucket/p"), "--access-key-file"),
        (("add", "x", "s3://bucket/p", "--access-key-file", "/nonexistent"), "No such file"),
        (("add", "x", "s3://bucket/p", "--role", "--access-key-file", "/x"), "exclude each other"),
        (("add", "x", "/tmp", "--rpo", "1s"), "10s to 7d"), (("add", "x", "/tmp", "--keep", "soon"), "such as \"10m\""),
        (("add", "x", "/tmp", "--ca-file", "/etc/hostname"), "certificates"), (("set", "cold"), "nothing to change"),
        (("set", "cold", "--proxy", "http://AK:pw@h:1"), "without credentials"), (("check", "none"), "stores: cold"),
        (("check", "cold", "--role"), "leave the options out"), (("add", "cold", "/tmp"), "exists already"),
        (("check", "/nonexistent/directory"), "mounted"), (("detach", "none"), "there is no store"),
    ],
)  # fmt: skip
def test_bad_input_is_answered_with_what_to_do(stores: Stores, words: tuple[str, ...], said: str) -> None:
    told = stores.nodes[2].cli_error("store", *words) if words[:2] != ("check", "/nonexistent/directory") else ""
    told = told or stores.nodes[2].cli("store", *words, accept=(1,))
    assert said in told and "Traceback" not in told and "pw" not in told


@pytest.mark.soak
def test_keys_are_changed_on_one_node_for_all(stores: Stores) -> None:
    first, second, third = stores.nodes
    assert "does not know this key" in second.cli_error("store", "set", "cold", "--access-key-file", stores.keys(second, "AKWRONG", SECRET))
    second.cli("store", "set", "cold", "--access-key-file", stores.keys(second, LATER_ID, LATER), timeout_s=60)
    del stores.bucket.keys[KEY_ID]
    third.cli("store", "set", "cold", "--region", "us-east-1", timeout_s=60)  # asks the store, with the keys of now
    stores.bucket.keys[KEY_ID] = SECRET
    first.cli("store", "set", "cold", "--access-key-file", "-", stdin=f"{KEY_ID}\n{SECRET}\n", timeout_s=60)
    assert {one["level"] for one in third.ask("store", "check", "cold", timeout_s=120)} == {"ok"}


def secret_places(stores: Stores, known: dict[int, bytes]) -> Iterator[tuple[str, bytes]]:
    """All that a node shows or keeps, but for the file that an operator wrote."""
    for node in stores.nodes[:1]:
        for words in (
            ("meta", "dump"), ("status", "-o", "json"), ("status", "-v"), ("store", "ls", "-o", "json"), ("store", "show", "cold"),
            ("store", "show", "cold", "-o", "json"), ("log", "follow", "--no-wait", "-o", "json"), ("events", "--no-wait"),
            ("node", "ls", "-o", "json"),
        ):  # fmt: skip
            yield " ".join(words), node.cli(*words, accept=(0, 3)).encode()
        bundle = node.directory / "bundle.tar.gz"
        node.cli("doctor", "--bundle", str(bundle), accept=(0, 3), timeout_s=120)
        with tarfile.open(bundle) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member)
                yield f"bundle {member.name}", file.read() if file is not None else b""
        bundle.unlink()
    for node in stores.nodes:
        for top in (node.state, node.run, node.log):
            yield from ((str(path), raw) for path, raw in contents(top))
    yield from ((f"process {pid}", raw) for pid, raw in known.items())


def test_no_secret_stands_anywhere(stores: Stores) -> None:
    """In no command line or environment while it is used, in no log, dump, stream, status or bundle, and in no file of the metadata."""
    first = stores.nodes[0]
    seen: dict[int, bytes] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for entry in Path("/proc").iterdir():
                if entry.name.isdecimal():
                    try:
                        raw = (entry / "cmdline").read_bytes()
                        if b"awsomefsd" in raw:
                            seen[int(entry.name)] = seen.get(int(entry.name), b"") + raw + (entry / "environ").read_bytes()
                    except OSError:
                        continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        stores.bucket.keys["AKWITHTOKEN"] = SECRET
        keys = stores.keys(first, "AKWITHTOKEN", SECRET, TOKEN)
        words = ("--endpoint", stores.bucket.endpoint, "--access-key-file", keys)
        first.cli("store", "add", "token", "s3://bucket/token", *words, timeout_s=120)
        first.cli("store", "set", "token", "--access-key-file", stores.keys(first), timeout_s=60)
        first.cli("store", "set", "token", "--access-key-file", stores.keys(first, "AKOFNOBODY", "of-a-refused-Pair+of=keys"), accept=(1,))
    finally:
        over.set()
        watcher.join()
    os.unlink(first.directory / "keys")
    assert any(b"store-work" in raw for raw in seen.values()), "the work at a store was seen"
    places = 0
    for place, raw in secret_places(stores, seen):
        places += 1
        for secret in (SECRET, TOKEN, LATER, "of-a-refused-Pair+of=keys"):
            assert secret.encode() not in raw, place
    assert places > 50
    first.cli("store", "detach", "token")


@pytest.mark.soak
def test_kills_in_the_middle_and_the_same_command_on_another_node(stores: Stores, seed: int) -> None:
    """A daemon or the child is killed at a moment of chance; then another node goes on.  No name has two contents (strict_store)."""
    dice = Random(seed)
    for number in range(3):
        kill_and_go_on(stores, f"killed-{number}", dice)


def kill_and_go_on(stores: Stores, name: str, dice: Random) -> None:
    node, other, third = (dice.choice(stores.nodes) for _ in range(3))
    end_at = len(stores.bucket.requests) + dice.randrange(25)
    words = ["store", "add", name, f"s3://bucket/{name}", "--endpoint", stores.bucket.endpoint, "--access-key-file", stores.keys(node)]
    silent = subprocess.DEVNULL
    running = subprocess.Popen([*node.command, *words], env=node.environment(), stdout=silent, stderr=silent)
    await_true("requests", lambda: len(stores.bucket.requests) >= end_at or running.poll() is not None, WAIT_S, 0.001)
    if dice.random() < 0.7:
        node.kill("daemon")
    else:
        for pid in work_of(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    running.wait(WAIT_S)
    stores.all_back()
    known = {row["name"]: row for row in other.ask("store", "ls")}
    if known.get(name, {}).get("state") != "active":
        stores.add(other, name, f"s3://bucket/{name}")
    assert {one["level"] for one in third.ask("store", "check", name, timeout_s=120)} == {"ok"}
    kept = [found for found in stores.bucket.objects if found.startswith(f"{name}/") and "/check-" not in found]
    assert kept == [f"{name}/awsomefs", f"{name}/{stores.eras}/1"]
    other.cli("store", "detach", name)


def work_of(node: Node) -> list[int]:
    return [pid for pid in procs.owned(str(node.directory)) if "store-work" in procs.words(pid)]


@pytest.mark.soak
def test_another_leader_has_the_stores_as_well(stores: Stores) -> None:
    before = stores.nodes[0].ask("store", "ls")
    stores.leader().kill("daemon")
    stores.all_back()
    for node in stores.nodes:
        assert node.ask("store", "ls") == before
        assert {one["level"] for one in node.ask("store", "check", "cold", timeout_s=120)} == {"ok"}
