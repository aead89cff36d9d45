"""The protocol's bytes: sizes as the kernel has them, replies as it reads them, negotiation."""

from __future__ import annotations

import ast
import stat
import struct
from pathlib import Path

import pytest

from awsomefsd.base.errors import ConfigError, ProtocolError
from awsomefsd.base.types import Attr, Dirent, StatFs
from awsomefsd.fuse import abi
from awsomefsd.fuse.negotiate import WANTED, Offer, Overrides, agree, pack_init, read_offer

SIZES = {  # from include/uapi/linux/fuse.h; replies with the 16 bytes of their header
    "IN_HEADER": 40, "GETATTR_IN": 16, "SETATTR_IN": 88, "MKNOD_IN": 16, "MKDIR_IN": 8, "RENAME_IN": 8, "RENAME2_IN": 16, "LINK_IN": 8,
    "OPEN_IN": 8, "CREATE_IN": 16, "RELEASE_IN": 24, "FLUSH_IN": 24, "READ_IN": 40, "WRITE_IN": 40, "FSYNC_IN": 16, "SETXATTR_IN": 8,
    "SETXATTR_EXT_IN": 16, "GETXATTR_IN": 8, "LK_IN": 48,
    "FALLOCATE_IN": 32, "LSEEK_IN": 24, "COPY_FILE_RANGE_IN": 56, "U64_OUT": 16 + 8,
    "INTERRUPT_IN": 8, "FORGET_IN": 8, "FORGET_ONE": 16, "BATCH_FORGET_IN": 8,
    "OUT_HEADER": 16, "INIT_OUT": 16 + 64, "ENTRY_OUT": 16 + 128, "ATTR_OUT": 16 + 104, "OPEN_OUT": 16 + 16, "CREATE_OUT": 16 + 144,
    "WRITE_OUT": 16 + 8, "STATFS_OUT": 16 + 80, "SIZE_OUT": 16 + 8, "LK_OUT": 16 + 24, "DIRENT": 24, "DIRENTPLUS": 128 + 24,
    "NOTIFY_INVAL_INODE": 16 + 24,
}  # fmt: skip
ATTR = Attr(7, stat.S_IFREG | 0o644, 1, 10, 20, 0, 5000, 4097, -1, 1_500_000_000, 2, 3)
UNIQUE = 42


def test_sizes_are_the_kernels() -> None:
    assert {name: getattr(abi, name).size for name in SIZES} == SIZES
    assert abi.IN_HEADER.size + abi.WRITE_IN.size == abi.HEAD_BYTES


def test_module_is_pure() -> None:
    tree = ast.parse(Path(abi.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "struct", "enum", "awsomefsd.base.types"}


def test_entry() -> None:
    reply = abi.pack_entry(UNIQUE, ATTR, 1_500_000_000, 1_500_000_000)
    assert struct.unpack_from("<IiQ", reply) == (len(reply), 0, UNIQUE)
    assert struct.unpack_from("<QQQQII", reply, 16) == (7, 0, 1, 1, 500_000_000, 500_000_000)
    ino, size, blocks, atime, mtime, ctime, atime_nsec, mtime_nsec, *_ = struct.unpack_from("<QQQqqqIII", reply, 56)
    assert (ino, size, blocks) == (7, 5000, 9)  # 4097 bytes are 9 sectors
    assert (atime, atime_nsec, mtime, mtime_nsec, ctime) == (-1, 999_999_999, 1, 500_000_000, 0)
    negative = abi.pack_negative_entry(UNIQUE, 2_000_000_000)
    assert len(negative) == len(reply) and struct.unpack_from("<QQQ", negative, 16) == (0, 0, 2)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 255])
