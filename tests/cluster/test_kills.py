"""Voters as real processes, killed and damaged: nothing that was acknowledged is lost or done twice, and each comes back by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from awsomefsd.base.types import NODE_MOUNT_BIT
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.state import keys
from tests.bench.voter_load import Client
from tests.bench.voters import load
from tests.rigs.voter_daemons import Cluster, Daemon, awaited

WRITERS, KILLS, ACKS_BETWEEN_KILLS = 4, 3, 60
PAGE, LEAF = 4_096, 2  # of LMDB


class Writer(threading.Thread):
    """Creates one file after the other, each under one request id until it is answered, whoever leads."""

    def __init__(self, cluster: Cluster, mount: int, volume: int) -> None:
        super().__init__()
        self.cluster, self.mount, self.volume = cluster, mount, volume
        self.done: dict[bytes, int] = {}  # name → inode
        self.again = 0  # requests that were sent more than once
        self.wrong: list[m.Reply] = []
        self.ending = False
        self._numbers = 0

    def run(self) -> None:
        client: Client | None = None
        while not self.ending:
            name = b"%d-%d" % (self.mount, len(self.done))
            create = c.Create(self.volume, 1, name, 0o100644, 0, 0)
            body = m.Propose(len(self.done) + 1, 0, 0, [len(self.done)], create)
            sent = 0
            while name not in self.done and not self.wrong:
                try:
                    client = client or self._connect()
                    sent += 1
                    reply = client.ask(body)
                except OSError:
                    client = None
                    continue
                if isinstance(reply, m.Found):
                    self.done[name] = reply.attr.ino
                elif isinstance(reply, m.NotLeader) or (isinstance(reply, m.Failed) and reply.retry):
                    client = None
                else:
                    self.wrong.append(reply)
                    return
            self.again += sent > 1

    def _connect(self) -> Client:
        """To whoever leads, under a new number: what the older connections had sent is void."""
        leader = self.cluster.leader()
        self._numbers += 1
        client = Client(str(leader.socket), self.mount, self._numbers, 3)
        if not isinstance(client.greeting, m.Welcome):
            raise ConnectionError("leads no more")
        return client


def names_in(daemon: Daemon, volume: int) -> dict[bytes, int]:
    client = Client(str(daemon.socket), 0, 0, 30)
    found: dict[bytes, int] = {}
    after = 0
    with client.sock:
        while True:
            reply = client.ask(m.ReadDir(volume, 1, after, 512, False))
            assert isinstance(reply, m.Entries), reply
            if not reply.entries:
                return found
            found |= {entry.name: entry.ino for entry in reply.entries}
            after = reply.entries[-1].cookie


def make_volume(cluster: Cluster) -> int:
    cluster.create("vol")
    client = Client(str(cluster.leader().socket), 0, 0, 30)
    with client.sock:
        reply = client.ask(m.GetVolumes("vol"))
    assert isinstance(reply, m.Volumes)
    return reply.volumes[0].volume


def test_leaders_are_killed_under_load() -> None:
    with closing(Cluster(3)) as cluster:
        cluster.start()
        volume = make_volume(cluster)
        writers = [Writer(cluster, NODE_MOUNT_BIT | 100 + number, volume) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        try:
            for _ in range(KILLS):
                wanted = sum(len(writer.done) for writer in writers) + ACKS_BETWEEN_KILLS
                awaited("progress", lambda wanted=wanted: sum(len(writer.done) for writer in writers) >= wanted)
                leader = cluster.leader()
                leader.end()
                assert cluster.leader() is not leader
                leader.start()
        finally:
            for writer in writers:
                writer.ending = True
            for writer in writers:
                writer.join()
        assert not any(writer.wrong for writer in writers), [writer.wrong for writer in writers]
        assert sum(writer.again for writer in writers) > 0, "no request was ever repeated: nothing was tested"
        acknowledged = {name: ino for writer in writers for name, ino in writer.done.items()}
        cluster.level()
        assert names_in(cluster.leader(), volume) == acknowledged
        assert len(set(acknowledged.values())) == len(acknowledged)


@pytest.fixture(scope="module")
def large() -> Iterator[Cluster]:
    """Three voters; one was away while so much was written that the others do not have the log any more."""
    with closing(Cluster(3)) as cluster:
        cluster.start()
        away = follower(cluster)
        awaited("a follower", lambda: away.asked().get("leader") == cluster.leader().node)
        away.end()
        awaited("the leader to give it up", lambda: gone(cluster.leader(), away))
        load(cluster.leader().socket, "fill", 16, 700)
        load(cluster.leader().socket, "put", 64, 21_000)
        awaited("a short log", lambda: cluster.leader().asked().get("first_index", 0) > 1)
        away.start()
        yield cluster


def gone(leader: Daemon, away: Daemon) -> bool:
    """Longer than VOTER_DOUBT_MS: nothing is kept for it."""
    return leader.asked().get(f"silent_ms_{away.node}", 0) > 10_500


def follower(cluster: Cluster) -> Daemon:
    leader = cluster.leader()
    return next(daemon for daemon in cluster.running() if daemon is not leader)


def test_a_follower_catches_up_by_a_snapshot(large: Cluster) -> None:
    awaited("a snapshot", lambda: any(daemon.asked().get("snapshots_installed") for daemon in large.all))
    large.level()
    large.create("after")
    large.level()
    awaited("three voters", lambda: large.leader().asked().get("voters") == 3)


def test_a_damaged_state_is_rebuilt(large: Cluster) -> None:
    """A bit in every page with inodes: rows fail their checksums as they are used."""
    large.level()
    victim = follower(large)
    victim.end()
    path = victim.state / "meta" / "store" / "data.mdb"
    raw = bytearray(path.read_bytes())
    inodes = keys.kind_range(1, keys.INODE)[0]
    for page in range(2 * PAGE, len(raw), PAGE):
        if raw[page + 10] == LEAF and inodes in raw[page : page + PAGE]:
            raw[page + PAGE - 6] ^= 4  # in the value that was written first
    path.write_bytes(raw)
    victim.start()
    large.create("meanwhile")
    load(large.leader().socket, "put", 8, 2_000)
    awaited("set aside", lambda: list((victim.state / "meta").glob("store.aside.*")))
    awaited("a voter again", lambda: large.leader().asked().get("voters") == 3 and victim.asked().get("leader"))
    large.level()


def test_five_voters_outlive_two() -> None:
    with closing(Cluster(5)) as cluster:
        cluster.start()
        cluster.create("one")
        for dead in (cluster.leader(), follower(cluster)):
            dead.end()
        cluster.create("two")
        cluster.await_volumes("one", "two")
        for daemon in cluster.all:
            if daemon.process is None:
                daemon.start()
        cluster.level()
        awaited("five voters", lambda: cluster.leader().asked().get("voters") == 5)
