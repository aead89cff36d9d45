"""Leases of segments on devices that this node sees.

A shared device that one node has lost is not absent while another node sees it (decision 157), so segments there are leased to everybody.
A node that is given one learns by that which device it does not see.  It asks again at once, and names that device, until it is given a
segment that it can write or until the answer teaches it nothing.  The number of devices bounds that.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from awsomefsd.base.errors import Error
from awsomefsd.base.types import SegmentInfo

Lease = Callable[[int, list[int]], list[SegmentInfo]]  # how many, and on which devices none


class SeenLeases:
    """The devices that were not seen when a segment there was leased; each is tried again before the next lease.  One thread at a time."""

    def __init__(self, devices: Container[int], lease: Lease) -> None:
        self._devices = devices
        self._lease = lease
        self._unseen: set[int] = set()

    def lease(self, count: int) -> list[SegmentInfo]:
        """Returns leased segments.  Those on devices that are not seen are among them: the caller gives them back.

        Blocks for the service.  Raises its Error where nothing was leased.
        """
        self._unseen = {number for number in self._unseen if number not in self._devices}
        leased: list[SegmentInfo] = []
        while True:
            try:
                more = self._lease(count, sorted(self._unseen))
            except Error:
                if leased:  # they are to be given back, and the next lease raises it again
                    return leased
                raise
            leased += more
            unseen = {info.device for info in more if info.device not in self._devices}
            learnt = unseen - self._unseen
            self._unseen |= unseen
            if not learnt or any(info.device not in unseen for info in more):
                return leased
