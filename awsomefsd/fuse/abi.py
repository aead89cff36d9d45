"""The FUSE protocol as bytes: opcodes, flags and structs of 7.34 (kernel 5.14) to 7.45 (kernel 6.18).  Pure.

No struct changed its size between those versions; additions use fields that were padding, and are valid only with an INIT flag.
So one set of packers serves all of them, and negotiate.py alone knows which flag came when.  Replies are packed with their header in one
struct: one pack call and one write(2) an answer.  A `pack_*` function returns the whole message, header first; it raises struct.error for
a value that does not fit its field.

The constants carry the kernel's own names without the FUSE_ prefix (include/uapi/linux/fuse.h).
"""

from __future__ import annotations

import struct
from enum import IntEnum

from awsomefsd.base.types import Attr, Dirent, StatFs

KERNEL_MAJOR = 7
MINOR_MIN = 34
MINOR_MAX = 45
ROOT_ID = 1
MIN_READ_BUFFER = 8192
HEAD_BYTES = 80  # fuse_in_header and fuse_write_in: all before the payload of a WRITE


class Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


OPCODES = max(Opcode) + 1
WITHOUT_REPLY = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY))


class Notify(IntEnum):
    """Codes of messages that the server sends unasked, in the error field of the header."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8


# --- INIT flags; from bit 32 on they travel in flags2 and need INIT_EXT ----------------------------------------------------
ASYNC_READ = 1 << 0
POSIX_LOCKS = 1 << 1
ATOMIC_O_TRUNC = 1 << 3
EXPORT_SUPPORT = 1 << 4
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
FLOCK_LOCKS = 1 << 10
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
ASYNC_DIO = 1 << 15
WRITEBACK_CACHE = 1 << 16
NO_OPEN_SUPPORT = 1 << 17
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20
ABORT_ERROR = 1 << 21
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
NO_OPENDIR_SUPPORT = 1 << 24
EXPLICIT_INVAL_DATA = 1 << 25
HANDLE_KILLPRIV_V2 = 1 << 28
SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
SECURITY_CTX = 1 << 32
CREATE_SUPP_GROUP = 1 << 34
DIRECT_IO_ALLOW_MMAP = 1 << 36
PASSTHROUGH = 1 << 37
HAS_RESEND = 1 << 39

# --- flags inside requests and replies -------------------------------------------------------------------------------------
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME, FATTR_FH = (1 << bit for bit in range(7))
FATTR_ATIME_NOW, FATTR_MTIME_NOW, FATTR_LOCKOWNER, FATTR_CTIME, FATTR_KILL_SUIDGID = (1 << bit for bit in range(7, 12))
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NONSEEKABLE = 1 << 2
FOPEN_CACHE_DIR = 1 << 3
FOPEN_NOFLUSH = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6
FOPEN_PASSTHROUGH = 1 << 7
GETATTR_FH = 1 << 0
LK_FLOCK = 1 << 0
OPEN_KILL_SUIDGID = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0
RELEASE_FLUSH, RELEASE_FLOCK_UNLOCK = 1 << 0, 1 << 1
READ_LOCKOWNER = 1 << 1
WRITE_CACHE, WRITE_LOCKOWNER, WRITE_KILL_SUIDGID = 1 << 0, 1 << 1, 1 << 2
FSYNC_FDATASYNC = 1 << 0
LK_RDLCK, LK_WRLCK, LK_UNLCK = 0, 1, 2  # F_* of fcntl.h

INT_REQ_BIT = 1  # in `unique` of an INTERRUPT's own header; requests have even numbers

# --- requests (what follows the header) ------------------------------------------------------------------------------------
IN_HEADER = struct.Struct("<IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
INIT_IN = struct.Struct("<IIII")  # major, minor, max_readahead, flags
INIT_FLAGS2 = struct.Struct("<I")  # after INIT_IN, from 7.36 on
FORGET_IN = struct.Struct("<Q")
FORGET_ONE = struct.Struct("<QQ")  # nodeid, nlookup
BATCH_FORGET_IN = struct.Struct("<II")  # count, dummy
GETATTR_IN = struct.Struct("<IIQ")  # flags, dummy, fh
# valid, padding, fh, size, lock_owner, atime, mtime, ctime, the three nsec, mode, unused, uid, gid, unused; seconds are signed
SETATTR_IN = struct.Struct("<IIQQQqqqIIIIIIII")
MKNOD_IN = struct.Struct("<IIII")  # mode, rdev, umask, padding
MKDIR_IN = struct.Struct("<II")  # mode, umask
RENAME_IN = struct.Struct("<Q")
RENAME2_IN = struct.Struct("<QII")  # newdir, flags, padding
LINK_IN = struct.Struct("<Q")
OPEN_IN = struct.Struct("<II")  # flags, open_flags
CREATE_IN = struct.Struct("<IIII")  # flags, mode, umask, open_flags
RELEASE_IN = struct.Struct("<QIIQ")  # fh, flags, release_flags, lock_owner
FLUSH_IN = struct.Struct("<QIIQ")  # fh, unused, padding, lock_owner
READ_IN = struct.Struct("<QQIIQII")  # fh, offset, size, read_flags, lock_owner, flags, padding
WRITE_IN = struct.Struct("<QQIIQII")  # fh, offset, size, write_flags, lock_owner, flags, padding
WRITE_DATA_AT = IN_HEADER.size + WRITE_IN.size  # in a request
FSYNC_IN = struct.Struct("<QII")  # fh, fsync_flags, padding
SETXATTR_IN = struct.Struct("<II")  # size, flags
SETXATTR_EXT_IN = struct.Struct("<IIII")  # size, flags, setxattr_flags, padding: with SETXATTR_EXT
GETXATTR_IN = struct.Struct("<II")  # size, padding
FALLOCATE_IN = struct.Struct("<QQQII")  # fh, offset, length, mode, padding
LSEEK_IN = struct.Struct("<QQII")  # fh, offset, whence, padding
# fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
COPY_FILE_RANGE_IN = struct.Struct("<QQQQQQQ")
LK_IN = struct.Struct("<QQQQIIII")  # fh, owner, start, end, type, pid, lk_flags, padding
INTERRUPT_IN = struct.Struct("<Q")

# --- replies, header first -------------------------------------------------------------------------------------------------
OUT_HEADER = struct.Struct("<IiQ")  # len, error or notify code, unique
OUT_HEADER_BYTES = OUT_HEADER.size
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages, map_alignment, flags2,
# max_stack_depth, unused
INIT_OUT = struct.Struct("<IiQIIIIHHIIHHII24x")
_ATTR = "QQQqqqIIIIIIIIII"  # ino, size, blocks, atime, mtime, ctime, three nsec, mode, nlink, uid, gid, rdev, blksize, flags
_ENTRY = "QQQQII" + _ATTR  # nodeid, generation, entry_valid, attr_valid, two nsec, attr
ENTRY_OUT = struct.Struct("<IiQ" + _ENTRY)
ATTR_OUT = struct.Struct("<IiQQII" + _ATTR)  # attr_valid, nsec, dummy
OPEN_OUT = struct.Struct("<IiQQII")  # fh, open_flags, backing id
CREATE_OUT = struct.Struct("<IiQ" + _ENTRY + "QII")
WRITE_OUT = struct.Struct("<IiQII")  # size, padding
STATFS_OUT = struct.Struct("<IiQQQQQQIII28x")  # blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
SIZE_OUT = struct.Struct("<IiQII")  # fuse_getxattr_out
U64_OUT = struct.Struct("<IiQQ")  # fuse_lseek_out, fuse_copy_file_range_out
LK_OUT = struct.Struct("<IiQQQII")  # start, end, type, pid
DIRENT = struct.Struct("<QQII")  # ino, off, namelen, type; then the name, padded to 8
DIRENTPLUS = struct.Struct("<" + _ENTRY + "QQII")

# --- notifications ---------------------------------------------------------------------------------------------------------
NOTIFY_INVAL_INODE = struct.Struct("<IiQQqq")  # ino, off, len

BLKSIZE_BYTES = 4096
SECTOR_BYTES = 512
NSEC = 1_000_000_000
NAME_BYTES_MAX = 255  # in statfs

_PADS = tuple(b"\0" * ((-count) & 7) for count in range(8))


def pack_error(unique: int, errno: int) -> bytes:
    """Packs a reply without a body; `errno` 0 is success."""
    return OUT_HEADER.pack(OUT_HEADER_BYTES, -errno, unique)


def pack_bytes(unique: int, body: bytes) -> bytes:
    return OUT_HEADER.pack(OUT_HEADER_BYTES + len(body), 0, unique) + body


def with_unique(reply: bytes, unique: int) -> bytes:
    """Returns the same reply with another unique (the kernel knows a resent request by a changed one)."""
    length, error, _ = OUT_HEADER.unpack_from(reply)
    return OUT_HEADER.pack(length, error, unique) + reply[OUT_HEADER_BYTES:]


def _attr(attr: Attr) -> tuple[int, ...]:
    atime, atime_nsec = divmod(attr.atime_ns, NSEC)
    mtime, mtime_nsec = divmod(attr.mtime_ns, NSEC)
    ctime, ctime_nsec = divmod(attr.ctime_ns, NSEC)
    return (
        attr.ino, attr.size, (attr.stored_bytes + SECTOR_BYTES - 1) // SECTOR_BYTES,
        atime, mtime, ctime, atime_nsec, mtime_nsec, ctime_nsec,
        attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, BLKSIZE_BYTES, 0,
    )  # fmt: skip


def pack_entry(unique: int, attr: Attr, name_ns: int, attr_ns: int) -> bytes:
    """Packs a name and its attributes; the kernel may use the name for `name_ns`, the attributes for `attr_ns`."""
    name, name_nsec = divmod(name_ns, NSEC)
    ttl, ttl_nsec = divmod(attr_ns, NSEC)
    return ENTRY_OUT.pack(ENTRY_OUT.size, 0, unique, attr.ino, 0, name, ttl, name_nsec, ttl_nsec, *_attr(attr))


_NO_ATTR = (0,) * 16


def pack_negative_entry(unique: int, ttl_ns: int) -> bytes:
    """Packs an ENOENT that the kernel may remember for `ttl_ns`."""
    ttl, ttl_nsec = divmod(ttl_ns, NSEC)
    return ENTRY_OUT.pack(ENTRY_OUT.size, 0, unique, 0, 0, ttl, 0, ttl_nsec, 0, *_NO_ATTR)


def pack_attr(unique: int, attr: Attr, ttl_ns: int) -> bytes:
    ttl, ttl_nsec = divmod(ttl_ns, NSEC)
    return ATTR_OUT.pack(ATTR_OUT.size, 0, unique, ttl, ttl_nsec, 0, *_attr(attr))


def pack_open(unique: int, fh: int, fopen_flags: int) -> bytes:
    return OPEN_OUT.pack(OPEN_OUT.size, 0, unique, fh, fopen_flags, 0)


def pack_create(unique: int, attr: Attr, ttl_ns: int, fh: int, fopen_flags: int) -> bytes:
    ttl, ttl_nsec = divmod(ttl_ns, NSEC)
    return CREATE_OUT.pack(
        CREATE_OUT.size, 0, unique, attr.ino, 0, ttl, ttl, ttl_nsec, ttl_nsec, *_attr(attr), fh, fopen_flags, 0
    )  # fmt: skip


def pack_write(unique: int, size: int) -> bytes:
    return WRITE_OUT.pack(WRITE_OUT.size, 0, unique, size, 0)


def pack_size(unique: int, size: int) -> bytes:
    """Packs the answer to a getxattr or listxattr that asks how much room (bytes) it needs."""
    return SIZE_OUT.pack(SIZE_OUT.size, 0, unique, size, 0)


def pack_u64(unique: int, value: int) -> bytes:
    """Packs the answer to LSEEK and COPY_FILE_RANGE_64."""
    return U64_OUT.pack(U64_OUT.size, 0, unique, value)


def pack_statfs(unique: int, figures: StatFs) -> bytes:
    free, available = max(figures.bytes_free, 0) // BLKSIZE_BYTES, figures.bytes_writable // BLKSIZE_BYTES
    return STATFS_OUT.pack(
        STATFS_OUT.size, 0, unique, figures.bytes_total // BLKSIZE_BYTES, free, available,
        figures.inodes_total, max(figures.inodes_free, 0), BLKSIZE_BYTES, NAME_BYTES_MAX, BLKSIZE_BYTES,
    )  # fmt: skip


def pack_lock(unique: int, start: int, end: int, lock_type: int, pid: int) -> bytes:
    return LK_OUT.pack(LK_OUT.size, 0, unique, start, end, lock_type, pid)


def pack_dirent(entry: Dirent) -> bytes:
    name = entry.name
    size = len(name)
    return DIRENT.pack(entry.ino, entry.cookie, size, (entry.kind >> 12) & 15) + name + _PADS[size & 7]


def pack_direntplus(entry: Dirent, name_ns: int, attr_ns: int) -> bytes:
    """Packs an entry of READDIRPLUS; without attributes its node id is 0, and the kernel counts no lookup for it."""
    name, attr = entry.name, entry.attr
    size = len(name)
    if attr is None or name in (b".", b".."):
        head: tuple[int, ...] = (0, 0, 0, 0, 0, 0, *_NO_ATTR)
    else:
        name_s, name_nsec = divmod(name_ns, NSEC)
        ttl, ttl_nsec = divmod(attr_ns, NSEC)
        head = (attr.ino, 0, name_s, ttl, name_nsec, ttl_nsec, *_attr(attr))
    return DIRENTPLUS.pack(*head, entry.ino, entry.cookie, size, (entry.kind >> 12) & 15) + name + _PADS[size & 7]


def pack_notify(code: Notify) -> bytes:
    """Packs a notification that is a header and nothing else: RESEND and INC_EPOCH."""
    return OUT_HEADER.pack(OUT_HEADER_BYTES, code, 0)


def pack_inval_inode(ino: int, offset: int, length: int) -> bytes:
    """Packs an INVAL_INODE: `length` 0 is to the end of the file; `offset` below 0 means attributes only."""
    return NOTIFY_INVAL_INODE.pack(NOTIFY_INVAL_INODE.size, Notify.INVAL_INODE, 0, ino, offset, length)
