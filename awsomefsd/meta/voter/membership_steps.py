"""One step of the membership, as it was asked for: the members after it.  Pure.

Everything that could go wrong between the asker's look and the step is checked here again by the leader: the membership is still the one
that was looked at, the journal to be added has announced itself, and a learner that is to vote is the one that is there.
"""

from __future__ import annotations

from collections.abc import Iterable

from awsomefsd.meta.api.messages.members import ChangeMembers
from awsomefsd.meta.raft.membership import ChangeRefused, Member, Membership
from awsomefsd.meta.raft.types import MembershipAt


def members_after(now: MembershipAt, step: ChangeMembers, announced: Iterable[Member]) -> list[Member]:
    """The members after `step`.  Raises ChangeRefused if the step does not fit the membership as it is now."""
    if step.index != now.index:
        raise ChangeRefused("the membership has changed since it was looked at")
    gone = {*step.remove}
    members = {member.node: member for member in now.membership.members if member.node not in gone}
    if step.add:
        members[step.add] = _to_add(now.membership, step.add, announced)
    for node in step.promote:
        member = members.get(node)
        if member is None:
            raise ChangeRefused(f"node {node} is no member")
        members[node] = Member(member.node, member.incarnation, True, member.address)
    return sorted(members.values(), key=lambda member: member.node)


def _to_add(now: Membership, node: str, announced: Iterable[Member]) -> Member:
    journal = next((member for member in announced if member.node == node), None)
    if journal is None:
        raise ChangeRefused(f"no journal of node {node} wants to take part now")
    if now.find(journal.id) is not None:
        raise ChangeRefused(f"the journal of node {node} is a member already")
    return journal
