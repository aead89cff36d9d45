"""An ensemble over mirrors whose disks lose what they can, and the log's own rule that judges what it says.

The mirrors have no gate: a flush that failed has lost its bytes, and the next one succeeds; a mirror that was given up goes on with what
it has been sent, and answers.  So what the ensemble counts rests on nothing but the ensemble.
"""

from __future__ import annotations

from collections import deque

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import BLOCK_BYTES, ENSEMBLE_LOOK_MS, ENSEMBLE_STALL_MS_ALL, NS_PER_MS, SEGMENT_STALL_MS
from awsomefsd.base.types import BAY_MIRROR, SEGMENT_LEASED, Redundancy, SegmentBay, SegmentProgress
from awsomefsd.io.pool.ensemble import LOOK_NS_MAX, AvoidedDevices, Ensemble, Verdict
from awsomefsd.io.pool.gate import Bay
from awsomefsd.meta.machine import bays
from awsomefsd.meta.state import rows

MS = NS_PER_MS
SEGMENT = 1 << 30
SETTLED_MS = SEGMENT_STALL_MS + ENSEMBLE_STALL_MS_ALL + 4 * ENSEMBLE_LOOK_MS  # by then nobody is waited for who does not move


class Mirror:
    """`queue`: what was sent and not yet done, `medium` and `cache`: stamps of blocks by their number."""

    def __init__(self, bay: Bay) -> None:
        self.bay = bay
        self.queue: deque[tuple[str, int, list[int]]] = deque()
        self.answers: deque[int] = deque()
        self.medium: dict[int, int] = {}
        self.cache: dict[int, int] = {}
        self.sent = 0
        self.moved_ns = 0  # of running time

    def holds(self, content: list[int], end: int) -> bool:
        return all(self.medium.get(block) == content[block] for block in range(end // BLOCK_BYTES))


class World:
    """Each method is something that may happen; all of them judge what the ensemble says then.  `mirror` is a number."""

    def __init__(self, mirrors: int, want: Redundancy) -> None:
        # the indexes fall where the devices rise: who goes by position credits the wrong one
        self.places = [Bay(number + 1, 9 - number) for number in range(mirrors)]
        self.mirrors = [Mirror(place) for place in self.places]
        self.want, self.avoided = want, AvoidedDevices()
        self.ensemble = Ensemble(self.places, want, self.avoided)
        row_bays = [SegmentBay(place.device, place.index, 0, BAY_MIRROR) for place in self.places]
        self.row = rows.SegmentRow(7, 0, 0, SEGMENT_LEASED, 1, bytes=SEGMENT, bays=row_bays, want=want, volume=1)
        self.content: list[int] = []  # stamps of what was begun
        self.reached = 0  # bytes
        self.stamps = 0
        self.counted: dict[Bay, int] = {}  # what was said of each mirror last
        self.now_ns = self.running_ns = 1_000 * MS
        self.failed: set[Bay] = set()
        self.avoided_once: set[int] = set()
        self.asked = False  # mirrors were sent the newest batch, which is still open
        self.full = False  # a batch was lost of which mirrors may have something, or there is a footer

    # --- the writer -----------------------------------------------------------------------------------------------------
    def begin(self, blocks: int, *, footer: bool = False) -> None:
        ensemble = self.ensemble
        if ensemble.verdict is Verdict.WAITING:
            return
        ended = bool(self.failed)
        del self.content[self.reached // BLOCK_BYTES :]
        start = len(self.content)
        new = list(range(self.stamps, self.stamps + blocks))
        self.stamps += blocks
        self.content += new
        end = len(self.content) * BLOCK_BYTES
        takers = ensemble.begin(end, self.now_ns, footer=footer)
        if self.full or (ended and not footer):
            assert not takers and ensemble.verdict is Verdict.LOST, "a segment that has ended is written on"
        self.asked = bool(takers)
        self.full = self.full or (footer and self.asked)
        for mirror in self.mirrors:
            if mirror.bay in takers:
                assert mirror.bay not in self.failed, "a mirror that has failed is written to"
                if not mirror.queue and not mirror.answers:
                    mirror.moved_ns = self.running_ns
                mirror.queue += [("append", start, new), ("sync", end, [])]
        self.judge()

    # --- mirrors --------------------------------------------------------------------------------------------------------
    def work(self, mirror: int) -> None:
        """The next append, or a flush that succeeds."""
        one = self.mirrors[mirror % len(self.mirrors)]
        if not one.queue:
            return
        kind, at, stamps = one.queue.popleft()
        if kind == "sync":
            one.medium.update(one.cache)
            one.cache.clear()
            one.answers.append(at)
            return
        one.cache.update(enumerate(stamps, at))
        self._sent(one, (at + len(stamps)) * BLOCK_BYTES)

    def _sent(self, mirror: Mirror, end: int) -> None:
        if end > mirror.sent:
            mirror.sent, mirror.moved_ns = end, self.running_ns
            self.ensemble.sent(mirror.bay, end, self.now_ns)
            self.judge()

    def answer(self, mirror: int) -> None:
        one = self.mirrors[mirror % len(self.mirrors)]
        if one.answers:
            one.moved_ns = self.running_ns
            self.ensemble.answered(one.bay, one.answers.popleft(), self.now_ns)
            self.judge()

    def work_all(self, mirror: int) -> None:
        one = self.mirrors[mirror % len(self.mirrors)]
        while one.queue or one.answers:
            self.work(mirror)
            self.answer(mirror)

    def flush_fails(self, mirror: int, *, tried_again: bool) -> None:
        """What is in the cache is lost, once.  `tried_again`: the server flushes again, which succeeds, and answers that too."""
        one = self.mirrors[mirror % len(self.mirrors)]
        while one.queue and one.queue[0][0] != "sync":
            self.work(mirror)
        if one.queue:
            _, end, _ = one.queue.popleft()
            one.cache.clear()
            if tried_again:
                one.answers.append(end)
            self._fails(one, "flush failed")

    def cut(self, mirror: int, *, done: bool) -> None:
        """The connection ends; `done`: the mirror has done all of it, and only the answers are lost."""
        one = self.mirrors[mirror % len(self.mirrors)]
        while done and one.queue:
            self.work(mirror)
        one.queue.clear()
        one.answers.clear()
        one.cache.clear()
        self._fails(one, "reset")

    def answers_wrongly(self, mirror: int, *, long: bool) -> None:
        """A disk that was wiped says that it has less than it had; or one says that it has what nobody sent."""
        one = self.mirrors[mirror % len(self.mirrors)]
        self.ensemble.answered(one.bay, SEGMENT if long else 0, self.now_ns)
        self.failed.add(one.bay)
        if not long:
            one.queue.clear()
            one.answers.clear()
        self.judge()

    def _fails(self, mirror: Mirror, why: str) -> None:
        self.failed.add(mirror.bay)
        self.ensemble.failed(mirror.bay, why, self.now_ns)
        self.judge()

    # --- time -----------------------------------------------------------------------------------------------------------
    def passes(self, ms: int) -> None:
        for _ in range(0, ms, ENSEMBLE_LOOK_MS):
            self._step(ENSEMBLE_LOOK_MS * MS)
        if ms >= SETTLED_MS:
            assert not self.ensemble.waits and self.ensemble.verdict is not Verdict.WAITING, "a silent mirror is waited for"

    def stops(self, ms: int) -> None:
        """The client does not run for a while; then it looks before it has read any answer."""
        self.now_ns += ms * MS - min(ms * MS, LOOK_NS_MAX)
        self._step(min(ms * MS, LOOK_NS_MAX))

    def trickles(self, mirror: int) -> None:
        """A mirror takes a byte at each look, and the others answer."""
        one = self.mirrors[mirror % len(self.mirrors)]
        for number in range(len(self.mirrors)):
            if self.mirrors[number] is not one:
                self.work_all(number)
        reached = self.ensemble.verdict is Verdict.REACHED
        for _ in range(0, SETTLED_MS, ENSEMBLE_LOOK_MS):
            if one.queue:
                self._sent(one, one.sent + 1)
            self._step(ENSEMBLE_LOOK_MS * MS)
        if reached:
            assert not self.ensemble.waits, "a mirror that is far behind is kept"

    def _step(self, ns: int) -> None:
        self.now_ns += ns
        self.running_ns += ns
        self.ensemble.look(self.now_ns)
        self.judge()

    def ends(self) -> None:
        """A life of the segment is over."""
        assert set(self.ensemble.failures()) == self.failed, "a mirror that failed is not one of those, or one is that did not"
        assert self.ensemble.ended or not self.failed, "a mirror has failed, and the segment goes on"
        assert self.avoided_once == {bay.device for bay in self.failed}, "others are avoided than those that have failed"

    # --- the judge ------------------------------------------------------------------------------------------------------
    def judge(self) -> None:
        ensemble = self.ensemble
        for bay in ensemble.take_given_up():
            mirror = next(one for one in self.mirrors if one.bay == bay)
            if ensemble.failures()[bay] == "it is silent":
                assert self.running_ns - mirror.moved_ns >= SEGMENT_STALL_MS * MS, "a mirror was given up that had no time to answer"
            self.failed.add(bay)
        self.avoided_once.update(self.avoided.devices(self.now_ns))
        self.full = self.full or (self.asked and ensemble.verdict is Verdict.LOST)
        self.asked = self.asked and ensemble.verdict is Verdict.WAITING
        if ensemble.verdict is Verdict.REACHED:
            self.reached = max(self.reached, len(self.content) * BLOCK_BYTES)
        assert ensemble.end == self.reached, "the segment ends elsewhere than where the last batch ended that was reached"
        self._commit()

    def _commit(self) -> None:
        """Has the log take what the ensemble says, and compares that with what is on the media."""
        said = self.ensemble.durable()
        now = {Bay(device, index): durable for device, index, durable in said}
        assert all(now.get(bay, 0) >= durable for bay, durable in self.counted.items()), "the length of a mirror shrank"
        self.counted = now
        for device, index, durable in said:
            mirror = next((one for one in self.mirrors if one.bay == Bay(device, index)), None)
            assert mirror is not None and mirror.holds(self.content, durable), "bytes count that are not there"
        step = SegmentProgress(7, 1, self.reached, False, 0, 0, said)
        try:
            bays.check_progress(self.row, step)
        except FsError as err:
            raise AssertionError(f"the log refuses what the ensemble says: {err}") from None
        self.row.committed_bytes = self.reached
        bays.advance(self.row, step)
