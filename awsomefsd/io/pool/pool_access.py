"""The way of one session's bytes to the bays of a pool and back: its parts, put together.  A mount has one, and so has a collector."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.pool.bay_leases import BayLeases, Lease
from awsomefsd.io.pool.copies import Copies
from awsomefsd.io.pool.fanout import Fanout
from awsomefsd.io.pool.pool_devices import PoolDevices
from awsomefsd.io.pool.remote_server import Session

if TYPE_CHECKING:
    from awsomefsd.base.tls import TlsNow


class PoolAccess:
    """`leases` is for a SegmentWriter, `copies` for a SegmentReader; the parameters are those of PoolDevices and BayLeases."""

    def __init__(
        self, find: Callable[[], list[DeviceInfo]], cluster: str, own: str, own_socket: str, tls: Callable[[], TlsNow],
        session: Callable[[], Session], lease: Lease,
    ) -> None:  # fmt: skip
        self._devices = PoolDevices(find, cluster, own, own_socket, tls, session)
        self._fanout = Fanout(self._devices.device_of)
        self.leases = BayLeases(self._fanout, lease, self._devices.news)
        self.copies = Copies(self._devices.local, self._devices.device_of, self._fanout.avoid)

    def close(self) -> None:
        """Ends the connections to segment servers, after the last segment was sealed."""
        self._fanout.close()
        self._devices.close()
