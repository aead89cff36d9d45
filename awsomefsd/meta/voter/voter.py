"""One of several voters: drives the Raft core with the journal and the messages to the others.

`ready` is the first step of the order that meta/replica/replica.py states.  It does one Ready of the core after the other:

    propose, receive, tick → core → Ready:  send → store → send what promises → committed entries out     (meta/raft/types.py has the loop)

Only a leader's Append may go before the store; whatever acknowledges, votes or asks for votes goes after it.  State snapshots are driven by
state_snapshot_transfers.py.  Time, dice, links to the others and files are given; nothing here knows a clock or a socket.

A full disk: what could not be stored is kept and tried again, and nothing that promises it is sent, so the node is silent and the others go
on.  A failed write or sync ends the process (meta/log/journal.py).

A member is a *journal* of a node (node/incarnation).  A journal that is lost, or proved to have lost what it acknowledged, or whose state
differs from a majority's, is never used again: `RejoinRequired`, and the node comes back under another incarnation (joining.py).  A journal
whose end may be a torn write or damage neither votes nor stands for election until a leader has brought it up to what is committed, or
nobody led for VOTER_DOUBT_MS: then everybody lost power, and a torn write is what is to be expected.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

from msgspec.structs import replace

from awsomefsd.base.errors import Corrupt, MembershipSuperseded, NotLeading, ProtocolError, RejoinRequired
from awsomefsd.base.limits import (
    NS_PER_MS,
    RAFT_APPLY_BYTES_MAX,
    VOTER_ANNOUNCE_MS,
    VOTER_DOUBT_MS,
    VOTER_KEEP_ENTRIES,
    VOTER_KEEP_ENTRIES_MAX,
    VOTER_RETRY_MS,
)
from awsomefsd.meta.api.commands import ChangeMembership, Entry, entry_encode
from awsomefsd.meta.api.messages.members import ChangeMembers, Members
from awsomefsd.meta.log.journal import Journal, JournalFull
from awsomefsd.meta.log.log_view import JournalLog
from awsomefsd.meta.raft.membership import ChangeRefused, Membership
from awsomefsd.meta.raft.messages import AnyRaftMessage, Append, AppendReply, Heartbeat, StateSnapshot, StateSnapshotChunk, VoteRequest
from awsomefsd.meta.raft.raft import Raft
from awsomefsd.meta.raft.types import Config, HardState, MembershipAt, Ready, Role
from awsomefsd.meta.voter.digests import Digests
from awsomefsd.meta.voter.joining import JoinPolicy
from awsomefsd.meta.voter.membership_steps import members_after
from awsomefsd.meta.voter.peer_messages import Acknowledged, Announce, DigestReport, Diverged, Message, StaleGeneration
from awsomefsd.meta.voter.ports import AppliedAt, pack_note
from awsomefsd.meta.voter.raft_entries import RaftEntries
from awsomefsd.meta.voter.single_voter import decode
from awsomefsd.meta.voter.state_snapshot_chunks import ChunkFiles
from awsomefsd.meta.voter.state_snapshot_transfers import StateSnapshotTransfers
from awsomefsd.meta.voter.status import lags, members, nearest, node_of, strangers, superseded_words

log = logging.getLogger(__name__)


class Links(Protocol):
    """The way to the other voters; messages may be lost, late, doubled and out of order.  `send` never blocks."""

    def send(self, node: str, message: Message) -> None:
        """Send a message to a node if there is a connection with room; otherwise drop it."""


class Voter:
    """Implements ports.Consensus.  `applied`: the entry that the state store has.  Used by the metadata thread only."""

    def __init__(
        self,
        journal: Journal,
        links: Links,
        files: ChunkFiles,
        joining: JoinPolicy,
        entries: RaftEntries,
        *,
        applied: AppliedAt,
        boot_ns: Callable[[], int],
        random: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._links = links
        self._joining = joining
        self._entries = entries
        self._boot_ns = boot_ns
        self._id = joining.mine.id
        self._digests = Digests()
        self._returned = applied.index  # newest entry that `ready` gave out
        self._membership = MembershipAt(applied.membership_index, applied.membership)  # as of that entry
        config = Config(self._id, random)
        self._raft = Raft(config, JournalLog(journal), entries, self._hard_state(), self._returned, self._membership, self._now_ms())
        self.state_snapshots = StateSnapshotTransfers(self._raft, files, links.send)
        self._own: dict[int, Entry] = {}  # proposed here: need not be decoded
        self._unstored: Ready | None = None  # the journal had no room for it
        self._retry_ns = 0
        self._ticket = self._confirmed = 0
        self._reads: list[tuple[int, int]] = []  # (ticket, index)
        self._announce_ns = 0
        self._doubt_until_ns = boot_ns() + VOTER_DOUBT_MS * NS_PER_MS if journal.torn else 0
        self.batches = self.entries = 0
        self._found_cluster()

    def _hard_state(self) -> HardState:
        journal = self._journal
        own = journal.vote == journal.node  # so a single voter votes for itself (single_voter.py)
        return HardState(journal.term, self._id if own else journal.vote.decode())

    def _now_ms(self) -> int:
        return self._boot_ns() // NS_PER_MS

    # --- the beginning ---------------------------------------------------------------------------------------------------------
    @property
    def _fresh(self) -> bool:
        return self._journal.last_index == 0 and not self._journal.vote

    def _found_cluster(self) -> None:
        """Write the first entry, if this node is the one to do so."""
        members = self._joining.founders() if self._fresh else None
        if members is None:
            return
        log.info("this node founds the metadata cluster", extra={"voters": len(members)})
        term = self._journal.term + 1
        self._journal.set_hard_state(term, b"")
        self._journal.append(term, [self._entries.membership(1, term, Membership(members))])
        self._journal.sync()
        self._raft.restart(self._hard_state(), self._returned, self._membership, self._now_ms())

    def _join(self, now_ns: int) -> None:
        """Done every VOTER_ANNOUNCE_MS: announce this journal if it is no member; as a leader, take in those that announced themselves."""
        raft = self._raft
        member = raft.membership.find(self._id) is not None
        if not member or not raft.leader:  # without a leader: this journal may have been taken out, and nobody tells it
            announcement = replace(self._joining.announcement(self._fresh), generation=raft.membership.generation)
            for node in self._joining.others():
                self._links.send(node, announcement)
        elif raft.role is Role.LEADER:
            matches = {peer.id: peer.match for peer in raft.peers()}
            near = raft.last_index - VOTER_KEEP_ENTRIES // 4
            members = self._joining.next_membership(raft.membership, lambda one: 0 < matches.get(one, 0) >= near)
            if members is not None:
                try:
                    raft.propose_membership(members)
                except (ChangeRefused, NotLeading) as err:
                    log.debug("the membership cannot be changed now: %s", err)
            self.state_snapshots.drop_unused()
            for node in strangers(raft.membership, self._joining.others()):
                self._links.send(node, StaleGeneration(node_of(self._id), raft.membership.generation))
        if member:  # who follows forgets too: it may lead later, when a journal that announced itself has been lost since
            self._joining.forget()

    # --- Log ------------------------------------------------------------------------------------------------------------------
    @property
    def term(self) -> int:
        return self._raft.term

    @property
    def first_index(self) -> int:
        return self._journal.first_index

    @property
    def committed(self) -> int:
        return self._raft.commit

    def propose(self, batch: list[Entry]) -> None:
        index, term = self._raft.last_index, self._raft.term
        for entry in batch:
            index += 1
            entry.index = index
            entry.term = term
        self._raft.propose([entry_encode(entry) for entry in batch])
        self._own.update({entry.index: entry for entry in batch})

    def ready(self) -> list[Entry]:
        out: list[Entry] = []
        given_bytes = 0
        raft = self._raft
        while given_bytes < RAFT_APPLY_BYTES_MAX and self._may_go_on and (self._unstored is not None or raft.has_ready()):
            ready = self._unstored
            if ready is None:
                ready = raft.ready()
                self._send(ready.messages)
            elif self._boot_ns() < self._retry_ns:
                break
            try:
                self._store(ready)
            except JournalFull as err:
                log.warning("nothing can be stored: %s", err)
                self._unstored, self._retry_ns = ready, self._boot_ns() + VOTER_RETRY_MS * NS_PER_MS
                break
            self._unstored = None
            self._send(ready.messages_after_store)
            self._note(ready)
            given_bytes += self._give_out(ready, out)
        while self._reads and self._reads[0][1] <= self._returned:
            self._confirmed = max(self._confirmed, self._reads.pop(0)[0])
        return out

    @property
    def _may_go_on(self) -> bool:
        """False while a state snapshot waits to become the state: what comes next is behind it."""
        return self.state_snapshots.to_install is None

    def _store(self, ready: Ready) -> None:
        """May be called again with the same Ready after JournalFull."""
        journal = self._journal
        if ready.hard_state is not None:
            journal.set_hard_state(ready.hard_state.term, ready.hard_state.vote.encode())
            ready.hard_state = None
        if ready.truncate_after is not None:
            journal.truncate_after(ready.truncate_after)
            ready.truncate_after = None
        entries = ready.entries
        start = journal.last_index + 1 - entries[0][0] if entries else 0  # more than 0: a call before has stored so many
        assert 0 <= start <= len(entries), "the journal ends where the core believes"
        while start < len(entries):
            term = entries[start][1]
            end = next((place for place in range(start, len(entries)) if entries[place][1] != term), len(entries))
            self._append(term, [payload for _, _, payload in entries[start:end]])
            start = end
        if entries:
            journal.sync()
            assert journal.last_index == entries[-1][0], "all of it is stored"
            self.batches += 1
            self.entries += len(entries)
            self._raft.stored(entries[-1][0], entries[-1][1])
        self.state_snapshots.write(ready.chunks)

    def _append(self, term: int, payloads: list[bytes]) -> None:
        """Append the payloads in pieces that fit a journal file."""
        room = self._journal.batch_bytes_max
        piece: list[bytes] = []
        size = 0
        for payload in payloads:
            if piece and size + len(payload) + 64 > room:
                self._journal.append(term, piece)
                piece, size = [], 0
            piece.append(payload)
            size += len(payload) + 64
        if piece:
            self._journal.append(term, piece)

    def _note(self, ready: Ready) -> None:
        self._reads += ready.reads
        self.state_snapshots.note(ready)
        if ready.leader_changed:
            if self._raft.role is not Role.LEADER:
                self._own.clear()
            log.info("metadata leadership", extra={"term": self._raft.term, "role": self._raft.role.value, "leader": self.leader})

    def _give_out(self, ready: Ready, out: list[Entry]) -> int:
        size = 0
        for index, term, payload in ready.committed:
            assert index == self._returned + 1, "each entry comes out once, in order"
            entry = self._own.pop(index, None)
            if entry is None or entry.term != term:
                entry = decode(payload)
                if entry.index != index or entry.term != term:
                    raise Corrupt(f"log entry {index} of term {term} says that it is {entry.index} of term {entry.term}")
            if isinstance(entry.command, ChangeMembership):
                self._membership = MembershipAt(index, entry.command.membership)
            out.append(entry)
            size += len(payload)
            self._returned = index
        if ready.committed:
            self._raft.applied(self._returned)
        return size

    def replay(self, after: int) -> Iterator[Entry]:
        while after < self._returned:
            for raw in self._journal.read(after + 1, self._returned - after):
                entry = decode(raw)
                after += 1
                if entry.index != after:
                    raise Corrupt(f"log entry {after} says that it is {entry.index}")
                yield entry

    def read(self, index: int, count: int, bytes_max: int) -> list[bytes]:
        if index > self._returned:
            return []
        return self._journal.read(index, min(count, self._returned - index + 1), bytes_max)

    def compact(self, index: int) -> None:
        """Drop entries that nobody needs; more than was asked for are kept, so that others can catch up without a state snapshot."""
        raft = self._raft
        floor = min(index, self._returned - VOTER_KEEP_ENTRIES)
        if raft.role is Role.LEADER:
            now_ms = self._now_ms()
            live = [peer for peer in raft.peers() if now_ms - peer.heard_ms < VOTER_DOUBT_MS]
            floor = min([floor, *(peer.match + 1 for peer in live)])
            if all(peer.state != "snapshot" for peer in live):
                floor = max(floor, min(index, self._returned - VOTER_KEEP_ENTRIES_MAX))
        if floor > self._journal.first_index:
            assert floor <= self._returned + 1, "what is not given out is kept"
            self._journal.drop_before(floor)

    # --- the state ----------------------------------------------------------------------------------------------------------------
    def note(self, applied: int) -> bytes:
        """The bytes to commit with the state at entry `applied`."""
        membership = self._membership
        assert applied <= self._returned <= self._raft.commit
        return pack_note(AppliedAt(applied, self._journal.term_of(applied) or 0, membership.index, membership.membership))

    def note_digest(self, index: int, digest: bytes) -> None:
        """Compare the digest of the state at entry `index` with the other voters'."""
        self._digests.note(index, digest)
        if self._raft.role is Role.LEADER:
            self._compare(DigestReport(self._id, index, digest))
        elif self.leader:
            self._links.send(self.leader, DigestReport(self._id, index, digest))

    def _compare(self, report: DigestReport) -> None:
        voters = self._raft.membership.all_voters()
        for member, digest in self._digests.hear(report.member, report.index, report.digest, voters):
            log.error("the state of a voter has diverged", extra={"member": member, "index": report.index})
            accusation = Diverged(member, report.index, digest)
            if member == self._id:
                self._receive_diverged(accusation)
            else:
                self._links.send(node_of(member), accusation)

    def _receive_diverged(self, message: Diverged) -> None:
        if message.member == self._id and self._digests.differs(message.index, message.digest):
            raise RejoinRequired(f"the metadata state at entry {message.index} is another one than a majority's")

    def installed(self, meta: StateSnapshot) -> None:
        """The state store is the state snapshot's, durably: the journal begins behind it.  Raises JournalFull; then nothing has changed."""
        assert meta == self.state_snapshots.to_install and meta.index > self._returned
        self._journal.reset_to(meta.index, meta.term)
        self._returned = meta.index
        self._membership = MembershipAt(meta.membership_index, meta.membership)
        self._own.clear()
        self.state_snapshots.installed(meta)

    # --- Leadership -----------------------------------------------------------------------------------------------------------
    @property
    def leading(self) -> bool:
        return self._raft.serving

    @property
    def leader(self) -> str:
        return node_of(self._raft.leader)

    def members(self) -> Members:
        return members(self._raft, self._joining.announced(), self._now_ms())

    def change_members(self, step: ChangeMembers) -> None:
        self._raft.propose_membership(members_after(self._raft.log.membership, step, self._joining.announced()))

    def hand_over(self, node: str = "") -> bool:
        to = nearest(self._raft, self._now_ms(), node) if self.leading else ""
        if to:
            self._raft.transfer(to)
        return bool(to)

    def request_read(self, *, patient: bool = False) -> int:
        self._raft.read_index(self._ticket + 1, patient=patient)
        self._ticket += 1
        return self._ticket

    def reads_confirmed(self) -> int:
        return self._confirmed

    def quorum_contact_ns(self) -> int:
        return (self._raft.quorum_contact_ms or 0) * NS_PER_MS

    def next_deadline_ns(self) -> int | None:
        deadlines = [self._announce_ns]
        due_ms = self._raft.next_deadline_ms()
        if due_ms is not None and not self._doubt_until_ns:
            deadlines.append(due_ms * NS_PER_MS)
        if self._unstored is not None:
            deadlines.append(self._retry_ns)
        elif self._raft.has_ready() and self._may_go_on:
            deadlines.append(0)
        if (chunk_ns := self.state_snapshots.due_ns) is not None:
            deadlines.append(chunk_ns)
        return min(deadlines)

    def pass_time(self, now_ns: int) -> None:
        """Tells what time it is before `receive`, so that what comes counts from now on; `tick` then does what is due."""
        self._raft.pass_time(now_ns // NS_PER_MS)

    def tick(self, now_ns: int) -> None:
        if self._doubt_until_ns and now_ns >= self._doubt_until_ns:
            log.warning("there is no leader, so the damaged end of this journal is taken for a torn write")
            self._doubt_until_ns = 0
        if not self._doubt_until_ns:
            self._raft.tick(now_ns // NS_PER_MS)
        if now_ns >= self._announce_ns:
            self._announce_ns = now_ns + VOTER_ANNOUNCE_MS * NS_PER_MS
            self._join(now_ns)
        self.state_snapshots.release(now_ns)

    # --- messages ---------------------------------------------------------------------------------------------------------------
    def receive(self, sender: str, message: Message) -> None:
        """Raises ProtocolError for what `sender` may not say, RejoinRequired if it proves that this journal is no good."""
        if isinstance(message, Announce):
            generation = self._raft.membership.generation
            if not message.fresh and message.generation < generation:  # nobody knows what it holds that is missing here
                self._links.send(sender, StaleGeneration(node_of(self._id), generation))
            elif message.node == sender:
                self._joining.hear(message)
                self._found_cluster()
        elif isinstance(message, StaleGeneration):
            if message.generation > self._raft.membership.generation and self._raft.last_index:
                raise MembershipSuperseded(superseded_words(sender))
        elif isinstance(message, DigestReport):
            if node_of(message.member) == sender and self._raft.role is Role.LEADER:
                self._compare(message)
        elif isinstance(message, Diverged):
            self._receive_diverged(message)
        elif isinstance(message, Acknowledged):
            self._check_acknowledged(message)
        elif node_of(message.sender) != sender:
            raise ProtocolError(f"node {sender} speaks for {message.sender}")
        else:
            self._step(message)

    def _step(self, message: AnyRaftMessage) -> None:
        if self._doubt_until_ns and isinstance(message, VoteRequest):
            return
        if isinstance(message, StateSnapshotChunk):
            checked = self.state_snapshots.check(message)
            if checked is None:
                return
            message = checked
        if isinstance(message, AppendReply) and message.refused:
            self._check_refusal(message)
        if self._doubt_until_ns and isinstance(message, (Append, Heartbeat)):
            self._doubt_until_ns = self._boot_ns() + VOTER_DOUBT_MS * NS_PER_MS
        if isinstance(message, Heartbeat) and message.term >= self._raft.term:
            self._check_acknowledged(Acknowledged(message.to, message.term, message.commit))  # what we are known to have
        self._raft.step(message)
        if self._doubt_until_ns and isinstance(message, Append) and self._confirms_end(message):
            log.info("a leader has confirmed the end of this journal", extra={"commit": message.commit})
            self._doubt_until_ns = 0

    def _confirms_end(self, message: Append) -> bool:
        """Returns True if the journal has all that an Append says and commits.  A refused one says only that something is missing."""
        index, term = message.previous_index, message.previous_term
        if message.entries:
            index, term, _ = message.entries[-1]
        return bool(self._raft.leader) and self._raft.log.matches(index, term) and self._raft.commit >= message.commit

    def _check_refusal(self, reply: AppendReply) -> None:
        """Tell a follower that refuses what it had acknowledged: it is an old message, or its journal lost its end.  It knows which."""
        raft = self._raft
        if raft.role is not Role.LEADER or reply.term != raft.term:
            return
        match = next((peer.match for peer in raft.peers() if peer.id == reply.sender), 0)
        if reply.hint_index < match and reply.index <= match:
            self._links.send(node_of(reply.sender), Acknowledged(reply.sender, raft.term, match))

    def _check_acknowledged(self, message: Acknowledged) -> None:
        if message.member == self._id and message.term >= self._raft.term and message.index > self._raft.last_index:
            raise RejoinRequired(f"this journal acknowledged entry {message.index} and ends with {self._raft.last_index}: its end is lost")

    def _send(self, messages: list[AnyRaftMessage]) -> None:
        for message in messages:
            node = node_of(message.to)
            if isinstance(message, StateSnapshotChunk):
                self.state_snapshots.send(node, message, self._boot_ns())
            else:
                self._links.send(node, message)

    # --- how it is ------------------------------------------------------------------------------------------------------------------
    def figures(self) -> dict[str, int | float | str]:
        journal, raft = self._journal, self._raft
        return {
            "journal_bytes": journal.size_bytes,
            "journal_syncs": journal.syncs,
            "journal_sync_ns": journal.sync_ns,
            "batches": self.batches,
            "entries": self.entries,
            "role": raft.role.value,
            "leader": self.leader,
            "voters": len(raft.membership.voters()),
            "members": len(raft.membership.members),
            "digests_compared": self._digests.compared,
            "members_diverged": self._digests.diverged,
            "snapshots_installed": self.state_snapshots.installs,
            "snapshot_bad_chunks": self.state_snapshots.bad_chunks,
            "journal_in_doubt": int(self._doubt_until_ns > 0),
            "journal_full": int(self._unstored is not None),
            "founding_waits_for": " ".join(self._joining.unheard()) if self._fresh else "",
            **lags(raft, self._now_ms()),
        }

    def close(self) -> None:
        self._journal.close()
