"""The bytes of files where several nodes have the volume mounted at once, without any cache.

Whatever is asked is asked of the leader, whose answers are newer than all that was acknowledged before (ReadIndex); whatever is changed is
an entry before it is answered.  So "once an operation has returned on one node, every later operation on any node sees it" holds without
leases.  What that needs beside this class: names and attributes are not remembered (`UncachedNames`), file states are made for one
operation and thrown away (MountState.file), the kernel is told to keep nothing (`MountState.cache_policy`, `Vfs.ttl_ns`).
"""

from __future__ import annotations

import errno
import os
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import FILE_BYTES_MAX
from awsomefsd.base.types import Attr
from awsomefsd.base.wait import Payload, Steps
from awsomefsd.io.file.write_through import OnDecided, Write
from awsomefsd.meta.api.commands import SetAttr
from awsomefsd.meta.api.messages import Found
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.ops.reading import Reading
from awsomefsd.vfs.ops.writing import WRITE_CACHE, WRITE_KILL_SUIDGID, ThroughWrites
from awsomefsd.vfs.state.mount_state import MountState


class WriteThroughData:
    """The policy of a shared volume without leases (vfs/ops/data.py)."""

    def __init__(self, mount: MountState, reading: Reading, through: ThroughWrites) -> None:
        """`reading`: through CurrentLayouts."""
        self._mount = mount
        self._reading = reading
        self._through = through

    def read(self, ctx: Context, ino: int, fh: int, offset: int, size: int) -> list[Any] | Steps:
        self._mount.session.check_handle(fh)
        return self._reading.steps(ino, None, offset, size)

    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> int | Steps:
        append = ctx.open_flags & os.O_APPEND != 0 and not write_flags & WRITE_CACHE
        if not append and offset + len(data) > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        kill = write_flags & WRITE_KILL_SUIDGID != 0

        def write() -> Steps:
            kept = yield Payload(data)

            def make(token: tuple[int, int], on_decided: OnDecided | None) -> Write:
                return Write(ctx.unique, ino, offset, kept, token, on_decided, append=append, kill_suidgid=kill)

            return (yield from self._through.write(fh, ino, make, ctx if kill else None))

        return write()

    def leave_inline(self, attr: Attr) -> Steps:
        return self._through.leave_inline(attr.ino)

    def set_size(self, attr: Attr, command: SetAttr, unique: int, fh: int | None = None) -> Steps:
        if command.size > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        command.log = command.sequence = 0  # no record is dirty that it could overtake
        reply: Found = yield self._mount.propose(command, unique, fh=fh)
        self._mount.caches.names.put(reply.attr)
        return reply.attr

    def closing(self, ino: int, fh: int) -> Steps | None:
        return None
