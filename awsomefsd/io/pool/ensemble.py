"""The ensemble of a segment that is being written: which of its mirrors have what, when a batch counts, and when the segment ends.  Pure.

    begin (a batch up to `end` goes to all mirrors) -> sent, answered, failed, look -> verdict: WAITING, then REACHED or LOST

The mirrors are those of the segment's row and never change.  When one fails the segment ends: the batch under way may still count, by the
others, and what comes next goes to another segment.  So nothing is resynchronised, and a mirror that is behind is repaired by a copy.

A mirror counts as far as it has *answered* a Sync, and never further.  A lost answer, a failed flush, an answer that fits no question: the
mirror has failed, what it answered before stays counted, and what it says later is not heard.  In particular a flush that succeeds after
one that failed proves nothing (`gate.py` says so on the other side; here it does not depend on it).

A batch is REACHED when every mirror that has not failed has answered for all of it, and at least `min_copies` have.  With `quorum` a
majority suffices, where it is not below `min_copies`; the others follow, and are given up when they are too far behind.  It is LOST when
too few are left that could answer.  `end`, up to where the segment counts, moves by REACHED alone: it is neither the shortest nor the
longest mirror's length.  REACHED is not yet acknowledged: the Commit is, which names `end` and `durable()`.

Times are monotonic and handed in.  A process that was stopped, or not run, has not looked; the time beyond LOOK_NS_MAX between two looks
counts against nobody.  Else a client that wakes up would condemn every mirror before it has read their answers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from enum import Enum
from statistics import median

from awsomefsd.base.limits import (
    ENSEMBLE_AVOID_MS,
    ENSEMBLE_AVOID_MS_MAX,
    ENSEMBLE_BEHIND_BYTES_MAX,
    ENSEMBLE_BEHIND_MS_MAX,
    ENSEMBLE_LOOK_MS,
    ENSEMBLE_SLOW_MS_MIN,
    ENSEMBLE_SLOW_TIMES,
    ENSEMBLE_SLOW_TURNS,
    ENSEMBLE_STALL_MS_ALL,
    NS_PER_MS,
    SEGMENT_STALL_MS,
)
from awsomefsd.base.types import Redundancy
from awsomefsd.io.pool.gate import Bay

LOOK_NS_MAX = 2 * ENSEMBLE_LOOK_MS * NS_PER_MS


class Verdict(Enum):
    """What became of the newest batch."""

    WAITING = "waiting"
    REACHED = "reached"  # a Commit may name it
    LOST = "lost"  # too few mirrors can have it: its pieces are written to another segment


class AvoidedDevices:
    """The devices that a client asks not to be given, and those that were slow lately.  Pure; not thread-safe.

    One for all ensembles of a client: slowness shows over several segments.
    """

    def __init__(self) -> None:
        self._until: dict[int, tuple[int, int]] = {}  # device -> (time, how long it was for, in ns)
        self._slow_turns: dict[int, int] = {}

    def avoid(self, device: int, now_ns: int) -> None:
        """Leaves a device out for a while: twice as long as the last time if it fails again within as long after that."""
        until, last_ns = self._until.get(device, (0, 0))
        if now_ns < until:
            return  # several ensembles meet the same failure
        again = last_ns and now_ns < until + last_ns
        span = min(2 * last_ns, ENSEMBLE_AVOID_MS_MAX * NS_PER_MS) if again else ENSEMBLE_AVOID_MS * NS_PER_MS
        self._until[device] = (now_ns + span, span)

    def forgive(self, device: int) -> None:
        """Leaves a device out no longer; it was seen to be there.  If it fails again soon it is left out for longer."""
        until, span = self._until.get(device, (0, 0))
        self._until[device] = (until - span, span)

    def devices(self, now_ns: int) -> list[int]:
        """Returns the devices to be left out now, for LeaseBays."""
        self._until = {device: (until, span) for device, (until, span) in self._until.items() if now_ns < until + span}
        return sorted(device for device, (until, _) in self._until.items() if now_ns < until)

    def note_pace(self, device: int, *, slow: bool) -> bool:
        """Counts an answer; returns True for the last of ENSEMBLE_SLOW_TURNS slow ones in a row."""
        turns = self._slow_turns.pop(device, 0) + 1
        if not slow:
            return False
        if turns < ENSEMBLE_SLOW_TURNS:
            self._slow_turns[device] = turns
        return turns >= ENSEMBLE_SLOW_TURNS


class _Mirror:
    """`asked`: up to where a Sync was asked for, `durable`: up to where it was answered, `sent`: up to where the bytes have left."""

    __slots__ = ("asked", "bay", "durable", "failure", "progress_ns", "sent")

    def __init__(self, bay: Bay) -> None:
        self.bay = bay
        self.asked = self.sent = self.durable = 0
        self.progress_ns = 0  # when it last got on with what it owes, or began to owe something
        self.failure = ""

    @property
    def owes(self) -> bool:
        return not self.failure and self.durable < self.asked


class _Batch:
    """`took`: how long each mirror took to answer, in ns.  `reached_ns`: when the batch was reached, 0 before."""

    __slots__ = ("begun_ns", "end", "reached_ns", "took")

    def __init__(self, end: int, begun_ns: int) -> None:
        self.end, self.begun_ns = end, begun_ns
        self.reached_ns = 0
        self.took: dict[Bay, int] = {}


class Ensemble:
    """Not thread-safe: who has the mirrors' connections calls it under one lock, with that of `avoided`.

    `bays`: those of the segment's row, at least as many as `want` asks for at the least.
    """

    def __init__(self, bays: Sequence[Bay], want: Redundancy, avoided: AvoidedDevices) -> None:
        assert want.min_copies <= len(bays) == len(set(bays))
        self._mirrors = [_Mirror(bay) for bay in bays]
        self._min = want.min_copies
        enough = max(want.min_copies, want.copies // 2 + 1) if want.quorum else len(bays)
        self._enough = min(enough, len(bays))
        self._avoided = avoided
        self._batches: deque[_Batch] = deque()  # the newest, and those before it that a mirror still owes
        self._given_up: list[Bay] = []
        self._full = False  # nothing can be appended at `end`: there is a footer, or mirrors may have bytes there that count for nothing
        self._heard_ns = self._missed_ns = 0  # of the caller's clock; what is not counted of it
        self.end = 0
        self.ended = False  # a mirror has failed: no batch begins here any more, but for the footer
        self.verdict = Verdict.REACHED

    # --- events ---------------------------------------------------------------------------------------------------------
    def begin(self, end: int, now_ns: int, *, footer: bool = False) -> list[Bay]:
        """Begins a batch that goes from the end of the last one to `end`; returns the mirrors that are to be sent it, then a Sync.

        Where the segment has ended already, perhaps just now, the batch is LOST at once and nobody is sent anything.  A footer, which is
        the last batch, is taken there too, by the mirrors that are left, unless a batch was LOST.
        """
        assert self.verdict is not Verdict.WAITING and end > self.end, "batches come one after the other"
        if self._full or (self.ended and not footer):
            self.verdict = Verdict.LOST
            return []
        now = self._time(now_ns)
        self._batches.append(_Batch(end, now))
        self.verdict = Verdict.WAITING
        taking = [mirror for mirror in self._mirrors if not mirror.failure]
        for mirror in taking:
            if not mirror.owes:
                mirror.progress_ns = now
            mirror.asked = end
        self._full = footer
        self.ended = self.ended or footer
        self._decide(now)
        return [mirror.bay for mirror in taking] if self.verdict is Verdict.WAITING else []

    def sent(self, bay: Bay, end: int, now_ns: int) -> None:
        """Takes up that a mirror's connection has taken the bytes up to `end`: it moves, and nothing counts for that."""
        mirror = self._mirror(bay)
        if end > mirror.sent and not mirror.failure:
            mirror.sent, mirror.progress_ns = end, self._time(now_ns)

    def answered(self, bay: Bay, end: int, now_ns: int) -> None:
        """Takes up the answer to a Sync.  One that fits none that was asked for is a failure: nobody is asked for a length."""
        mirror, now = self._mirror(bay), self._time(now_ns)
        if mirror.failure:
            return
        batch = next((one for one in self._batches if one.end == end), None)
        if batch is None or not mirror.durable < end <= mirror.asked:
            self._fail(mirror, f"it answers for {end} bytes; {mirror.durable} are answered, {mirror.asked} asked for", now_ns)
            self._decide(now)
            return
        mirror.durable, mirror.progress_ns = end, now
        for one in self._batches:
            if one.end <= end:
                one.took[bay] = now - one.begun_ns
        slow = self._is_slow(mirror, batch)
        self._decide(now)
        if self._avoided.note_pace(bay.device, slow=slow):
            self._give_up(mirror, "it is slow", now_ns)
            self._decide(now)

    def failed(self, bay: Bay, why: str, now_ns: int) -> None:
        """Takes up that a mirror has failed: a reset, an error, no answer in time."""
        self._fail(self._mirror(bay), why, now_ns)
        self._decide(self._time(now_ns))

    def look(self, now_ns: int) -> None:
        """Gives up mirrors that are silent or too far behind.  To be called every ENSEMBLE_LOOK_MS while `waits`."""
        now = self._time(now_ns)
        silent = [mirror for mirror in self._mirrors if mirror.owes and self._is_silent(mirror, now)]
        behind = [mirror for mirror in self._mirrors if mirror.owes and mirror not in silent and self._is_behind(mirror, now)]
        for mirror in silent:
            self._give_up(mirror, "it is silent", now_ns)
        for mirror in behind:
            self._give_up(mirror, "it is too far behind", now_ns)
        if silent or behind:
            self._decide(now)

    # --- decisions ------------------------------------------------------------------------------------------------------
    @property
    def waits(self) -> bool:
        """True while a mirror owes an answer."""
        return any(mirror.owes for mirror in self._mirrors)

    def durable(self) -> list[tuple[int, int, int]]:
        """Returns what a Commit that names `end` may say of the mirrors: (device, index, bytes).  The others have nothing yet."""
        return [
            (mirror.bay.device, mirror.bay.index, min(mirror.durable, self.end))
            for mirror in self._mirrors
            if min(mirror.durable, self.end) > 0
        ]

    def failures(self) -> dict[Bay, str]:
        """Returns the mirrors that have failed, and why."""
        return {mirror.bay: mirror.failure for mirror in self._mirrors if mirror.failure}

    def take_given_up(self) -> list[Bay]:
        """Returns the mirrors that were given up here since the last call: who has their connections ends the appends."""
        given_up, self._given_up = self._given_up, []
        return given_up

    def _decide(self, now: int) -> None:
        if self.verdict is Verdict.WAITING:
            batch = self._batches[-1]
            reached = sum(mirror.durable >= batch.end for mirror in self._mirrors)
            coming = sum(mirror.owes for mirror in self._mirrors)
            if reached >= self._enough or (not coming and reached >= self._min):
                self.verdict, self.end, batch.reached_ns = Verdict.REACHED, batch.end, now
            elif reached + coming < self._min:
                self.verdict, self.ended, self._full = Verdict.LOST, True, True
        while self._batches and self.verdict is not Verdict.WAITING and not self._is_owed(self._batches[0]):
            self._batches.popleft()

    def _is_owed(self, batch: _Batch) -> bool:
        return any(mirror.owes and mirror.durable < batch.end for mirror in self._mirrors)

    # --- judgement of mirrors -------------------------------------------------------------------------------------------
    def _fail(self, mirror: _Mirror, why: str, now_ns: int) -> None:
        if not mirror.failure:
            mirror.failure = why
            self.ended = True
            self._avoided.avoid(mirror.bay.device, now_ns)

    def _give_up(self, mirror: _Mirror, why: str, now_ns: int) -> None:
        self._fail(mirror, why, now_ns)
        self._given_up.append(mirror.bay)

    def _is_silent(self, mirror: _Mirror, now: int) -> bool:
        """No progress for SEGMENT_STALL_MS while another mirror makes some, or owes nothing; else for ENSEMBLE_STALL_MS_ALL."""
        others = [one for one in self._mirrors if one is not mirror and not one.failure]
        compared = any(not one.owes or one.progress_ns > mirror.progress_ns for one in others)
        return now - mirror.progress_ns >= (SEGMENT_STALL_MS if compared else ENSEMBLE_STALL_MS_ALL) * NS_PER_MS

    def _is_behind(self, mirror: _Mirror, now: int) -> bool:
        """Others have reached what this one owes: too much of it, or too long ago.  Only with `quorum`."""
        reached = [one for one in self._batches if one.reached_ns and one.end > mirror.durable]
        if not reached:
            return False
        return self.end - mirror.durable > ENSEMBLE_BEHIND_BYTES_MAX or now - reached[0].reached_ns >= ENSEMBLE_BEHIND_MS_MAX * NS_PER_MS

    def _is_slow(self, mirror: _Mirror, batch: _Batch) -> bool:
        """ENSEMBLE_SLOW_TIMES the median of the others; one that has not answered is slower than this one."""
        took = batch.took[mirror.bay]
        others = [
            batch.took.get(one.bay, math.inf) for one in self._mirrors if one is not mirror and (one.bay in batch.took or not one.failure)
        ]
        return bool(others) and took > ENSEMBLE_SLOW_MS_MIN * NS_PER_MS and took >= ENSEMBLE_SLOW_TIMES * median(others)

    # --- time -----------------------------------------------------------------------------------------------------------
    def _time(self, now_ns: int) -> int:
        """Returns the time that counts: the caller's, less what passed unseen while mirrors were waited for."""
        if self.waits:
            self._missed_ns += max(0, now_ns - self._heard_ns - LOOK_NS_MAX)
        self._heard_ns = now_ns
        return now_ns - self._missed_ns

    def _mirror(self, bay: Bay) -> _Mirror:
        return next(mirror for mirror in self._mirrors if mirror.bay == bay)
