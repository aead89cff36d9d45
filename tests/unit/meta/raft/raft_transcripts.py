"""Conversations of a Raft group as text: raft_group.py with every message and every effect written down.

    > what the test does            a → b  a message that arrived            a ✗ b  one that was lost
    a: what the node does with it (roles, what it stores, applies, answers), in the order of its Ready

Entries are index@term.  Heartbeats and their replies are left out unless a conversation is about them.
"""

from __future__ import annotations

from collections.abc import Callable

from awsomefsd.meta.raft import messages as m
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.raft.types import Ready, Role
from tests.unit.meta.raft.raft_group import MARK, Rig, RigNode, TextEntries

DICE = {"a": 0.1, "b": 0.5, "c": 0.9, "d": 0.95, "e": 0.99}


def who(member_id: str) -> str:
    """ "a" for the first journal of a, "a/2" for the second."""
    return member_id.removesuffix("/1")


def describe(membership: Membership) -> str:
    def half(members: list[Member]) -> str:
        return " ".join(who(member.id) + ("" if member.voter else "?") for member in members)

    return half(membership.members) + (f" and of {half(membership.outgoing)}" if membership.joint else "")


def entry(row: m.LogEntry) -> str:
    membership = TextEntries().membership_of(row[2])
    text = f"[{describe(membership)}]" if membership is not None else row[2].decode()
    return f"{row[0]}@{row[1]} {text}"


def entries(rows: list[m.LogEntry]) -> str:
    if len(rows) > 4 and not any(row[2].startswith(MARK) for row in rows):
        return f"{entry(rows[0])} … {entry(rows[-1])}"
    return ", ".join(map(entry, rows))


def text_of(message: m.AnyRaftMessage) -> str:
    term = f"term {message.term}"
    match message:
        case m.Append():
            what = f"entries {entries(message.entries)}" if message.entries else "no entries"
            return f"Append {term}: after {message.previous_index}@{message.previous_term} {what}; commit {message.commit}"
        case m.AppendReply():
            if message.refused:
                return f"AppendReply {term}: no match at {message.index}, try {message.hint_index}@{message.hint_term}"
            return f"AppendReply {term}: have {message.index}"
        case m.Heartbeat():
            return f"Heartbeat {term}: round {message.round}, commit {message.commit}"
        case m.HeartbeatReply():
            return f"HeartbeatReply {term}: round {message.round}"
        case m.VoteRequest():
            kind = "PreVote" if message.pre else "Vote"
            return f"{kind}Request {term}: last {message.last_index}@{message.last_term}" + (" (transfer)" if message.transfer else "")
        case m.VoteReply():
            return f"{'PreVote' if message.pre else 'Vote'}Reply {term}: {'yes' if message.granted else 'no'}"
        case m.TimeoutNow():
            return f"TimeoutNow {term}"
        case m.StateSnapshotChunk():
            return f"SnapshotChunk {term}: {message.meta.name}, {message.length} of {message.meta.size} bytes at {message.offset}"
        case m.StateSnapshotReply():
            return f"SnapshotReply {term}: {message.name}, {'refused, ' if message.refused else ''}next {message.offset}"


