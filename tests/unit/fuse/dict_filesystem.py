"""A small filesystem in dicts behind the interface of fuse.filesystem, for tests of the session: no metadata service, no devices."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
import time
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import Attr, Dirent, Lock, StatFs
from awsomefsd.base.wait import Payload, Signal
from awsomefsd.meta.api.commands import SET_ATIME, SET_GID, SET_MODE, SET_MTIME, SET_SIZE, SET_UID
from awsomefsd.vfs.api.context import Context, Opened, SetAttrIn

FILE_BYTES_MAX = 1 << 24  # files are memory: random requests ask for gigabytes of it


class DictFs:
    """Names with a meaning.  The file "wait" and the directory "sub" are always there; reading and writing "wait" and mkdir "late" wait
    for `gate`; mkdir "kill-N" and "segv-N" end the process if it is one of the first N workers (`worker` counts from 1); unlink of "boom"
    is a bug of ours.
    """

    def __init__(self, worker: int = 1, late_files: int = 0) -> None:
        self.worker = worker
        self.gate = Signal()
        self.waiting = threading.Event()  # somebody waits for the gate
        self.executed: list[tuple[str, int]] = []  # method, unique
        self.replied_to: list[int] = []
        self.delivered_to: list[tuple[int, int, bool]] = []
        self.taken_back: list[Any] = []
        self.interrupted: list[int] = []
        self.lock_waits: dict[int, Signal] = {}
        self.locks: dict[int, Lock] = {}
        self.ttl = 1_000_000_000
        self.forgotten: list[tuple[int, int]] = []
        self.attrs: dict[int, Attr] = {}
        self.data: dict[int, bytearray] = {}
        self.names: dict[int, dict[bytes, int]] = {}
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        self._make(0, b"", stat.S_IFDIR | 0o755)
        self.late = self._make(1, b"wait", stat.S_IFREG | 0o666, b"0123456789").ino
        self._make(1, b"sub", stat.S_IFDIR | 0o777)
        self._write_late_to = {self.late} | {self._make(1, b"wait%d" % n, stat.S_IFREG | 0o666).ino for n in range(late_files)}

    # --- inside ----------------------------------------------------------------------------------------------------------------

    def _make(self, parent: int, name: bytes, mode: int, data: bytes = b"") -> Attr:
        now = time.time_ns()
        attr = Attr(len(self.attrs) + 1, mode, 1, 0, 0, 0, len(data), len(data), now, now, now, now)
        self.attrs[attr.ino] = attr
        self.data[attr.ino] = bytearray(data)
        if stat.S_ISDIR(mode):
            attr.nlink, self.names[attr.ino] = 2, {}
        if parent:
            self.names[parent][name] = attr.ino
        return attr

    def _new(self, ctx: Context, parent: int, name: bytes, mode: int, data: bytes = b"") -> Attr:
        self.executed.append((name.decode("latin-1"), ctx.unique))
        kind, _, workers = name.partition(b"-")
        if kind in (b"kill", b"segv") and self.worker <= int(workers):
            os.kill(os.getpid(), signal.SIGKILL if kind == b"kill" else signal.SIGSEGV)
            threading.Event().wait()  # another thread may be the one that gets the signal
        if name in self.names[parent]:
            raise FsError(errno.EEXIST)
        return self._make(parent, name, mode, data)

    def _ino(self, parent: int, name: bytes) -> int:
        try:
            return self.names[parent][name]
        except KeyError:
            raise FsError(errno.ENOENT) from None

    def _attr(self, ino: int) -> Attr:
        try:
            return self.attrs[ino]
        except KeyError:
            raise FsError(errno.ESTALE) from None

    # --- the interface -----------------------------------------------------------------------------------------------------------

    def ttl_ns(self) -> int:
        return self.ttl

    def attr_ttl_ns(self, attr: Attr) -> int:
        return self.ttl

    def name_ttl_ns(self, parent: int, name: bytes, ino: int) -> int:
        return self.ttl

    def interrupt(self, unique: int) -> None:
        self.interrupted.append(unique)
        wait = self.lock_waits.get(unique)
        if wait is not None:
            wait.fire(error=FsError(errno.EINTR))

    def promise(self) -> tuple[int, int]:
        return 1, len(self.delivered_to)

    def delivered(self, promise: tuple[int, int], ctx: Context, value: Any, *, pages: bool) -> None:
        self.delivered_to.append((ctx.unique, ctx.nodeid, pages))

    def may_give_up(self, *, names: bool) -> bool:
        return True

    def abandoned(self, value: Any) -> None:
        self.taken_back.append(value)

    def replied(self, unique: int) -> None:
        self.replied_to.append(unique)

    def forget(self, ino: int, nlookup: int) -> None:
        self.forgotten.append((ino, nlookup))

    def lookup(self, ctx: Context, parent: int, name: bytes) -> Attr:
        return self._attr(self._ino(parent, name))

    def getattr(self, ctx: Context, ino: int, fh: int | None) -> Attr:
        return self._attr(ino)

    def setattr(self, ctx: Context, ino: int, fh: int | None, change: SetAttrIn) -> Attr:
        attr = self._attr(ino)
        if change.mask & SET_MODE:
            attr.mode = stat.S_IFMT(attr.mode) | (change.mode & 0o7777)
        if change.mask & SET_UID:
            attr.uid = change.uid
        if change.mask & SET_GID:
            attr.gid = change.gid
        if change.mask & SET_SIZE:
            if change.size > FILE_BYTES_MAX:
                raise FsError(errno.EFBIG)
            data = self.data[ino]
            del data[change.size :]
            data.extend(bytes(change.size - len(data)))
            attr.size = change.size
        if change.mask & SET_ATIME:
            attr.atime_ns = time.time_ns() if change.atime_ns is None else change.atime_ns
        if change.mask & SET_MTIME:
            attr.mtime_ns = time.time_ns() if change.mtime_ns is None else change.mtime_ns
        return attr

    def statfs(self, ctx: Context, ino: int) -> StatFs:
        return StatFs(1 << 30, 1 << 29, 1000, 500)

    def readlink(self, ctx: Context, ino: int) -> bytes:
        return bytes(self.data[ino])

    def mknod(self, ctx: Context, parent: int, name: bytes, mode: int, rdev: int) -> Attr:
        attr = self._new(ctx, parent, name, mode)
        attr.rdev = rdev
        return attr

    def mkdir(self, ctx: Context, parent: int, name: bytes, mode: int) -> Any:
        if name == b"late":
            return self._mkdir_late(ctx, parent, name, mode)
        return self._new(ctx, parent, name, stat.S_IFDIR | mode)

    def _mkdir_late(self, ctx: Context, parent: int, name: bytes, mode: int) -> Any:
        self.waiting.set()
        yield self.gate
        return self._new(ctx, parent, name, stat.S_IFDIR | mode)

    def symlink(self, ctx: Context, parent: int, name: bytes, target: bytes) -> Attr:
        return self._new(ctx, parent, name, stat.S_IFLNK | 0o777, target)

    def link(self, ctx: Context, ino: int, new_parent: int, new_name: bytes) -> Attr:
        attr = self._attr(ino)
        self.names[new_parent][new_name] = ino
        attr.nlink += 1
        return attr

    def unlink(self, ctx: Context, parent: int, name: bytes) -> None:
        if name == b"boom":
            raise RuntimeError("a bug of ours")
        self.attrs[self._ino(parent, name)].nlink -= 1
        del self.names[parent][name]

    def rmdir(self, ctx: Context, parent: int, name: bytes) -> None:
        if self.names[self._ino(parent, name)]:
            raise FsError(errno.ENOTEMPTY)
        del self.names[parent][name]

    def rename(self, ctx: Context, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        ino = self._ino(parent, name)
        if flags & 1 and new_name in self.names[new_parent]:
            raise FsError(errno.EEXIST)
        del self.names[parent][name]
        self.names[new_parent][new_name] = ino

    def create(self, ctx: Context, parent: int, name: bytes, mode: int, flags: int) -> Any:
        attr = self._new(ctx, parent, name, stat.S_IFREG | mode)
        return attr, Opened(attr.ino)

    def open(self, ctx: Context, ino: int, flags: int) -> Opened:
        if flags & os.O_TRUNC:
            self.data[ino].clear()
            self.attrs[ino].size = 0
        return Opened(ino)

    def read(self, ctx: Context, ino: int, fh: int, offset: int, size: int) -> Any:
        if ino == self.late:
            return self._read_late(ino, offset, size)
        return [bytes(self.data[ino][offset : offset + size])]  # a view would forbid the next request to change the size

    def _read_late(self, ino: int, offset: int, size: int) -> Any:
        self.waiting.set()
        yield self.gate
        return [bytes(self.data[ino][offset : offset + size])]

    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> Any:
        if ino in self._write_late_to:
            return self._write_late(ino, offset, data)
        return self._store(ino, offset, data)

    def _write_late(self, ino: int, offset: int, data: memoryview) -> Any:
        data = yield Payload(data)
        self.waiting.set()
        yield self.gate
        return self._store(ino, offset, data)

    def _store(self, ino: int, offset: int, data: memoryview) -> int:
        if offset > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        content = self.data[ino]
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
        self.attrs[ino].size = self.attrs[ino].stored_bytes = len(content)
        return len(data)

    def fallocate(self, ctx: Context, ino: int, fh: int, mode: int, offset: int, length: int) -> None:
        raise FsError(errno.EOPNOTSUPP)

    def lseek(self, ctx: Context, ino: int, fh: int, offset: int, whence: int) -> int:
        raise FsError(errno.ENXIO)

    def copy_file_range(
        self, ctx: Context, ino: int, offset: int, new_ino: int, new_fh: int, new_offset: int, length: int, flags: int
    ) -> int:
        raise FsError(errno.EOPNOTSUPP)

    def flush(self, ctx: Context, ino: int, fh: int, lock_owner: int) -> None:
        pass

    def release(self, ctx: Context, ino: int, fh: int, flags: int, release_flags: int, lock_owner: int) -> None:
        self.locks.pop(ino, None)

    def fsync(self, ctx: Context, ino: int, fh: int, datasync: bool) -> None:
        pass

    def opendir(self, ctx: Context, ino: int, flags: int) -> Opened:
        return Opened(ino)

    def readdir(self, ctx: Context, ino: int, fh: int, offset: int, plus: bool) -> Any:
        items = [(b".", ino), (b"..", ino), *sorted(self.names[ino].items())]
        entries = []
        for index, (name, child) in enumerate(items):
            cookie = index + 1 if index < 2 else index + 14
            attr = self.attrs[child]
            if cookie > offset:
                entries.append(Dirent(name, child, stat.S_IFMT(attr.mode), cookie, attr if plus and index >= 2 else None))
        return iter(entries)

    def releasedir(self, ctx: Context, ino: int, fh: int) -> None:
        pass

    def fsyncdir(self, ctx: Context, ino: int, fh: int, datasync: bool) -> None:
        pass

    def setxattr(self, ctx: Context, ino: int, name: bytes, value: bytes, flags: int) -> None:
        self.xattrs.setdefault(ino, {})[name] = value

    def getxattr(self, ctx: Context, ino: int, name: bytes) -> bytes:
        try:
            return self.xattrs[ino][name]
        except KeyError:
            raise FsError(errno.ENODATA) from None

    def listxattr(self, ctx: Context, ino: int) -> list[bytes]:
        return list(self.xattrs.get(ino, ()))

    def removexattr(self, ctx: Context, ino: int, name: bytes) -> None:
        self.getxattr(ctx, ino, name)
        del self.xattrs[ino][name]

    def getlk(self, ctx: Context, ino: int, fh: int, lock: Lock) -> Lock | None:
        held = self.locks.get(ino)
        return held if held is not None and held.owner != lock.owner else None

    def setlk(self, ctx: Context, ino: int, fh: int, lock: Lock, wait: bool) -> Any:
        held = self.locks.get(ino)
        if lock.lock_type == 2:
            self.locks.pop(ino, None)
            return None
        if held is None or held.owner == lock.owner:
            self.locks[ino] = lock
            return None
        if not wait:
            raise FsError(errno.EAGAIN)
        return self._wait_lock(ctx.unique)

    def _wait_lock(self, unique: int) -> Any:
        signal_ = self.lock_waits[unique] = Signal()
        self.waiting.set()
        yield signal_
