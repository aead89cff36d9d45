"""The questions about the membership, and the answers.  The manager of the leading node asks."""

from __future__ import annotations

from msgspec import Struct

from awsomefsd.meta.api.messages.base import Message


class GetMembers(Message, tag=120):
    """Answered by Members, by the node that leads."""


class ChangeMembers(Message, tag=121):
    """One step from the membership of entry `index`, which must still be the newest (EAGAIN otherwise, and while another is under way).

    `add`: a node whose announced journal becomes a learner, in place of an earlier journal of the node.  `promote`: nodes whose learners
    become voters.  `remove`: nodes that are members no longer.  Several at once are one joint change.  Done: it is in the leader's log.
    """

    index: int
    add: str = ""
    promote: list[str] = []
    remove: list[str] = []


class TransferLead(Message, tag=122):
    """Hand the leadership to the voter on that node, "": to whoever is nearest.  Done when that has begun; EAGAIN if nobody can take it."""

    node: str = ""


class MemberInfo(Struct, array_like=True, gc=False):
    """`lag`: entries behind the leader's log; `silent_ms`: since it was heard.  Both 0 for the leader."""

    node: str
    incarnation: str
    voter: bool
    address: str
    lag: int
    silent_ms: int
    near: bool


class Members(Message, tag=120):
    """`index`: of the entry that holds this membership; 0: a single voter that has no membership yet.  `announced`: (node, incarnation)."""

    index: int
    joint: bool
    leader: str
    members: list[MemberInfo]
    announced: list[tuple[str, str]]