def test_directory_records_are_padded(length: int) -> None:
    entry = Dirent(b"n" * length, 9, stat.S_IFDIR, 33, ATTR)
    plain, plus = abi.pack_dirent(entry), abi.pack_direntplus(entry, 0, 0)
    assert len(plain) == 24 + (length + 7) // 8 * 8 and len(plus) == len(plain) + 128
    assert abi.DIRENT.unpack_from(plain) == (9, 33, length, 4) and plain[24 : 24 + length] == entry.name
    assert plus[128:] == plain and struct.unpack_from("<Q", plus) == (7,)
    assert struct.unpack_from("<Q", abi.pack_direntplus(Dirent(b"..", 1, stat.S_IFDIR, 2, ATTR), 0, 0)) == (0,)


def test_small_replies() -> None:
    assert abi.pack_error(UNIQUE, 2) == struct.pack("<IiQ", 16, -2, UNIQUE)
    assert abi.with_unique(abi.pack_bytes(UNIQUE, b"body"), 7 | 1 << 63) == struct.pack("<IiQ", 20, 0, 7 | 1 << 63) + b"body"
    assert abi.pack_notify(abi.Notify.RESEND) == struct.pack("<IiQ", 16, 7, 0)
    assert struct.unpack_from("<QQQQQIII", abi.pack_statfs(UNIQUE, StatFs(1 << 20, -5, 9, 3)), 16) == (256, 0, 0, 9, 3, 4096, 255, 4096)


# --- negotiation -------------------------------------------------------------------------------------------------------------


def test_newest_kernel_gets_all_that_is_wanted() -> None:
    agreed = agree(Offer(7, 45, 131072, (1 << 64) - 1))
    assert agreed.minor == 45 and agreed.flags == WANTED | abi.INIT_EXT | abi.DIRECT_IO_ALLOW_MMAP | abi.HAS_RESEND
    assert agreed.max_write == 1 << 20 and agreed.max_pages == 256 and agreed.max_readahead == 131072
    reply = pack_init(UNIQUE, agreed)
    major, minor, _, flags, _, _, max_write, time_gran, max_pages, _, flags2 = struct.unpack_from("<IIIIHHIIHHI", reply, 16)
    assert (major, minor, max_write, time_gran, max_pages) == (7, 45, 1 << 20, 1, 256)
    assert flags | flags2 << 32 == agreed.flags


@pytest.mark.parametrize(
    ("offered", "overrides", "minor"), [(34, Overrides(), 34), (45, Overrides(minor=34), 34), (38, Overrides(), 38), (60, Overrides(), 45)]
)
def test_flags_follow_the_smaller_minor(offered: int, overrides: Overrides, minor: int) -> None:
    agreed = agree(Offer(7, offered, 0, (1 << 64) - 1), overrides)
    assert agreed.minor == minor
    assert bool(agreed.flags & abi.INIT_EXT) == (minor >= 36) and bool(agreed.flags & abi.HAS_RESEND) == (minor >= 40)
    assert agreed.flags & 0xFFFF_FFFF & ~abi.INIT_EXT == WANTED


def test_refused_and_pinned() -> None:
    for offer in (Offer(7, 33, 0, 0), Offer(6, 45, 0, 0)):
        with pytest.raises(ProtocolError, match="too old"):
            agree(offer)
    assert agree(Offer(7, 45, 0, 0)).flags == 0
    assert not agree(Offer(7, 45, 0, (1 << 64) - 1), Overrides(resend=False)).flags & abi.HAS_RESEND
    assert Overrides.parse("minor=34, resend=off") == Overrides(34, False) and Overrides.parse("") == Overrides()
    for bad in ("minor=33", "resend", "speed=9"):
        with pytest.raises(ConfigError, match=bad):
            Overrides.parse(bad)


def test_offer_of_old_and_new_kernels() -> None:
    assert read_offer(memoryview(struct.pack("<IIII", 7, 34, 9, 1))) == Offer(7, 34, 9, 1)
    body = memoryview(struct.pack("<IIIII44x", 7, 45, 9, abi.INIT_EXT, 1 << 7))
    assert read_offer(body) == Offer(7, 45, 9, abi.INIT_EXT | abi.HAS_RESEND)
    with pytest.raises(ProtocolError):
        read_offer(memoryview(b"short"))
