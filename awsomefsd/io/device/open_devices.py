"""The cluster's devices that one process has open.

A descriptor stays open while its device works.  After an I/O that failed, the next user reads the superblock by it: the descriptor of a
disk that was unplugged stays dead also when the disk is back, and the disk may have another name then.  Such a one is left, and the device
opened anew by the path that it has now.  Threads that still use it go on with it; it is closed with the last of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping

from awsomefsd.base.errors import Error
from awsomefsd.base.types import DeviceInfo
from awsomefsd.base.wait import MustWait, may_wait
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.identified import RecoveredDevice, mend_identified, open_identified, require_identity

log = logging.getLogger("awsomefsd.devices")


class OpenDevices(Mapping[int, Device]):
    """The devices by number, opened when first used: one may be added while a mount is served.  Thread-safe.

    Raises KeyError for a device that this node does not see or cannot open, for one of a pool, which its segment server alone opens and
    mends, and for one whose path leads to something else: the superblock is read each time a path is opened (identified.py), and repaired
    if one of its two copies is damaged; `repaired` is called then.  `cluster`: its UUID, "" where the caller does not know it; then
    nothing is repaired.  The first use blocks for `find` and the opening, and so does each use of one that is not there.
    """

    def __init__(self, find: Callable[[], list[DeviceInfo]], cluster: str, repaired: Callable[[], object] = lambda: None) -> None:
        self._find = find
        self._repaired = repaired
        self._cluster = cluster
        self._open: dict[int, Device] = {}
        self._infos: dict[int, DeviceInfo] = {}  # of those that are open, as they were then
        self._told: dict[int, str] = {}  # device → why it could not be opened, as the log has it already
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> Device:
        device = self._open.get(number)
        if device is not None and not device.failed:
            return device
        with self._lock:
            if (device := self._open.get(number)) is not None and device.failed:
                self._leave_if_dead(number, device)
            if number in self._open:
                return self._open[number]
            for info in self._find():
                if info.path and not info.pool and info.device not in self._open:
                    self._try(info)
            return self._open[number]

    def works(self, number: int) -> bool:
        """Returns True for a device that is open and has not failed.  Does not block."""
        device = self._open.get(number)
        return device is not None and not device.failed

    def _leave_if_dead(self, number: int, device: Device) -> None:
        info = self._infos[number]
        try:
            require_identity(device, self._cluster, info.uuid, info.era)
        except RecoveredDevice:  # it works; `look_again` says what follows
            device.failed = False
        except (OSError, Error) as err:
            log.warning("device is left, and opened again when it is back device=%d path=%s: %s", number, device.path, str(err))
            del self._open[number]
        else:
            device.failed = False

    def _try(self, info: DeviceInfo) -> None:
        try:
            device = self._open[info.device] = open_identified(info.path, self._cluster, info.uuid, info.era)
            self._infos[info.device] = info
            self._told.pop(info.device, None)
        except (OSError, Error) as err:  # uses of this device fail; those of the others do not
            if self._told.get(info.device) != str(err):
                log.error("device cannot be opened device=%d path=%s: %s", info.device, info.path, str(err))
            self._told[info.device] = str(err)
            return
        try:
            if mend_identified(device, self._cluster, info.uuid, info.bytes, info.era):
                self._repaired()
        except (OSError, Error) as err:  # the good one serves; scrub tries again
            log.warning("a damaged superblock cannot be rewritten device=%d path=%s: %s", info.device, info.path, err)

    def look_again(self) -> None:
        """Ends the writes to each open device that was recovered elsewhere since it was opened: they raise OSError(EROFS).

        Blocks for one read of each device; raises no error of them.
        """
        for number, info in dict(self._infos).items():
            device = self._open.get(number)
            if device is None:  # it was left
                continue
            try:
                require_identity(device, self._cluster, info.uuid, info.era)
            except RecoveredDevice as err:
                if self._told.get(number) != str(err):
                    log.error("device is not written any more device=%d: %s", number, err)
                self._told[number] = str(err)
                device.forbid_writes(str(err))
            except (OSError, Error):  # whoever uses the device meets it
                continue

    def __iter__(self) -> Iterator[int]:
        return iter(dict(self._open))

    def __len__(self) -> int:
        return len(self._open)


class DevicesForReads(Mapping[int, Device]):
    """The devices of OpenDevices, for reads.

    Raises MustWait on a thread that may not wait where OpenDevices would block: while the service is away, reads of a device that is not
    there would stop all of them, and the mount.  Threads that write may block: they have let another one read the requests before.
    """

    def __init__(self, devices: OpenDevices) -> None:
        self._devices = devices

    def __getitem__(self, number: int) -> Device:
        if not may_wait() and not self._devices.works(number):
            raise MustWait
        return self._devices[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)
