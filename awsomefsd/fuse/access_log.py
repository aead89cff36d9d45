"""The access log of a mount, request by request, for whoever asks: `awsomefsd profile`.

The door is the mount itself: an ioctl of one of its directories.  It needs neither keeper nor daemon, and no format in shared memory; the
kernel says who asks, and a worker of an earlier build answers ENOTTY.  Each call takes what has ended since the call before, and asks that
the next WATCHED_S be noted, too.  So there is no state that has to be ended: a caller that dies asks no more, and a successor of a dead
worker is asked by the next call.  While nobody asks, a request costs two looks at an empty dict.

What is noted is bounded; what does not fit is counted as lost.  A request that a successor repeats is not noted: its beginning died with
the worker.

Rejected: a message over keeper and worker link (a keeper of an earlier build lives on and does not know it; and who ends it?), a word and a
ring in shared memory (a format), the daemon's answer to a report (5 s late), a hidden file as the door (a name that is taken from users).
"""

from __future__ import annotations

import errno
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import Attr
from awsomefsd.fuse import abi
from awsomefsd.fuse.abi import Opcode
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.api.filesystem import Filesystem

WATCHED_S = 5
READERS_MAX = 4
ENTRIES_MAX = 16_384  # that wait for one reader
ANSWER_BYTES_MAX = (1 << 14) - 1  # what the number of an ioctl can say
TAKE = 2 << 30 | ANSWER_BYTES_MAX << 16 | ord("W") << 8 | 0x46  # _IOR('W', 0x46, char[ANSWER_BYTES_MAX])
Caller = tuple[int, int]  # a thread, and its handle of the directory: all of another namespace are thread 0
_HEAD_BYTES = 64  # of an answer without entries, generously
_NAME_AT: dict[int, int] = {
    Opcode.LOOKUP: 0, Opcode.UNLINK: 0, Opcode.RMDIR: 0, Opcode.SYMLINK: 0,
    Opcode.MKNOD: abi.MKNOD_IN.size, Opcode.MKDIR: abi.MKDIR_IN.size, Opcode.LINK: abi.LINK_IN.size,
    Opcode.CREATE: abi.CREATE_IN.size, Opcode.RENAME: abi.RENAME_IN.size, Opcode.RENAME2: abi.RENAME2_IN.size,
}  # fmt: skip
_NAMES: dict[int, str] = {opcode: Opcode(opcode).name.lower() for opcode in Opcode}


class LoggedRequest(Struct, array_like=True, frozen=True):
    """One request.  `ino` is what it names, the directory if it has a `name` too; `found` the inode that this name leads to, if known."""

    operation: str
    ino: int
    name: bytes
    found: int
    uid: int
    pid: int
    took_ns: int
    errno: int


class LogPage(Struct, array_like=True, frozen=True):
    """What one call takes; fields are only ever appended, with a default.  `more`: ask again at once."""

    lost: int = 0
    more: bool = False
    entries: list[LoggedRequest] = []


decode_answer = msgspec.msgpack.Decoder(LogPage).decode
_encode = msgspec.msgpack.Encoder().encode
IOCTL_IN = struct.Struct("<QIIQII")  # fh, flags, cmd, arg, in_size, out_size
IOCTL_OUT = struct.Struct("<iIII")  # result, flags, in_iovs, out_iovs
IOCTL_DIR = 1 << 4


class _Reader:
    def __init__(self, until_ns: int) -> None:
        self.until_ns = until_ns
        self.waiting: deque[LoggedRequest] = deque()
        self.lost = 0


class AccessLog:
    """The readers of one mount, by who asks.  Thread-safe; nothing blocks.  `readers` is empty while nobody asks.

    `tells_root`: root may ask.  On a mount where root is somebody else, it may be root of a container, and nobody may.
    """

    def __init__(self, tells_root: bool = True, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._tells_root = tells_root
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self.readers: dict[Caller, _Reader] = {}

    def take(self, caller: Caller) -> bytes:
        """Returns what has ended since this caller's last call, as much as fits an answer.

        Raises FsError(EBUSY) for one caller too many.
        """
        now_ns = self._now_ns()
        with self._lock:
            for other in [one for one, reader in self.readers.items() if now_ns > reader.until_ns]:
                del self.readers[other]
            reader = self.readers.get(caller)
            if reader is None:
                if len(self.readers) >= READERS_MAX:
                    raise FsError(errno.EBUSY, f"{READERS_MAX} look at this mount already")
                reader = self.readers[caller] = _Reader(0)
            reader.until_ns = now_ns + WATCHED_S * abi.NSEC
            lost, reader.lost = reader.lost, 0
            entries, room = [], ANSWER_BYTES_MAX - _HEAD_BYTES
            while reader.waiting and (room := room - len(_encode(reader.waiting[0]))) >= 0:
                entries.append(reader.waiting.popleft())
            return _encode(LogPage(lost, bool(reader.waiting), entries))

    def note(self, opcode: int, name: bytes, ctx: Context, value: Any, error: Exception | None) -> None:
        """Notes a request that has ended, for all who ask; `name` as `name_of`.  Forgets readers that ask no more."""
        number = 0 if error is None else getattr(error, "errno", None) or errno.EIO
        found, took_ns = _found(value) if name else 0, time.monotonic_ns() - ctx.began_ns
        entry = LoggedRequest(_NAMES.get(opcode, "unknown"), ctx.nodeid, name, found, ctx.uid, ctx.pid, took_ns, number)
        now_ns = self._now_ns()
        with self._lock:
            for key, reader in list(self.readers.items()):
                if now_ns > reader.until_ns:
                    del self.readers[key]
                elif len(reader.waiting) < ENTRIES_MAX:
                    reader.waiting.append(entry)
                else:
                    reader.lost += 1

    def answer(self, fs: Filesystem, ctx: Context, nodeid: int, body: memoryview) -> bytes:
        """The handler of IOCTL.  The result of the call is the length of what it takes."""
        handle, flags, command, *_ = IOCTL_IN.unpack_from(body) if len(body) >= IOCTL_IN.size else (0, 0, 0)
        if command != TAKE or not flags & IOCTL_DIR:
            raise FsError(errno.ENOTTY)
        # A container may be root, and have one directory of the mount: what others do elsewhere in it is not for it.
        if nodeid != abi.ROOT_ID or ctx.uid != 0 or not self._tells_root:
            raise FsError(errno.EPERM)
        taken = self.take((ctx.pid, handle))
        return IOCTL_OUT.pack(len(taken), 0, 0, 0) + taken


def name_of(opcode: int, request: memoryview) -> bytes:
    """Returns the name in a directory that a request has, the old one of two; b"" for kinds without one, and where the memory was freed."""
    at = _NAME_AT.get(opcode)
    if at is None:
        return b""
    return bytes(request[abi.IN_HEADER.size + at :][: abi.NAME_BYTES_MAX + 1]).partition(b"\0")[0]


def _found(value: Any) -> int:
    """Returns the inode in the result of a request that has a name: attributes, or these and a handle."""
    attr = value[0] if isinstance(value, tuple) and value and isinstance(value[0], Attr) else value
    return attr.ino if isinstance(attr, Attr) else 0
