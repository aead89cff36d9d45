"""The devices of pools as this node reaches them: through the segment server that has each, and those of its own directly for reading.

Where a device is served is asked for once, and again in the background: when that server is left alone for a moment, and while devices are
used every POOL_DEVICES_MS_MAX, since another node may serve one now.  Whoever reads meanwhile goes on with what is known, leader or not.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from awsomefsd.base.errors import Error
from awsomefsd.base.limits import MIRRORS_LOOK_MS, NS_PER_MS, POOL_DEVICES_MS_MAX
from awsomefsd.base.types import DeviceInfo, SegmentBay
from awsomefsd.base.wait import MustWait, may_wait
from awsomefsd.io.device.device import BlockDevice, Device
from awsomefsd.io.device.identified import open_identified
from awsomefsd.io.pool.copies import LocalBay
from awsomefsd.io.pool.remote_device import RemoteDevice
from awsomefsd.io.pool.remote_server import RemoteServer, Session
from awsomefsd.meta.client.endpoints import endpoint_of

if TYPE_CHECKING:
    from awsomefsd.base.tls import TlsNow

log = logging.getLogger(__name__)


class _Opened(NamedTuple):
    """A device of this node; None if it could not be opened.  It is tried again when it was looked for again: it may be there then."""

    path: str
    device: Device | None
    look: int


class PoolDevices:
    """Thread-safe.  `find` lists all devices, with their paths on this node; it blocks for the metadata service.

    `own` and `own_socket`: this node, and the socket of its segment server.  `session`: for which bays are opened now.
    """

    def __init__(
        self, find: Callable[[], list[DeviceInfo]], cluster: str, own: str, own_socket: str, tls: Callable[[], TlsNow],
        session: Callable[[], Session],
    ) -> None:  # fmt: skip
        self._find, self._cluster, self._own, self._own_socket, self._tls, self._session = find, cluster, own, own_socket, tls, session
        self._lock = threading.Lock()
        self._infos: dict[int, DeviceInfo] = {}
        self._servers: dict[str, RemoteServer] = {}  # by endpoint
        self._opened: dict[int, _Opened] = {}  # the own devices
        self._looking = False
        self._looked_ns = 0
        self._changes = self._looks = 0

    def device_of(self, number: int) -> RemoteDevice:
        """Returns a device through its server.

        Blocks for the metadata service where the device is not known yet; raises MustWait on a thread that may not, and OSError: ENODEV
        where nobody serves it, EAGAIN where nobody can say.
        """
        info = self._infos.get(number)
        if info is None:
            if not may_wait():
                raise MustWait
            try:
                self._look()
            except Error as err:  # a caller with other mirrors goes on with those
                raise OSError(errno.EAGAIN, f"who serves device {number} cannot be asked: {err}") from err
            info = self._infos.get(number)
        endpoint = self._endpoint(info) if info is not None else ""
        if info is None or not endpoint:
            self._look_soon()
            raise OSError(errno.ENODEV, f"no segment server serves device {number} now")
        with self._lock:
            server = self._servers.get(endpoint)
            if server is None:
                server = self._servers[endpoint] = RemoteServer(endpoint, self._own, self._tls(), self._session)
        if server.is_left_alone() or time.monotonic_ns() - self._looked_ns > POOL_DEVICES_MS_MAX * NS_PER_MS:
            self._look_soon()
        return RemoteDevice(server, number, info.segment_bytes)

    def _endpoint(self, info: DeviceInfo) -> str:
        if info.server == self._own:
            return self._own_socket
        if not info.server or not info.address or "@" in info.address or "/" in info.address:  # an address names no node, and no socket
            return ""
        return endpoint_of(info.server, info.address)

    def local(self, bay: SegmentBay, length: int) -> BlockDevice | None:
        """Returns a bay for reading, if its device is this node's and can be opened; None else.  May block for the device."""
        info = self._infos.get(bay.device)
        if info is None or info.server != self._own or not info.path:
            return None
        device = self._own_device(info)
        if device is None:
            return None
        return LocalBay(device, info.first_segment_offset + bay.index * info.segment_bytes, length)

    def _own_device(self, info: DeviceInfo) -> Device | None:
        known = self._opened.get(info.device)
        if known is not None and known.path == info.path:
            again = known.look < self._looks if known.device is None else known.device.failed
            if not again:
                return known.device
        with self._lock:
            try:
                device = open_identified(info.path, self._cluster, info.uuid, info.era, read_only=True)
            except (OSError, Error) as err:  # the segment server says what is wrong with it
                log.warning("a device of this node is read through its segment server device=%d path=%s: %s", info.device, info.path, err)
                device = None
            self._opened[info.device] = _Opened(info.path, device, self._looks)
        return device

    def news(self) -> int:
        """Returns how often it has turned out that devices were added, or are served elsewhere.  Does not block."""
        return self._changes

    def _look(self) -> None:
        before, self._infos = self._infos, {info.device: info for info in self._find() if info.pool}
        self._looked_ns = time.monotonic_ns()
        self._looks += 1
        self._changes += _served(before) != _served(self._infos)

    def _look_soon(self) -> None:
        """Asks again where devices are served, on a thread of its own."""
        with self._lock:
            if self._looking:
                return
            self._looking = True
        threading.Thread(target=self._look_once, name="pool-devices", daemon=True).start()

    def _look_once(self) -> None:
        try:
            self._look()
        except (Error, OSError) as err:
            log.warning("where the devices of pools are served cannot be asked: %s", err)
        finally:
            time.sleep(MIRRORS_LOOK_MS / 1_000)
            self._looking = False

    def close(self) -> None:
        """Ends all connections.  Does not block."""
        for server in list(self._servers.values()):
            server.close()


def _served(infos: dict[int, DeviceInfo]) -> set[tuple[int, str, str]]:
    return {(info.device, info.server, info.address) for info in infos.values()}
