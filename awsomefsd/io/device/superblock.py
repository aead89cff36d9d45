"""The superblock: what a device is, to which cluster it belongs, and how its segments lie.

Two copies, each one block: at offset 0 and at the start of the last whole MiB.  Both are written when the device is formatted or grown, the
second copy first, so a crash in between leaves a device without a superblock at 0 whose copy is complete, or with both.  Reading takes the
newest good copy; the other can be repaired from it.

    offset  0  magic "awsomefs"   8  version u32   12  compat u32   16  ro-compat u32   20  incompat u32
           24  cluster uuid 16    40 device uuid 16   56  device bytes u64   64  segment bytes u64   72  first segment offset u64
           80  segment count u64  88 generation u64   96  created ns i64   104  era u64
          112 … 4091 zeros   4092  crc32c u32 of all before it

A build refuses incompat bits it does not know, must not write with unknown ro-compat bits, and ignores unknown compat bits.  Magic,
version and the checksum keep their places in every version.

The era is 0 until the cluster is rebuilt from its devices (recovery/eras.py); each time that happens it becomes larger.  A node of before
knows a smaller one, and is refused the device (identified.py).  An era comes with an incompat bit, so that older builds, which know none,
refuse the device too.
"""

from __future__ import annotations

import struct
import uuid

from crc32c import crc32c
from msgspec import Struct
from msgspec.structs import replace

from awsomefsd.base.errors import Corrupt, FormatTooNew, NotFound, Refused
from awsomefsd.base.limits import BLOCK_BYTES, MIB, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MIN, SEGMENTS_MIN, SEGMENTS_WANTED
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.checksum import Bytes
from awsomefsd.io.device.device import BlockDevice

UNWRITABLE = "a newer build uses this device, and this build could damage it; upgrade this node"
MAGIC = b"awsomefs"
VERSION = 1
SUPERBLOCK_BYTES = BLOCK_BYTES
FIRST_SEGMENT_OFFSET = MIB
ROT_BYTES_MAX = 8  # a block without our magic that differs in more bytes is no copy of ours
RO_COMPAT_KNOWN = 0  # unknown compat bits do not matter
HAS_ERA = 1
INCOMPAT_KNOWN = HAS_ERA
ERA_MAX = (1 << 63) - 1  # rows and messages hold no more
DEVICE_BYTES_MIN = SEGMENTS_MIN * SEGMENT_BYTES_MIN + 2 * MIB

_FIXED = struct.Struct("<8sIIII16s16sQQQQQqQ")
_CRC = struct.Struct("<I")
_CRC_AT = SUPERBLOCK_BYTES - 4


class Superblock(Struct, frozen=True):
    """The content of a superblock; the module has its layout."""

    cluster_uuid: str
    device_uuid: str
    device_bytes: int
    segment_bytes: int
    segments: int
    created_ns: int
    first_segment_offset: int = FIRST_SEGMENT_OFFSET
    generation: int = 1
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0
    era: int = 0

    @property
    def writable(self) -> bool:
        """False if a newer build has used a feature that this build would break by writing."""
        return not self.ro_compat & ~RO_COMPAT_KNOWN


