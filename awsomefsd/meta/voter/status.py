"""Words and figures about the members as a voter's Raft core knows them, for people and for the membership driver.  Pure."""

from __future__ import annotations

from collections.abc import Iterable

from awsomefsd.base.limits import VOTER_KEEP_ENTRIES
from awsomefsd.meta.api.messages.members import MemberInfo, Members
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.raft.raft import Raft
from awsomefsd.meta.raft.types import Role


def node_of(member_id: str) -> str:
    """The UUID of the node in a member id ("node/incarnation")."""
    return member_id.partition("/")[0]


def superseded_words(by: str) -> str:
    return (
        f"node {by} was made the only voter by force (meta recover --force-single), and this node's journal is older: it takes no part any "
        "more.  To join again with the cluster's present state, move state_dir/meta away and start the daemon (docs/OPERATIONS.md)"
    )


def strangers(membership: Membership, others: Iterable[str]) -> list[str]:
    """Nodes that may have been members before the membership was replaced by force."""
    if not membership.generation:
        return []
    members = {member.node for member in membership.members}
    return [node for node in others if node not in members]


def lags(raft: Raft, now_ms: int) -> dict[str, int]:
    """Figures about the others: entries each lacks, and ms since it was heard; {} for a node that does not lead."""
    found: dict[str, int] = {}
    for peer in raft.peers() if raft.role is Role.LEADER else ():
        found[f"lag_{node_of(peer.id)}"] = raft.last_index - peer.match
        found[f"silent_ms_{node_of(peer.id)}"] = max(now_ms - peer.heard_ms, 0)
    return found


def members(raft: Raft, announced: Iterable[Member], now_ms: int) -> Members:
    """The membership for an answer of the leader.

    A member whose node is in twice (its journal is being replaced) is listed once, by its new one.  In a joint membership those that are
    leaving are not listed; until it is over nobody acts on the list.
    """
    peers = {peer.id: peer for peer in raft.peers()}
    near_from = raft.last_index - VOTER_KEEP_ENTRIES // 4
    listing = []
    for member in raft.membership.members:
        peer = peers.get(member.id)
        match = raft.last_index if peer is None else peer.match
        silent_ms = 0 if peer is None else max(now_ms - peer.heard_ms, 0)
        near = 0 < match >= near_from
        listing.append(
            MemberInfo(member.node, member.incarnation, member.voter, member.address, raft.last_index - match, silent_ms, near)
        )  # fmt: skip
    at = raft.log.membership
    wanting = [(member.node, member.incarnation) for member in announced]
    return Members(at.index, at.membership.joint, node_of(raft.leader), listing, wanting)


def nearest(raft: Raft, now_ms: int, wanted: str) -> str:
    """The voter that can take the leadership over soonest, of `wanted` if that is a node; "" if nobody can."""
    voters = raft.membership.voters()
    fit = [
        (peer.match, peer.heard_ms, peer.id)
        for peer in raft.peers()
        if peer.id in voters and now_ms - peer.heard_ms < raft.config.election_ms_min and wanted in ("", node_of(peer.id))
    ]
    return max(fit)[2] if fit else ""
