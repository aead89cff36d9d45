"""Reads of open files: one loop, over layouts that are remembered or asked for each time.

A place that was freed and used again while it was read shows another identity (Corrupt): the layout is asked for again.
"""

from __future__ import annotations

import errno
import mmap
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import FUSE_WRITE_BYTES_MAX, LAYOUT_EXTENTS_MAX
from awsomefsd.base.types import Attr
from awsomefsd.base.wait import MustWait, Resume, Steps
from awsomefsd.io.file.file_data import (
    EXTENTS_CACHED_MAX,
    FILES_CACHED_MAX,
    LAYOUT_ALIGN_BYTES,
    LAYOUT_WINDOW_BYTES,
    FileState,
    FileTable,
)
from awsomefsd.meta.api.messages import GetLayout, Layout
from awsomefsd.vfs.state.mount_state import MountState

LAYOUT_PARTS_MAX = 2 * (LAYOUT_ALIGN_BYTES + FUSE_WRITE_BYTES_MAX) // LAYOUT_EXTENTS_MAX  # even if every byte is an extent
LOOKS_MAX = 4  # at a remembered layout that turned out to be old
CURRENT_LOOKS_MAX = 16  # at one that was asked for: nothing keeps freed places from being used again meanwhile
EXTENTS_COUNTED = EXTENTS_CACHED_MAX // 64  # a layout of more makes all of them be counted

_own = threading.local()