def second_copy_offset(device_bytes: int) -> int:
    return (device_bytes // MIB - 1) * MIB


def geometry(device_bytes: int, wanted_bytes: int = 0) -> tuple[int, int]:
    """Returns (segment bytes, segments) of a device of so many bytes; `wanted_bytes`: how large segments have to be, 0 as it fits.

    Raises Refused if the device is too small.
    """
    room = second_copy_offset(device_bytes) - FIRST_SEGMENT_OFFSET
    if device_bytes < DEVICE_BYTES_MIN:
        raise Refused(f"{device_bytes} bytes are too few for a device; a device needs at least {DEVICE_BYTES_MIN // MIB} MiB")
    if wanted_bytes:
        if room < wanted_bytes:
            raise Refused(f"a device of {device_bytes} bytes has no room for a segment of {wanted_bytes >> 20} MiB; use a larger one")
        return wanted_bytes, room // wanted_bytes
    segment_bytes = SEGMENT_BYTES_DEFAULT
    while segment_bytes > SEGMENT_BYTES_MIN and room // segment_bytes < SEGMENTS_WANTED:
        segment_bytes //= 2
    return segment_bytes, room // segment_bytes


def pack(superblock: Superblock) -> bytes:
    s = superblock
    fixed = _FIXED.pack(
        MAGIC, VERSION, s.compat, s.ro_compat, s.incompat, uuid.UUID(s.cluster_uuid).bytes, uuid.UUID(s.device_uuid).bytes,
        s.device_bytes, s.segment_bytes, s.first_segment_offset, s.segments, s.generation, s.created_ns,
        s.era,
    )  # fmt: skip
    body = fixed.ljust(_CRC_AT, b"\0")
    return body + _CRC.pack(crc32c(body))


def unpack(raw: Bytes) -> Superblock:
    """Returns the superblock in one copy.

    Raises NotFound where there is none, Corrupt for a damaged one, FormatTooNew for a later version or unknown incompat bits.
    """
    view = memoryview(raw)[:SUPERBLOCK_BYTES]
    if len(view) < SUPERBLOCK_BYTES or bytes(view[: len(MAGIC)]) != MAGIC:
        raise NotFound("no superblock")
    if _CRC.unpack_from(view, _CRC_AT)[0] != crc32c(view[:_CRC_AT]):
        raise Corrupt("superblock: checksum mismatch")
    _, version, compat, ro_compat, incompat, cluster, device, *sizes, generation, created_ns, era = _FIXED.unpack_from(view)
    device_bytes, segment_bytes, first, segments = sizes
    if version > VERSION:
        raise FormatTooNew(f"superblock version {version} is newer than this build knows ({VERSION}); upgrade this node")
    if unknown := incompat & ~INCOMPAT_KNOWN:
        raise FormatTooNew(f"superblock has incompatible features {unknown:#x} that this build does not know; upgrade this node")
    if era > ERA_MAX:
        raise FormatTooNew(f"superblock has era {era}, later than any that this build can take over; use another copy of the device")
    if segment_bytes < SEGMENT_BYTES_MIN or first < SUPERBLOCK_BYTES or first + segments * segment_bytes > second_copy_offset(device_bytes):
        raise Corrupt("superblock: the segments do not fit the device")
    return Superblock(
        str(uuid.UUID(bytes=cluster)), str(uuid.UUID(bytes=device)), device_bytes, segment_bytes, segments, created_ns,
        first, generation, compat, ro_compat, incompat, era,
    )  # fmt: skip


def read_superblock(device: BlockDevice, cluster_uuid: str | None = None, *, repair: bool = False) -> Superblock:
    """Returns the newest good copy; with `repair` the other copy is rewritten from it if it differs.  Blocks for the device.

    Raises NotFound if there is neither, Corrupt if none is good and one is damaged, OSError if none is good and one cannot be read,
    FormatTooNew, and Refused if the device belongs to another cluster than `cluster_uuid` or has become smaller than it was.
    """
    copies: list[Superblock | Exception] = [_read_copy(device, 0), _read_copy(device, second_copy_offset(device.bytes))]
    first, last = copies
    ours = isinstance(first, Superblock) and isinstance(last, Superblock) and first.device_uuid == last.device_uuid
    if isinstance(first, Superblock) and first.device_bytes < device.bytes and not ours:  # data behind the old end is not ours
        copies[1] = _read_copy(device, second_copy_offset(first.device_bytes))  # the device grew: its copy is where the end was
    good = [copy for copy in copies if isinstance(copy, Superblock)]
    for copy in copies:
        if isinstance(copy, FormatTooNew):
            raise copy
    if not good:
        nothing = NotFound(f"{device.path} holds no superblock of awsomefs")
        raise next((copy for kind in (Corrupt, OSError) for copy in copies if isinstance(copy, kind)), nothing)
    newest = max(good, key=lambda copy: (copy.era, copy.generation))
    if cluster_uuid is not None and newest.cluster_uuid != cluster_uuid:
        raise Refused(f"{device.path} belongs to another cluster, {newest.cluster_uuid}")
    if newest.device_bytes > device.bytes:
        raise Refused(f"{device.path} has {device.bytes} bytes, fewer than the {newest.device_bytes} it was formatted with")
    if repair and newest.writable and any(copy != newest for copy in copies):
        write_superblock(device, newest)
    return newest


def repair_copies(device: BlockDevice, superblock: Superblock) -> list[int]:
    """Rewrites a damaged copy from `superblock`, which a good one holds; returns the offsets (bytes) of those that were rewritten.

    Only what is still to be seen as a copy of it: one whose checksum is wrong, an older generation of the same device, or a block that
    differs in a few bytes.  Whatever else lies there may be somebody's (mkfs on the wrong disk), and is for a person to decide.  Nothing
    is written where the device has another size now, as while it grows.  Blocks; raises OSError, Refused as `write_superblock`.
    """
    if device.bytes != superblock.device_bytes:
        return []
    wanted, repaired = pack(superblock), []
    for offset in (0, second_copy_offset(superblock.device_bytes)):
        buffer = aligned_buffer(SUPERBLOCK_BYTES)
        if device.pread_into(buffer, offset) < SUPERBLOCK_BYTES or buffer == wanted or not _is_a_copy(buffer, superblock):
            continue
        if not superblock.writable:
            raise Refused(f"device {superblock.device_uuid}: {UNWRITABLE}")
        buffer[:] = wanted
        device.pwritev([buffer], offset)
        device.flush()
        repaired.append(offset)
    return repaired


def _is_a_copy(raw: memoryview, superblock: Superblock) -> bool:
    try:
        found = unpack(raw)
    except Corrupt:
        return True
    except NotFound:
        return sum(one != other for one, other in zip(raw, pack(superblock), strict=True)) <= ROT_BYTES_MAX
    except FormatTooNew:
        return False
    same = (found.cluster_uuid, found.device_uuid) == (superblock.cluster_uuid, superblock.device_uuid)
    return same and (found.era, found.generation) < (superblock.era, superblock.generation)


def first_copy(device: BlockDevice) -> Superblock | None:
    """Returns the copy at the start of the device, of whatever cluster; None if there is none that can be read."""
    copy = _read_copy(device, 0)
    return copy if isinstance(copy, Superblock) else None


def copies_agree(device: BlockDevice) -> bool:
    """Returns True if both copies are good and equal; the device has one good copy at least.  Raises as `read_superblock`."""
    newest = read_superblock(device)
    return all(_read_copy(device, offset) == newest for offset in (0, second_copy_offset(newest.device_bytes)))


def write_superblock(device: BlockDevice, superblock: Superblock) -> None:
    """Writes both copies durably, the second first: an interrupted format is not taken for a device whose second copy rotted.

    Raises OSError, and Refused for one that has features of a newer build: this build would not keep what they need.
    """
    if not superblock.writable:
        raise Refused(f"device {superblock.device_uuid}: {UNWRITABLE}")
    buffer = aligned_buffer(SUPERBLOCK_BYTES)
    buffer[:] = pack(superblock)
    for offset in (second_copy_offset(superblock.device_bytes), 0):
        device.pwritev([buffer], offset)
        device.flush()


def grown(superblock: Superblock, device_bytes: int) -> Superblock:
    """Returns the next superblock of a device that has become larger: segments keep their size and place."""
    room = second_copy_offset(device_bytes) - superblock.first_segment_offset
    segments = max(room // superblock.segment_bytes, superblock.segments)
    return replace(superblock, device_bytes=device_bytes, segments=segments, generation=superblock.generation + 1)


def with_era(superblock: Superblock, era: int) -> Superblock:
    """Returns the superblock of a device that a recovery took over.  Of two copies, that of the later era is the newer."""
    return replace(superblock, era=era, incompat=superblock.incompat | HAS_ERA)


def wipe_superblock(device: BlockDevice, superblock: Superblock) -> None:
    """Overwrites both copies with zeros, durably; no node takes the device for one of a cluster any more.  Raises OSError."""
    zeros = aligned_buffer(SUPERBLOCK_BYTES)
    for offset in (0, second_copy_offset(superblock.device_bytes)):
        device.pwritev([zeros], offset)
    device.flush()


def _read_copy(device: BlockDevice, offset: int) -> Superblock | Exception:
    buffer = aligned_buffer(SUPERBLOCK_BYTES)
    try:
        if offset < 0 or device.pread_into(buffer, offset) < SUPERBLOCK_BYTES:
            return NotFound("too short")
        return unpack(buffer)
    except (NotFound, Corrupt, FormatTooNew, OSError) as err:
        return err
