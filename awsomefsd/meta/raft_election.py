"""Elections: PreVote, the vote, the first moment of a leader, and its end for want of a quorum (thesis 3.4, 4.2.3, 6.2, 9.6; etcd raft).

A node that hears nothing asks first whether it would win (PreVote), which changes nothing anywhere; so a node that was cut off comes back
without a larger term.  Whoever hears a leader refuses, unless the leader itself asked for the election; so a removed node disrupts nothing.
A leader that has not heard a quorum for the shortest election timeout steps down (CheckQuorum), so clients find the other one.

Votes count only from voters of the candidate's newest configuration, by member id: node and incarnation of the journal.  The voter refuses,
too, whoever is a voter in none of the configurations that its own log leaves possible (the newest committed one and those after it), unless
the candidate's is newer (`membership_index`).  For the same reason a leader that was voted out stands for election again as long as it does
not know that the entry which says so is committed: nobody else may have it, and without it the others would need a vote it cannot give.
"""

from __future__ import annotations

from awsomefsd.meta.raft_messages import TimeoutNow, VoteReply, VoteRequest
from awsomefsd.meta.raft_progress import Progress
from awsomefsd.meta.raft_reads import Reads
from awsomefsd.meta.raft_types import Role


class Election(Reads):
    # --- candidate --------------------------------------------------------------------------------------------------------------
    def _pre_campaign(self) -> None:
        self._become_candidate(Role.PRE_CANDIDATE)
        if self._quorum.reached(self._votes.__contains__):
            self._campaign(transfer=False)
        else:
            self._ask_for_votes(self.term + 1, pre=True, transfer=False)

    def _campaign(self, transfer: bool) -> None:
        self.term += 1
        self.vote = self.id
        self._become_candidate(Role.CANDIDATE)
        if self._quorum.reached(self._votes.__contains__):
            self._become_leader()  # nothing is said before term and vote are stored, see Core
        else:
            self._ask_for_votes(self.term, pre=False, transfer=transfer)

    def _become_candidate(self, role: Role) -> None:
        self.role, self.leader = role, ""
        self._view_given = False
        self._votes = {self.id: True}
        self._draw_election_time()

    def _ask_for_votes(self, term: int, pre: bool, transfer: bool) -> None:
        log = self.log
        for voter in sorted(self._voters - {self.id}):
            self._send_after_store(VoteRequest(self.id, voter, term, log.last_index, log.last_term, log.membership.index, pre, transfer))

    def _on_vote_reply(self, reply: VoteReply) -> None:
        wanted = Role.PRE_CANDIDATE if reply.pre else Role.CANDIDATE
        if self.role is not wanted or reply.sender not in self._voters or (reply.granted and reply.term != self.term + reply.pre):
            return
        self._votes.setdefault(reply.sender, reply.granted)
        if self._quorum.reached(lambda voter: self._votes.get(voter, False)):
            if reply.pre:
                self._campaign(transfer=False)
            else:
                self._become_leader()
        elif self._quorum.impossible(lambda voter: not self._votes.get(voter, True)):
            self._become_follower(self.term, "")

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        if self._may_campaign() and self.role is Role.FOLLOWER:
            self._campaign(transfer=True)

    # --- voter ------------------------------------------------------------------------------------------------------------------
    def _on_vote_request(self, request: VoteRequest) -> None:
        granted = self._grant_vote(request)
        if granted and not request.pre:
            self.vote = request.sender
            self._draw_election_time()
        reply = VoteReply(self.id, request.sender, request.term if granted else self.term, granted, request.pre)
        if granted:
            self._send_after_store(reply)
        else:
            self._send(reply)

    def _grant_vote(self, request: VoteRequest) -> bool:
        return self._vote_is_free(request) and self._log_is_up_to_date(request) and self._may_be_voter(request)

    def _vote_is_free(self, request: VoteRequest) -> bool:
        if request.pre:
            return request.term > self.term
        return self.vote == request.sender or (self.vote == "" and self.leader == "")

    def _log_is_up_to_date(self, request: VoteRequest) -> bool:
        return (request.last_term, request.last_index) >= (self.log.last_term, self.log.last_index)

    def _may_be_voter(self, request: VoteRequest) -> bool:
        return request.sender in self.log.contenders() or request.membership_index > self.log.membership.index

    # --- leader -----------------------------------------------------------------------------------------------------------------
    def _become_leader(self) -> None:
        self.role, self.leader = Role.LEADER, self.id
        self._view_given = False
        self._votes = {}
        self._round = 0
        self._heartbeat_at_ms = self.now_ms + self.config.heartbeat_ms
        peers = self.log.membership.membership.ids() - {self.id}
        self._progress = {peer: Progress(self.log.last_index + 1, self.now_ms) for peer in sorted(peers)}
        index = self._term_start = self.log.last_index + 1
        self._append_own([(index, self.term, self.codec.noop(index, self.term))])

    def _hears_quorum(self) -> bool:
        since = self.now_ms - self.config.election_ms_min
        progress = self._progress
        return self._quorum.reached(lambda voter: voter == self.id or (voter in progress and progress[voter].heard_ms >= since))
