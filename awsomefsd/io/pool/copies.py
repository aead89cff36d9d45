"""The mirrors of a segment in the order in which a reader of this node tries them: its own first, then the server that answers soonest.

A mirror that is not known to be durable up to what is wanted comes after those that are: it is on its way, or was not there.  It is tried
all the same, since what this node knows may be old; identity and checksums decide.  A device that this node has is read directly: bytes
that a Commit names were flushed there, and no page cache is between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from awsomefsd.base.types import BAY_MIRROR, SegmentBay, SegmentInBays
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.pool.remote_device import RemoteDevice
from awsomefsd.io.segment.reader import ReadPlace


class LocalBay:
    """A bay of a device of this node, as far as reading goes: a BlockDevice whose offsets are in the segment.  Thread-safe."""

    def __init__(self, device: BlockDevice, origin: int, bay_bytes: int) -> None:
        self._device, self._origin = device, origin
        self.path, self.bytes = device.path, bay_bytes
        self.logical_block_bytes, self.physical_block_bytes = device.logical_block_bytes, device.physical_block_bytes

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        return self._device.pread_into(buffer, self._origin + offset)

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        return self._device.preadv(buffers, self._origin + offset)

    def pwritev(self, buffers: Sequence[memoryview], offset: int) -> None:
        raise AssertionError("only its segment server writes a bay")

    def flush(self) -> None:
        """There is nothing to flush: nothing is written here."""


class Copies:
    """Thread-safe.  `local(bay, bytes)` returns a bay of a device that this node has, or None; `device_of` as for a Fanout.

    `avoid` returns the devices that a writer of this node could not reach lately.
    """

    def __init__(
        self, local: Callable[[SegmentBay, int], BlockDevice | None], device_of: Callable[[int], RemoteDevice],
        avoid: Callable[[], list[int]],
    ) -> None:  # fmt: skip
        self._local, self._device_of, self._avoid = local, device_of, avoid

    def of(self, info: SegmentInBays, end: int) -> list[ReadPlace]:
        """Returns where the bytes of a segment up to `end` may be read, the best place first.  May block for where servers are."""
        avoided = set(self._avoid())
        found: list[tuple[tuple[bool, bool, bool, int], ReadPlace]] = []
        for bay in info.bays:
            if bay.role != BAY_MIRROR:
                continue
            behind = bay.durable < min(end, info.committed_bytes)
            own = self._local(bay, info.bytes)
            if own is not None:
                found.append(((behind, False, False, 0), ReadPlace(own)))
                continue
            try:
                device = self._device_of(bay.device)
            except OSError:
                continue
            server = device.server
            rank = behind, True, bay.device in avoided or server.pause_ns() > 0, server.usual_read_ns
            found.append((rank, ReadPlace(device.bay(bay.index, info.segment, info.incarnation), remote=True)))
        return [place for _, place in sorted(found, key=lambda one: one[0])]
