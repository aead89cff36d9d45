"""Names of objects below the prefix of a store.  Pure.

    awsomefs                      the marker: which cluster the prefix belongs to
    CLUSTER/e/N                   era N
    CLUSTER/ERA/s/XX/SEG-INC      a segment; XX is the last byte of its number and spreads the load over the store's partitions
    CLUSTER/ERA/c/INDEX-ID/P      piece P of a checkpoint of the metadata up to entry INDEX
    CLUSTER/ERA/m/T/K             batch K of tenure T of the log; batch 0 says how the tenure began

CLUSTER and ERA are UUIDs as text, XX two hexadecimal digits, ID 32 of them, all other numbers decimal without leading zeros.  A name has
one content for ever, so it must have one spelling: `parse` knows no other than that of `str`.
"""

from __future__ import annotations

import re
from uuid import UUID

from msgspec import Struct

from awsomefsd.base.errors import Corrupt

MARKER = "awsomefs"
ID_BYTES = 16
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NUMBER = r"(?:0|[1-9][0-9]{0,19})"
_U64_MAX = (1 << 64) - 1


class EraName(Struct, frozen=True):
    """`number` counts from 1."""

    cluster: UUID
    number: int

    def __str__(self) -> str:
        return f"{self.cluster}/e/{self.number}"


class SegmentName(Struct, frozen=True):
    """One segment in one incarnation, of the cluster and era whose rows name it."""

    cluster: UUID
    era: UUID
    segment: int
    incarnation: int

    def __str__(self) -> str:
        return f"{self.cluster}/{self.era}/s/{self.segment & 0xFF:02x}/{self.segment}-{self.incarnation}"


class PieceName(Struct, frozen=True):
    """`checkpoint` is random (ID_BYTES): two copies of one index differ, so they need two names."""

    cluster: UUID
    era: UUID
    index: int
    checkpoint: bytes
    piece: int

    def __str__(self) -> str:
        return f"{self.cluster}/{self.era}/c/{self.index}-{self.checkpoint.hex()}/{self.piece}"


class BatchName(Struct, frozen=True):
    """Batch `batch` of tenure `tenure`; tenures count from 1, batch 0 is how one began."""

    cluster: UUID
    era: UUID
    tenure: int
    batch: int

    def __str__(self) -> str:
        return f"{self.cluster}/{self.era}/m/{self.tenure}/{self.batch}"


ObjectName = EraName | SegmentName | PieceName | BatchName

_ERA = re.compile(rf"({_UUID})/e/({_NUMBER})")
_SEGMENT = re.compile(rf"({_UUID})/({_UUID})/s/([0-9a-f]{{2}})/({_NUMBER})-({_NUMBER})")
_PIECE = re.compile(rf"({_UUID})/({_UUID})/c/({_NUMBER})-([0-9a-f]{{{2 * ID_BYTES}}})/({_NUMBER})")
_BATCH = re.compile(rf"({_UUID})/({_UUID})/m/({_NUMBER})/({_NUMBER})")


def parse(text: str) -> ObjectName:
    """Returns what a name stands for.  Raises Corrupt for anything that `str` of a name cannot have written; the marker is no such name."""
    found = _parsed(text)
    if found is None or str(found) != text or any(number > _U64_MAX for number in _numbers(found)):
        raise Corrupt(f"{text[:200]!r} is no name of an object of awsomefs")
    return found


def _parsed(text: str) -> ObjectName | None:
    if match := _ERA.fullmatch(text):
        return EraName(UUID(match[1]), int(match[2])) if int(match[2]) else None
    if match := _SEGMENT.fullmatch(text):
        return SegmentName(UUID(match[1]), UUID(match[2]), int(match[4]), int(match[5]))
    if match := _PIECE.fullmatch(text):
        return PieceName(UUID(match[1]), UUID(match[2]), int(match[3]), bytes.fromhex(match[4]), int(match[5]))
    if match := _BATCH.fullmatch(text):
        return BatchName(UUID(match[1]), UUID(match[2]), int(match[3]), int(match[4])) if int(match[3]) else None
    return None


def _numbers(name: ObjectName) -> tuple[int, ...]:
    match name:
        case EraName():
            return (name.number,)
        case SegmentName():
            return name.segment, name.incarnation
        case PieceName():
            return name.index, name.piece
        case BatchName():
            return name.tenure, name.batch
