"""Orders to verify mirrors, to whichever segment server has each."""

from __future__ import annotations

import time
from collections.abc import Callable

from awsomefsd.base.limits import NS_PER_MS, SEGMENT_VERIFY_MS_MAX
from awsomefsd.base.types import SegmentBay, SegmentInBays
from awsomefsd.io.pool.pool_devices import PoolDevices
from awsomefsd.io.transport.messages import Verified, loads
from awsomefsd.io.transport.records import BulkRecord, Kind


class Verifying:
    """`devices` makes the way to the segment servers when it is first used: it loads ssl.  One thread gives orders."""

    def __init__(self, devices: Callable[[], PoolDevices]) -> None:
        self._make = devices
        self._devices: PoolDevices | None = None

    def verify(self, info: SegmentInBays, bay: SegmentBay, end: int) -> Verified:
        """Has all bytes of a mirror up to `end` read and checked by its server.  Blocks; raises OSError as `remote_errors` has it."""
        devices = self._devices
        if devices is None:
            devices = self._devices = self._make()
        server = devices.device_of(bay.device).server
        record = BulkRecord(Kind.VERIFY, 0, info.segment, info.incarnation, bay.device, bay.index, end, info.footer_offset)
        _, body = server.order(record, time.monotonic_ns() + SEGMENT_VERIFY_MS_MAX * NS_PER_MS)
        return loads(body, Verified)

    def close(self) -> None:
        """Ends the connections, and with them an order that is waited for: it raises.  Any thread; the next order connects anew."""
        devices, self._devices = self._devices, None
        if devices is not None:
            devices.close()
