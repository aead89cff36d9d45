"""The calls a workload is made of: each done on the vfs, with what it changes and promises told to the oracle."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import ROOT_INO
from awsomefsd.meta.api import acl
from awsomefsd.meta.api import commands as c
from awsomefsd.vfs.api.context import SetAttrIn
from tests.crash.model.oracle import Oracle, tree_of
from tests.crash.model.recording import Recording
from tests.rigs.mount_without_kernel import LIMIT_S, Held, Rig, until

Step = tuple[Any, ...]
SYNCS = ("fsync", "fsyncdir", "flush", "syncwrite")
KEEP_SIZE, PUNCH, ZERO = 1, 3, 0x10


def filling(tag: int, length: int) -> bytes:
    return random.Random(tag).randbytes(length)


class Calls:
    """One workload's run.  A call that is refused changes nothing and promises nothing."""

    def __init__(self, rig: Rig, oracle: Oracle, recording: Recording) -> None:
        self.rig, self.oracle, self.recording = rig, oracle, recording
        self.handles: dict[str, tuple[int, int]] = {}  # what stays open
        self.emptied: dict[int, int] = {}  # inode that was truncated to nothing -> how many versions it had then
        self.refused = 0
        self.tag = 0

    def run(self, steps: list[Step]) -> None:
        for step in steps:
            self.do(step)

    def do(self, step: Step) -> None:
        refused = self.refused
        try:
            getattr(self, f"do_{step[0]}")(*step[1:])
        except KeyError:  # a handle that nobody opened
            self.refused += 1
        except (FsError, OSError) as err:
            if err.errno not in REFUSALS:
                raise AssertionError(f"{step}: {err}") from err
            self.refused += 1
        names = self.rig.worker.names
        synced = names is None or names.synced() is None
        assert synced or step[0] not in SYNCS or self.refused > refused, f"{step} has returned"
        self.oracle.after(tree_of(self.rig), synced=synced)
        self.recording.add("mark")

    # --- paths --------------------------------------------------------------------------------------------------------------
    def place(self, path: str) -> tuple[int, bytes]:
        folder, _, name = path.rpartition("/")
        return (self.find(folder) if folder else ROOT_INO), name.encode()

    def find(self, path: str) -> int:
        at = ROOT_INO
        for name in path.split("/") if path != "." else []:
            at = self.rig.lookup(name.encode(), at).ino
        return at

    def regular(self, path: str) -> int:
        ino = self.find(path)
        if not stat.S_ISREG(self.rig.attr(ino).mode):
            raise FsError(errno.EISDIR)
        return ino

    def changing(self, ino: int, data: bytes, call: Any) -> None:
        """The new version is possible from the moment that the call begins."""
        self.oracle.change(ino, data)
        try:
            call()
        except BaseException:
            self.oracle.undo(ino)
            raise

    def opened(self, path: str, call: Any, flags: int = os.O_RDWR) -> None:
        ino = self.regular(path)
        fh = self.rig.open(ino, flags)
        try:
            call(ino, fh)
        finally:
            self.close(ino, fh)

    def close(self, ino: int, fh: int) -> None:
        """The first close behind a truncation to nothing and a write promises what was written (docs/CONSISTENCY.md)."""
        self.rig.close_file(ino, fh)
        if len(self.oracle.versions[ino]) > self.emptied.get(ino, len(self.oracle.versions[ino])):
            del self.emptied[ino]
            self.oracle.promise(ino)

    # --- names --------------------------------------------------------------------------------------------------------------
    def do_creat(self, path: str) -> None:
        folder, name = self.place(path)
        self.absent(folder, name)
        attr, opened = self.rig.call("create", folder, name, 0o644, os.O_RDWR)
        self.oracle.made(attr.ino)
        self.rig.close_file(attr.ino, opened.fh)

    def absent(self, folder: int, name: bytes) -> None:
        """The kernel looks first."""
        try:
            self.rig.lookup(name, folder)
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            return
        raise FsError(errno.EEXIST)

    def do_mkdir(self, path: str) -> None:
        self.rig.call("mkdir", *self.place(path), 0o755)

    def do_mknod(self, path: str) -> None:
        self.rig.call("mknod", *self.place(path), stat.S_IFIFO | 0o600, 0)

    def do_symlink(self, target: str, path: str) -> None:
        self.rig.call("symlink", *self.place(path), target.encode())

    def do_link(self, path: str, other: str) -> None:
        self.rig.call("link", self.regular(path), *self.place(other))

    def do_unlink(self, path: str) -> None:
        folder, name = self.place(path)
        if stat.S_ISDIR(self.rig.lookup(name, folder).mode):
            raise FsError(errno.EISDIR)
        self.rig.call("unlink", folder, name)

    def do_rmdir(self, path: str) -> None:
        folder, name = self.place(path)
        if not stat.S_ISDIR(self.rig.lookup(name, folder).mode):
            raise FsError(errno.ENOTDIR)
        self.rig.call("rmdir", folder, name)

    def do_rename(self, path: str, other: str, flags: int) -> None:
        old, new = self.place(path), self.place(other)
        source = self.rig.lookup(old[1], old[0])
        replaces = False
        try:
            self.rig.lookup(new[1], new[0])
            replaces = not flags & 1
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
        self.rig.call("rename", *old, *new, flags)
        if replaces and stat.S_ISREG(source.mode):
            self.oracle.promise(source.ino)

    def do_hold(self, path: str) -> None:
        """Stays open to the end."""
        ino = self.regular(path)
        self.handles[path] = (ino, self.rig.open(ino))

    def do_tmpfile(self, key: str) -> None:
        attr, opened = self.rig.call("tmpfile", ROOT_INO, 0o644, os.O_RDWR)
        self.oracle.made(attr.ino)
        self.handles[key] = (attr.ino, opened.fh)

    def do_tmpwrite(self, key: str, length: int) -> None:
        self._write(*self.handles[key], 0, length)

    def do_tmplink(self, key: str, path: str) -> None:
        self.rig.call("link", self.handles[key][0], *self.place(path))

    # --- data ---------------------------------------------------------------------------------------------------------------
    def _write(self, ino: int, fh: int, offset: int, length: int, flags: int = 0) -> None:
        self.tag += 1
        data, old = filling(self.tag, length), self.oracle.now(ino)
        new = old.ljust(offset, b"\0")[:offset] + data + old[offset + length :]
        self.changing(ino, new, lambda: self.rig.write(ino, fh, offset, data, flags=flags))
        if flags & os.O_DSYNC:
            self.oracle.promise(ino)

    def do_write(self, path: str, offset: int, length: int) -> None:
        self.opened(path, lambda ino, fh: self._write(ino, fh, offset, length))

    def do_syncwrite(self, path: str, offset: int, length: int, flags: int) -> None:
        """Without an FSYNC behind it, as the kernel sends it after direct I/O."""
        self.opened(path, lambda ino, fh: self._write(ino, fh, offset, length, flags), os.O_RDWR | flags)

    def do_append(self, path: str, length: int) -> None:
        self.opened(path, lambda ino, fh: self._write(ino, fh, len(self.oracle.now(ino)), length))

    def do_truncate(self, path: str, size: int) -> None:
        ino = self.regular(path)
        self.changing(ino, self.oracle.now(ino)[:size].ljust(size, b"\0"), lambda: self.rig.truncate(ino, size))
        self.oracle.promise(ino)
        if not size:
            self.emptied[ino] = len(self.oracle.versions[ino])

    def do_cutbeside(self, path: str, size: int, offset: int, length: int, killed: bool) -> None:
        """A truncation, and a write behind its entry and before its answer, as of asynchronous direct I/O; the worker dies in between."""
        ino, rig = self.regular(path), self.rig
        fh, gate, held = rig.open(ino), rig.gate(), list[Held]()

        def hook(command: Any, unique: int) -> Any:
            held.append(Held(rig.worker.client.propose(command, unique)))
            return held[0]

        gate.on_propose = lambda command, unique: hook(command, unique) if isinstance(command, c.SetAttr) and not held else None
        self.oracle.change(ino, self.oracle.now(ino)[:size].ljust(size, b"\0"))
        change = SetAttrIn(c.SET_SIZE, size=size)
        truncation, unique = rig.begin("setattr", ino, None, change), rig.unique
        until(lambda: bool(held))
        assert held[0].answered.wait(LIMIT_S)
        self._write(ino, fh, offset, length)
        if killed:
            rig.restart(lambda vfs: vfs.setattr(rig.ctx(unique), ino, None, change))
        else:
            held[0].release()
            truncation.result()
        rig.vfs.replied(unique)
        rig.close_file(ino, fh)

    def do_opentrunc(self, path: str, key: str) -> None:
        """As editors that do not rename: what is written until the close must be there with it."""
        ino = self.regular(path)

        def call() -> None:
            self.handles[key] = (ino, self.rig.open(ino, os.O_RDWR | os.O_TRUNC))

        self.changing(ino, b"", call)
        self.oracle.promise(ino)
        self.emptied[ino] = len(self.oracle.versions[ino])

    def do_closeall(self) -> None:
        while self.handles:
            self.close(*self.handles.popitem()[1])

    def do_fallocate(self, path: str, mode: int, offset: int, length: int) -> None:
        def call(ino: int, fh: int) -> None:
            old = self.oracle.now(ino)
            new = old if mode & KEEP_SIZE else old.ljust(offset + length, b"\0")
            if mode & (2 | ZERO):
                end = min(offset + length, len(new))
                new = new[:offset] + bytes(max(0, end - offset)) + new[max(end, offset) :]
            self.changing(ino, new, lambda: self.rig.call("fallocate", ino, fh, mode, offset, length))
            self.oracle.promise(ino)

        self.opened(path, call)

    def do_copy(self, path: str, offset: int, other: str, new_offset: int, length: int) -> None:
        source, target = self.regular(path), self.regular(other)
        if source == target and abs(offset - new_offset) < length:
            raise FsError(errno.EINVAL)
        part = self.oracle.now(source)[offset : offset + length]
        old = self.oracle.now(target)
        new = old.ljust(new_offset, b"\0")[:new_offset] + part + old[new_offset + len(part) :] if part else old
        fh, source_fh = self.rig.open(target), self.rig.open(source)
        try:
            self.changing(target, new, lambda: self._copied(source, source_fh, offset, target, fh, new_offset, length, len(part)))
            self.oracle.promise(source)
            self.oracle.promise(target)
        finally:
            self.rig.close_file(target, fh)
            self.rig.close_file(source, source_fh)

    def _copied(self, source: int, source_fh: int, offset: int, target: int, fh: int, new_offset: int, length: int, wanted: int) -> None:
        done = self.rig.call("copy_file_range", source, offset, target, fh, new_offset, length, 0)
        assert done == wanted, "a small copy is done whole"

    # --- the worker ---------------------------------------------------------------------------------------------------------
    def do_forget(self) -> None:
        """It has too many files in memory."""
        self.rig.mount.buffered.files.forget_clean()

    def do_takeover(self) -> None:
        """It dies, and another one goes on with the same memory."""
        self.rig.restart()

    # --- attributes -----------------------------------------------------------------------------------------------------------
    def do_chmod(self, path: str, mode: int) -> None:
        self.rig.call("setattr", self.find(path), None, SetAttrIn(c.SET_MODE, mode=mode))

    def do_chown(self, path: str, uid: int) -> None:
        self.rig.call("setattr", self.find(path), None, SetAttrIn(c.SET_UID | c.SET_GID, uid=uid, gid=uid))

    def do_utimens(self, path: str, time_ns: int) -> None:
        self.rig.call("setattr", self.find(path), None, SetAttrIn(c.SET_MTIME | c.SET_ATIME, atime_ns=time_ns, mtime_ns=time_ns))

    def do_setxattr(self, path: str, name: str, length: int) -> None:
        self.tag += 1
        self.rig.call("setxattr", self.find(path), name.encode(), filling(self.tag, length), 0)

    def do_removexattr(self, path: str, name: str) -> None:
        self.rig.call("removexattr", self.find(path), name.encode())

    def do_acl(self, path: str, default: bool) -> None:
        entries = [(acl.USER_OBJ, 7, 0xFFFFFFFF), (acl.USER, 5, 1000), (acl.GROUP_OBJ, 5, 0xFFFFFFFF), (acl.MASK, 5, 0xFFFFFFFF)]
        entries.append((acl.OTHER, 0, 0xFFFFFFFF))
        value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
        self.rig.call("setxattr", self.find(path), acl.DEFAULT if default else acl.ACCESS, value, 0)

    # --- persistence ------------------------------------------------------------------------------------------------------------
    def do_fsync(self, path: str, data: bool) -> None:
        ino = self.find(path)
        if not stat.S_ISREG(self.rig.attr(ino).mode):
            return self.do_fsyncdir(path)
        fh = self.rig.open(ino)
        self.rig.call("fsync", ino, fh, data)
        self.oracle.promise(ino)
        self.close(ino, fh)
        return None

    def do_fsyncdir(self, path: str) -> None:
        ino = self.find(path)
        if not stat.S_ISDIR(self.rig.attr(ino).mode):
            raise FsError(errno.EINVAL)  # of a symbolic link, or a pipe, nobody syncs anything
        fh = self.rig.call("opendir", ino, 0).fh
        self.rig.call("fsyncdir", ino, fh, False)
        self.rig.call("releasedir", ino, fh)

    def do_flush(self) -> None:
        self.rig.flush()
        for ino in self.oracle.versions:
            self.oracle.promise(ino)


REFUSALS = frozenset(
    {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM}
    | {errno.EACCES}  # a default ACL of what is no directory
)
