"""Segments of a pool that lack something are mended by the daemon of the leader: it has mirrors copied, and gives up what is too much.

Needs are rows, and so are the bays that are kept for copies, so whoever leads next goes on; an order given twice is one copy at its server.
healing_plan.py decides, this module asks and proposes.  Each copy has a thread, which orders it from the server of the destination again
and again until it is made, and then proposes that.  A leader that is none any more is refused there, and its order joins the other's.

A device that has been absent for long is lost, unless its segment server answers: then only its daemon is away.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import Error, FsError, Unavailable
from awsomefsd.base.limits import NEEDS_PAGES_MAX, NEEDS_PER_ANSWER_MAX, NS_PER_MS
from awsomefsd.io.pool.remote_errors import BayLost, NobodyLeads
from awsomefsd.io.pool.remote_server import RemoteServer, answer_by
from awsomefsd.io.transport.messages import Copied, CopyOrder, CopySource, dumps, loads
from awsomefsd.io.transport.records import BulkRecord, Kind
from awsomefsd.meta.api.commands import DropBays, MirrorMade, NeedSegments, PlanMirror, SetDeviceState
from awsomefsd.meta.api.commands.pools import DEVICE_LOST
from awsomefsd.meta.api.messages.pools import GetNeeds, NeedsFound, Pool, PoolCensus, PoolDeviceInfo
from awsomefsd.meta.client.endpoints import endpoint_of
from awsomefsd.node.maintenance.healing_memory import Absences, CopyFailures, CopyRate, SleepingNeeds
from awsomefsd.node.maintenance.healing_plan import COPIES_PER_HOST, Asleep, GiveUpBay, HealingPlan, KeepBay, Later, MirrorCopy

WALK_STEPS = 8  # of 512 segments, between two looks at what is to be copied
URGENT_TIMES = 4  # the heal rate, where one mirror is left
LOOK_SHARE = 10  # one part in so many of the time is spent on reading needs, which the leader's metadata thread answers
_FRONT = (0, 0)
BUSY_S = 1.0  # before a server that has enough copies is asked again

log = logging.getLogger(__name__)


class Healing:
    """`server_of` returns the segment server of a device, None if it is not reached.  One thread calls; copies have their own.

    `changed` is called when a copy has ended.
    """

    def __init__(
        self, ask: Callable[[Any], Any], propose: Callable[[Any], Any], server_of: Callable[[PoolDeviceInfo], RemoteServer | None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._ask, self._propose, self._server_of, self._changed = ask, propose, server_of, changed
        self._lock = threading.Lock()
        self._running: dict[int, tuple[MirrorCopy, threading.Thread]] = {}  # by segment
        self._failures, self._absences, self._rate = CopyFailures(), Absences(), CopyRate()
        self._looked = SleepingNeeds()
        self._ending = threading.Event()  # of the copies that run now
        self._look_s = 0.0  # when needs are read next
        self._soon = False  # something was refused that will be possible in a moment
        self._place = _FRONT  # of the needs, where the next look begins: those before it can only sleep
        self.made = self.failed = 0

    @property
    def waits(self) -> bool:
        """True: something is under way, or goes by time, which no entry announces."""
        return bool(self._running) or self._absences.any or self._soon

    def turn(self, pool: Pool) -> bool:
        """Does what can be done now; returns whether a further look may find more.  Blocks; raises Error."""
        self._soon = False
        with self._lock:
            self._failures.take_devices(pool, time.monotonic_ns() // NS_PER_MS)
        lost = self._note_lost(pool)
        walked = self._walk(pool)
        return self._heal(pool) or lost or walked

    def rest(self) -> None:
        """Gives the copies that run now up, without waiting for them: this node does not lead, or ends.  Their servers go on with them."""
        self._ending.set()
        self._ending = threading.Event()
        self._absences = Absences()
        with self._lock:  # what was needed then says nothing of the next time that this node leads
            self._rate, self._looked = CopyRate(), SleepingNeeds()

    def join(self) -> None:
        """Waits until no copy has a thread any more."""
        for _, thread in list(self._running.values()):
            thread.join()

    def census(self) -> PoolCensus:
        """Returns what is known of the copies, and of what cannot be copied; nothing is counted in it."""
        with self._lock:
            now_ms = time.monotonic_ns() // NS_PER_MS
            alone = sorted(self._failures.left_alone(now_ms))
            return PoolCensus(
                [], 0, 0, self._looked.asleep, self._looked.why, len(self._running), self._rate.bytes_per_s(now_ms),
                self._rate.idle_ms(now_ms), alone, self._looked.standing(),
            )  # fmt: skip

    # --- devices and walks ----------------------------------------------------------------------------------------------------
    def _note_lost(self, pool: Pool) -> bool:
        now_ms = time.monotonic_ns() // NS_PER_MS
        lost = [one for one in self._absences.lost(pool, now_ms, time.time_ns() // NS_PER_MS) if not self._answers(one)]
        for device in lost:
            log.warning("a device has been absent for long: it is lost, and what it held is copied", extra={"device": device.device})
            self._propose(SetDeviceState(device.device, DEVICE_LOST))
        return bool(lost)

    def _answers(self, device: PoolDeviceInfo) -> bool:
        server = self._server_of(device)
        try:
            return server is not None and server.reads(answer_by()).error is None
        except OSError:
            return False

    def _walk(self, pool: Pool) -> bool:
        left = pool.walks
        for _ in range(WALK_STEPS if left else 0):
            left = self._propose(NeedSegments(512)).number
            if not left:
                break
        return bool(pool.walks)

    # --- needs ----------------------------------------------------------------------------------------------------------------
    def _heal(self, pool: Pool) -> bool:
        """Begins what can be done, the most urgent first; returns whether rows were changed, or more needs were left than looked at."""
        if time.monotonic() < self._look_s:
            self._soon = True
            return False
        looking_s = 0.0
        with self._lock:
            running = [copy for copy, _ in self._running.values()]
            left_alone = self._failures.left_alone(time.monotonic_ns() // NS_PER_MS)
            plan = HealingPlan(pool, running, left_alone, self._failures.failed(pool))
        (place, self._place), changed = (self._place, _FRONT), False
        looked = self._looked.next(goes_on=place != _FRONT)
        drops: list[GiveUpBay] = []
        for _ in range(NEEDS_PAGES_MAX):
            began = time.monotonic()
            page: NeedsFound = self._ask(GetNeeds(*place, NEEDS_PER_ANSWER_MAX))
            looking_s += time.monotonic() - began
            self._look_s = time.monotonic() + LOOK_SHARE * looking_s
            for need in page.needs:
                decided = plan.decide(need)
                looked.note(need, decided, plan.drained(need))
                if isinstance(decided, GiveUpBay):
                    drops.append(decided)
                elif isinstance(decided, KeepBay):
                    kept = self._keep(decided)
                    if kept is None:
                        return self._drop(drops) or changed
                    changed = changed or kept
                elif isinstance(decided, MirrorCopy):
                    self._start(pool, decided)
                else:
                    assert isinstance(decided, (Later, Asleep))
            place = page.next
            if place[0] < 0 or plan.is_full:
                break
        else:
            self._place, changed = place, True
        looked.ended(place[0] < 0, time.time_ns() // NS_PER_MS)
        with self._lock:
            self._looked = looked
            self._rate.needed(looked.needed, time.monotonic_ns() // NS_PER_MS)
        return self._drop(drops) or changed

    def _keep(self, plan: KeepBay) -> bool | None:
        """Has a bay kept for a copy; returns whether it is, None where that has to wait: bays that were freed are not safe yet."""
        try:
            self._propose(PlanMirror(plan.segment, plan.device, 0, plan.replaces))
        except Unavailable as err:
            log.info("no bay can be kept for a copy now: %s", err, extra={"segment": plan.segment, "device": plan.device})
            self._soon = True
            return None
        except FsError as err:
            return self._was_overtaken(err)
        return True

    def _drop(self, drops: list[GiveUpBay]) -> bool:
        """Gives bays up, each by an entry of its own: one that is refused must not keep the others."""
        for drop in drops:
            try:
                self._propose(DropBays([(drop.segment, drop.device, drop.index)]))
            except FsError as err:
                self._was_overtaken(err)
        return bool(drops)

    def _was_overtaken(self, err: FsError) -> bool:
        """Returns False where a refusal says only that the rows, or what is safe, are not as they were thought to be; raises it else."""
        if err.errno not in (errno.EBUSY, errno.EEXIST, errno.ENOSPC, errno.ESTALE, errno.ENOENT, errno.EPERM):
            raise err
        return False

    # --- copies ---------------------------------------------------------------------------------------------------------------
    def _start(self, pool: Pool, copy: MirrorCopy) -> None:
        devices = {device.device: device for device in pool.devices}
        server = self._server_of(devices[copy.device])
        if server is None:
            return
        sources = [
            CopySource(endpoint_of(devices[bay.device].server, devices[bay.device].address), bay.device, bay.index) for bay in copy.sources
        ]
        pace = pool.heal_bytes_per_s * (1 if copy.priority else URGENT_TIMES) // COPIES_PER_HOST
        body = dumps(CopyOrder(copy.planned, sources, max(pace, 1)))
        thread = threading.Thread(target=self._run, args=(copy, server, body, self._ending), name="healing-copy", daemon=True)
        with self._lock:
            self._running[copy.segment] = copy, thread
        thread.start()

    def _run(self, copy: MirrorCopy, server: RemoteServer, body: bytes, ending: threading.Event) -> None:
        made, trouble = False, ""
        try:
            copied = self._ordered(copy, server, body, ending)
            if copied is not None and copied.wrong_count and copy.replaces_absent:
                trouble = f"{copied.wrong_count} places are wrong in all that can be asked; the mirror that it would replace is away"
            elif copied is not None:
                self._propose(MirrorMade(copy.segment, copy.device, copy.index, copy.planned, copy.end, copy.replaces))
                made = True
                self._note_findings(copy, copied)
        except (BayLost, NobodyLeads, Error) as err:  # the rows are others by now, or nobody can be asked: not the copy's fault
            log.info("a copy of a segment is looked at again: %s", err, extra={"segment": copy.segment, "device": copy.device})
        except OSError as err:
            if err.errno == errno.EBUSY:
                ending.wait(BUSY_S)
            else:
                trouble = str(err)
        except Exception as err:  # a bug must not end healing for this segment
            log.exception("the copy of a segment failed")
            trouble = f"a bug: {err!r}"
        self._ended(copy, made, trouble)

    def _ordered(self, copy: MirrorCopy, server: RemoteServer, body: bytes, ending: threading.Event) -> Copied | None:
        """Orders the copy until it is made; returns None when it is to be given up here.  Raises OSError."""
        record = BulkRecord(
            Kind.COPY, 0, copy.segment, copy.incarnation, copy.device, copy.index, copy.end, copy.footer, body_bytes=len(body)
        )  # fmt: skip
        while not ending.is_set():
            answer, data = server.order(record, answer_by(), body)
            copied = loads(data, Copied)
            with self._lock:
                self._rate.note(copy.segment, answer.offset, time.monotonic_ns() // NS_PER_MS)
            if copied.done:
                return copied
        return None

    @staticmethod
    def _note_findings(copy: MirrorCopy, copied: Copied) -> None:
        if copied.wrong_count:
            log.error("a segment has bytes that are wrong in every mirror", extra={"segment": copy.segment, "places": copied.wrong_count})
        elif copied.mended:
            log.warning("a copy took from another mirror what was wrong in one", extra={"segment": copy.segment, "places": copied.mended})

    def _ended(self, copy: MirrorCopy, made: bool, trouble: str) -> None:
        left_alone = False
        with self._lock:
            self.made += made
            self.failed += bool(trouble)
            if made or trouble:
                left_alone = self._failures.note(copy, made, time.monotonic_ns() // NS_PER_MS)
            self._rate.ended(copy.segment, made, time.monotonic_ns() // NS_PER_MS)
            self._running.pop(copy.segment, None)
        if trouble:
            extra = {"segment": copy.segment, "device": copy.device, "left_alone": left_alone}
            log.warning("a segment was not copied to a device: %s", trouble, extra=extra)
        self._changed()
