"""For each kind of operation of user_process.py a hypothesis strategy for its arguments.  Few names and slots, so that operations meet."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]
LONG = "n" * 255
PATHS = (
    "a", "b", "c", "d", "a/a", "a/b", "b/a", "b/b", "c/a", "c/c", "d/d", "a/b/c", "b/a/a", "c/a/b",
    LONG, LONG + "n", f"a/{LONG}", "a/", "b/.", ".", "a/..", "absent/x", "ü\udcff", "",
)  # fmt: skip
TARGETS = ("a", "b", "c", "a/b", "b/../a", "d", "absent", "t" * 59, "t" * 60, "t" * 4000, "")
FILE_BYTES = 300_000
LENGTHS = (1, 0, 7, 100, 511, 4095, 4096, 4097, 20_000, 140_000)
OFFSETS = (0, 1, 100, 4095, 4096, 4097, 12_288, 65_536, 131_071, 200_001)
FAR = (1 << 31, (1 << 32) - 2, (1 << 40) + 5, (1 << 43) - 4096)
MODES = (0o644, 0o600, 0o755, 0o777, 0o666, 0, 0o4755, 0o2775, 0o2755, 0o6777, 0o1777, 0o070, 0o007)
OPEN_FLAGS = (
    os.O_RDWR | os.O_CREAT, os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND | os.O_CREAT, os.O_RDWR | os.O_APPEND,
    os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC,
    os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_NOFOLLOW, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, os.O_RDWR | os.O_DIRECTORY,
    os.O_RDONLY | os.O_CREAT, os.O_RDWR | os.O_SYNC | os.O_CREAT, os.O_RDWR | os.O_DSYNC, os.O_RDONLY | os.O_CREAT | os.O_DIRECTORY,
)  # fmt: skip
LATEST_NS = 15_032_385_535 * 10**9  # of ext4: the year 2446
TIMES = ("now", "omit", 0, 1, 10**18 + 1, -1, -5 * 10**9 - 3, (1 << 31) * 10**9, -(1 << 31) * 10**9, 9 * 10**18 + 9, LATEST_NS)
KEYS = ("user.one", "user.two", "trusted.one", "user.", "user." + "k" * 250, "user." + "k" * 251, "other.one", "one")
UIDS, GIDS = (-1, 0, 4001, 4002, 7), (-1, 0, 5001, 5002, 5003, 7)
LOCKS = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)
LOCK_COMMANDS = (fcntl.F_SETLK, fcntl.F_OFD_SETLK)
QUERY_COMMANDS = (fcntl.F_GETLK, fcntl.F_OFD_GETLK)
DEVICES = ((stat.S_IFREG, 0), (stat.S_IFIFO, 0), (stat.S_IFSOCK, 0), (stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFBLK, os.makedev(700, 7)))
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
ALLOCATIONS = (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, PUNCH_HOLE)
ACCESS_KEY, DEFAULT_KEY = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NOBODY = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL as its attribute holds it: (tag, rights, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _acl(owner: int, group: int, other: int, named: tuple[tuple[int, int, int], ...], mask: int | None) -> bytes:
    rows = [(USER_OBJ, owner, NOBODY), *named, (GROUP_OBJ, group, NOBODY)]
    rows += [(OTHER, other, NOBODY)] if mask is None else [(MASK, mask, NOBODY), (OTHER, other, NOBODY)]
    return acl(*sorted(rows, key=lambda row: (row[0], row[2])))


ACLS = (
    _acl(7, 5, 5, (), None), _acl(6, 4, 0, (), None), _acl(7, 5, 0, ((USER, 7, 4001),), 7), _acl(6, 6, 4, ((USER, 4, 4002),), 5),
    _acl(7, 7, 0, ((USER, 6, 4001), (GROUP, 7, 5003)), 3), _acl(7, 0, 0, ((GROUP, 5, 5002),), 5), acl(), acl((USER, 7, 4001)), b"junk",
)  # fmt: skip


def one(values: tuple[Any, ...]) -> Strategy:
    return st.sampled_from(values)


PATH, SLOT, LENGTH, MODE, SEED, FOLLOW = one(PATHS), st.integers(0, 3), one(LENGTHS), one(MODES), st.integers(0, 255), st.booleans()
OFFSET = one(OFFSETS) | st.integers(0, FILE_BYTES)
SIZE = one((0, 1, 4095, 4096, 4097, 100_000)) | st.integers(0, FILE_BYTES)
DEVICE = st.tuples(one(DEVICES), MODE).map(lambda both: (both[0][0] | both[1], both[0][1]))
BYTES = st.integers(0, 20)

ARGUMENTS: dict[str, tuple[Strategy, ...]] = {
    "open": (SLOT, PATH, one(OPEN_FLAGS), MODE),
    "close": (SLOT,),
    "read": (SLOT, LENGTH),
    "pread": (SLOT, OFFSET, LENGTH),
    "write": (SLOT, SEED, LENGTH),
    "pwrite": (SLOT, SEED, OFFSET, LENGTH),
    "far": (SLOT, one(FAR), SIZE),
    "lseek": (SLOT, OFFSET.map(lambda offset: offset - 1), one((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 77))),
    "ftruncate": (SLOT, SIZE),
    "fsync": (SLOT, FOLLOW),
    "fstat": (SLOT,),
    "flist": (SLOT,),
    "fchmod": (SLOT, MODE),
    "fchown": (SLOT, one(UIDS), one(GIDS)),
    "map": (SLOT, SEED, st.sampled_from((0.0, 0.3, 0.9, 1.0)), one((1, 100, 5000))),
    "copy": (SLOT, SLOT, OFFSET, OFFSET, LENGTH),
    "sendfile": (SLOT, SLOT, OFFSET, LENGTH),
    "fallocate": (SLOT, one(ALLOCATIONS), OFFSET, LENGTH),
    "holes": (SLOT,),
    "seekend": (SLOT, one((0, 1, 5000)), one((os.SEEK_DATA, os.SEEK_HOLE))),
    "direct": (PATH, SEED, st.integers(0, 20)),
    "tmpfile": (SLOT, PATH, one((os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_EXCL, os.O_RDONLY)), MODE),
    "linkslot": (SLOT, PATH),
    "lock": (SLOT, one(LOCK_COMMANDS), one(LOCKS), BYTES, BYTES),
    "getlk": (SLOT, one(QUERY_COMMANDS), one(LOCKS[:2]), BYTES, BYTES),
    "flock": (SLOT, one((fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN))),
    "lockclosed": (PATH,),
    "remount": (one((True, False, False)),),
    "umask": (one((0o022, 0, 0o077, 0o777)),),
    "mkdir": (PATH, MODE),
    "mknod": (PATH, DEVICE),
    "rmdir": (PATH,),
    "unlink": (PATH,),
    "symlink": (one(TARGETS), PATH),
    "link": (PATH, PATH, FOLLOW),
    "rename": (PATH, PATH, one((0, 1, 2, 3, 4, 5))),
    "readlink": (PATH,),
    "list": (PATH,),
    "listrenaming": (PATH,),
    "stat": (PATH, FOLLOW),
    "statmode": (PATH,),
    "access": (PATH, one((os.F_OK, os.R_OK, os.W_OK, os.X_OK))),
    "truncate": (PATH, SIZE),
    "chmod": (PATH, MODE),
    "chown": (PATH, one(UIDS), one(GIDS), FOLLOW),
    "utime": (PATH, one(TIMES), one(TIMES), FOLLOW),
    "setxattr": (PATH, one(KEYS), one((0, 1, 30, 200)), one((0, os.XATTR_CREATE, os.XATTR_REPLACE, 3)), FOLLOW),
    "getxattr": (PATH, one(KEYS)),
    "listxattr": (PATH,),
    "removexattr": (PATH, one(KEYS)),
    "setacl": (PATH, one((ACCESS_KEY, DEFAULT_KEY)), one(ACLS)),
    "getacl": (PATH, one((ACCESS_KEY, DEFAULT_KEY))),
    "dropacl": (PATH, one((ACCESS_KEY, DEFAULT_KEY))),
    "statvfs": (PATH,),
}


def _flat(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(part for value in values for part in (value if isinstance(value, tuple) else (value,)))


# without what only a kernel sees: dots, slashes at the end, device nodes
_PLAIN = {id(PATH): one(PATHS[:17]), id(DEVICE): MODE.map(lambda mode: (stat.S_IFREG | mode, 0)) | st.just((stat.S_IFSOCK | 0o640, 0))}


def arguments(kind: str, plain: bool = False) -> Strategy:
    return st.tuples(*(_PLAIN.get(id(part), part) if plain else part for part in ARGUMENTS[kind])).map(_flat)


# --- what a tree may lack ---------------------------------------------------------------------------------------------------------
# kind -> (the row of docs/CAPABILITIES.md that says it is there, a probe by operations of root: the last one's result)
Call = Callable[..., Any]


def _opened(call: Call) -> None:
    call("open", 0, "probe", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)


def _fallocate(call: Call) -> bool:
    _opened(call)
    return call("fallocate", 0, PUNCH_HOLE | KEEP_SIZE, 0, 4096) is None


def _holes(call: Call) -> bool:
    _opened(call)
    call("ftruncate", 0, 1 << 20)
    return call("seekend", 0, -(1 << 20), os.SEEK_HOLE) == 0


def _tmpfile(call: Call) -> bool:
    return isinstance(call("tmpfile", 0, ".", os.O_RDWR, 0o600), tuple)


def _acls(call: Call) -> bool:
    _opened(call)
    return call("setacl", "probe", ACCESS_KEY, ACLS[2]) is None


PROBES: dict[str, tuple[str, tuple[str, ...], Callable[[Call], bool]]] = {
    "fallocate": ("fallocate", ("fallocate",), _fallocate),
    "SEEK_HOLE": ("SEEK_HOLE", ("holes",), _holes),
    "O_TMPFILE": ("O_TMPFILE", ("tmpfile",), _tmpfile),
    "ACLs": ("POSIX ACLs", ("setacl", "getacl", "dropacl"), _acls),
}
