"""One device of a pool from the moment at which its row is this node's until it is not: attached, served, left when it fails, tried again.

    waiting -> attaching -> served -> waiting ...        On a thread of its own: a device that hangs holds up nobody else.

A device that cannot be attached says why, in its state and once in the log, and is tried again after a pause that doubles; at once when its
path has changed.  A descriptor stays with its device whatever becomes of the path.  After an I/O that failed the superblock is read by it:
if the disk behind it is gone, or is not that device any more, the device is given up, which closes its bays for ever, and attached anew.
So is one that the leader has called lost while this node was cut off, since its bays count again when it is attached, and one that a
recovery of the cluster has taken from its server.  Between looks this thread looks at doubted bays (io/pool/doubted_bays.py).
"""

from __future__ import annotations

import logging
import threading

from awsomefsd.base.errors import Error, Refused, Unavailable
from awsomefsd.base.limits import SEGMENT_ATTACH_PAUSE_MS, SEGMENT_ATTACH_PAUSE_MS_MAX
from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.identified import require_identity
from awsomefsd.io.device.superblock import Superblock
from awsomefsd.io.pool.attach import attach
from awsomefsd.io.pool.device_bays import DeviceBays
from awsomefsd.io.pool.doubted_bays import DoubtedBays
from awsomefsd.io.pool.gate import Gate
from awsomefsd.io.pool.server import SegmentServer
from awsomefsd.io.pool.server_state import ATTACHING, OK, DeviceState, WorkState
from awsomefsd.node.metadata_access import MetadataAccess

TAKEN_LOOKS = 2  # the first may have been asked for before the entry that made this the server

log = logging.getLogger(__name__)


class PoolDevice:
    """`start` → served whenever that is possible → `end`.  `gate` and `changed` (its lock) are those of `server`."""

    def __init__(
        self, info: DeviceInfo, cluster: str, node: str, access: MetadataAccess, server: SegmentServer, gate: Gate,
        changed: threading.Condition,
    ) -> None:  # fmt: skip
        self._cluster, self._node, self._access, self._server, self._gate, self._changed = cluster, node, access, server, gate, changed
        self._lock = threading.Condition()  # of what follows
        self._info = info
        self._news = False  # the row or the device has changed: look again
        self._ending = False
        self._bays: DeviceBays | None = None
        self._generation = 0
        self._unserved = 0  # looks in a row that found a row without a server, while this one serves
        self._why = ATTACHING  # it is not served
        self._pause_ms = SEGMENT_ATTACH_PAUSE_MS
        self._thread = threading.Thread(target=self._run, name=f"device-{info.device}", daemon=True)

    @property
    def number(self) -> int:
        return self._info.device

    def start(self) -> None:
        self._thread.start()

    def take(self, info: DeviceInfo) -> None:
        """Takes up the row as it is now, and looks whether the device has failed.  Does not block."""
        with self._lock:
            failed = self._bays is not None and isinstance(self._bays.device, Device) and self._bays.device.failed
            lost = self._bays is not None and info.lost
            self._unserved = self._unserved + 1 if self._bays is not None and not info.server else 0
            if info.path != self._info.path or failed or lost or self._unserved == TAKEN_LOOKS:
                self._news = True
                self._lock.notify_all()
            self._info = info

    def tell_end(self) -> None:
        """Begins to give the device up."""
        with self._lock:
            self._ending = True
            self._lock.notify_all()

    def join(self, timeout_s: float | None = None) -> bool:
        """Returns whether the device is given up and closed."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def state(self) -> DeviceState:
        with self._lock:
            info, bays, why, generation = self._info, self._bays, self._why, self._generation
        if bays is None:
            return DeviceState(info.device, info.uuid, info.path, why)
        with self._changed:
            opened = self._gate.opened(info.device)
        kinds = {"read": bays.reads, "write": bays.writes, "flush": bays.flushes}
        work = {kind: WorkState(one.done, one.ns, one.bytes, one.errors, one.usual_us) for kind, one in kinds.items()}
        copying = self._server.copying(info.device)
        return DeviceState(info.device, info.uuid, bays.device.path, OK, generation, bays.bays, opened, copying, work)

    # --- the device's thread ----------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._ending:
            with self._lock:
                info, self._news = self._info, False
            try:
                device, superblock = self._attach(info)
            except Unavailable as err:  # the leader, which is back soon
                self._pause_ms = SEGMENT_ATTACH_PAUSE_MS
                self._await_next(info, str(err))
            except (Error, OSError) as err:
                self._await_next(info, str(err))
            except Exception as err:  # a bug, which must not end what serves the other devices
                log.exception("a device cannot be attached")
                self._await_next(info, f"a bug: {err!r}")
            else:
                self._serve(device, superblock)

    def _attach(self, info: DeviceInfo) -> tuple[Device, Superblock]:
        if not info.path:
            raise Refused("not found on this node; attach it here, then `awsomefsd device scan`")
        return attach(info.path, self._cluster, info, self._node, self._access.ask, self._access.propose)

    def _await_next(self, info: DeviceInfo, why: str) -> None:
        """Waits for the next attempt."""
        with self._lock:
            if why != self._why:
                log.error("a device of a pool is not served: %s", why, extra={"device": info.device, "path": info.path})
            self._why = why
            self._lock.wait_for(lambda: self._news or self._ending, self._pause_ms / 1_000)
            self._pause_ms = SEGMENT_ATTACH_PAUSE_MS if self._news else min(2 * self._pause_ms, SEGMENT_ATTACH_PAUSE_MS_MAX)

    def _serve(self, device: Device, found: Superblock) -> None:
        """Serves the device until it is to be given up, and closes it."""
        bays = DeviceBays(
            self._info.device, device, found.first_segment_offset, found.segment_bytes, found.segments, self._gate, self._changed
        )  # fmt: skip
        self._server.serve(bays)
        with self._lock:
            self._bays, self._generation, self._pause_ms = bays, found.generation, SEGMENT_ATTACH_PAUSE_MS
            self._unserved = 0
        why = self._await_end(device, DoubtedBays(bays, self._node, found.generation, self._access.ask, self._access.propose))
        with self._lock:
            self._bays, self._why = None, why
        self._server.give_up(bays.number)
        device.close()
        log.info("given up", extra={"device": bays.number, "path": device.path, "reason": why})

    def _await_end(self, device: Device, doubted: DoubtedBays) -> str:
        """Looks at the bays that are doubted, and returns why the device is given up."""
        pause_s: float | None = 0.0  # None: nothing is left to look at
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._news or self._ending, pause_s)
                if self._ending:
                    return "it is not this node's any more, or the segment server ends"
                news, self._news, info = self._news, False, self._info
                taken = self._unserved >= TAKEN_LOOKS
            if not news:
                pause_s = self._look(doubted)
                continue
            if info.lost:
                return "the cluster has called it lost"
            if taken:
                return "the cluster's state went back, and has nobody that serves it"
            if not device.failed:
                continue
            try:
                require_identity(device, self._cluster, info.uuid, info.era)
            except (Error, OSError) as err:
                return str(err)
            device.failed = False

    def _look(self, doubted: DoubtedBays) -> float | None:
        """Looks at some bays that are doubted; returns when to go on, None if that was all."""
        try:
            return 0.0 if doubted.look() else None
        except Error as err:  # the leader, which is back soon
            log.info("bays that are doubted wait: %s", err, extra={"device": self.number})
            return SEGMENT_ATTACH_PAUSE_MS / 1_000
