"""Collection of sparse segments on this node, when it runs and how fast: a thread of the daemon around io/collect/collector.py.

It runs in the daemon and not in a worker: it works on all volumes, mounted or not, has a session of its own, and neither its load nor its
end touches a mount.  Readers need not be told (see there).  All its state is in the metadata, so a killed daemon continues where it was.

It checks every LOOK_S whether space is low, while entries are applied, and reads all segments every FULL_LOOK_S, or at once when space is
low or on command.  When nothing is applied it sleeps: the daemon looks by `due` whether that has changed, and calls `wake`.  While space
is low it copies without pause, small gains too, and merges no neighbours.  Otherwise it pauses after each chunk: as long as the byte
rate demands, and at least as long as the chunk took, so a device or service that is busy with others keeps half of its time.

Each node collects its own devices.  Of the nodes that see a shared device well, as the leader was told, the one with the lowest UUID
collects it.  Nothing depends on that there is only one: two that meet, after a change of what is seen or on command, move each extent once,
by compare-and-swap.  A device that nobody sees is collected when it is back.  Below level 3 one node collects at a time.

A segment in bays of a pool is collected by the node whose segment server has its first mirror; who is ordered to collect takes all.

Every failure is logged, shown in status, and tried again with growing pauses; the thread ends with the daemon only.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from awsomefsd.base.errors import Error, FsError, Refused, Unavailable
from awsomefsd.base.limits import COLLECT_DEAD_PERCENT, COLLECT_DEAD_PERCENT_LOW, COLLECT_LOW_FREE_PERCENT
from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.collect.candidates import Candidates
from awsomefsd.io.collect.collected_pool import PoolPlaces
from awsomefsd.io.collect.collector import Collector, Elsewhere, Stopped
from awsomefsd.io.device.open_devices import OpenDevices
from awsomefsd.meta.api.messages.nodes import ListNodes
from awsomefsd.meta.api.report_pages import all_sightings
from awsomefsd.node.maintenance.collection_plan import CollectionPlan, plan
from awsomefsd.node.maintenance.io_budget import IoBudget

WELL = "ok"  # the state of a device in a node's report (node/devices/device_scan.py)
if TYPE_CHECKING:
    from awsomefsd.io.collect.collected_pool import AccessPool

LOOK_S = 1.0
WAKE_MS = 2_000  # between two looks of the daemon whether a collection that sleeps is to be woken
FULL_LOOK_S = 30.0
LOOK_SHARE = 20  # one part in so many of the time is spent on looking
PAUSE_S_MAX = 2.0  # below the time in which a session has to be renewed
RETRY_S_MAX = 60.0
ELSEWHERE_S_MAX = 5.0

NO_CLIENT = "this node is a client of the cluster and may not collect; run it on a node of role node"

log = logging.getLogger(__name__)


class Collection:
    """The thread that collects.  `start` and `stop` are called once; `order`, `status`, `plan` and `proof` from any thread."""

    def __init__(
        self,
        ask: Callable[[Any], Any],
        devices: Callable[[], list[DeviceInfo]],
        opened: OpenDevices,
        node: str,
        boot_id: str,
        budget: IoBudget,
        *,
        collects: bool = True,
        applied: Callable[[], int] = lambda: 0,
        access_pool: AccessPool | None = None,
    ) -> None:
        """`collects`: False on a client of the cluster, which may not: it has no thread and asks for no session.  `access_pool`: see there.

        `applied` returns how far the log is, as far as this node knows, without waiting; 0 if it does not.
        """
        self._ask = ask
        self._may = collects
        self._pools = access_pool is not None
        self._budget = budget
        self._node = node
        self._open = opened
        self._collector = Collector(
            ask, self._open, node, boot_id, time.monotonic_ns, self._pace, self._collects, access_pool=access_pool
        )
        self._devices = devices
        self._applied = applied
        self._seen_index = 0  # `applied` before the last look
        self._resting = False  # until something is applied
        self._cond = threading.Condition()
        self._ending = False
        self._off = not collects
        self._forced = False
        self._busy = False
        self._hurry = False
        self._error = ""
        self._draining = False
        self._collectors: dict[str, str] | None = None  # shared device → the node that collects it; None: whoever sees it
        self._chunk_s = self._look_s = self._drain_s = 0.0  # when the chunk began; when all segments are read next, also if one drains
        self._thread = threading.Thread(target=self._run, name="collection", daemon=True)

    def _collects(self, info: DeviceInfo) -> bool:
        return self._takes(info, self._collectors)

    def _takes(self, info: DeviceInfo, collectors: dict[str, str] | None) -> bool:
        if info.pool:
            return bool(info.server) if collectors is None else info.server == self._node
        return _is_own(info, self._node, collectors, here=True)  # the collector takes no other than those that are open here

    def proof(self, session: int) -> str:
        """Returns the proof that no write of a collecting session of this node can land any more; "" if one may."""
        if session not in self._collector.sessions:
            return "the daemon that collected has exited"
        return "" if self._collector.may_write_under(session) else "the daemon that collected has none of its writes under way"

    def start(self) -> None:
        if self._may:
            self._thread.start()

    def due(self) -> bool:
        """Returns whether entries were applied while the thread sleeps until there are some.  Any thread; does not wait."""
        return self._resting and self._applied() != self._seen_index

    def wake(self) -> None:
        """Lets the thread look now.  Any thread."""
        with self._cond:
            self._resting = False
            self._cond.notify()

    def stop(self) -> None:
        """Ends the thread after the chunk that is being copied, and waits for it."""
        with self._cond:
            self._ending = True
            self._cond.notify()
        if self._thread.is_alive():
            self._thread.join()

    def order(self, action: str) -> None:
        """Starts a collection now ("start"), or none until the next start ("stop").  Returns at once.  Raises Refused for another word.

        And on a client of the cluster.
        """
        if not self._may:
            raise Refused(NO_CLIENT)
        if action not in ("start", "stop"):
            raise Refused(f"{action!r} is not an action; write start or stop")
        with self._cond:
            self._off, self._forced = action == "stop", action == "start"
            self._cond.notify()

    def empty(self, damaged: set[tuple[int, int]]) -> None:
        """Has what lives in these (segment, incarnation) moved elsewhere, if they are this node's to collect.  Returns at once.

        One that cannot be moved now, or is not sealed yet, is dropped: ask again.  Any thread.
        """
        with self._cond:
            self._collector.candidates.damaged = frozenset(damaged)
            self._cond.notify()

    def status(self) -> tuple[str, dict[str, int], str]:
        """Returns the state ("idle", "collecting", "stopped"), the figures by name, and the last error or ""."""
        with self._cond:
            pending = self._busy or self._forced
            return "collecting" if pending else "stopped" if self._off else "idle", self._collector.figures.named(), self._error

    def plan(self, volume: int, device: int, between: Callable[[], object]) -> CollectionPlan:
        """Returns what collection would do, and changes nothing.  `between` is called now and then, and may raise to end it.  Any thread.

        0 is every volume and device.  Raises the service's Error, and Refused on a client of the cluster.
        """
        if not self._may:
            raise Refused(NO_CLIENT)
        collectors = collectors_of(self._ask)
        places = PoolPlaces() if self._pools else None
        ask = _leaving_half(self._ask)
        own = Candidates(ask, self._open, lambda info: self._takes(info, collectors), places, between)
        percent = COLLECT_DEAD_PERCENT_LOW if own.free_percent() < COLLECT_LOW_FREE_PERCENT else COLLECT_DEAD_PERCENT
        return plan(ask, own.like(self._collector.candidates), percent, COLLECT_DEAD_PERCENT_LOW, volume, device)

    def next_look(self) -> tuple[str, float]:
        """Returns when segments are chosen next, as "now", "soon" or "stopped", and for "soon" in how many seconds at the latest.

        While nothing is applied there is nothing to choose anew, and it looks when something is.
        """
        with self._cond:
            if self._off:
                return "stopped", 0.0
            if self._busy or self._pressed:
                return "now", 0.0
            return "soon", max(self._look_s - time.monotonic(), 0.0)

    # --- the thread ---------------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        pause_s = LOOK_S
        while self._wait(pause_s):
            try:
                self._turn()
                pause_s, self._error = LOOK_S, ""
            except Stopped:
                pause_s = LOOK_S
            except (Unavailable, Elsewhere) as err:  # another node leads or collects, or no leader answers now
                self._error = str(err)
                pause_s = min(2 * pause_s, ELSEWHERE_S_MAX)
            except Exception as err:  # a bug must neither end collection nor stay silent
                if not self._ending:
                    known = isinstance(err, (Error, OSError))
                    log.warning("collection failed; it is tried again: %s", err, exc_info=None if known else err)
                self._error = str(err) or type(err).__name__
                pause_s = min(2 * pause_s, RETRY_S_MAX)
            finally:
                self._busy = False
        try:
            self._collector.rest()
        except (Error, OSError) as err:
            log.info("collection ended, and could not tell the metadata service: %s", err)
        self._collector.close()

    def _wait(self, pause_s: float) -> bool:
        with self._cond:
            if not self._ending and (self._error or not self._forced):
                self._resting = not self._error and self._is_calm
                self._cond.wait(max(self._look_s - time.monotonic(), LOOK_S) if self._resting else pause_s)
                self._resting = False
            return not self._ending

    def _turn(self) -> None:
        """Does everything that is to be done now."""
        index = self._applied()
        if self._is_calm and time.monotonic() < self._look_s:
            return  # nobody has leased, freed, drained or added anything
        self._look()
        self._seen_index = index

    @property
    def _is_calm(self) -> bool:
        """Nothing was applied since the last look, and that one found nothing that goes on."""
        index = self._applied()
        return bool(index) and index == self._seen_index and not self._pressed

    @property
    def _pressed(self) -> bool:
        return bool(self._forced or self._hurry or self._draining or self._collector.candidates.damaged)

    def _look(self) -> None:
        devices = self._devices()
        if self._off or not devices:
            self._look_s = time.monotonic() + FULL_LOOK_S
            self._collector.rest()
            with self._cond:
                self._forced = self._forced and bool(devices)  # without any there is nothing to collect
            return
        forced = self._forced
        self._hurry = self._collector.candidates.free_percent() < COLLECT_LOW_FREE_PERCENT
        self._draining = any(one.draining and one.segments_free < one.segments for one in devices if not one.pool)
        if not (forced or time.monotonic() >= (self._drain_s if self._draining or self._collector.candidates.damaged else self._look_s)):
            return
        self._busy = True
        while self._some(forced):
            pass
        self._collector.rest()
        with self._cond:
            self._forced = False

    def _some(self, forced: bool) -> bool:
        """Does one round; returns False when there is nothing to do."""
        began = time.monotonic()
        self._open.look_again()
        self._collectors = None if forced else collectors_of(self._ask)
        found = self._collector.candidates.refresh()
        self._hurry = self._collector.candidates.free_percent() < COLLECT_LOW_FREE_PERCENT
        chosen = self._collector.candidates.choose(found, COLLECT_DEAD_PERCENT_LOW if self._hurry or forced else COLLECT_DEAD_PERCENT)
        took = time.monotonic() - began
        self._look_s = time.monotonic() + max(LOOK_SHARE * took, 0.0 if self._hurry else FULL_LOOK_S)
        self._drain_s = time.monotonic() + LOOK_SHARE * took
        if chosen:
            self._chunk_s = time.monotonic()
            self._collector.round(chosen, merge=not self._hurry)
        return bool(chosen)

    def _pace(self, copied: int) -> None:
        rest_s = self._budget.spend(copied, self._chunk_s)
        pause_s = 0.0 if self._hurry else min(rest_s, PAUSE_S_MAX)
        with self._cond:
            if pause_s and not (self._ending or self._off):
                self._cond.wait(pause_s)
            if self._ending or self._off:
                raise Stopped("collection was stopped")
        self._chunk_s = time.monotonic()


def _leaving_half(ask: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns what asks so, and rests after each answer for as long as it took: others ask the leader too."""

    def asked(body: Any) -> Any:
        began = time.monotonic()
        reply = ask(body)
        time.sleep(time.monotonic() - began)
        return reply

    return asked