def read_buffer() -> memoryview:
    """This thread's page-aligned buffer for one read; a reply leaves for the kernel on the thread that filled it, so one is enough."""
    buffer = getattr(_own, "buffer", None)
    if buffer is None:
        _own.memory = mmap.mmap(-1, FUSE_WRITE_BYTES_MAX, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer = _own.buffer = memoryview(_own.memory)
    return buffer


class IoThreads(Protocol):
    """Threads that may block on devices, for operations that already left their reader thread."""

    def submit(self, work: Callable[[], None], /) -> Any: ...


class OnIoThread:
    """A Wait that continues its operation on a pool thread, so that the thread that receives answers never does I/O."""

    __slots__ = ("_pool",)

    def __init__(self, pool: IoThreads) -> None:
        self._pool = pool

    def start(self, resume: Resume) -> None:
        self._pool.submit(lambda: resume(None, None))


class Layouts(Protocol):
    """A source of the layouts of files."""

    looks_max: int
    last_look: int  # at this look (from 0) wrong bytes are an error, and are not taken for an old layout

    def look(self, ino: int, state: FileState | None, offset: int, size: int) -> Steps:
        """Asks for what is not known; returns the FileState to read this range from: `state`, or one of this moment."""


class Reading:
    """Reads of one mount through one kind of layouts."""

    def __init__(self, files: FileTable, pool: IoThreads, layouts: Layouts) -> None:
        self._files = files
        self._pool = pool
        self._layouts = layouts

    def at_once(self, state: FileState, offset: int, size: int) -> list[Any] | None:
        """The bytes as pieces that this thread may write to the kernel, less than `size` at the end of the file.

        None if the layout has to be asked for first, or the bytes are another node's.  Blocks on the device.  Raises FsError(EIO).
        """
        buffer = read_buffer()[:size]
        try:
            length = self._files.read_into(state, offset, buffer)
        except MustWait:
            return None
        return [buffer[:length]] if length >= 0 else None

    def steps(self, ino: int, state: FileState | None, offset: int, size: int) -> Steps:
        """Reads as `at_once`, asking for the layout; the device is read on a pool thread."""
        layouts = self._layouts
        for look in range(layouts.looks_max):
            found: FileState = yield from layouts.look(ino, state, offset, size)
            yield OnIoThread(self._pool)
            buffer = read_buffer()[:size]
            length = self._files.read_into(found, offset, buffer, last_look=look == layouts.last_look)
            if length >= 0:
                return [buffer[:length]]
        raise FsError(errno.EIO, f"layout of inode {ino} did not settle")


class KnownLayouts:
    """Layouts that are remembered in the states of files, and learnt where they are not known."""

    looks_max = LOOKS_MAX
    last_look = LOOKS_MAX - 2

    def __init__(self, mount: MountState) -> None:
        self._mount = mount

    def look(self, ino: int, state: FileState | None, offset: int, size: int) -> Steps:
        assert state is not None, "what is remembered has a state"
        for _ in range(LAYOUT_PARTS_MAX):
            if not state.needs_layout(offset, offset + size):
                break
            yield from self.fetch(state, offset, size)
        return state

    def of_one_moment(self, state: FileState, offset: int) -> Steps:
        """Asks for the layout from `offset` to the end of the file, or for its next part; returns the FileState that has it.

        On a shared volume that is another one, with the size of that moment, if nothing has kept `state` true meanwhile.
        """
        mount, grant = self._mount, state.grant
        start, reply = yield from self.fetch(state, offset, state.size - offset)
        if not mount.shared or (mount.known_file(state.ino) is state and state.grant == grant):
            return state
        current = FileState(Attr(state.ino, stat.S_IFREG, 1, 0, 0, 0, reply.size, 0, 0, 0, 0, 0, False, 0), None)
        current.learn_layout(start, reply.end, reply.extents, reply.inline)
        return current

    def fetch(self, state: FileState, offset: int, size: int) -> Steps:
        """One question: the part of the layout at `offset`, or the next part of one that is told in parts.

        Returns where that begins, and the answer (Layout).  Raises FsError.
        """
        mount = self._mount
        start = offset - offset % LAYOUT_ALIGN_BYTES
        if not state.is_inline and state.extents.knows(start, start) and start < state.extents.known_end:
            start = state.extents.known_end  # the rest of a layout that is told in parts
        end = max(start + LAYOUT_WINDOW_BYTES, offset + size)
        version = state.version
        reply: Layout = yield mount.metadata.ask(GetLayout(mount.volume, state.ino, start, end))
        mount.buffered.locations.learn(reply.segments)
        if state.version == version:  # else a commit came between question and answer; ask again
            state.learn_layout(start, reply.end, reply.extents, reply.inline)
        return start, reply


class CurrentLayouts:
    """Layouts of a volume that several nodes share: asked for, and kept only while the lease is held under which they were told."""

    looks_max = CURRENT_LOOKS_MAX
    last_look = CURRENT_LOOKS_MAX - 1

    def __init__(self, mount: MountState) -> None:
        self._mount = mount
        self._layouts: OrderedDict[int, tuple[int, FileState]] = OrderedDict()  # inode → stamp of its lease, what was told under it

    def look(self, ino: int, state: FileState | None, offset: int, size: int) -> Steps:
        self._mount.caches.cover(ino)
        return (yield from self._ask(ino, offset, size))

    def kept(self, ino: int) -> FileState | None:
        """Returns what was told under the lease that is held now."""
        return self._kept(ino)[1]

    def _stamp(self, ino: int) -> int:
        """The stamp of the lease under which something may be remembered now; 0: none."""
        leases = self._mount.caches.leases
        return 0 if leases is None else leases.stamp(ino)

    def _kept(self, ino: int) -> tuple[int, FileState | None]:
        stamp, state = self._layouts.get(ino, (0, None))
        return (stamp, state) if stamp and stamp == self._stamp(ino) else (0, None)

    def _keep(self, ino: int, stamp: int, state: FileState) -> None:
        layouts = self._layouts
        layouts[ino] = (stamp, state)
        layouts.move_to_end(ino)
        while len(layouts) > FILES_CACHED_MAX:
            layouts.popitem(last=False)
        if len(state.extents) > EXTENTS_COUNTED:
            while len(layouts) > 1 and sum(len(kept.extents) for _, kept in list(layouts.values())) > EXTENTS_CACHED_MAX:
                layouts.popitem(last=False)

    def _ask(self, ino: int, offset: int, size: int) -> Steps:
        """Size and layout of this moment.

        Very many extents come in parts; without a lease each is of its own moment, and the size is that of the first.
        """
        end = offset + size
        stamp, state = self._kept(ino)
        at, until = offset, end
        if self._mount.caches.leases is not None:
            at -= at % LAYOUT_ALIGN_BYTES
            until = max(at + LAYOUT_WINDOW_BYTES, end)
        for _ in range(LAYOUT_PARTS_MAX):
            if state is not None:
                if not state.needs_layout(offset, end):
                    return state
                if state.extents.knows(at, at) and at < state.extents.known_end:
                    at = state.extents.known_end
            reply = yield from self._part(ino, at, until)
            now = self._stamp(ino)
            if state is not None and stamp and now != stamp:  # others may be looking at what was true until now
                state, stamp = None, 0
                continue
            if state is None:
                state, stamp = FileState(Attr(ino, stat.S_IFREG, 1, 0, 0, 0, reply.size, 0, 0, 0, 0, 0, False, 0)), now
            elif now != stamp:
                stamp = 0
            state.learn_layout(at, reply.end, reply.extents, reply.inline)
            if stamp:
                self._keep(ino, stamp, state)
            if not state.needs_layout(offset, end):
                return state
            at = reply.end
        raise FsError(errno.EIO, f"layout of inode {ino} has no end")

    def _part(self, ino: int, at: int, until: int) -> Steps:
        try:
            reply: Layout = yield self._mount.metadata.ask(GetLayout(self._mount.volume, ino, at, until))
        except FsError as err:
            if err.errno == errno.ENOENT:  # pins end with the session
                raise FsError(errno.EIO, f"inode {ino} is gone, with the session that had it open") from err
            raise
        self._mount.buffered.locations.learn(reply.segments)
        return reply
