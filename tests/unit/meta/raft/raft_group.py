"""A small Raft group over logs in memory and a network that a test bends: what the golden transcripts and the random test drive.

The production core runs unchanged; here is only the loop of meta/raft/types.py.  Invariants are checked after every step (`check`).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable

from awsomefsd.meta.raft import messages as m
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.raft.messages import LogEntry, StateSnapshot, raft_decode, raft_encode
from awsomefsd.meta.raft.raft import Raft
from awsomefsd.meta.raft.types import Config, HardState, MembershipAt, Ready, Role

MARK = b"\x00members"


class TextEntries:
    """types.EntryCodec, readable."""

    def noop(self, index: int, term: int) -> bytes:
        return b"noop"

    def membership(self, index: int, term: int, membership: Membership) -> bytes:
        return MARK + raft_encode(membership)

    def membership_of(self, payload: bytes) -> Membership | None:
        import msgspec

        return msgspec.msgpack.decode(payload[len(MARK) :], type=Membership) if payload.startswith(MARK) else None


class MemLog:
    """The durable log of a node: types.LogView, and the writes."""

    def __init__(self) -> None:
        self.base = (0, 0)
        self.rows: list[LogEntry] = []

    @property
    def first_index(self) -> int:
        return self.base[0] + 1

    @property
    def last_index(self) -> int:
        return self.base[0] + len(self.rows)

    def term(self, index: int) -> int | None:
        if index == self.base[0]:
            return self.base[1]
        return self.rows[index - self.first_index][1] if self.first_index <= index <= self.last_index else None

    def entries(self, start: int, bytes_max: int) -> list[LogEntry]:
        found: list[LogEntry] = []
        if start < self.first_index:
            return found
        for row in self.rows[start - self.first_index :]:
            if found and bytes_max < len(row[2]):
                break
            bytes_max -= len(row[2])
            found.append(row)
        return found

    def truncate_after(self, index: int) -> None:
        assert self.base[0] <= index
        del self.rows[index - self.base[0] :]

    def append(self, rows: list[LogEntry]) -> None:
        assert rows[0][0] == self.last_index + 1
        self.rows += rows

    def compact(self, index: int) -> None:
        """Entries up to `index` go."""
        term = self.term(index)
        assert term is not None
        del self.rows[: index - self.base[0]]
        self.base = (index, term)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    meta: StateSnapshot
    data: bytes


class RigNode:
    """One journal of a node.  What is durable: log, hard state, applied entries (the state) and the membership in it."""

    def __init__(self, rig: Rig, member: Member, membership: Membership) -> None:
        self.rig = rig
        self.id = member.id
        self.log = MemLog()
        self.hard_state = HardState(0, "")
        self.state: list[LogEntry] = []
        self.membership = MembershipAt(0, membership)
        self.snapshots: dict[str, Snapshot] = {}
        self.incoming = b""
        self.reads: list[tuple[int, int]] = []
        self.reads_lost: list[int] = []
        self.state_snapshot_wanted = 0
        self.refuse_installs = False
        self.alive = False
        self.start()

    @property
    def applied(self) -> int:
        return self.state[-1][0] if self.state else 0

    def start(self) -> None:
        config = Config(self.id, self.rig.dice(self.id), **self.rig.config)
        self.raft = self.rig.raft(config, self.log, TextEntries(), self.hard_state, self.applied, self.membership, self.rig.now)
        self.alive = True

    # --- the loop of meta/raft/types.py -----------------------------------------------------------------------------------------
    def turn(self, crash_after: str = "") -> None:
        """One Ready; `crash_after` names the step behind which the node dies."""
        ready = self.raft.ready()
        self.rig.saw(self, ready)
        self._send(ready.messages)
        if crash_after == "send":
            self.alive = False
            return
        self._store(ready)
        if crash_after == "store":
            self.alive = False
            return
        self._send(ready.messages_after_store)
        if ready.entries:
            self.raft.stored(ready.entries[-1][0], ready.entries[-1][1])
        if ready.install is not None:
            self._install(ready.install)
        self._apply(ready)

    def _send(self, messages: Iterable[m.AnyRaftMessage]) -> None:
        for message in messages:
            if isinstance(message, m.StateSnapshotChunk):
                data = self.snapshots[message.meta.name].data
                message.data = data[message.offset : message.offset + message.length]
            self.rig.sent(message)

    def _store(self, ready: Ready) -> None:
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.truncate_after is not None:
            self.log.truncate_after(ready.truncate_after)
        if ready.entries:
            self.log.append(ready.entries)
        for chunk in ready.chunks:
            self.incoming = (self.incoming if chunk.offset else b"") + chunk.data
            assert len(self.incoming) == chunk.offset + chunk.length

    def _install(self, meta: StateSnapshot) -> None:
        assert len(self.incoming) == meta.size
        if self.refuse_installs:
            self.raft.state_snapshot_refused(meta)
            return
        self.state = unpack(self.incoming)
        self.membership = MembershipAt(meta.membership_index, meta.membership)
        self.log.base, self.log.rows = (meta.index, meta.term), []
        self.raft.state_snapshot_installed(meta)

    def _apply(self, ready: Ready) -> None:
        for entry in ready.committed:
            assert entry[0] == self.applied + 1
            assert entry[0] <= self.log.last_index, "only what is stored is applied"
            self.state.append(entry)
            if (membership := TextEntries().membership_of(entry[2])) is not None:
                self.membership = MembershipAt(entry[0], membership)
        if ready.committed:
            self.raft.applied(self.applied)
        self.reads += ready.reads
        self.reads_lost += ready.reads_lost
        self.state_snapshot_wanted = max(self.state_snapshot_wanted, ready.state_snapshot_wanted)

    # --- snapshots ------------------------------------------------------------------------------------------------------------
    def make_state_snapshot(self) -> StateSnapshot:
        data = pack(self.state)
        name = f"{self.id}@{self.applied}"
        at = self.membership
        meta = StateSnapshot(self.applied, self.state[-1][1], at.membership, at.index, len(data), name)
        self.snapshots[name] = Snapshot(meta, data)
        self.state_snapshot_wanted = 0
        self.raft.state_snapshot_made(meta)
        return meta


def pack(state: list[LogEntry]) -> bytes:
    return raft_encode(state)


def unpack(data: bytes) -> list[LogEntry]:
    import msgspec

    return msgspec.msgpack.decode(data, type=list[LogEntry])


class Rig:
    """`members`: "a b c" are voters, "+d" is there and a member of nothing yet."""

    def __init__(self, members: str = "a b c", seed: int = 0, raft: type[Raft] = Raft, **config: int) -> None:
        self.random = random.Random(seed)
        self.config = config
        self.raft = raft
        self.now = 0
        self.network: list[m.AnyRaftMessage] = []
        self.nodes: dict[str, RigNode] = {}
        self.dice_of: dict[str, float] = {}
        self.leaders: dict[int, str] = {}
        self.committed: dict[int, LogEntry] = {}
        self.on_sent: Callable[[m.AnyRaftMessage], None] = lambda message: None
        self.on_ready: Callable[[RigNode, Ready], None] = lambda node, ready: None
        voters = Membership([Member(name, "1", True) for name in members.split() if name[0] != "+"])
        for name in members.split():
            self.add(name.lstrip("+"), "1", Membership() if name[0] == "+" else voters)

    def add(self, name: str, incarnation: str = "1", membership: Membership | None = None) -> RigNode:
        """A node with an empty journal, in the place of the one of that name."""
        node = RigNode(self, Member(name, incarnation, False), membership or Membership())
        self.nodes[name] = node
        return node

    def dice(self, member_id: str) -> Callable[[], float]:
        """Fixed numbers where a test gives them, others from the seed."""
        return lambda: self.dice_of[member_id[0]] if member_id[0] in self.dice_of else self.random.random()

    def sent(self, message: m.AnyRaftMessage) -> None:
        self.on_sent(message)
        self.network.append(raft_decode(raft_encode(message)))

    def saw(self, node: RigNode, ready: Ready) -> None:
        self.on_ready(node, ready)

    def node_for(self, member_id: str) -> RigNode | None:
        node = self.nodes.get(member_id.partition("/")[0])
        return node if node is not None and node.alive else None

    def deliver(self, message: m.AnyRaftMessage) -> None:
        """To whoever runs under that name now; it tells for itself whether it is meant."""
        if (node := self.node_for(message.to)) is not None:
            node.raft.tick(self.now)
            node.raft.step(message)

    def pump(self) -> None:
        for node in self.nodes.values():
            while node.alive and node.raft.has_ready():
                node.turn()
        self.check()

    def settle(self, passes: Callable[[m.AnyRaftMessage], bool] = lambda message: True) -> None:
        """Deliver until nothing is said any more."""
        self.pump()
        while self.network:
            message = self.network.pop(0)
            if passes(message):
                self.deliver(message)
            self.pump()

    def advance(self, ms: int, step: int = 50, passes: Callable[[m.AnyRaftMessage], bool] = lambda message: True) -> None:
        end = self.now + ms
        while self.now < end:
            self.now = min(self.now + step, end)
            for node in self.nodes.values():
                if node.alive:
                    node.raft.tick(self.now)
            self.settle(passes)

    def leader(self) -> RigNode | None:
        """The one with the largest term."""
        found = [node for node in self.nodes.values() if node.alive and node.raft.role is Role.LEADER]
        return max(found, key=lambda node: node.raft.term, default=None)

    def elect(self, name: str) -> RigNode:
        """Make `name` the leader by its clock alone."""
        node = self.nodes[name]
        node.raft.member.election_at_ms = self.now
        node.raft.tick(self.now)
        self.settle()
        assert node.raft.role is Role.LEADER, node.raft.role
        return node

    # --- invariants -----------------------------------------------------------------------------------------------------------
    def check(self) -> None:
        for node in self.nodes.values():
            if not node.alive:
                continue
            if node.raft.role is Role.LEADER:
                assert self.leaders.setdefault(node.raft.term, node.id) == node.id, f"two leaders in term {node.raft.term}"
            self._check_state(node)
        self._check_logs()

    def _check_state(self, node: RigNode) -> None:
        """State machine safety; and a leader has everything that was ever applied anywhere (leader completeness)."""
        for entry in reversed(node.state):
            if self.committed.setdefault(entry[0], entry) == entry and entry[0] + 1 in self.committed and entry[0] < node.applied - 8:
                break
            assert self.committed[entry[0]] == entry, f"{node.id} applied {entry}, somebody else {self.committed[entry[0]]}"
        if node.raft.role is Role.LEADER and node.raft.term == max(self.leaders) and self.committed:
            last = max(self.committed)
            assert node.raft.last_index >= last, f"{node.id} leads without entry {last}"
            for index in range(max(node.raft.log.first_index, last - 8), last + 1):
                assert node.raft.log.term(index) == self.committed[index][1], f"{node.id} leads with another entry {index}"

    def _check_logs(self) -> None:
        """Log matching, of what is stored."""
        logs = [node.log for node in self.nodes.values()]
        for number, one in enumerate(logs):
            for other in logs[number + 1 :]:
                first = max(one.first_index, other.first_index)
                last = min(one.last_index, other.last_index)
                while last >= first and one.term(last) != other.term(last):
                    last -= 1
                if last >= first:
                    start = max(first, last - 20)
                    mine = one.rows[start - one.first_index : last + 1 - one.first_index]
                    assert mine == other.rows[start - other.first_index : last + 1 - other.first_index], "equal terms, different logs"