class Talk(Rig):
    def __init__(self, members: str = "a b c", beats: bool = False, **config: int) -> None:
        self.lines: list[str] = []
        self.roles: dict[str, tuple[str, int]] = {}
        self.beats = beats
        self.apart: list[set[str]] = []
        self.lost: Callable[[m.AnyRaftMessage], bool] = lambda message: False
        super().__init__(members, **config)
        self.dice_of = dict(DICE)
        for node in self.nodes.values():
            node.start()
        self.on_ready = self.tell_ready
        self.pump()

    def say(self, text: str) -> None:
        self.lines.append(f"> {text}")

    def line(self, node: RigNode, text: str) -> None:
        self.lines.append(f"{who(node.id)}: {text}")

    # --- what happens -----------------------------------------------------------------------------------------------------
    def tell_ready(self, node: RigNode, ready: Ready) -> None:
        raft = node.raft
        if self.roles.get(node.id, ("follower", 0)) != (raft.role.value, raft.term):
            self.roles[node.id] = (raft.role.value, raft.term)
            self.line(node, f"{raft.role.value} in term {raft.term}")
        if ready.membership is not None and (ready.membership.index or raft.role is Role.LEADER):
            self.line(node, f"the members are {describe(ready.membership.membership)}")
        if ready.hard_state is not None:
            self.line(node, f"stores term {ready.hard_state.term}, vote {who(ready.hard_state.vote) or '-'}")
        if ready.truncate_after is not None:
            self.line(node, f"cuts off everything after {ready.truncate_after}")
        if ready.entries:
            self.line(node, f"stores {entries(ready.entries)}")
        if ready.chunks:
            self.line(node, f"writes {sum(chunk.length for chunk in ready.chunks)} bytes of a snapshot at {ready.chunks[0].offset}")
        if ready.install is not None:
            self.line(node, f"{'refuses' if node.refuse_installs else 'installs'} the snapshot {ready.install.name}")
        if ready.committed:
            self.line(node, f"applies {entries(ready.committed)}")
        for ticket, index in ready.reads:
            self.line(node, f"may answer read {ticket} at {index}")
        for ticket in ready.reads_lost:
            self.line(node, f"cannot answer read {ticket}")
        if ready.state_snapshot_wanted:
            self.line(node, f"wants a snapshot of {ready.state_snapshot_wanted} or later")

    def passes(self, message: m.AnyRaftMessage) -> bool:
        one, other = message.sender[0], message.to[0]
        return not self.lost(message) and not any((one in side) != (other in side) for side in self.apart)

    def arrive(self, message: m.AnyRaftMessage) -> bool:
        there = self.passes(message) and self.node_for(message.to) is not None
        if self.beats or not isinstance(message, (m.Heartbeat, m.HeartbeatReply)):
            self.lines.append(f"{who(message.sender)} {'→' if there else '✗'} {who(message.to)}  {text_of(message)}")
        return there

    # --- what a test does ---------------------------------------------------------------------------------------------------
    def talk(self) -> None:
        """Until nothing is said any more."""
        self.settle(self.arrive)

    def wait(self, ms: int) -> None:
        self.say(f"{ms} ms pass")
        self.advance(ms, 50, self.arrive)

    def begin(self, ms: int = 1_150) -> RigNode:
        """a becomes the leader; not written down."""
        self.advance(ms, 50, self.arrive)
        self.lines.clear()
        leader = self.leader()
        assert leader is self.nodes["a"]
        self.lines.append(f"(a leads in term {leader.raft.term}, everybody has {leader.raft.last_index} entries)")
        return leader

    def propose(self, *payloads: str, name: str = "a", quiet: bool = False) -> None:
        self.say(f"{name} is given {', '.join(payloads) if len(payloads) < 5 else f'{payloads[0]} … {payloads[-1]}'}")
        self.nodes[name].raft.propose([payload.encode() for payload in payloads])
        before = len(self.lines)
        self.talk()
        if quiet:
            del self.lines[before:]

    def members(self, text: str, name: str = "a") -> None:
        """ "a b c?" : c is a learner; "c/2" another journal."""
        self.say(f"{name} is to change the members to {text}")
        wanted = []
        for word in text.split():
            node, _, incarnation = word.rstrip("?").partition("/")
            wanted.append(Member(node, incarnation or "1", not word.endswith("?")))
        self.nodes[name].raft.propose_membership(wanted)
        self.talk()

    def part(self, *names: str) -> None:
        self.say(f"{' and '.join(names)} cannot reach the others")
        self.apart.append(set(names))

    def heal(self) -> None:
        self.say("the network is whole again")
        self.apart.clear()
        self.lost = lambda message: False

    def crash(self, name: str) -> None:
        self.say(f"{name} dies")
        self.nodes[name].alive = False

    def restart(self, name: str) -> None:
        self.say(f"{name} starts again")
        self.roles[self.nodes[name].id] = ("follower", self.nodes[name].hard_state.term)
        self.nodes[name].start()

    def make_state_snapshot(self, name: str = "a") -> None:
        meta = self.nodes[name].make_state_snapshot()
        self.say(f"{name} has made the snapshot {meta.name} of {meta.size} bytes")
        self.talk()

    def compact(self, name: str = "a") -> None:
        """Log and cache end where the state does."""
        node = self.nodes[name]
        self.say(f"{name} drops its log up to {node.applied}")
        node.log.compact(node.applied)
        node.raft.log._cache_bytes = 0
        node.raft.log._cache.clear()
        node.raft.log._start = node.raft.last_index + 1

    def text(self, title: str) -> str:
        return f"# {title}\n\n" + "\n".join(self.lines) + "\n"
