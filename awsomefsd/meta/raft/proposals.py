"""The requests to a leader: append entries, change the membership, hand the leadership over (thesis 3.10, 4.2.1, 4.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from awsomefsd.meta.raft.member import MemberState, is_own_term_committed, require_leading
from awsomefsd.meta.raft.membership import ChangeRefused, Member, Membership, step_to
from awsomefsd.meta.raft.replication import append_own, hand_over_when_ready


def propose(member: MemberState, payloads: Sequence[bytes]) -> int:
    """Append these to the log as entries from the returned index on, in the present term.  Raises NotLeading, also in a transfer."""
    require_leading(member)
    first = member.log.last_index + 1
    if payloads:
        append_own(member, list(zip(range(first, first + len(payloads)), repeat(member.term), payloads, strict=False)))
    return first


def propose_membership(member: MemberState, members: Iterable[Member]) -> int:
    """Go to that configuration (through a joint one if voters change); index of the first entry.  Done when Ready.membership says so.

    Raises NotLeading, or ChangeRefused: one change at a time, only when an entry of the own term is committed, and a new voter must be
    a learner that is nearly up to date (thesis 4.2.1).
    """
    require_leading(member)
    newest = member.log.membership
    if not is_own_term_committed(member) or newest.index > member.log.commit:
        raise ChangeRefused("a change of the membership, or the leader's first entry, is not committed yet")
    following = step_to(newest.membership, members)
    _check_new_voters(member, following)
    index = member.log.last_index + 1
    append_own(member, [(index, member.term, member.codec.membership(index, member.term, following))])
    return index


def _check_new_voters(member: MemberState, following: Membership) -> None:
    last = member.log.last_index
    for voter in following.voters() - member.voters:
        progress = member.progress.get(voter)
        if progress is None or last - progress.match > member.config.promote_lag_entries_max or not progress.match:
            raise ChangeRefused(f"{voter} is no learner that has caught up")


def transfer(member: MemberState, to: str) -> None:
    """Hand the leadership to a voter: it gets everything, then is told to start an election.  Given up after an election timeout.

    Proposals are refused meanwhile.  Raises NotLeading, or ChangeRefused for a target that is no voter.
    """
    require_leading(member)
    if to not in member.voters or to not in member.progress:
        raise ChangeRefused(f"{to} is no other voter")
    member.transferee = to
    member.transfer_until_ms = member.now_ms + member.config.election_ms_min
    hand_over_when_ready(member)
    member.flush_due = True
