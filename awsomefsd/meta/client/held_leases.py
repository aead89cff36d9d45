"""The worker's side of leases: what it holds, and what of that it may still believe.  Pure.

A lease is worth what the session is: until the session's own fence (session_lease.py: two thirds of the TTL, counted from before the newest
acknowledged renewal was sent).  So `until_ns` is asked before use, and once more after an I/O and before its reply.

What a leader says carries (term, sequence).  Everything older than the newest term reported to, and everything up to the newest recall
answered or the newest number named in a release, is ignored, whichever connection brings it: a grant that was on its way meanwhile gives
nothing.

What is cached under a lease was asked for after the lease was granted: `stamp` before the question, `valid` before the answer is kept.
The leader recalls from others, not from who changes something: what a mount changes itself it drops before it asks (`change`), and keeps
no answer until the outcome is known (`changed`); else another mount could see the change while this one still answers from its cache.
A recall is answered only after its callback has ended: it has committed what was buffered, dropped what was cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice

from awsomefsd.base.types import LEASE_NONE, LEASE_READ, LEASE_WRITE
from awsomefsd.meta.api.messages import AnswerRecall, AwaitRecalls, ExtendRecall, Leased, Recalls, ReleaseLeases, ReportLeases, ReturnLeases
from awsomefsd.meta.client.leases import EVERY_INODE, AdoptedLease, Shown

FIRST_EPOCH = FIRST_CHANGES = 1  # of the lease of what a record makes (meta/machine/write_leases.py)

RecallHandler = Callable[[int, int, Callable[[], None]], None]
LookHandler = Callable[[int, Callable[["Shown | None"], None]], None]


class HeldLease:
    __slots__ = ("changes", "epoch", "grant", "mode", "stamp")

    def __init__(self, mode: int, epoch: int, changes: int, stamp: int, grant: int) -> None:
        self.mode = mode
        self.epoch = epoch
        self.changes = changes
        self.stamp = stamp  # another one after each change of this mount
        self.grant = grant  # the same as long as the lease is held


class LeaseHolder:
    """`on_recall(ino, mode, done)`: commit and drop what `mode` does not cover, then call `done`; it may take long.

    `on_look(ino, answer)`: call `answer` with what is shown of the inode, None if that is not known just now.
    """

    def __init__(self, on_recall: RecallHandler, session_left_ns: Callable[[], int], on_look: LookHandler) -> None:
        self._on_recall = on_recall
        self._on_look = on_look
        self._left_ns = session_left_ns
        self._held: dict[int, HeldLease] = {}
        self._recalling: dict[int, tuple[int, int]] = {}  # ino → (term, sequence) that is being handled
        self._looking: set[int] = set()  # sequences of looks that are being answered; all open ones come again with each recall
        self._leaving: set[int] = set()  # inodes that are about to be released
        self._pausing: set[int] = set()  # inodes of which nothing is buffered just now
        self._stamps = 0
        self._changing: dict[int, int] = {}  # ino → how many changes of this mount have no outcome yet
        self._floor = (0, 0)  # (term, sequence): nothing up to this is honoured
        self._reported = False
        self._seen = 0  # newest sequence of the term
        self.session = self.epoch = 0
        self.replies: list[AnswerRecall] = []  # to be sent

    # --- sessions and leaders ---------------------------------------------------------------------------------------------------
    def begin(self, session: int, epoch: int) -> None:
        """A new session holds nothing.  What this mount has on its way to be changed stays known."""
        self.session, self.epoch = session, epoch
        self._held.clear()
        self._recalling.clear()
        self._looking.clear()
        self._leaving.clear()
        self._pausing.clear()
        self.replies.clear()
        self._floor, self._reported, self._seen = (0, 0), False, 0

    def adopt(self, inos: Mapping[int, AdoptedLease]) -> None:
        """A successor goes on with the session, and with the write leases under which it found data buffered.

        They are entries, and no recall of them was answered: that comes after the data is committed.
        """
        for ino, (epoch, known) in inos.items():
            self._hold(ino, LEASE_WRITE, epoch, known)

    def greeted(self, term: int) -> ReportLeases | None:
        """A leader of that term has greeted: what to tell it.  None: it has been told, or is an older one than was."""
        if not self.session or term < self._floor[0] or (term == self._floor[0] and self._reported):
            return None
        if term > self._floor[0]:
            self._floor, self._seen = (term, 0), 0
            self._recalling.clear()  # the next leader asks again, under a number of its own
            self._looking.clear()
            self.replies.clear()
        self._reported = True
        inos = [ino for ino, held in self._held.items() if held.mode == LEASE_READ]
        return ReportLeases(self.session, self.epoch, term, inos)

    @property
    def term(self) -> int:
        """The newest that was reported to; leaders of older ones say nothing that counts."""
        return self._floor[0]

    def awaits(self) -> AwaitRecalls:
        return AwaitRecalls(self.session, self.epoch, self._seen if self._floor[0] else 0)

    # --- what a leader says -----------------------------------------------------------------------------------------------------
    def granted(self, ino: int, reply: Leased) -> bool:
        """False: too old to mean anything; ask again."""
        if (reply.term, reply.sequence) <= self._floor or reply.term != self._floor[0]:
            return False
        self._seen = max(self._seen, reply.sequence)
        held = self._held.get(ino)
        if held is not None and held.mode > reply.mode:
            return True  # asked for less while holding more
        self._hold(ino, reply.mode, reply.epoch, reply.changes)
        return True

    def _hold(self, ino: int, mode: int, epoch: int, changes: int) -> None:
        """A lease that is asked for again while it is held is still the same one."""
        held = self._held.get(ino)
        self._stamps += held is None
        stamp, grant = (self._stamps, self._stamps) if held is None else (held.stamp, held.grant)
        self._held[ino] = HeldLease(mode, epoch, changes, stamp, grant)

    def recalled(self, recalls: Recalls) -> None:
        """Hand what is new in it to `on_recall`; `replies` fills as that ends."""
        for sequence, ino, mode in recalls.recalls:
            if recalls.term != self._floor[0] or sequence <= self._recalling.get(ino, (0, 0))[1]:
                continue
            self._seen = max(self._seen, sequence)
            if mode == LEASE_WRITE:
                if sequence not in self._looking:
                    self._looking.add(sequence)
                    self._on_look(ino, partial(self._looked, self.session, ino, recalls.term, sequence))
                continue
            self._recalling[ino] = (recalls.term, sequence)
            held = self._held.get(ino)
            if held is None or held.mode <= mode:
                self._answer(ino, mode, recalls.term, sequence)
            else:
                self._on_recall(ino, mode, partial(self._answer, ino, mode, recalls.term, sequence))

    def _answer(self, ino: int, mode: int, term: int, sequence: int) -> None:
        if self._recalling.get(ino) != (term, sequence):
            return  # another leader, a stronger recall, or another session
        del self._recalling[ino]
        held = self._held.get(ino)
        if held is not None and held.mode > mode:
            if mode == LEASE_NONE:
                del self._held[ino]
            else:
                self._held[ino] = HeldLease(mode, 0, held.changes, held.stamp, held.grant)
        self._floor = max(self._floor, (term, sequence))
        self.replies.append(AnswerRecall(self.session, self.epoch, term, sequence))

    def _looked(self, session: int, ino: int, term: int, sequence: int, shown: Shown | None) -> None:
        """Answers a look.  It ends nothing, so grants that are on their way still count."""
        if session != self.session or term != self._floor[0]:
            return
        self._looking.discard(sequence)
        written = self.mode(ino) == LEASE_WRITE and ino not in self._recalling
        self.replies.append(AnswerRecall(self.session, self.epoch, term, sequence, shown if written else None))

    def extend(self, ino: int, done: int) -> ExtendRecall | None:
        """Still at it: something was committed since."""
        recall = self._recalling.get(ino)
        return None if recall is None else ExtendRecall(self.session, self.epoch, *recall, done)

    # --- use --------------------------------------------------------------------------------------------------------------------
    def mode(self, ino: int) -> int:
        """The mode in which the lease is held now; LEASE_NONE without one, or when the session is fenced."""
        held = self._held.get(ino)
        return LEASE_NONE if held is None or self._left_ns() <= 0 else held.mode

    def may_buffer(self, ino: int) -> int:
        """The epoch under which new data may be buffered; 0: none may (no write lease, fenced, or being recalled).

        None under a lease whose number of changes is not known: its records could not be told from old ones later.  Asking again tells it.
        """
        held = self._held.get(ino)
        if held is None or held.mode != LEASE_WRITE or not held.changes or ino in self._recalling or ino in self._pausing:
            return 0
        return held.epoch if self._left_ns() > 0 else 0

    def may_decide(self, ino: int) -> bool:
        """Says whether this mount may decide what happens to the inode: it holds the write lease, and nobody asks for it."""
        held = self._held.get(ino)
        if held is None or held.mode != LEASE_WRITE or ino in self._recalling or ino in self._pausing:
            return False
        return self._left_ns() > 0

    def made_here(self, ino: int) -> None:
        """A record that makes the inode is stored and not sent: the leader grants its first write lease with it, nobody asks before."""
        self._hold(ino, LEASE_WRITE, FIRST_EPOCH, FIRST_CHANGES)

    def writes(self) -> dict[int, tuple[int, int]]:
        """Write leases that nobody recalls: ino → (grant, stamp), others after each use."""
        found = list(self._held.items())
        return {ino: (held.grant, held.stamp) for ino, held in found if held.mode == LEASE_WRITE and ino not in self._recalling}

    def pause(self, inos: Iterable[int]) -> None:
        """Nothing is buffered of these, until `lower` has decided."""
        self._pausing.update(inos)

    def lower(self, paused: Iterable[int], clean: Iterable[int]) -> ReturnLeases | None:
        """Turns paused write leases under which nothing is buffered into read leases; returns what to tell the leader, None for none.

        Not while one is asked for: that answer would bring the old epoch again.  What is asked later comes to the leader later.
        """
        leases: list[tuple[int, int]] = []
        for ino in clean:
            held = self._held.get(ino)
            if held is not None and held.mode == LEASE_WRITE and ino in self._pausing and ino not in self._recalling:
                self._held[ino] = HeldLease(LEASE_READ, 0, held.changes, held.stamp, held.grant)
                leases.append((ino, held.epoch))
        self._pausing.difference_update(paused)
        return ReturnLeases(self.session, self.epoch, leases) if leases else None

    def note_ended(self, ino: int, epoch: int) -> bool:
        """The write lease of that epoch has ended although nobody has said so; returns False if it is not what is held."""
        held = self._held.get(ino)
        if held is None or held.mode != LEASE_WRITE or held.epoch != epoch:
            return False
        del self._held[ino]
        return True

    def stamp(self, ino: int) -> int:
        """Draw it before a question whose answer is to be cached; 0: nothing may be."""
        held = self._held.get(ino)
        return 0 if held is None or ino in self._changing or self._left_ns() <= 0 else held.stamp

    def valid(self, ino: int, stamp: int) -> bool:
        """Says whether the lease has been held ever since."""
        return stamp > 0 and self.stamp(ino) == stamp

    def grant(self, ino: int) -> int:
        """The number of the lease as long as it is held, also while this mount changes something; 0: none, or fenced."""
        held = self._held.get(ino)
        return 0 if held is None or self._left_ns() <= 0 else held.grant

    def held(self, ino: int) -> bool:
        """The lease is held, perhaps by a session that is fenced now and goes on under the next leader."""
        return ino in self._held

    def serves(self, ino: int) -> int:
        """As `grant`; 0 also while a change of this mount has no outcome."""
        return 0 if ino in self._changing or EVERY_INODE in self._changing else self.grant(ino)

    def changing(self, ino: int) -> bool:
        """A change of this mount has no outcome yet, there or where nobody knows."""
        return ino in self._changing or EVERY_INODE in self._changing

    def leaving(self, ino: int) -> bool:
        """It is being recalled or given up: nothing may be promised beyond this moment."""
        return ino in self._recalling or ino in self._leaving

    @property
    def count(self) -> int:
        return len(self._held)

    def oldest_reads(self, count: int) -> list[int]:
        """Read leases that nobody recalls, those granted first."""
        found = (ino for ino, held in self._held.items() if held.mode == LEASE_READ and ino not in self._recalling)
        return list(islice(found, count))

    def leave(self, inos: list[int]) -> None:
        """They are about to be released."""
        self._leaving.update(inos)

    def change(self, inos: list[int]) -> None:
        """This mount is about to change them: nothing that was asked for before is valid.  EVERY_INODE stands for one that is not known."""
        for ino in inos:
            self._changing[ino] = self._changing.get(ino, 0) + 1
            self.touch(ino)

    def changed(self, inos: list[int]) -> None:
        """The outcome is known."""
        for ino in inos:
            self._changing[ino] -= 1
            if not self._changing[ino]:
                del self._changing[ino]

    def touch(self, ino: int) -> None:
        """Data was buffered: an answer that is on its way does not have it."""
        held = self._held.get(ino)
        if held is not None:
            self._stamps += 1
            held.stamp = self._stamps

    def renew(self, inos: list[int]) -> None:
        """The leases stay; what was learnt under them is not believed any more."""
        for ino in inos:
            held = self._held.get(ino)
            if held is not None:
                self._stamps += 1
                held.stamp = held.grant = self._stamps

    def release(self, inos: list[int]) -> ReleaseLeases:
        """Gives up read leases; those that have become write leases since they were chosen are kept: data may be buffered under them."""
        self._leaving.difference_update(inos)
        inos = [ino for ino in inos if (held := self._held.get(ino)) is None or held.mode == LEASE_READ]
        for ino in inos:
            self._held.pop(ino, None)
        self._floor = (self._floor[0], max(self._floor[1], self._seen))  # the leader takes grants up to here for given up
        return ReleaseLeases(self.session, self.epoch, self._floor[0], self._seen, inos)

    def known(self, ino: int) -> int:
        """`changes` as it was told with the lease."""
        held = self._held.get(ino)
        return 0 if held is None else held.changes
