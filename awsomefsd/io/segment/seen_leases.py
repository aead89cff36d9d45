"""Leases of segments on devices that this node sees.

A shared device that one node has lost is not absent while another node sees it (decision 157), so segments there are leased to everybody.
A node that is given one learns by that which device it does not see.  It asks again at once, and names that device, until it is given a
segment that it can write or until the answer teaches it nothing.  The number of devices bounds that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from awsomefsd.base.errors import Error
from awsomefsd.base.types import SegmentInfo
from awsomefsd.io.device.device import BlockDevice

Lease = Callable[[int, list[int]], list[SegmentInfo]]  # how many, and on which devices none


def seen(devices: Mapping[int, Any], number: int) -> BlockDevice | None:
    """Returns a device of OpenDevices; None for one that this node does not see, or of which nobody says now where it is.

    That question may fail for a moment: too much is asked, or the mount is ending.  What was leased meanwhile is given back all the same.
    """
    try:
        device: BlockDevice = devices[number]
    except (KeyError, Error):
        return None
    return device


class SeenLeases:
    """The devices that were not seen when a segment there was leased; each is tried again before the next lease.  One thread at a time."""

    def __init__(self, devices: Mapping[int, Any], lease: Lease) -> None:
        self._devices = devices
        self._lease = lease
        self._unseen: set[int] = set()

    def lease(self, count: int) -> list[SegmentInfo]:
        """Returns leased segments.  Those on devices that are not seen are among them: the caller gives them back.

        Blocks for the service.  Raises its Error where nothing was leased.
        """
        self._unseen = {number for number in self._unseen if seen(self._devices, number) is None}
        leased: list[SegmentInfo] = []
        while True:
            try:
                more = self._lease(count, sorted(self._unseen))
            except Error:
                if leased:  # they are to be given back, and the next lease raises it again
                    return leased
                raise
            leased += more
            unseen = {info.device for info in more if seen(self._devices, info.device) is None}
            learnt = unseen - self._unseen
            self._unseen |= unseen
            if not learnt or any(info.device not in unseen for info in more):
                return leased
