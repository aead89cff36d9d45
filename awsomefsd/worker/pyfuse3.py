"""The same vfs behind pyfuse3 (libfuse) instead of our own session: `awsomefsd mount-pyfuse3`, one process for one mount.

It is for hosts and people that want libfuse between the kernel and the filesystem; the price is what our session is for.  The process holds
the connection alone: when it dies, the mount is dead (ENOTCONN) and what was not fsynced is lost with its memory; no keeper takes it over.
pyfuse3 does not hand over the kernel's request numbers, so each request gets a number of ours, and nothing is ever repeated.  It has no
locks (the kernel's own, local to this machine, are used), no fallocate, SEEK_HOLE, copy_file_range and O_TMPFILE, no flags of setxattr.

The worker is built as ever (worker.py), over memory of its own and with /dev/null where the FUSE descriptor would be: its readers end at
once, and its `serve` flushes and ends the session.  Calls that wait do so on trio's threads.  The only module with pyfuse3; nothing imports
it but its command.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from awsomefsd.base.errors import Error
from awsomefsd.base.types import Attr
from awsomefsd.base.wait import GENERATORS, block_on
from awsomefsd.meta.api.commands import SET_ATIME, SET_CTIME, SET_GID, SET_MODE, SET_MTIME, SET_SIZE, SET_UID
from awsomefsd.vfs.api.context import Context, SetAttrIn
from awsomefsd.worker.config import WorkerConfig
from awsomefsd.worker.memory import worker_memfds
from awsomefsd.worker.worker import Worker

_FIELDS = (
    ("update_mode", SET_MODE), ("update_uid", SET_UID), ("update_gid", SET_GID), ("update_size", SET_SIZE),
    ("update_atime", SET_ATIME), ("update_mtime", SET_MTIME), ("update_ctime", SET_CTIME),
)  # fmt: skip


class OwnMemory:
    """What a keeper would give a worker, made here; nobody else has it."""

    def __init__(self, mount: int, directory: str) -> None:
        self.fds = {"fuse": os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)}
        for name, size in worker_memfds().items():
            self.fds[name] = os.memfd_create(f"awsomefs-{name}", os.MFD_CLOEXEC)
            os.ftruncate(self.fds[name], size)
        self.start_message = {"mount": f"{mount:x}", "dir": directory, "worker": 1, "fresh": True, "previous": None}

    def ready(self, on_flush: Callable[[bool], None]) -> None:
        """Nobody waits for it."""

    def needs(self, memory_format: int) -> bool:
        """Nobody holds this memory when the process dies: names that it decided would be lost, so it decides none."""
        return not memory_format

    def answered(self) -> None:
        """Nobody counts deaths."""

    def bye(self, clean: bool) -> None:
        """The process ends next."""


class Adapter(pyfuse3.Operations):  # type: ignore[misc]
    """pyfuse3's operations over a fuse.filesystem.Filesystem."""

    supports_dot_lookup = True
    enable_acl = False

    def __init__(self, fs: Any, next_unique: Callable[[], int]) -> None:
        super().__init__()
        self._fs = fs
        self._next_unique = next_unique
        self._inos: dict[int, int] = {}  # handle -> inode; pyfuse3 names only the handle
        self._synchronous: dict[int, int] = {}  # handle -> O_SYNC or O_DSYNC, of those opened with it; pyfuse3 drops the flags of a WRITE

    async def _ask(self, method: Callable[..., Any], who: RequestContext | None, *args: Any, open_flags: int = 0) -> Any:
        ctx = Context(who.uid, who.gid, who.pid, self._next_unique()) if who is not None else Context(0, 0, 0, self._next_unique())
        ctx.open_flags = open_flags
        try:
            value = method(ctx, *args)
            if type(value) in GENERATORS:
                value = await trio.to_thread.run_sync(block_on, value)
            return value
        except Error as err:
            raise FUSEError(err.errno) from None
        finally:
            self._fs.replied(ctx.unique)

    def _entry(self, attr: Attr) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino, entry.generation, entry.st_mode, entry.st_nlink = attr.ino, 0, attr.mode, attr.nlink
        entry.st_uid, entry.st_gid, entry.st_rdev, entry.st_size = attr.uid, attr.gid, attr.rdev, attr.size
        entry.st_blksize, entry.st_blocks = 4096, (attr.stored_bytes + 511) // 512
        entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = attr.atime_ns, attr.mtime_ns, attr.ctime_ns
        entry.entry_timeout = entry.attr_timeout = self._fs.ttl_ns() / 1e9
        return entry

    # --- names ---------------------------------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._ask(self._fs.lookup, ctx, parent, name))

    async def forget(self, counts: Sequence[tuple[int, int]]) -> None:
        for ino, nlookup in counts:
            self._fs.forget(ino, nlookup)

    async def readlink(self, ino: int, ctx: RequestContext) -> bytes:
        return bytes(await self._ask(self._fs.readlink, ctx, ino))

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._ask(self._fs.mknod, ctx, parent, name, mode, rdev))

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._ask(self._fs.mkdir, ctx, parent, name, mode))

    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._ask(self._fs.symlink, ctx, parent, name, target))

    async def link(self, ino: int, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._ask(self._fs.link, ctx, ino, parent, name))

    async def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        await self._ask(self._fs.unlink, ctx, parent, name)

    async def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        await self._ask(self._fs.rmdir, ctx, parent, name)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: RequestContext) -> None:
        await self._ask(self._fs.rename, ctx, parent, name, new_parent, new_name, flags)

    # --- attributes ------------------------------------------------------------------------------------------------------------

    async def getattr(self, ino: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._ask(self._fs.getattr, ctx, ino, None))

    async def setattr(self, ino: int, attr: Any, fields: Any, fh: int | None, ctx: RequestContext) -> EntryAttributes:
        mask = sum(bit for name, bit in _FIELDS if getattr(fields, name))
        change = SetAttrIn(mask, attr.st_mode, attr.st_uid, attr.st_gid, attr.st_size)
        change.atime_ns = attr.st_atime_ns if mask & SET_ATIME else None
        change.mtime_ns = attr.st_mtime_ns if mask & SET_MTIME else None
        change.ctime_ns = attr.st_ctime_ns if mask & SET_CTIME else None
        return self._entry(await self._ask(self._fs.setattr, ctx, ino, fh, change))

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        found = await self._ask(self._fs.statfs, ctx, pyfuse3.ROOT_INODE)
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks, data.f_bfree = found.bytes_total // 4096, found.bytes_free // 4096
        data.f_bavail, data.f_files, data.f_namemax = data.f_bfree, found.inodes_total, 255
        data.f_ffree = data.f_favail = found.inodes_free
        return data

    async def setxattr(self, ino: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self._ask(self._fs.setxattr, ctx, ino, name, value, 0)

    async def getxattr(self, ino: int, name: bytes, ctx: RequestContext) -> bytes:
        return bytes(await self._ask(self._fs.getxattr, ctx, ino, name))

    async def listxattr(self, ino: int, ctx: RequestContext) -> list[bytes]:
        return list(await self._ask(self._fs.listxattr, ctx, ino))

    async def removexattr(self, ino: int, name: bytes, ctx: RequestContext) -> None:
        await self._ask(self._fs.removexattr, ctx, ino, name)

    # --- files -----------------------------------------------------------------------------------------------------------------

    async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext) -> tuple[FileInfo, EntryAttributes]:
        attr, opened = await self._ask(self._fs.create, ctx, parent, name, mode, flags)
        self._opened(opened.fh, attr.ino, flags)
        return FileInfo(fh=opened.fh), self._entry(attr)

    async def open(self, ino: int, flags: int, ctx: RequestContext) -> FileInfo:
        opened = await self._ask(self._fs.open, ctx, ino, flags)
        self._opened(opened.fh, ino, flags)
        return FileInfo(fh=opened.fh)

    def _opened(self, fh: int, ino: int, flags: int) -> None:
        self._inos[fh] = ino
        if flags & os.O_DSYNC:
            self._synchronous[fh] = flags & os.O_SYNC

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return b"".join(await self._ask(self._fs.read, None, self._inos[fh], fh, offset, size))

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        flags = self._synchronous.get(fh, 0)
        return int(await self._ask(self._fs.write, None, self._inos[fh], fh, offset, memoryview(data), 0, open_flags=flags))

    async def flush(self, fh: int) -> None:
        await self._ask(self._fs.flush, None, self._inos[fh], fh, 0)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._ask(self._fs.fsync, None, self._inos[fh], fh, datasync)

    async def release(self, fh: int) -> None:
        self._synchronous.pop(fh, None)
        await self._ask(self._fs.release, None, self._inos.pop(fh), fh, 0, 0, 0)

    async def opendir(self, ino: int, ctx: RequestContext) -> int:
        opened = await self._ask(self._fs.opendir, ctx, ino, os.O_RDONLY | os.O_DIRECTORY)
        self._inos[opened.fh] = ino
        return int(opened.fh)

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """The kernel counts a lookup for each entry it takes, as the vfs does for each it hands out with attributes."""
        for item in await self._ask(self._fs.readdir, None, self._inos[fh], fh, start_id, True):
            if item.name in (b".", b".."):
                continue
            attr = item.attr
            if attr is None:
                try:
                    attr = await self._ask(self._fs.lookup, None, self._inos[fh], item.name)
                except FUSEError:
                    continue  # removed meanwhile
            if not pyfuse3.readdir_reply(token, item.name, self._entry(attr), item.cookie):
                self._fs.forget(attr.ino, 1)
                return

    async def releasedir(self, fh: int) -> None:
        await self._ask(self._fs.releasedir, None, self._inos.pop(fh), fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._ask(self._fs.fsyncdir, None, self._inos[fh], fh, datasync)


async def _until_unmounted(on_ready: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal)
        on_ready()
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _end_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            pyfuse3.terminate()


def serve(mount: int, directory: str, source: str, fuse_options: list[str], config: WorkerConfig, on_ready: Callable[[], None]) -> None:
    """Mount, serve until unmounted or told to end, make everything durable.  Raises what is in the way of a start."""
    worker = Worker(OwnMemory(mount, directory), config)  # type: ignore[arg-type]
    worker.start()
    options = {f"fsname={source}", "subtype=awsomefs", *fuse_options}
    pyfuse3.init(Adapter(worker.session.fs, worker.memory.control.next_background_unique), directory, options)
    try:
        trio.run(_until_unmounted, on_ready)
    finally:
        pyfuse3.close(unmount=True)
        worker.serve()
