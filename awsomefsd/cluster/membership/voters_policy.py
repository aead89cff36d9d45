"""The choice of the nodes that vote, and the next single step towards it.  Pure, and without memory: the same view gives the same step.

desired    as many as the cluster wants (1, from three nodes on 3, from five on 5): voters that are well stay, then nodes that are there,
healthy, and in the zone with the fewest; a voter that is gone, cordoned or draining stays if no node can take its place steps      one
voter alone becomes the first of several (Grow) → a node is ordered to carry the metadata (Carry) → its journal announces itself and becomes
a learner (VoterChange.add) → all that are missing have caught up: they are promoted, and those that are not desired leave in one joint
change (VoterChange.promote, remove) → a node that left is ordered to carry nothing (Carry)

So the number of voters is never even for long, and a voter is replaced without a moment in which fewer can fail.  A node that was removed
leaves at once, without waiting for another.  No change is asked for after which the voters that live would be no majority: it would never
be committed, and nothing could be changed any more.  A leader that is to go hands over first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from awsomefsd.base.limits import NODE_HEALTHY_MS, VOTER_LIVING_MS
from awsomefsd.meta.api.messages.members import MemberInfo, Members


class VoterCandidate(NamedTuple):
    """A row of a node.  `silent_ms`: since its daemon reported.  `reachable`: it has a metadata port.  `zone` "": of its own."""

    node: str
    role: str = "node"
    state: str = "active"
    zone: str = ""
    carries: bool = False
    reachable: bool = True
    silent_ms: int = 0
    joined_ms: int = 0


class Grow(NamedTuple):
    """One voter alone becomes the first of several."""


class Carry(NamedTuple):
    node: str
    carries: bool


class VoterChange(NamedTuple):
    add: str = ""
    promote: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


class Transfer(NamedTuple):
    node: str


Step = Grow | Carry | VoterChange | Transfer


def voters_wanted(nodes: int) -> int:
    if nodes < 3:
        return 1
    return 3 if nodes < 5 else 5


class View:
    """The state of the cluster as the leader sees it."""

    def __init__(self, nodes: Collection[VoterCandidate], members: Members, replace_after_ms: int) -> None:
        self.nodes = {node.node: node for node in nodes}
        self.listing = members
        self.members = {member.node: member for member in members.members}
        self.voters = {member.node for member in members.members if member.voter}
        self.leader = members.leader
        self.replace_after_ms = replace_after_ms

    @property
    def alone(self) -> bool:
        return self.listing.index == 0

    def belongs(self, node: str) -> bool:
        """Returns True if the node may have a vote at all."""
        row = self.nodes.get(node)
        return row is not None and row.role == "node" and row.state != "removed"

    def may_vote(self, node: str) -> bool:
        """Returns True if the node is neither cordoned nor draining nor removed."""
        return self.belongs(node) and self.nodes[node].state == "active"

    def healthy(self, node: str) -> bool:
        """Returns True if the node could become a voter now."""
        row = self.nodes[node]
        return self.may_vote(node) and row.reachable and (row.silent_ms < NODE_HEALTHY_MS or node == self.leader)

    def lives(self, node: str) -> bool:
        """Returns True for a member that answers."""
        return node == self.leader or (node in self.members and self.members[node].silent_ms < VOTER_LIVING_MS)

    def stays(self, node: str) -> bool:
        """Returns True for a voter that needs no successor."""
        return self.may_vote(node) and (node == self.leader or self.members[node].silent_ms < self.replace_after_ms)

    def zone(self, node: str) -> str:
        """Returns the zone of a node; one without a label is in a zone of its own."""
        row = self.nodes.get(node)
        return row.zone if row is not None and row.zone else f"\0{node}"


# --- who shall vote ---------------------------------------------------------------------------------------------------------------
def desired(view: View) -> set[str]:
    """Returns the nodes that should vote."""
    counted = [node for node in view.nodes if view.may_vote(node) or (node in view.voters and view.belongs(node))]
    wanted = voters_wanted(len(counted))
    voters = sorted(view.voters, key=lambda node: (node != view.leader, view.members[node].silent_ms >= VOTER_LIVING_MS, node))
    chosen = [node for node in voters if view.stays(node)][:wanted]
    candidates = [node for node in view.nodes if node not in view.voters and view.healthy(node)]
    while len(chosen) < wanted and candidates:
        best = min(candidates, key=lambda node: _rank(view, chosen, node))
        candidates.remove(best)
        chosen.append(best)
    rest = [node for node in voters if node not in chosen and view.belongs(node)]
    chosen += sorted(rest, key=lambda node: not view.lives(node))[: wanted - len(chosen)]
    return _spread(view, chosen, candidates)


def _rank(view: View, chosen: list[str], node: str) -> tuple[object, ...]:
    """Returns the rank of a candidate, lower is better: zones first, then the way to a vote that is made, then the age of the node."""
    row = view.nodes[node]
    near = sum(view.zone(other) == view.zone(node) for other in chosen)
    return near, node not in view.members, not row.carries, row.joined_ms, node


def _crowd(view: View, nodes: Collection[str]) -> int:
    """Returns the largest number of voters in one zone: so many are lost with it."""
    return max(Counter(view.zone(node) for node in nodes).values(), default=0)


def _spread(view: View, chosen: list[str], candidates: list[str]) -> set[str]:
    """Makes one exchange, if it makes the largest zone smaller."""
    now = {*chosen}
    swaps = [
        (_crowd(view, (now - {out}) | {into}), *_rank(view, [node for node in chosen if node != out], into), out, into)
        for out in sorted(now - {view.leader})
        for into in candidates
    ]
    best = min(swaps, default=None)
    if best is not None and isinstance(best[0], int) and best[0] < _crowd(view, now):
        return (now - {str(best[-2])}) | {str(best[-1])}
    return now


# --- the next step ----------------------------------------------------------------------------------------------------------------
def next_step(view: View) -> Step | None:
    """Returns the next step; None if there is nothing to do, something is under way, or nothing can be done now."""
    if view.listing.joint or view.leader not in view.members:
        return None
    aim = desired(view)
    if view.alone:
        return Grow() if aim and aim != {view.leader} else _carry(view, aim)
    return _removed(view) or _carry(view, aim) or _journal(view, aim) or _exchange(view, aim)


def _carry(view: View, aim: set[str]) -> Step | None:
    """Returns the step after which the rows carry as wanted; a node that is still a member carries on."""
    for node in sorted(aim | (view.members.keys() & view.nodes.keys())):
        if view.belongs(node) and not view.nodes[node].carries and (node in aim or node in view.voters):
            return Carry(node, True)
    for node, row in sorted(view.nodes.items()):
        if row.carries and node not in aim and node not in view.members:
            return Carry(node, False)
    return None


def _removed(view: View) -> Step | None:
    """Returns the step that takes out removed nodes, the leader after it has handed over."""
    gone = {node for node in view.members if not view.belongs(node)}
    if not gone:
        return None
    if view.leader in gone:
        heirs = sorted(node for node in view.voters - gone if view.lives(node))
        if heirs:
            return Transfer(heirs[0])
        gone.discard(view.leader)
    if not gone & view.voters:
        return VoterChange(remove=(*sorted(gone),)) if gone else None
    after = view.voters - gone
    if not _majority_lives(view, after):
        # A voter that has been gone for long goes with them.  The leader is here, draining or not: it hands over before it goes.
        after -= {node for node in after if node != view.leader and not view.stays(node)}
    return VoterChange(remove=(*sorted((view.voters - after) | gone),)) if _majority_lives(view, after) else None


def _journal(view: View, aim: set[str]) -> Step | None:
    """Returns the step that makes an announced journal a learner; also in place of an older one of its node, which is lost."""
    for node, incarnation in view.listing.announced:
        member = view.members.get(node)
        if node not in aim or (member is not None and member.incarnation == incarnation):
            continue
        if member is None or not member.voter or _majority_lives(view, view.voters - {node}):
            return VoterChange(add=node)
    return None


def _exchange(view: View, aim: set[str]) -> Step | None:
    """Returns the step after which all missing nodes vote, and those that are not desired have left."""
    stray = {member.node for member in view.members.values() if not member.voter and member.node not in aim}
    if stray:
        return VoterChange(remove=(*sorted(stray),))
    missing = aim - view.voters
    if not all(node in view.members and _ready(view.members[node]) for node in missing):
        return None
    leaving = view.voters - aim
    if view.leader in leaving:
        heirs = sorted(node for node in aim & view.voters if view.lives(node))
        if heirs:
            return Transfer(heirs[0])
        leaving.discard(view.leader)
    if not (missing or leaving) or not _majority_lives(view, (view.voters | missing) - leaving):
        return None
    return VoterChange(promote=(*sorted(missing),), remove=(*sorted(leaving),))


def _ready(member: MemberInfo) -> bool:
    return member.near and member.silent_ms < VOTER_LIVING_MS


def _majority_lives(view: View, voters: Collection[str]) -> bool:
    return sum(map(view.lives, voters)) * 2 > len(voters)
