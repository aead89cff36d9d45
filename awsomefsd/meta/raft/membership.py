"""The members of a cluster, and how they change: joint consensus (Ongaro's thesis, section 4.3; etcd raft, package confchange).

A member is one *journal* of a node: (node, incarnation).  A node whose journal is lost comes back with another incarnation, so as another
member: nothing that is addressed to, or said by, the old one counts any more, and the old vote can never be given twice.  In a change that
replaces a journal the node is therefore in both configurations, under two names.

A log entry holds the whole configuration, not the difference, and is in force from the moment it is in a node's log, committed or not.
Joint consensus and not one server at a time: any number of voters change in one step, the rule "no decision without a majority of both"
needs no special case, and the flaw of the one-at-a-time scheme (two leaders' concurrent changes of different terms) cannot arise.  A change
that leaves the set of voters alone (learners, addresses) needs no joint step: both majorities are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from awsomefsd.base.errors import Refused


class ChangeRefused(Refused):
    """The membership cannot be changed like this, or not now."""


class Member(Struct, array_like=True, frozen=True):
    """One journal of a node; `incarnation` names the journal.  A learner gets the log and is counted nowhere."""

    node: str
    incarnation: str
    voter: bool
    address: str = ""

    @property
    def id(self) -> str:
        return f"{self.node}/{self.incarnation}"


class Membership(Struct, array_like=True):
    """`members` is the configuration, or the new one of a joint; `outgoing` then holds the voters of the old one, otherwise nothing.

    `generation` counts how often a node was made the only voter by force, after the others were lost: nobody of an earlier one is believed.
    """

    members: list[Member] = []
    outgoing: list[Member] = []
    generation: int = 0

    @property
    def joint(self) -> bool:
        """True if a change is under way: decisions need a majority of `members` and of `outgoing`."""
        return bool(self.outgoing)

    def voters(self) -> frozenset[str]:
        """Member ids of the voters in `members`."""
        return frozenset(member.id for member in self.members if member.voter)

    def outgoing_voters(self) -> frozenset[str]:
        """Member ids of the voters of the old configuration; empty unless joint."""
        return frozenset(member.id for member in self.outgoing)

    def all_voters(self) -> frozenset[str]:
        """Member ids of the voters of both."""
        return self.voters() | self.outgoing_voters()

    def ids(self) -> frozenset[str]:
        """Member ids of all that the log is sent to."""
        return frozenset(member.id for member in self.members) | self.outgoing_voters()

    def find(self, member_id: str) -> Member | None:
        """The member with that id; None if there is none."""
        return next((member for member in (*self.members, *self.outgoing) if member.id == member_id), None)


class Quorum:
    """Decisions of one configuration, precomputed: a majority of the voters, and of the outgoing voters in a joint."""

    __slots__ = ("_halves",)

    def __init__(self, membership: Membership) -> None:
        self._halves = [half for half in (membership.voters(), membership.outgoing_voters()) if half]

    def reached(self, agreed: Callable[[str], bool]) -> bool:
        """True if a majority (of both halves) has agreed; False for a configuration without voters."""
        return bool(self._halves) and all(sum(map(agreed, half)) * 2 > len(half) for half in self._halves)

    def impossible(self, refused: Callable[[str], bool]) -> bool:
        """True if so many have refused that no majority can agree any more."""
        return any(sum(map(refused, half)) * 2 >= len(half) for half in self._halves)

    def value(self, values: Mapping[str, int]) -> int:
        """The largest number that a majority (of both halves) has reached; 0 without voters.  A voter missing in `values` has reached 0."""
        if not self._halves:
            return 0
        return min(sorted((values.get(voter, 0) for voter in half), reverse=True)[len(half) // 2] for half in self._halves)


def step_to(now: Membership, target: Iterable[Member]) -> Membership:
    """The next configuration on the way to `target`: a joint one if the set of voters changes.  Raises ChangeRefused."""
    members = list(target)
    nodes = [member.node for member in members]
    if now.joint:
        raise ChangeRefused("a change of the membership is under way")
    if len(set(nodes)) != len(nodes):
        raise ChangeRefused("a node is named twice")
    wanted = Membership(members, generation=now.generation)
    if not wanted.voters():
        raise ChangeRefused("a cluster needs a voter")
    if wanted.voters() == now.voters():
        return wanted
    return Membership(members, [member for member in now.members if member.voter], now.generation)


def leave_joint(now: Membership) -> Membership:
    """The configuration after a joint one."""
    return Membership(now.members, generation=now.generation)
