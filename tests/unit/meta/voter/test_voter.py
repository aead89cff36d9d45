"""Three voters in one process: real journals and stores, a network that is a list, and time that a test moves."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from awsomefsd.base.errors import NotLeading, RejoinRequired
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.raft.messages import Append, StateSnapshotChunk, VoteRequest
from awsomefsd.meta.raft.types import Config
from awsomefsd.meta.replica import replica as replica_module
from awsomefsd.meta.replica.open_voter import Setting, open_voter
from awsomefsd.meta.replica.replica import Replica, ReplicaOptions
from awsomefsd.meta.replica.state_snapshot_files import set_aside
from awsomefsd.meta.state import digest as digest_module
from awsomefsd.meta.voter import voter as voter_module
from awsomefsd.meta.voter.peer_messages import Acknowledged, Announce, decode_message, peer_encode
from awsomefsd.meta.voter.voter import Voter

CLUSTER = "cccccccc-0000-0000-0000-000000000000"
NODES = [f"{number}0000000-0000-0000-0000-000000000000" for number in range(1, 6)]
MS = 1_000_000


class Node:
    def __init__(self, rig: Rig, uuid: str) -> None:
        self.rig, self.uuid = rig, uuid
        self.directory = rig.directory / uuid[:2]
        self.replica: Replica | None = None
        self.voter: Voter | None = None
        self.anew = 0

    def send(self, node: str, message: Any) -> None:
        raw = peer_encode(message)
        if self.rig.passes(self.uuid, node, message):
            self.rig.wire.append((self.uuid, node, raw))

    def start(self) -> None:
        setting = Setting(
            self.directory, CLUSTER, self.uuid, 1, self.rig.nodes, boot_ns=self.rig.now, wall_ns=self.rig.now, dice=self.rig.rng.random
        )
        options = ReplicaOptions(journal_file_bytes=self.rig.file_bytes, map_bytes_min=1 << 22, commit_entries=50)
        self.replica, self.voter = open_voter(setting, lambda incarnation: self, Machine, options)

    def stop(self) -> None:
        if self.replica is not None:
            self.replica.close()
        self.replica = self.voter = None

    def turn(self, messages: list[tuple[str, bytes]]) -> list[tuple[c.Entry, Any]]:
        if self.replica is None or self.voter is None:
            return []
        try:
            self.voter.tick(self.rig.now_ns)
            for sender, raw in messages:
                self.voter.receive(sender, decode_message(raw))
            applied = self.replica.ready()
            self.replica.pass_time(0)
            return applied
        except RejoinRequired:
            self.anew += 1
            self.stop()
            set_aside(self.directory)
            self.start()
            return []


COPY_S = 60  # of real time at least, before something is said never to become so


class Rig:
    def __init__(self, directory: Path, seed: int, count: int = 3) -> None:
        self.directory = directory
        self.rng = random.Random(seed)
        self.now_ns = 1_000_000 * MS
        self.file_bytes = 64 << 10
        self.wire: list[tuple[str, str, bytes]] = []
        self.passes: Callable[[str, str, Any], bool] = lambda source, target, message: True
        self.nodes = {uuid: f"127.0.0.1:{number}" for number, uuid in enumerate(NODES[:count], 1)}
        self.all = {uuid: Node(self, uuid) for uuid in self.nodes}
        self.number = 0

    def now(self) -> int:
        return self.now_ns

    def start(self) -> None:
        for node in self.all.values():
            node.start()

    def turn(self) -> None:
        self.now_ns += 10 * MS
        wire, self.wire = self.wire, []
        for uuid, node in self.all.items():
            node.turn([(source, raw) for source, target, raw in wire if target == uuid])

    def until(self, so: Callable[[], Any], turns: int = 6_000) -> Any:
        turn, end = 0, time.monotonic() + COPY_S
        while turn < turns or time.monotonic() < end:
            if found := so():
                return found
            if turn > turns // 2:
                time.sleep(0.001)  # turns take no time, a copy of the state on its thread does
            self.turn()
            turn += 1
        raise AssertionError(f"it never became so: {[node.voter and node.voter.figures() for node in self.all.values()]}")

    def leader(self) -> Node | None:
        return next((node for node in self.all.values() if node.voter is not None and node.voter.leading), None)

    def led(self) -> Node:
        found: Node = self.until(self.leader)
        return found

    def propose(self, count: int) -> int:
        """Committed by whoever leads; the newest index."""
        while count:
            node = self.led()
            piece = min(count, 100)
            batch = []
            for _ in range(piece):
                self.number += 1
                name = f"r{self.number % 7}"
                command = c.RegisterReader(name, 1) if self.number % 5 else c.AdvanceReader(name, self.number)
                batch.append(c.Entry(0, 0, 1, 0, 1, self.number << 16, 0, 0, HOST_UNIQUE, 0, 0, [], command))
            node.voter.propose(batch)
            self.until(lambda node=node, last=batch[-1].index: node.replica is not None and node.replica.machine.applied_index >= last)
            count -= piece
        return batch[-1].index

    def same(self) -> bool:
        """All that run have applied the same entries and hold the same rows."""
        running = [node for node in self.all.values() if node.replica is not None]
        if len({node.replica.machine.applied_index for node in running}) != 1:
            return False
        for node in running:
            node.replica.machine.flush()
        rows = [list(node.replica.store.scan(b"", b"\xff" * 8)) for node in running]
        assert all(one == rows[0] for one in rows)
        assert len({node.replica.store.digest for node in running}) == 1
        return True

    def others(self, node: Node) -> list[Node]:
        return [other for other in self.all.values() if other is not node]


@pytest.fixture
def rig(tmp_path: Path, seed: int) -> Iterator[Rig]:
    made = Rig(tmp_path, seed)
    yield made
    for node in made.all.values():
        node.stop()


def voters(node: Node) -> set[str]:
    return set(node.voter._raft.membership.voters())


def test_three_fresh_journals_found_one_cluster(rig: Rig) -> None:
    rig.start()
    leader = rig.led()
    assert len(voters(leader)) == 3
    first = c.entry_decode(leader.voter._journal.read(1, 1)[0])
    assert isinstance(first.command, c.ChangeMembership)
    rig.propose(300)
    rig.until(rig.same)
    assert all(node.voter.leader == leader.uuid for node in rig.all.values())
    with pytest.raises(NotLeading) as refused:
        rig.others(leader)[0].voter.propose([])
    assert refused.value.leader == leader.uuid
    with pytest.raises(NotLeading):
        rig.others(leader)[0].voter.request_read()


def test_two_of_three_found_nothing(rig: Rig) -> None:
    for uuid in NODES[:2]:
        rig.all[uuid].start()
    for _ in range(1_000):
        rig.turn()
    assert rig.leader() is None and all(node.voter.committed == 0 for node in rig.all.values() if node.voter)


def test_one_voter_founds_alone(tmp_path: Path, seed: int) -> None:
    rig = Rig(tmp_path, seed, 1)
    rig.start()
    rig.propose(10)
    node = rig.led()
    ticket = node.voter.request_read()
    rig.until(lambda: node.voter.reads_confirmed() >= ticket)
    node.stop()


def test_reads_wait_for_a_quorum(rig: Rig) -> None:
    rig.start()
    leader = rig.led()
    ticket = leader.voter.request_read()
    before = rig.now_ns
    rig.until(lambda: leader.voter.reads_confirmed() >= ticket)
    assert leader.voter.quorum_contact_ns() >= before
    rig.passes = lambda source, target, message: leader.uuid not in (source, target)
    ticket = leader.voter.request_read()
    rig.until(lambda: not leader.voter.leading)
    assert leader.voter.reads_confirmed() < ticket


def test_a_leader_dies_and_comes_back(rig: Rig) -> None:
    rig.start()
    rig.propose(120)
    old = rig.led()
    old.stop()
    rig.propose(200)
    assert rig.led() is not old
    old.start()
    rig.until(rig.same)
    for node in rig.all.values():
        node.stop()
    rig.start()
    rig.propose(10)
    rig.until(rig.same)


def test_a_cut_off_leaders_entries_are_replaced(rig: Rig) -> None:
    rig.start()
    rig.propose(5)
    old = rig.led()
    rig.passes = lambda source, target, message: old.uuid not in (source, target)
    batch = [c.Entry(0, 0, 1, 0, 1, 0, 0, 0, HOST_UNIQUE, 0, 0, [], c.RegisterReader(f"lost{n}", 0)) for n in range(20)]
    old.voter.propose(batch)
    rig.until(lambda: not old.voter.leading)
    assert old.voter._journal.last_index >= batch[-1].index
    rig.until(lambda: any(node.voter.leading for node in rig.others(old)))
    rig.propose(3)
    rig.passes = lambda source, target, message: True
    rig.until(rig.same)
    assert not any(name.startswith("lost") for name in old.replica.machine.reader_cursors())


@contextlib.contextmanager
def short_logs() -> Iterator[None]:
    few = {"VOTER_KEEP_ENTRIES": 20, "VOTER_KEEP_ENTRIES_MAX": 100, "Config": partial(Config, cache_entries_max=10, chunk_bytes=4_096)}
    with mock.patch.multiple(voter_module, **few):
        yield


@pytest.fixture
def short_log() -> Iterator[None]:
    with short_logs():
        yield


def forget_the_past(rig: Rig) -> None:
    """Nothing is kept for readers, nor for a follower that has been silent for so long."""
    rig.propose(1_000)
    for name in range(7):
        rig.led().voter.propose([c.Entry(0, 0, 1, 0, 1, 0, 0, 0, HOST_UNIQUE, 0, 0, [], c.RemoveReader(f"r{name}"))])
    for _ in range(1_100):
        rig.turn()
    last = rig.number
    while any(node.voter.first_index < 1_000 for node in rig.all.values() if node.voter):
        rig.number += 5 - rig.number % 5  # AdvanceReader of nobody, which keeps nothing
        batch = [c.Entry(0, 0, 1, 0, 1, 0, 0, 0, HOST_UNIQUE, 0, 0, [], c.AdvanceReader("nobody", last)) for _ in range(100)]
        rig.led().voter.propose(batch)
        for _ in range(10):
            rig.turn()


def left_far_behind(rig: Rig) -> tuple[Node, bytes]:
    """Starts with a follower that lacks entries which the others dropped (with short logs).  Returns it and its incarnation."""
    rig.file_bytes = 16 << 10
    rig.start()
    rig.propose(50)
    late = rig.others(rig.led())[0]
    incarnation = late.voter._journal.incarnation
    late.stop()
    forget_the_past(rig)
    late.start()
    return late, incarnation


@pytest.mark.usefixtures("short_log")
def test_a_follower_far_behind_gets_a_snapshot(rig: Rig) -> None:
    late, incarnation = left_far_behind(rig)
    assert all(node.voter.first_index > late.voter.committed + 1 for node in rig.others(late))
    seen = []

    def passes(source: str, target: str, message: Any) -> bool:
        if isinstance(message, StateSnapshotChunk):
            seen.append(message.offset)
            return rig.rng.random() < 0.6
        return True

    rig.passes = passes
    rig.until(rig.same)
    assert late.voter.state_snapshots.installs == 1 and seen
    assert late.voter._journal.incarnation == incarnation
    late.stop()
    late.start()
    rig.propose(5)
    rig.until(rig.same)


class Killed(BaseException):
    """The process ends here."""


def test_killed_between_the_state_of_a_snapshot_and_the_journal_behind_it(rig: Rig) -> None:
    """The journal follows the state at the next start; nothing is set aside, and the voter is the member that it was."""
    with short_logs():
        late, incarnation = left_far_behind(rig)
        with mock.patch.object(late.replica._exchange, "finish", side_effect=Killed), pytest.raises(Killed):
            rig.until(lambda: False)
        index = late.replica.machine.applied_index
        assert late.voter._journal.last_index < index
        late.stop()
        late.start()
        journal = late.voter._journal
        assert (journal.incarnation, journal.first_index) == (incarnation, index + 1)
        rig.propose(5)
        rig.until(rig.same)
    assert not late.anew


@pytest.mark.usefixtures("short_log")
def test_a_snapshot_with_a_wrong_byte_is_not_installed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.file_bytes = 16 << 10
    rig.start()
    rig.propose(50)
    late = rig.others(rig.led())[0]
    late.stop()
    forget_the_past(rig)
    late.start()
    bad = [1]
    write = type(late.voter.state_snapshots._files).write

    def damaging(self, chunk):
        if bad[0] and self is late.voter.state_snapshots._files:
            bad[0] -= 1
            chunk.data = bytes([chunk.data[0] ^ 1]) + chunk.data[1:]
        write(self, chunk)

    monkeypatch.setattr(type(late.voter.state_snapshots._files), "write", damaging)
    rig.until(rig.same)
    assert bad[0] == 0 and late.voter.state_snapshots.installs == 1


def test_a_lost_journal_comes_back_as_another_member(rig: Rig) -> None:
    rig.start()
    rig.propose(50)
    victim = rig.others(rig.led())[0]
    old_id = victim.voter._id
    victim.stop()
    shutil.rmtree(victim.directory / "journal")
    rig.propose(20)
    victim.start()
    assert victim.voter._id != old_id
    rig.until(lambda: victim.voter._id in voters(rig.led()) and len(voters(rig.led())) == 3 and old_id not in voters(rig.led()))
    rig.until(rig.same)


def test_what_a_follower_heard_long_ago_takes_no_journal_out_when_it_leads(rig: Rig) -> None:
    """It heard the first journal of the victim at the founding, and nothing of the one that the leader took in since."""
    rig.start()
    rig.propose(50)
    leader = rig.led()
    victim, heir = rig.others(leader)
    old_id = victim.voter._id
    victim.stop()
    shutil.rmtree(victim.directory / "journal")
    rig.passes = lambda source, target, message: not isinstance(message, Announce) or target != heir.uuid
    victim.start()
    rig.until(lambda: victim.voter._id in voters(leader) and old_id not in voters(leader) and len(voters(leader)) == 3)
    members = voters(leader)
    while rig.leader() is not heir:
        if (leader := rig.leader()) is not None:
            leader.voter._raft.transfer(heir.voter._id)
        for _ in range(150):
            rig.turn()
    for _ in range(100):
        rig.turn()
        assert heir.voter._raft.membership.ids() == members
    rig.until(rig.same)


def test_one_that_was_taken_out_and_not_told_comes_back(rig: Rig) -> None:
    rig.start()
    rig.propose(5)
    leader = rig.led()
    victim = rig.others(leader)[0]
    rig.passes = lambda source, target, message: victim.uuid not in (source, target)
    leader.voter._raft.propose_membership([each for each in leader.voter._raft.membership.members if each.id != victim.voter._id])
    rig.until(lambda: victim.voter._id not in leader.voter._raft.membership.ids())
    rig.passes = lambda source, target, message: True
    rig.until(lambda: victim.voter._id in voters(rig.led()))
    rig.until(rig.same)


def test_a_damaged_journal_too(rig: Rig) -> None:
    rig.start()
    rig.propose(200)
    victim = rig.others(rig.led())[0]
    old_id = victim.voter._id
    victim.stop()
    path = max((victim.directory / "journal").glob("*.journal"))
    raw = bytearray(path.read_bytes())
    raw[5_000] ^= 1
    path.write_bytes(raw)
    victim.start()
    assert victim.voter._id != old_id and list(victim.directory.glob("journal.aside.*"))
    rig.until(lambda: victim.voter._id in voters(rig.led()))
    rig.until(rig.same)


def test_a_store_that_is_gone_is_built_from_the_log(rig: Rig) -> None:
    rig.start()
    rig.propose(200)
    victim = rig.others(rig.led())[0]
    old_id = victim.voter._id
    victim.stop()
    shutil.rmtree(victim.directory / "store")
    victim.start()
    assert victim.voter._id == old_id
    rig.until(rig.same)


def test_an_end_that_was_acknowledged_and_is_gone_ends_the_membership(rig: Rig) -> None:
    """The last batch of a follower is damaged: it looks like a torn write, but a leader knows better."""
    rig.start()
    rig.propose(30)  # no commit of the store yet: that would prove the loss at once
    rig.until(rig.same)
    leader = rig.led()
    victim = rig.others(leader)[0]
    victim.stop()
    journal = victim.directory / "journal"
    path = max(journal.glob("*.journal"))
    raw = path.read_bytes().rstrip(b"\0")
    damaged = bytearray(path.read_bytes())
    damaged[len(raw) - 3] ^= 1
    path.write_bytes(damaged)
    victim.start()
    assert victim.voter._journal.torn
    rig.until(lambda: victim.anew == 1)
    rig.until(lambda: victim.voter._id in voters(rig.led()))
    rig.until(rig.same)


def test_a_journal_in_doubt_does_not_vote(rig: Rig) -> None:
    rig.start()
    rig.propose(5)
    node = rig.others(rig.led())[0]
    node.voter._doubt_until_ns = rig.now_ns + 3_600_000 * MS
    seen = []
    rig.passes = lambda source, target, message: not seen.append((source, message))
    request = VoteRequest(rig.led().voter._id, node.voter._id, 99, 10_000, 99, 0, transfer=True)
    node.voter.receive(rig.led().uuid, request)
    node.turn([])
    assert not any(source == node.uuid for source, _ in seen)


def test_doubt_does_not_end_by_what_was_refused(rig: Rig) -> None:
    """A leader that takes the lost end for there sends what follows it: that it is refused confirms nothing."""
    rig.start()
    last = rig.propose(5)
    rig.until(rig.same)
    leader = rig.led().voter
    node = next(one for one in rig.others(rig.led()))
    raft = node.voter._raft
    rig.passes = lambda source, target, message: False
    node.voter._doubt_until_ns = rig.now_ns + 3_600_000 * MS
    beyond = Append(leader._id, node.voter._id, raft.term, last + 2, raft.term, raft.commit, [])
    node.voter.receive(rig.led().uuid, beyond)
    assert node.voter.figures()["journal_in_doubt"] == 1
    fits = Append(leader._id, node.voter._id, raft.term, last, raft.log.last_term, raft.commit, [])
    node.voter.receive(rig.led().uuid, fits)
    assert node.voter.figures()["journal_in_doubt"] == 0


def test_old_news_of_what_was_acknowledged_prove_nothing(rig: Rig) -> None:
    rig.start()
    last = rig.propose(5)
    leader = rig.led()
    node = rig.others(leader)[0]
    rig.until(rig.same)
    node.voter.receive(leader.uuid, Acknowledged(node.voter._id, leader.voter.term, last))
    node.voter.receive(leader.uuid, Acknowledged(node.voter._id, leader.voter.term - 1, last + 100))
    node.voter.receive(leader.uuid, Acknowledged("other", leader.voter.term, last + 100))
    with pytest.raises(RejoinRequired):
        node.voter.receive(leader.uuid, Acknowledged(node.voter._id, leader.voter.term, last + 100))


def test_a_diverged_follower_is_found_and_rebuilt(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "DIGEST_ENTRIES", 64)
    rig.start()
    rig.propose(100)
    rig.until(rig.same)
    leader = rig.led()
    victim = rig.others(leader)[0]
    victim.replica.store.put(b"\x00\x00\x00\x00\x00\x00\xf0stray", b"row")
    rig.propose(200)
    rig.until(lambda: victim.anew == 1)
    assert leader.voter.figures()["members_diverged"] >= 1
    rig.until(lambda: victim.voter._id in voters(rig.led()))
    rig.propose(100)
    rig.until(rig.same)
    assert leader.voter.figures()["digests_compared"] > 0
    assert digest_module.digest_of(victim.replica.store.scan(b"", b"\xff" * 8)) > 0


def test_a_diverged_leader_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "DIGEST_ENTRIES", 64)
    rig.start()
    rig.propose(100)
    rig.until(rig.same)
    leader = rig.led()
    leader.replica.store.put(b"\x00\x00\x00\x00\x00\x00\xf0stray", b"row")
    try:
        rig.propose(200)
    except AttributeError:
        pass  # it went away in the middle of a proposal
    rig.until(lambda: leader.anew == 1)
    rig.until(lambda: leader.voter._id in voters(rig.led()))
    rig.until(rig.same)


def test_full_disk_makes_a_voter_silent_not_wrong(rig: Rig) -> None:
    rig.start()
    rig.propose(20)
    leader = rig.led()
    journal = leader.voter._journal
    room = journal._make_room

    def full(length: int) -> None:
        raise voter_module.JournalFull("no room")

    journal._make_room = full
    leader.voter.propose([c.Entry(0, 0, 1, 0, 1, 0, 0, 0, HOST_UNIQUE, 0, 0, [], c.AdvanceReader("nobody", 1))])
    rig.until(lambda: any(node.voter.leading for node in rig.others(leader)))
    journal._make_room = room
    rig.propose(20)
    rig.until(rig.same)


def test_a_disk_that_is_full_in_the_middle_of_a_batch_loses_none_of_it(rig: Rig) -> None:
    """A batch larger than a journal file is written in pieces; only the first of them finds room, the others are written later."""
    rig.start()
    rig.propose(20)
    leader = rig.led()
    journal = leader.voter._journal
    room = journal._make_room
    pieces = []

    def full_after_one(length: int) -> None:
        if pieces:
            raise voter_module.JournalFull("no room")
        room(length)
        pieces.append(length)

    journal._make_room = full_after_one
    commands = [c.RegisterReader("x" * 1_000, 1) for _ in range(100)]
    batch = [c.Entry(0, 0, 1, 0, 1, 0, 0, 0, HOST_UNIQUE, 0, 0, [], command) for command in commands]
    leader.voter.propose(batch)
    rig.until(lambda: leader.voter._unstored is not None)
    assert batch[0].index <= journal.last_index < batch[-1].index
    journal._make_room = room
    rig.until(lambda: leader.voter._unstored is None)
    assert journal.last_index >= batch[-1].index
    rig.propose(20)
    rig.until(rig.same)
