"""The choice of the cluster's founder: one decision among all nodes that hold the same founding token (pure core: events in, effects out).

It is a single decree of Paxos.  The value is the founder and the hash of its CA; every holder is an acceptor and may propose itself.  The
number of holders is not known; what is known is `quorum`, the number N in the token, and that N is more than half of all that will
ever hold it.  So any two sets of N holders have one in common, and that one's promises, which are on its disk before they leave it, keep a
second value from being chosen.

Invariants: an acceptor accepts no ballot below its promise; a ballot is used by one proposer and never again after a restart, because the
proposer promises it to itself, durably, before it sends it; a proposer that finds an accepted value takes the one of the highest ballot.
Crash windows: `StoreKept` comes before the `SendMessage` of the same list, and the driver does them in that order; a crash between
them loses messages, which is the same as a lossy network.  A proposer's counts are in memory only: after a restart it starts a new ballot.

A node whose disk is lost comes back as another node, so it counts as one holder more.  Ordering (who proposes first) is only for speed:
the n-th node by name waits n steps, and after a failure every node waits a while that grows and that the driver's dice vary.

Rejected: the lowest UUID founds (two halves of a network disagree who that is); founding by the first endpoint of the token (one machine
that must be there); elections by Raft (they need the list of members that founding is to find out).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import FOUNDING_ATTEMPT_MS, FOUNDING_BACKOFF_MS, FOUNDING_BACKOFF_MS_MAX, FOUNDING_STEP_MS


class Value(msgspec.Struct, frozen=True):
    """The value that is decided."""

    founder: str  # node UUID
    ca: str  # SHA-256 of its CA's certificate (DER), hex


class Ballot(msgspec.Struct, frozen=True, order=True, array_like=True):
    number: int = 0
    node: str = ""


NO_BALLOT = Ballot()


class Kept(msgspec.Struct, frozen=True):
    """The durable state of an acceptor."""

    promised: Ballot = NO_BALLOT
    accepted: Ballot = NO_BALLOT
    value: Value | None = None  # of `accepted`
    decided: Value | None = None


# --- messages between holders ---------------------------------------------------------------------------------------------------


class Prepare(msgspec.Struct, frozen=True, tag=1):
    ballot: Ballot


class PaxosPromise(msgspec.Struct, frozen=True, tag=2):
    ballot: Ballot
    accepted: Ballot
    value: Value | None


class Accept(msgspec.Struct, frozen=True, tag=3):
    ballot: Ballot
    value: Value


class Accepted(msgspec.Struct, frozen=True, tag=4):
    ballot: Ballot


class Behind(msgspec.Struct, frozen=True, tag=5):
    """The answer to a ballot that is lower than what was promised to another."""

    ballot: Ballot
    promised: Ballot


class Decided(msgspec.Struct, frozen=True, tag=6):
    value: Value


FoundingMessage: TypeAlias = Prepare | PaxosPromise | Accept | Accepted | Behind | Decided


# --- effects --------------------------------------------------------------------------------------------------------------------


class StoreKept(msgspec.Struct, frozen=True):
    """The driver makes this durable before anything behind it in the list."""

    kept: Kept


class SendMessage(msgspec.Struct, frozen=True):
    """The driver sends this message; it may be lost."""

    to: str
    message: FoundingMessage


Effect: TypeAlias = StoreKept | SendMessage


class Founding:
    """One holder: acceptor, proposer and learner in one.  Not thread-safe; no method blocks."""

    def __init__(self, me: str, ca: str, quorum: int, kept: Kept) -> None:
        assert quorum >= 1
        self.me = me
        self.kept = kept
        self._ca = ca
        self._quorum = quorum
        self._near: set[str] = set()  # others that answer now
        self._ballot = NO_BALLOT  # of the attempt under way
        self._promises: dict[str, PaxosPromise] = {}
        self._proposed: Value | None = None  # from the second phase on
        self._accepted: set[str] = set()
        self._until_ms = 0  # then the attempt has failed
        self._due_ms = -1  # no attempt before; -1: no quorum was seen
        self._failures = 0

    @property
    def decided(self) -> Value | None:
        return self.kept.decided

    @property
    def seen(self) -> int:
        """The number of nodes that are connected now, this one among them."""
        return len(self._near) + 1

    # --- events -----------------------------------------------------------------------------------------------------------------

    def meet(self, node: str) -> list[Effect]:
        """Takes note of a connection to `node`, which has proved the secret."""
        assert node != self.me
        self._near.add(node)
        if self.decided is not None:
            return [SendMessage(node, Decided(self.decided))]
        if self._ballot == NO_BALLOT:
            return []
        return [SendMessage(node, Prepare(self._ballot) if self._proposed is None else Accept(self._ballot, self._proposed))]

    def part(self, node: str) -> None:
        """Takes note that no connection to `node` is left."""
        self._near.discard(node)

    def tick(self, now_ms: int, dice: float) -> list[Effect]:
        """Takes note of the time; `dice` is from 0 to 1, drawn again each time."""
        if self.decided is not None:
            return []
        if self._ballot != NO_BALLOT:
            if now_ms >= self._until_ms:
                self._give_up(now_ms, dice)
            return []
        if self.seen < self._quorum:
            self._due_ms = -1
            return []
        if self._due_ms < 0:
            rank = sum(1 for node in self._near if node < self.me)
            self._due_ms = now_ms + rank * FOUNDING_STEP_MS
        return self._propose(now_ms) if now_ms >= self._due_ms else []

    def receive(self, sender: str, message: FoundingMessage, now_ms: int, dice: float) -> list[Effect]:
        """Takes a message of another holder; returns the effects in their order.  Raises ProtocolError if two founders were decided."""
        if isinstance(message, Decided):
            return self._learn(message.value)
        if self.decided is not None:
            return [SendMessage(sender, Decided(self.decided))]
        if isinstance(message, Prepare | Accept):
            return self._judge(sender, message, now_ms, dice)
        if message.ballot != self._ballot:
            return []  # of an attempt that is over
        if isinstance(message, PaxosPromise):
            self._promises[sender] = message
            return self._second_phase()
        if isinstance(message, Accepted):
            self._accepted.add(sender)
            return self._count()
        self._give_up(now_ms, dice)
        return self._raise_to(message.promised)

    # --- acceptor ---------------------------------------------------------------------------------------------------------------

    def _judge(self, sender: str, message: Prepare | Accept, now_ms: int, dice: float) -> list[Effect]:
        if message.ballot < self.kept.promised:
            return [SendMessage(sender, Behind(message.ballot, self.kept.promised))]
        if self._ballot not in (NO_BALLOT, message.ballot):
            self._give_up(now_ms, dice)  # another one is ahead
        self._due_ms = max(self._due_ms, now_ms + FOUNDING_ATTEMPT_MS)
        if isinstance(message, Prepare):
            stored = self._keep(promised=message.ballot)
            return [*stored, SendMessage(sender, PaxosPromise(message.ballot, self.kept.accepted, self.kept.value))]
        stored = self._keep(promised=message.ballot, accepted=message.ballot, value=message.value)
        return [*stored, SendMessage(sender, Accepted(message.ballot))]

    def _keep(self, **changes: Ballot | Value) -> list[Effect]:
        kept = msgspec.structs.replace(self.kept, **changes)
        if kept == self.kept:
            return []
        self.kept = kept
        return [StoreKept(kept)]

    def _raise_to(self, promised: Ballot) -> list[Effect]:
        """Promises a higher ballot, so that the next attempt is above it.  A promise that no proposer hears does no harm."""
        return self._keep(promised=promised) if promised > self.kept.promised else []

    # --- proposer ---------------------------------------------------------------------------------------------------------------

    def _propose(self, now_ms: int) -> list[Effect]:
        self._ballot = Ballot(self.kept.promised.number + 1, self.me)
        self._until_ms = now_ms + FOUNDING_ATTEMPT_MS
        stored = self._keep(promised=self._ballot)
        self._promises = {self.me: PaxosPromise(self._ballot, self.kept.accepted, self.kept.value)}
        sent = [SendMessage(node, Prepare(self._ballot)) for node in sorted(self._near)]
        return [*stored, *sent, *self._second_phase()]

    def _second_phase(self) -> list[Effect]:
        if self._proposed is not None or len(self._promises) < self._quorum:
            return []
        best = max(self._promises.values(), key=lambda promise: promise.accepted)
        self._proposed = best.value or Value(self.me, self._ca)
        self._accepted = {self.me}
        stored = self._keep(accepted=self._ballot, value=self._proposed)
        sent = [SendMessage(node, Accept(self._ballot, self._proposed)) for node in sorted(self._near)]
        return [*stored, *sent, *self._count()]

    def _count(self) -> list[Effect]:
        if self._proposed is None or len(self._accepted) < self._quorum:
            return []
        return self._learn(self._proposed)

    def _give_up(self, now_ms: int, dice: float) -> None:
        pause_ms = min(FOUNDING_BACKOFF_MS << self._failures, FOUNDING_BACKOFF_MS_MAX)
        self._failures = min(self._failures + 1, 16)
        self._due_ms = now_ms + round(pause_ms * (0.5 + dice))
        self._forget()

    def _forget(self) -> None:
        self._ballot, self._proposed = NO_BALLOT, None
        self._promises, self._accepted = {}, set()

    # --- learner ----------------------------------------------------------------------------------------------------------------

    def _learn(self, value: Value) -> list[Effect]:
        if self.decided is not None:
            if self.decided != value:
                raise ProtocolError(
                    "two founders were chosen: more nodes had the token than it allows, or some lost their disks; "
                    "use a new token on all nodes"
                )
            return []
        stored = self._keep(decided=value)
        self._forget()
        return [*stored, *(SendMessage(node, Decided(value)) for node in sorted(self._near))]