def collectors_of(ask: Callable[[Any], Any]) -> dict[str, str] | None:
    """Returns device UUID → the node that collects it, of all devices that some node sees well.  Blocks; raises the service's Error.

    A client of the cluster sees devices too, and may not collect.

    None where the leader does not say, because it is of an older build: then whoever sees a device collects it.
    """
    try:
        sightings = all_sightings(ask)
        clients = {row.node for row in ask(ListNodes()).nodes if row.role == "client"}
    except FsError as err:
        if err.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
            raise
        return None
    chosen: dict[str, str] = {}
    reporting = {*sightings.reporting} - clients
    for one in sightings.seen:
        if one.state == WELL and one.node in reporting:
            chosen[one.uuid] = min(one.node, chosen.get(one.uuid, one.node))
    return chosen


def own_devices(node: str, ask: Callable[[Any], Any], devices: list[DeviceInfo]) -> list[DeviceInfo]:
    """Returns those that are looked after by this node: its own, and the shared ones that it collects.  Blocks as `collectors_of`."""
    collectors = collectors_of(ask)
    return [info for info in devices if _is_own(info, node, collectors, here=bool(info.path))]


def _is_own(info: DeviceInfo, node: str, collectors: dict[str, str] | None, *, here: bool) -> bool:
    """`here`: whether this node sees the device; it decides on a shared one where the leader does not say who collects it."""
    if info.pool:
        return False  # its segments are collected and checked through segment servers
    if not info.shared:
        return info.home in ("", node)
    return here if collectors is None else collectors.get(info.uuid) == node
