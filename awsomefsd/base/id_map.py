"""User and group ids of a mount and of the volume below it: ranges `outside:inside:count`, as of an id-mapped mount.  Pure.

Outside is what programs on the mount use and see, inside what the volume stores.  An id outside every range has no counterpart: it is shown
as OVERFLOW_ID, and nothing may be stored under it.  Without ranges every id is its own counterpart.

Why not FUSE_ALLOW_IDMAP: it lets an administrator put an id-mapped mount (mount_setattr) on top, from Linux 6.12 on and with a user
namespace made for the purpose; a mapping that fstab can name works on every kernel this runs on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from awsomefsd.base.errors import ConfigError

OVERFLOW_ID = 65_534
ID_MAX = (1 << 32) - 2
RANGES_MAX = 340  # as of a user namespace

ACL_NAMES = (b"system.posix_acl_access", b"system.posix_acl_default")
ACL_VERSION = 2
_ACL_HEADER, _ACL_ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_ACL_USER, _ACL_GROUP = 2, 8


@dataclass(frozen=True, slots=True)
class IdMap:
    """One map of ids.  Without ranges, every id is its own counterpart."""

    ranges: tuple[tuple[int, int, int], ...] = ()  # outside, inside, count

    def inside(self, outside: int) -> int | None:
        """Returns the id that is stored for an id of a program; None: nothing may be stored for it."""
        if not self.ranges:
            return outside
        return next((low + outside - start for start, low, count in self.ranges if start <= outside < start + count), None)

    def outside(self, inside: int) -> int:
        """Returns the id that a program sees for a stored id; OVERFLOW_ID where the map has none."""
        if not self.ranges:
            return inside
        return next((start + inside - low for start, low, count in self.ranges if low <= inside < low + count), OVERFLOW_ID)

    def has_outside(self, inside: int) -> bool:
        """Returns True if a stored id has a counterpart that programs can use."""
        return not self.ranges or any(low <= inside < low + count for _, low, count in self.ranges)


EVERYBODY = IdMap()


def parse(option: str, text: str) -> IdMap:
    """Returns the map of ranges such as `0:100000:65536`, several joined by +.  Raises ConfigError, which names the option."""
    ranges: list[tuple[int, int, int]] = []
    for part in text.split("+"):
        words = part.split(":")
        if len(words) != 3 or not all(word.isascii() and word.isdigit() for word in words):
            raise ConfigError(f"mount option {option}={text}: {part!r} is not outside:inside:count (three numbers)")
        outside, inside, count = map(int, words)
        if count == 0 or max(outside, inside) + count - 1 > ID_MAX:
            raise ConfigError(f"mount option {option}={text}: {part!r} is empty, or has ids above {ID_MAX}")
        for other in ranges:
            for mine, theirs, side in ((outside, other[0], "outside"), (inside, other[1], "inside")):
                if mine < theirs + other[2] and theirs < mine + count:
                    raise ConfigError(f"mount option {option}={text}: {part!r} and {':'.join(map(str, other))} overlap {side}")
        ranges.append((outside, inside, count))
    if len(ranges) > RANGES_MAX:
        raise ConfigError(f"mount option {option}: {len(ranges)} ranges; at most {RANGES_MAX} are allowed")
    return IdMap(tuple(ranges))


def map_acl(value: bytes, user: Callable[[int], int], group: Callable[[int], int]) -> bytes:
    """Returns the xattr value of a POSIX ACL with its named users and groups mapped; any other value comes back unchanged."""
    if len(value) < _ACL_HEADER.size or (len(value) - _ACL_HEADER.size) % _ACL_ENTRY.size:
        return value
    if _ACL_HEADER.unpack_from(value)[0] != ACL_VERSION:
        return value
    parts = [value[: _ACL_HEADER.size]]
    for tag, permissions, number in _ACL_ENTRY.iter_unpack(value[_ACL_HEADER.size :]):
        if tag == _ACL_USER:
            number = user(number)
        elif tag == _ACL_GROUP:
            number = group(number)
        parts.append(_ACL_ENTRY.pack(tag, permissions, number))
    return b"".join(parts)
