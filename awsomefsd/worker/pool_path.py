"""The way of a mount's bytes to the bays of a pool and back.  It is made when the volume turns out to be in one.

Else a worker has none of it: ssl and the ciphers would be a third of its memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING

from awsomefsd.base.types import DeviceInfo, SegmentInBays, SegmentInfo
from awsomefsd.io.segment.locations import Locations
from awsomefsd.io.segment.reader import ReadPlace
from awsomefsd.io.segment.seen_leases import SeenLeases
from awsomefsd.io.segment.writer import OpenedBays
from awsomefsd.worker.config import WorkerConfig, tls_of

if TYPE_CHECKING:
    from awsomefsd.io.pool.pool_access import PoolAccess


class PoolPath:
    """Leases of segments where the data of the volume is, and the bays of those in a pool.  Thread-safe once `begin` was called.

    `find` lists the devices of the cluster; it blocks for the metadata service.  `session`: number and epoch of the present one.
    """

    def __init__(
        self, config: WorkerConfig, find: Callable[[], list[DeviceInfo]], session: Callable[[], tuple[int, int]], locations: Locations,
        seen: SeenLeases,
    ) -> None:  # fmt: skip
        self._config, self._find, self._session, self._locations, self._seen = config, find, session, locations, seen
        self._parts: PoolAccess | None = None  # None: the volume is in no pool

    def begin(self) -> None:
        """The volume is in a pool; before anything of it is read or written."""
        from awsomefsd.io.pool.pool_access import PoolAccess
        from awsomefsd.io.pool.server_state import BAYS_SOCKET

        config = self._config
        own_socket = os.path.join(os.path.dirname(config.meta_sock), BAYS_SOCKET)
        self._parts = PoolAccess(
            self._find, config.cluster, config.node, own_socket, tls_of(config), self._session, self._locations.lease_bays
        )

    def lease(self, count: int) -> list[SegmentInfo]:
        """Returns leased segments, as SegmentWriter wants them."""
        return self._seen.lease(count) if self._parts is None else self._parts.leases.lease(count)

    def opened(self, info: SegmentInBays) -> OpenedBays | None:
        """Returns the open bays of a segment that was leased just now; None if they could not be opened."""
        return self._parts.leases.opened(info) if self._parts is not None else None

    def waiting(self) -> list[SegmentInBays]:
        """Returns the leased segments whose bays could not be opened yet."""
        return self._parts.leases.waiting() if self._parts is not None else []

    def drop(self, segments: Container[int]) -> list[SegmentInBays]:
        """Returns those of these segments that wait, and keeps them no more."""
        return self._parts.leases.drop(segments) if self._parts is not None else []

    def mirrors(self, info: SegmentInBays, end: int) -> Sequence[ReadPlace]:
        """Returns where a segment can be read up to `end`, the best place first."""
        return self._parts.copies.of(info, end) if self._parts is not None else ()

    def close(self) -> None:
        """Ends the connections to segment servers, after the last segment was sealed."""
        if self._parts is not None:
            self._parts.close()
