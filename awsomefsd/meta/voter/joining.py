"""The beginning of a cluster of voters, and how a journal that is not in the membership gets into it.  Pure.

A journal without members announces itself to the nodes of the configuration, again and again.

Founding.  When the one with the smallest node UUID knows, by their announcements, that *all* nodes of the configuration have fresh journals
(no entry, no vote), it writes the first entry, the membership with all of them as voters, into its own journal and stands for election.
Nobody else ever founds, and a node that voted or holds an entry is not fresh: so a node that lost its journal cannot found a second
cluster beside the others, nor vote in the first, where it has another incarnation.  The price: all must be up once at the very beginning.

Joining, by configuration.  A leader that hears the announcement of a node of its configuration whose journal is not in the membership puts
it there as a learner, in place of an earlier journal of the same node, and makes it a voter when it has nearly caught up.

Joining, by order (Growing).  Nobody is in a configuration: the first membership holds one voter (single_voter.py), and each further step is
asked for by the manager of the node that leads (cluster/membership/membership_driver.py), which knows the nodes.  Journals announce
themselves as above; what was heard is kept for a while, so that the manager finds it, and dropped when it is not said again: a journal lost
since must not be taken in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from awsomefsd.base.limits import PEERS_MAX
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.voter.peer_messages import Announce

KEPT_ROUNDS = 12  # of VOTER_ANNOUNCE_MS


class JoinPolicy(Protocol):
    """Decides how a journal gets into the membership: Joining by configuration, Growing by order."""

    mine: Member

    def announcement(self, fresh: bool) -> Announce:
        """The announcement that this journal sends to the others.  `fresh`: it has no entry and no vote."""

    def others(self) -> list[str]:
        """UUIDs of the nodes to send it to."""

    def hear(self, announce: Announce) -> None:
        """Take the announcement of another node."""

    def founders(self) -> list[Member] | None:
        """The voters of the first entry, if this fresh node is to write it now; otherwise None."""

    def unheard(self) -> list[str]:
        """UUIDs of nodes that have not announced themselves here and that founding waits for."""

    def next_membership(self, now: Membership, nearly_up_to_date: Callable[[str], bool]) -> list[Member] | None:
        """The members after the next step that a leader is to take; None if no step is due.

        `nearly_up_to_date` says of a member id whether that member has nearly caught up.
        """

    def forget(self) -> None:
        """A round has passed: what was heard before is old, and whoever still wants to join says so again."""

    def announced(self) -> list[Member]:
        """Journals that want to take part, for an order to take them in."""


class Joining:
    """`nodes`: UUID → address of every node that shall be a voter, by configuration; this node is one of them."""

    def __init__(self, node: str, incarnation: str, nodes: dict[str, str]) -> None:
        self.mine = Member(node, incarnation, True, nodes[node])
        self._nodes = nodes
        self._announced: dict[str, Announce] = {}

    def announcement(self, fresh: bool) -> Announce:
        return Announce(self.mine.node, self.mine.incarnation, self.mine.address, fresh)

    def others(self) -> list[str]:
        return [node for node in self._nodes if node != self.mine.node]

    def hear(self, announce: Announce) -> None:
        if announce.node in self._nodes:
            self._announced[announce.node] = announce

    def founders(self) -> list[Member] | None:
        """The voters of the first entry, if this fresh node is to write it now."""
        if self.mine.node != min(self._nodes):
            return None
        heard = [self._announced.get(node) for node in self.others()]
        if not all(announce is not None and announce.fresh for announce in heard):
            return None
        others = [Member(one.node, one.incarnation, True, self._nodes[one.node]) for one in heard if one is not None]
        return sorted([self.mine, *others], key=lambda member: member.node)

    def unheard(self) -> list[str]:
        """Nodes of the configuration that have not announced themselves here: founding waits for them."""
        return sorted(node for node in self.others() if node not in self._announced)

    def next_membership(self, now: Membership, nearly_up_to_date: Callable[[str], bool]) -> list[Member] | None:
        """The next step towards the configuration, if there is one for a leader to make."""
        if now.joint:
            return None
        ids = now.ids()
        members = {member.node: member for member in now.members}
        for node, announce in self._announced.items():
            journal = Member(node, announce.incarnation, False, self._nodes[node])
            if journal.id not in ids:
                return sorted([*(member for member in members.values() if member.node != node), journal], key=lambda member: member.node)
        for member in now.members:
            if not member.voter and member.node in self._nodes and nearly_up_to_date(member.id):
                members[member.node] = Member(member.node, member.incarnation, True, member.address)
                return list(members.values())
        return None

    def forget(self) -> None:
        """Forget what was heard: whoever still wants to join says so again."""
        self._announced.clear()

    def announced(self) -> list[Member]:
        return []


class Growing:
    """`addresses`: UUID → address of the nodes that may carry the metadata, as this node knows them now."""

    def __init__(self, node: str, incarnation: str, address: str, addresses: Callable[[], dict[str, str]]) -> None:
        self.mine = Member(node, incarnation, True, address)
        self._addresses = addresses
        self._announced: dict[str, tuple[Announce, int]] = {}  # node → what it said, rounds since

    def announcement(self, fresh: bool) -> Announce:
        return Announce(self.mine.node, self.mine.incarnation, self.mine.address, fresh)

    def others(self) -> list[str]:
        return sorted(node for node in self._addresses() if node != self.mine.node)

    def hear(self, announce: Announce) -> None:
        if announce.node in self._announced or len(self._announced) < PEERS_MAX:
            self._announced[announce.node] = (announce, 0)

    def founders(self) -> list[Member] | None:
        """Nobody founds by announcements: the first voter was alone before."""
        return None

    def unheard(self) -> list[str]:
        return []

    def next_membership(self, now: Membership, nearly_up_to_date: Callable[[str], bool]) -> list[Member] | None:
        """None: without an order nobody is taken in."""
        return None

    def forget(self) -> None:
        """Forget announcements that were not said again for KEPT_ROUNDS rounds."""
        aged = {node: (announce, rounds + 1) for node, (announce, rounds) in self._announced.items()}
        self._announced = {node: said for node, said in aged.items() if said[1] <= KEPT_ROUNDS}

    def announced(self) -> list[Member]:
        """Journals that want to take part."""
        return [Member(said.node, said.incarnation, False, said.address) for _, (said, _) in sorted(self._announced.items())]
