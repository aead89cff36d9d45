"""Findings of a walk over a bay, counted, and the first of them named; and Verify, which is nothing else than such a walk."""

from __future__ import annotations

import errno
from collections.abc import Callable

from awsomefsd.base.limits import BLOCK_BYTES, SEGMENT_UNREADABLE_MAX
from awsomefsd.io.pool.bay_walk import TILE_BYTES_MAX, BayExtent, BayWalk, last_frame, read_footer
from awsomefsd.io.pool.device_bays import DeviceBays
from awsomefsd.io.transport.messages import WRONG_MAX, WRONG_WORDS_MAX, Verified, Wrong

VERIFY_BUFFER_BYTES = 2 * (TILE_BYTES_MAX + BLOCK_BYTES)


class Findings:
    """Counts what is wrong in a bay."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[Wrong] = []

    def add(self, offset: int, what: str) -> None:
        self.count += 1
        if len(self.first) < WRONG_MAX:
            self.first.append(Wrong(offset, what[:WRONG_WORDS_MAX]))


class BayMedium:
    """The bytes of one bay, read through `buffer` (VERIFY_BUFFER_BYTES); blocks that cannot be read are zeros, and a finding each."""

    def __init__(self, device: DeviceBays, index: int, buffer: memoryview, findings: Findings) -> None:
        self._device, self._start, self._buffer, self._findings = device, device.place_of(index, 0), buffer, findings
        self._unreadable: set[int] = set()

    def read(self, offset: int, length: int) -> memoryview:
        """Returns bytes of the bay, until the next call.  Raises OSError(EIO) where too much cannot be read."""
        if self._device.stopped:
            raise OSError(errno.ESTALE, "the segment server is ending")
        low, high = offset // BLOCK_BYTES * BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES
        view = self._buffer[: high - low]
        try:
            self._device.read(view, self._start + low)
        except OSError:
            for at in range(0, len(view), BLOCK_BYTES):
                self._read_block(view[at : at + BLOCK_BYTES], low + at)
        return view[offset - low : offset - low + length]

    def _read_block(self, block: memoryview, offset: int) -> None:
        if offset not in self._unreadable:
            try:
                self._device.device.pread_into(block, self._start + offset)
            except OSError as err:
                if len(self._unreadable) == SEGMENT_UNREADABLE_MAX:
                    raise OSError(errno.EIO, f"more than {SEGMENT_UNREADABLE_MAX} blocks cannot be read: {err.strerror}") from None
                self._unreadable.add(offset)
                self._findings.add(offset, f"cannot be read: {err.strerror}")
            else:
                return
        block[:] = bytes(len(block))


def verify(extent: BayExtent, read: Callable[[int, int], memoryview], findings: Findings, *, ends_only: bool = False) -> Verified:
    """Returns what a bay has of a segment; `ends_only`: of its first frame and its end.

    `read(offset, length)` returns bytes of the bay until the next call.  Raises what it raises.
    """
    table = None
    if extent.footer:
        table, why = read_footer(extent, read)
        if why:
            findings.add(extent.footer, why)
    walk = BayWalk(extent, table)
    if ends_only:
        _verify_ends(walk, read, findings)
    else:
        _verify_all(walk, read, findings)
    return Verified(walk.frames, walk.data_bytes, findings.count, findings.first)


def _verify_ends(walk: BayWalk, read: Callable[[int, int], memoryview], findings: Findings) -> None:
    extent = walk.extent
    if not walk.wanted():
        return
    tile = walk.judge(read(0, walk.wanted()))
    if tile.wrong:
        findings.add(0, tile.wrong)
    walk.step(tile)
    start = max(0, extent.data_end - TILE_BYTES_MAX)
    why = last_frame(extent, read(start, extent.data_end - start)) if not extent.footer else ""
    if why:
        findings.add(extent.data_end, why)


def _verify_all(walk: BayWalk, read: Callable[[int, int], memoryview], findings: Findings) -> None:
    base, view = 0, memoryview(b"")
    while walk.wanted():
        if walk.position + walk.needed(view[walk.position - base :]) > base + len(view):
            base = walk.position
            view = read(base, min(VERIFY_BUFFER_BYTES - 2 * BLOCK_BYTES, walk.extent.data_end - base))
        tile = walk.judge(view[walk.position - base :])
        if tile.wrong:
            findings.add(walk.position, tile.wrong)
        walk.step(tile)
