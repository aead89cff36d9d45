"""Shared memory that outlives a process: mapping it, and the rules by which every area of it is written.

A mount's worker may be killed between any two stores; its successor maps the same memfds and must find the old or the new state of
everything, never garbage.  No machine dies here (the memory dies with it), so stores are seen in the order they were made and nothing
is ever flushed.  What the areas rely on:

* *A word is one store.*  ``words(view)[i] = value`` is one aligned 8-byte store of one instruction: a kill leaves the old or the new
  value.  ``struct.pack_into`` and slice assignment are not: they may stop at any byte.
* *Bytes first, then the word that makes them count.*  The word that publishes carries a checksum or replaces a position; until it is
  stored the bytes before it mean nothing.  A place that is written again is taken out of use first, by a word too.
* *The header of an area is the last thing its formatting stores.*  So an area without header was never used and may be formatted, even
  by a successor of a worker that died in the middle of it.

Checksums do not stand in for the order of stores; they catch bugs, and bytes of another build.
Rejected: a lock or a journal in the shared memory (a dead owner has to be cleaned up after); growing an area by ftruncate when needed
(the mapping must move while others hold views of it): areas have their largest size from the start and are sparse, untouched pages
cost nothing, `release_pages` gives touched ones back.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from typing import Any

from crc32c import crc32c

from awsomefsd.base.errors import Corrupt, FormatTooNew

PAGE_BYTES = 4096
HEADER_BYTES = 64  # of an area
_MAP_LOCKED = 0x2000
_MADV_POPULATE_WRITE = 23  # Linux 5.14

Mem = Any  # a writable buffer: the mmap of a memfd; tests also use bytearray

_AREA = struct.Struct("<8sIIIIQQQQ")  # magic, version, incompat, compat, reserved, three parameters, reserved
_VERSION_WORD, _SEAL_WORD = 1, 7  # of a header: version and incompat; the seal
_COPY = struct.Struct("<Q")
U32 = 0xFFFF_FFFF
U64 = 0xFFFF_FFFF_FFFF_FFFF


def create_memfd(name: str, size_bytes: int) -> int:
    """Returns the descriptor of a memfd of `size_bytes`, rounded up to whole pages.  Raises OSError.

    It can neither shrink nor grow, so that no mapping of it ever raises SIGBUS.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, round_up(size_bytes, PAGE_BYTES))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_memfd(fd: int, *, lock: bool = False) -> mmap.mmap:
    """Returns a mapping of all of a memfd, shared and writable.  Raises Corrupt for a size that is no whole number of pages, and OSError.

    `lock` keeps it in RAM where RLIMIT_MEMLOCK allows, else it is mapped unlocked.
    """
    size = os.fstat(fd).st_size
    if size == 0 or size % PAGE_BYTES:
        raise Corrupt(f"shared memory of {size} bytes: not a whole number of pages")
    if lock:
        try:
            return mmap.mmap(fd, size, mmap.MAP_SHARED | _MAP_LOCKED, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as err:
            if err.errno not in (errno.EAGAIN, errno.EPERM, errno.ENOMEM):
                raise
    return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def bytes_view(mem: Mem) -> memoryview:
    """Returns all of `mem` as a flat, writable view of bytes."""
    view = memoryview(mem).cast("B")
    assert not view.readonly, "shared memory must be writable"
    return view


def words(view: memoryview) -> memoryview:
    """Returns `view` as 64-bit words (little endian, as the machines we run on); each assignment is one store."""
    return view[: len(view) & ~7].cast("Q")


def round_up(value: int, unit: int) -> int:
    """Returns the least multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


def prefault(mem: Mem, start: int, length: int) -> None:
    """Makes every page of the range present and writable, without changing a byte.  Raises OSError.

    A page fault while the kernel copies a request into the range would fail that request.
    """
    if isinstance(mem, mmap.mmap):
        try:
            mem.madvise(_MADV_POPULATE_WRITE, start, length)
            return
        except OSError as err:
            if err.errno != errno.EINVAL:  # EINVAL: a kernel before 5.14
                raise
    view = bytes_view(mem)
    for page in range(start, start + length, PAGE_BYTES):
        view[page] = view[page]


def release_pages(mem: Mem, start: int, length: int) -> None:
    """Gives the whole pages inside the range back to the system; they read as zeros afterwards.

    On a plain buffer nothing happens, nor on a mapping that is locked in RAM.
    """
    first = round_up(start, PAGE_BYTES)
    end = (start + length) // PAGE_BYTES * PAGE_BYTES
    if end > first and isinstance(mem, mmap.mmap):
        try:
            mem.madvise(mmap.MADV_REMOVE, first, end - first)
        except OSError as err:
            if err.errno != errno.EINVAL:  # EINVAL: locked pages stay
                raise


def write_header(view: memoryview, magic: bytes, version: int, parameters: tuple[int, int, int]) -> None:
    """Stores the header of an area: from its last word on the area counts as formatted."""
    view[: HEADER_BYTES - 8] = _AREA.pack(magic, version, 0, 0, 0, *parameters, 0)
    words(view[:HEADER_BYTES])[_SEAL_WORD] = _header_seal(view)


def clear_header(view: memoryview) -> None:
    """Makes the area unformatted; the first step of formatting it again."""
    words(view[:HEADER_BYTES])[_SEAL_WORD] = 0


def read_header(view: memoryview, magic: bytes, version_max: int, what: str) -> tuple[int, int, int] | None:
    """Returns the parameters of a formatted area, None for an unformatted one.

    Raises Corrupt for a header that is not ours, FormatTooNew for a version or an incompatible feature this build does not know.
    """
    if len(view) < HEADER_BYTES:
        raise Corrupt(f"{what}: {len(view)} bytes hold no header")
    seal = words(view[:HEADER_BYTES])[_SEAL_WORD]
    if seal == 0:
        return None
    found, version, incompat, _, _, a, b, c, _ = _AREA.unpack(view[: HEADER_BYTES - 8])
    if seal != _header_seal(view):
        raise Corrupt(f"{what}: header checksum mismatch")
    if found != magic:
        raise Corrupt(f"{what}: magic is {found!r}, not {magic!r}")
    if version > version_max or incompat:
        raise FormatTooNew(f"{what}: version {version}, features {incompat:#x}: this build knows {version_max}; upgrade this node")
    return a, b, c


def _header_seal(view: memoryview) -> int:
    """Returns the last word of a header, never 0 (an unformatted area): the upper half is a mark, for a checksum that is 0."""
    return 0x4145_5241_0000_0000 | crc32c(view[: HEADER_BYTES - 8])


def header_version(view: memoryview) -> int:
    """Returns the version in the header of a formatted area."""
    return int(words(view[:HEADER_BYTES])[_VERSION_WORD] & U32)


def set_version(view: memoryview, version: int) -> None:
    """Changes the version of a formatted area, and nothing else in it.

    Two stores.  A kill between them leaves a header that `mend_version` finishes, and that a build without it refuses as damaged.
    """
    header = words(view[:HEADER_BYTES])
    header[_VERSION_WORD] = version
    header[_SEAL_WORD] = _header_seal(view)


def mend_version(view: memoryview, versions: tuple[int, ...]) -> None:
    """Finishes a change between two of these versions that a kill has cut; leaves every other header as it is."""
    if len(view) < HEADER_BYTES:
        return
    header = words(view[:HEADER_BYTES])
    seal, now = header[_SEAL_WORD], header[_VERSION_WORD]
    if seal == 0 or now not in versions or seal == _header_seal(view):
        return
    raw = bytearray(view[:HEADER_BYTES])
    for version in versions:
        words(memoryview(raw))[_VERSION_WORD] = version
        if seal == _header_seal(memoryview(raw)):
            header[_SEAL_WORD] = _header_seal(view)
            return


class Doubled:
    """A small record is kept in two copies: `store` overwrites the older one, `load` takes the newer valid one.

    A copy is ``sequence (u64) | length u32, crc32c u32 (one word) | body``, checksum over sequence and body.  It is taken out of use by
    zeroing its second word and comes back with the last store, so that the other copy is whole at every moment.
    Not thread-safe: the owner locks.
    """

    __slots__ = ("_copies", "_sequence", "_words", "what")

    def __init__(self, region: memoryview, what: str) -> None:
        half = len(region) // 16 * 8
        self._copies = (region[:half], region[half : half * 2])
        self._words = tuple(words(copy) for copy in self._copies)
        self._sequence = 0
        self.what = what

    @property
    def body_bytes_max(self) -> int:
        return len(self._copies[0]) - 16

    def clear(self) -> None:
        """Takes both copies out of use (formatting only)."""
        self._sequence = 0
        for copy in self._words:
            copy[1] = 0

    def load(self) -> bytes | None:
        """Returns the body of the newest valid copy; None if nothing was ever stored.  Raises Corrupt when no copy of it is valid."""
        best: bytes | None = None
        best_sequence = 0
        tried = False
        for copy, copy_words in zip(self._copies, self._words, strict=True):
            sequence, seal = copy_words[0], copy_words[1]
            length = seal & U32
            if length == 0:
                continue
            tried = True
            if length > len(copy) - 16 or sequence <= best_sequence:
                continue
            if crc32c(copy[16 : 16 + length], crc32c(copy[:8])) == seal >> 32:
                best, best_sequence = bytes(copy[16 : 16 + length]), sequence
        if tried and best is None:
            raise Corrupt(f"{self.what}: no valid copy")
        self._sequence = best_sequence
        return best

    def store(self, body: bytes) -> None:
        """Replaces the record; after a kill it is the old or the new one, never a mixture.  `body` has 1 to `body_bytes_max` bytes."""
        assert 0 < len(body) <= self.body_bytes_max, f"{self.what}: {len(body)} bytes"
        sequence = self._sequence + 1
        copy, copy_words = self._copies[sequence & 1], self._words[sequence & 1]
        copy_words[1] = 0
        copy[16 : 16 + len(body)] = body
        copy_words[0] = sequence
        copy_words[1] = len(body) | crc32c(body, crc32c(_COPY.pack(sequence))) << 32
        self._sequence = sequence
