"""Random runs of the Raft core over a network that loses, doubles, delays and reorders, with crashes, snapshots and membership changes.

Invariants after every step (raft_group.py); at the end, when the network is whole again, the group makes progress and all states
agree.
AWSOMEFSD_SEED replays.
"""

from __future__ import annotations

import contextlib

import pytest

from awsomefsd.base.errors import NotLeading
from awsomefsd.meta.raft.membership import ChangeRefused, Member
from awsomefsd.meta.raft.types import Role
from tests.unit.meta.raft.raft_group import Rig, RigNode

STEPS = 1_500


class Storm:
    def __init__(self, seed: int, members: str) -> None:
        self.rig = Rig(members, seed, chunk_bytes=200, append_bytes_max=60, inflight_messages_max=4, cache_entries_max=20)
        self.random = self.rig.random
        self.cut: set[tuple[str, str]] = set()
        self.proposed = 0
        self.ticket = 0
        self.asked: dict[int, int] = {}  # ticket -> newest index anybody had applied when it was asked for
        self.replaced: list[Member] = []
        self.incarnations = dict.fromkeys(self.rig.nodes, 1)

    def alive(self) -> list[RigNode]:
        return [node for node in self.rig.nodes.values() if node.alive]

    def leaders(self) -> list[RigNode]:
        return [node for node in self.alive() if node.raft.role is Role.LEADER]

    def step(self) -> None:
        choice = self.random.random()
        if choice < 0.55:
            self.network()
        elif choice < 0.75:
            self.time()
        elif choice < 0.88:
            self.propose()
        elif choice < 0.91:
            self.read()
        elif choice < 0.93:
            self.partition()
        elif choice < 0.95:
            self.crash()
        elif choice < 0.97:
            self.compact()
        elif choice < 0.985:
            self.change()
        else:
            self.transfer()
        self.turns()
        self.replace()
        self.rig.check()
        self.check_reads()

    def turns(self) -> None:
        for node in self.alive():
            if node.raft.has_ready() and self.random.random() < 0.7:
                node.turn(self.random.choice(["send", "store"]) if self.random.random() < 0.003 else "")

    def network(self) -> None:
        for _ in range(self.random.randrange(1, 8)):
            if not self.rig.network:
                return
            at = 0 if self.random.random() < 0.7 else self.random.randrange(len(self.rig.network))
            message = self.rig.network.pop(at)
            if self.random.random() < 0.05:
                self.rig.network.insert(self.random.randrange(len(self.rig.network) + 1), message)
            lost = self.random.random() < 0.05 or (message.sender[0], message.to[0]) in self.cut
            if not lost:
                self.rig.deliver(message)

    def time(self) -> None:
        self.rig.now += self.random.choice([10, 50, 100, 300])
        for node in self.alive():
            if self.random.random() < 0.9:
                node.raft.tick(self.rig.now)

    def propose(self) -> None:
        for node in self.leaders():
            self.proposed += 1
            with contextlib.suppress(NotLeading):
                node.raft.propose([b"%d.%d" % (self.proposed, part) for part in range(self.random.randrange(1, 5))])

    def read(self) -> None:
        for node in self.leaders():
            self.ticket += 1
            self.asked[self.ticket] = max(other.applied for other in self.rig.nodes.values())
            node.raft.read_index(self.ticket, patient=self.random.random() < 0.5)

    def check_reads(self) -> None:
        for node in self.rig.nodes.values():
            for ticket, index in node.reads:
                assert index >= self.asked[ticket], f"ticket {ticket} at {index}, when {self.asked[ticket]} was applied"
            node.reads.clear()

    def partition(self) -> None:
        if self.cut and self.random.random() < 0.5:
            self.cut.clear()
            return
        names = list(self.rig.nodes)
        one = self.random.choice(names)
        self.cut = {(one, other) for other in names} | ({(other, one) for other in names} if self.random.random() < 0.6 else set())

    def crash(self) -> None:
        dead = [node for node in self.rig.nodes.values() if not node.alive]
        if dead:
            self.random.choice(dead).start()
        elif self.random.random() < 0.5:
            self.random.choice(self.alive()).alive = False

    def compact(self) -> None:
        node = self.random.choice(self.alive())
        if node.applied > node.log.first_index + 3:
            node.make_state_snapshot()
            node.log.compact(node.applied - self.random.randrange(3))
        for leader in self.leaders():
            if leader.state_snapshot_wanted and leader.applied >= leader.state_snapshot_wanted:
                leader.make_state_snapshot()

    def change(self) -> None:
        for node in self.leaders():
            members = list(node.raft.membership.members)
            at = self.random.randrange(len(members))
            victim = members[at]
            kind = self.random.random()
            if kind < 0.5:
                members[at] = Member(victim.node, victim.incarnation, not victim.voter)
            elif kind < 0.7:
                del members[at]
            elif gone := set(self.rig.nodes) - {member.node for member in members}:
                name = self.random.choice(sorted(gone))
                members.append(Member(name, self.rig.nodes[name].id.partition("/")[2], False))
            elif victim.node != node.id[0] and len(members) > 3:  # its journal is going to be lost
                self.incarnations[victim.node] += 1
                incarnation = str(self.incarnations[victim.node])
                members[at] = Member(victim.node, incarnation, False)
                with contextlib.suppress(ChangeRefused, NotLeading):
                    node.raft.propose_membership(members)
                    self.replaced.append(Member(victim.node, incarnation, False))
                continue
            with contextlib.suppress(ChangeRefused, NotLeading):
                node.raft.propose_membership(members)

    def replace(self) -> None:
        """A journal is lost when the group has agreed to do without it; sooner would be one failure more than some groups can bear."""
        for member in self.replaced:
            if any(not node.membership.membership.joint and node.membership.membership.find(member.id) for node in self.rig.nodes.values()):
                self.replaced.remove(member)
                self.rig.add(member.node, member.incarnation)
                return

    def transfer(self) -> None:
        for node in self.leaders():
            with contextlib.suppress(ChangeRefused, NotLeading):
                node.raft.transfer(self.random.choice(sorted(node.raft.membership.all_voters())))

    def heal(self) -> None:
        self.cut.clear()
        for node in self.rig.nodes.values():
            if not node.alive:
                node.start()
        for _ in range(400):
            self.rig.advance(100)
            for leader in self.leaders():
                if leader.state_snapshot_wanted and leader.applied >= leader.state_snapshot_wanted:
                    leader.make_state_snapshot()


@pytest.mark.parametrize("members", ["a b c", "a b c d e", "a b c +d +e"])
@pytest.mark.parametrize("number", range(4))
def test_storm(members: str, number: int, seed: int) -> None:
    storm = Storm(seed * 100 + number, members)
    for _ in range(STEPS):
        storm.step()
    storm.heal()
    leader = storm.rig.leader()
    assert leader is not None, "the group has no leader when all is well again"
    index = leader.raft.propose([b"last"])
    storm.rig.advance(1_000)
    assert leader.raft.commit >= index
    for member in leader.raft.membership.members:
        node = storm.rig.nodes[member.node]
        if node.id == member.id:
            assert node.state == leader.state, f"{node.id} has {node.applied}, the leader {leader.applied}"
