"""FUSE_INIT is the agreement of this mount and the kernel, made once for the life of the mount.

The smaller minor counts.  A flag is asked for only from the minor on that brought it, even where a kernel offers it earlier (backports):
so a mount that a test limits to 7.34 behaves as on a 5.14 kernel.  A successor worker never negotiates; it finds the result in the control
area, because it has to read requests as the kernel writes them to its predecessor.

Only a mount of a shared volume asks for locks.  One that holds its volume whole leaves them to the kernel: nobody else can be in their way,
and the kernel is there as long as the mount (decision 412).

DONT_MASK goes with POSIX_ACL: only the filesystem knows whether a directory's default ACL takes the place of the umask.

Not asked for: WRITEBACK_CACHE (the kernel's own dirty pages would be outside every lease), EXPLICIT_INVAL_DATA (a reread of cached pages
would not ask, KERNEL-FUSE facts), NO_OPEN and NO_OPENDIR (handles are recorded).
"""

from __future__ import annotations

from typing import NamedTuple

from awsomefsd.base.errors import ConfigError, ProtocolError
from awsomefsd.base.limits import FUSE_WRITE_BYTES_MAX
from awsomefsd.fuse import abi
from awsomefsd.fuse.control_area import Negotiated

MAX_PAGES = FUSE_WRITE_BYTES_MAX // 4096
BACKGROUND_REQUESTS_MAX = 64
CONGESTION_THRESHOLD = 48
READAHEAD_BYTES_MAX = FUSE_WRITE_BYTES_MAX
INIT_EXT_MINOR = 36

WANTED = (
    abi.ASYNC_READ | abi.BIG_WRITES | abi.ATOMIC_O_TRUNC | abi.EXPORT_SUPPORT | abi.POSIX_LOCKS | abi.FLOCK_LOCKS
    | abi.DO_READDIRPLUS | abi.READDIRPLUS_AUTO | abi.PARALLEL_DIROPS | abi.AUTO_INVAL_DATA | abi.HANDLE_KILLPRIV_V2
    | abi.CACHE_SYMLINKS | abi.SETXATTR_EXT | abi.MAX_PAGES | abi.ASYNC_DIO
    | abi.POSIX_ACL | abi.DONT_MASK
)  # fmt: skip
LOCKS = abi.POSIX_LOCKS | abi.FLOCK_LOCKS
_SINCE = ((abi.INIT_EXT, INIT_EXT_MINOR), (abi.DIRECT_IO_ALLOW_MMAP, 39), (abi.HAS_RESEND, 40))


class Overrides(NamedTuple):
    """The parts of FUSE_INIT that a mount, a test, or an operator in need, does not negotiate."""

    minor: int = abi.MINOR_MAX
    resend: bool = True
    without: int = 0  # INIT flags never to negotiate

    def with_locks(self, shared: bool) -> Overrides:
        """Those of a mount: of a shared volume, or of one that it holds whole."""
        return self if shared else self._replace(without=self.without | LOCKS)

    @classmethod
    def parse(cls, words: str) -> Overrides:
        """Returns the overrides of a text such as "minor=34,resend=off"; "" overrides nothing.  Raises ConfigError."""
        overrides = cls()
        for word in filter(None, words.split(",")):
            key, _, value = word.strip().partition("=")
            if key == "minor" and value.isdigit() and abi.MINOR_MIN <= int(value) <= abi.MINOR_MAX:
                overrides = overrides._replace(minor=int(value))
            elif key == "resend" and value in ("on", "off"):
                overrides = overrides._replace(resend=value == "on")
            else:
                raise ConfigError(f"FUSE pin {word!r}: minor={abi.MINOR_MIN}..{abi.MINOR_MAX} and resend=on|off are known")
        return overrides


class Offer(NamedTuple):
    """The kernel's offer (fuse_init_in); `flags` is flags and flags2 as one 64-bit number."""

    major: int
    minor: int
    max_readahead: int
    flags: int


def read_offer(body: memoryview) -> Offer:
    """Returns the offer in the body of an INIT.  Raises ProtocolError where fuse_init_in is cut short."""
    if len(body) < abi.INIT_IN.size:
        raise ProtocolError(f"INIT of {len(body)} bytes")
    major, minor, max_readahead, flags = abi.INIT_IN.unpack_from(body)
    if flags & abi.INIT_EXT and len(body) >= abi.INIT_IN.size + abi.INIT_FLAGS2.size:
        flags |= abi.INIT_FLAGS2.unpack_from(body, abi.INIT_IN.size)[0] << 32
    return Offer(major, minor, max_readahead, flags)


def agree(offer: Offer, overrides: Overrides = Overrides()) -> Negotiated:
    """Returns the values of the mount for an offer.  Raises ProtocolError for a kernel that is too old."""
    minor = min(offer.minor, overrides.minor, abi.MINOR_MAX)
    if offer.major < abi.KERNEL_MAJOR or (offer.major == abi.KERNEL_MAJOR and minor < abi.MINOR_MIN):
        raise ProtocolError(f"FUSE {offer.major}.{offer.minor} is too old, this needs 7.{abi.MINOR_MIN} (Linux 5.14)")
    wanted = WANTED
    for flag, since in _SINCE:
        if minor >= since:
            wanted |= flag
    if not overrides.resend:
        wanted &= ~abi.HAS_RESEND
    flags = offer.flags & wanted & ~overrides.without
    if not flags & abi.INIT_EXT:
        flags &= (1 << 32) - 1
    return Negotiated(
        minor=minor,
        flags=flags,
        max_write=FUSE_WRITE_BYTES_MAX,
        max_readahead=min(offer.max_readahead, READAHEAD_BYTES_MAX),
        max_background=BACKGROUND_REQUESTS_MAX,
        congestion_threshold=CONGESTION_THRESHOLD,
        max_pages=MAX_PAGES,
    )


def pack_init(unique: int, agreed: Negotiated) -> bytes:
    """Packs the answer to an INIT."""
    return abi.INIT_OUT.pack(
        abi.INIT_OUT.size, 0, unique, abi.KERNEL_MAJOR, agreed.minor, agreed.max_readahead, agreed.flags & 0xFFFF_FFFF,
        agreed.max_background, agreed.congestion_threshold, agreed.max_write, agreed.time_gran, agreed.max_pages, 0,
        agreed.flags >> 32, 0,
    )  # fmt: skip


def pack_major_only(unique: int) -> bytes:
    """Packs the answer to a kernel with a larger major, which sends INIT again with ours."""
    empty = Negotiated(0, 0, 0, 0, 0)._replace(time_gran=0)
    return pack_init(unique, empty)
