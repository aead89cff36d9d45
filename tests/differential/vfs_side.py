"""The vfs without a kernel as a side: real machine, service and worker parts (tests/rigs/mount_without_kernel.py), and what the kernel does
before it asks.

That is walking paths, following links, positions of open files, and the refusals that a file system never sees.  One user, root, and
paths without dots and trailing slashes: the rest is the kernel's.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import ROOT_INO, Attr
from awsomefsd.meta.api import commands as c
from awsomefsd.vfs.api.context import SetAttrIn
from tests.differential.user_process import EMPTY, filling, summary, time_shown
from tests.rigs.mount_without_kernel import Rig, finish

LINKS_MAX = 40
UMASK = 0o022


@dataclass
class File:
    ino: int
    fh: int
    flags: int
    position: int = 0


class VfsSide:
    name = "vfs"

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.files: dict[int, File] = {}
        self.root = ROOT_INO
        self.entered = ""
        self.reply: Any = None

    # --- the frame ------------------------------------------------------------------------------------------------------------
    def start(self, user: str, kind: str, arguments: tuple[Any, ...]) -> None:
        assert user == "root"
        try:
            self.reply = getattr(self, f"do_{kind}")(*arguments)
        except (FsError, OSError) as err:
            self.reply = errno.errorcode[err.errno or 0]
        except KeyError:
            self.reply = EMPTY

    def result(self, user: str) -> Any:
        return self.reply

    def begin(self, name: str, mode: int) -> None:
        self.root = self.rig.mkdir(name.encode())
        self.set(self.root, c.SET_MODE, mode=mode)
        self.entered = name

    def finish(self) -> None:
        for slot in list(self.files):
            self.do_close(slot)
        self.clear(self.root)
        self.call("rmdir", ROOT_INO, self.entered.encode())

    def clear(self, folder: int) -> None:
        for name in self.rig.listdir(folder):
            attr = self.rig.lookup(name, folder)
            if stat.S_ISDIR(attr.mode):
                self.clear(attr.ino)
                self.call("rmdir", folder, name)
            else:
                self.call("unlink", folder, name)

    def call(self, method: str, *arguments: Any) -> Any:
        ctx = self.rig.ctx()
        ctx.umask, ctx.reply_bytes_max = UMASK, 1 << 16
        try:
            return finish(getattr(self.rig.vfs, method)(ctx, *arguments))
        finally:
            self.rig.vfs.replied(ctx.unique)

    def tree(self, full: bool) -> dict[str, tuple[Any, ...]]:
        found = {".": self.row(self.root, full)}
        self.below(self.root, "", full, found)
        return found

    def below(self, folder: int, prefix: str, full: bool, found: dict[str, tuple[Any, ...]]) -> None:
        for name, ino in self.rig.listdir(folder).items():
            path = prefix + os.fsdecode(name)
            found[path] = self.row(ino, full)
            if stat.S_ISDIR(self.rig.attr(ino).mode):
                self.below(ino, f"{path}/", full, found)

    def row(self, ino: int, full: bool) -> tuple[Any, ...]:
        attr = self.rig.attr(ino)
        shown = attributes(attr)
        if stat.S_ISLNK(attr.mode):
            shown += (os.fsdecode(self.call("readlink", ino)),)
        elif full and stat.S_ISREG(attr.mode):
            shown += (summary(self.rig.content(ino)),)
        if full:
            names = sorted(self.call("listxattr", ino))
            shown += ({name.decode(): self.call("getxattr", ino, name) for name in names},)
        return shown, ino, (attr.atime_ns, attr.mtime_ns, attr.ctime_ns)

    # --- what the kernel does -------------------------------------------------------------------------------------------------
    def walk(self, path: str, follow: bool, folder: int | None = None, depth: int = 0) -> tuple[int, bytes, Attr | None]:
        """(directory, name in it, what is there)."""
        at = self.root if folder is None else folder
        if not path:
            raise FsError(errno.ENOENT)
        *before, last = path.split("/")
        for name in before:
            attr = self.walk(name, True, at, depth)[2]
            if attr is None:
                raise FsError(errno.ENOENT)
            if not stat.S_ISDIR(attr.mode):
                raise FsError(errno.ENOTDIR)
            at = attr.ino
        found = None
        try:
            found = self.rig.lookup(os.fsencode(last), at)
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
        if found is not None and follow and stat.S_ISLNK(found.mode):
            if depth >= LINKS_MAX:
                raise FsError(errno.ELOOP)
            return self.walk(os.fsdecode(self.call("readlink", found.ino)), True, at, depth + 1)
        return at, os.fsencode(last), found

    def there(self, path: str, follow: bool = True) -> Attr:
        found = self.walk(path, follow)[2]
        if found is None:
            raise FsError(errno.ENOENT)
        return found

    def absent(self, path: str) -> tuple[int, bytes]:
        folder, name, found = self.walk(path, False)
        if found is not None:
            raise FsError(errno.EEXIST)
        return folder, name

    def set(self, ino: int, mask: int, fh: int | None = None, **values: Any) -> None:
        self.call("setattr", ino, fh, SetAttrIn(mask, **values))

    # --- open files -----------------------------------------------------------------------------------------------------------
    def do_open(self, slot: int, path: str, flags: int, mode: int) -> Any:
        if flags & os.O_CREAT and flags & os.O_DIRECTORY:
            raise FsError(errno.EINVAL)
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        folder, name, found = self.walk(path, not (exclusive or flags & os.O_NOFOLLOW))
        if found is None:
            if not flags & os.O_CREAT:
                raise FsError(errno.ENOENT)
            attr, opened = self.call("create", folder, name, mode, flags)
            return self.keep(slot, File(attr.ino, opened.fh, flags))
        check_open(found.mode, flags)
        if stat.S_ISDIR(found.mode):
            return self.keep(slot, File(found.ino, self.call("opendir", found.ino, flags).fh, flags))
        return self.keep(slot, File(found.ino, self.call("open", found.ino, flags).fh, flags))

    def keep(self, slot: int, file: File) -> Any:
        with suppress(KeyError):
            self.do_close(slot)
        self.files[slot] = file
        return attributes(self.rig.attr(file.ino))

    def do_close(self, slot: int) -> None:
        file = self.files.pop(slot)
        if file.flags & os.O_DIRECTORY or stat.S_ISDIR(self.rig.attr(file.ino).mode):
            self.call("releasedir", file.ino, file.fh)
        else:
            self.rig.close_file(file.ino, file.fh)

    def do_pread(self, slot: int, offset: int, length: int) -> Any:
        file = self.files[slot]
        if file.flags & os.O_ACCMODE == os.O_WRONLY:
            raise FsError(errno.EBADF)
        if stat.S_ISDIR(self.rig.attr(file.ino).mode):
            raise FsError(errno.EISDIR)
        return summary(self.rig.read(file.ino, file.fh, offset, length))

    def do_pwrite(self, slot: int, seed: int, offset: int, length: int) -> int:
        file = self.files[slot]
        if file.flags & os.O_ACCMODE == os.O_RDONLY:
            raise FsError(errno.EBADF)
        if not length:
            return 0
        if file.flags & os.O_APPEND:
            offset = self.rig.attr(file.ino).size
        self.rig.write(file.ino, file.fh, offset, filling(seed, length))
        return length

    def do_write(self, slot: int, seed: int, length: int) -> int:
        file = self.files[slot]
        if file.flags & os.O_APPEND and length:
            file.position = self.rig.attr(file.ino).size
        written = self.do_pwrite(slot, seed, file.position, length)
        file.position += written
        return written

    def do_ftruncate(self, slot: int, size: int) -> None:
        file = self.files[slot]
        if file.flags & os.O_ACCMODE == os.O_RDONLY:
            raise FsError(errno.EINVAL)
        self.set(file.ino, c.SET_SIZE, file.fh, size=size)

    def do_fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        file = self.files[slot]
        if length <= 0:
            raise FsError(errno.EINVAL)
        if mode & 2 and not mode & 1:
            raise FsError(errno.EOPNOTSUPP)
        if file.flags & os.O_ACCMODE == os.O_RDONLY:
            raise FsError(errno.EBADF)
        self.call("fallocate", file.ino, file.fh, mode, offset, length)

    def do_seekend(self, slot: int, beyond: int, whence: int) -> int:
        file = self.files[slot]
        attr = self.rig.attr(file.ino)
        if stat.S_ISDIR(attr.mode):
            return -1
        return int(self.call("lseek", file.ino, file.fh, attr.size + beyond, whence))

    def do_fsync(self, slot: int, data: bool) -> None:
        file = self.files[slot]
        if not stat.S_ISDIR(self.rig.attr(file.ino).mode):
            self.call("fsync", file.ino, file.fh, data)

    def do_fstat(self, slot: int) -> Any:
        return attributes(self.rig.attr(self.files[slot].ino))

    # --- names ----------------------------------------------------------------------------------------------------------------
    def do_mkdir(self, path: str, mode: int) -> None:
        self.call("mkdir", *self.absent(path), mode & 0o1777)

    def do_mknod(self, path: str, mode: int, device: int) -> None:
        self.call("mknod", *self.absent(path), mode, device)

    def do_rmdir(self, path: str) -> None:
        folder, name, _ = self.walk(path, False)
        self.call("rmdir", folder, name)

    def do_unlink(self, path: str) -> None:
        folder, name, _ = self.walk(path, False)
        self.call("unlink", folder, name)

    def do_symlink(self, target: str, path: str) -> None:
        if not target:
            raise FsError(errno.ENOENT)
        self.call("symlink", *self.absent(path), target.encode())

    def do_link(self, path: str, other: str, follow: bool) -> None:
        source = self.there(path, follow)
        self.call("link", source.ino, *self.absent(other))

    def do_rename(self, path: str, other: str, flags: int) -> None:
        if flags & 2 and flags & 5:
            raise FsError(errno.EINVAL)
        old, new = self.parent(path), self.parent(other)
        for folder, name in (old, new):
            try:
                self.rig.lookup(name, folder)
            except FsError as err:
                if err.errno != errno.ENOENT or (folder, name) == old:
                    raise
        self.call("rename", *old, *new, flags)

    def parent(self, path: str) -> tuple[int, bytes]:
        before, _, name = path.rpartition("/")
        attr = self.there(before) if before else self.rig.attr(self.root)
        if not stat.S_ISDIR(attr.mode):
            raise FsError(errno.ENOTDIR)
        return attr.ino, os.fsencode(name)

    def do_readlink(self, path: str) -> str:
        found = self.there(path, False)
        if not stat.S_ISLNK(found.mode):
            raise FsError(errno.EINVAL)
        return os.fsdecode(self.call("readlink", found.ino))

    def do_list(self, path: str) -> list[str]:
        found = self.there(path)
        if not stat.S_ISDIR(found.mode):
            raise FsError(errno.ENOTDIR)
        return sorted(map(os.fsdecode, self.rig.listdir(found.ino)))

    # --- attributes -----------------------------------------------------------------------------------------------------------
    def do_stat(self, path: str, follow: bool) -> Any:
        return attributes(self.rig.attr(self.there(path, follow).ino))

    def do_truncate(self, path: str, size: int) -> None:
        self.set(self.there(path).ino, c.SET_SIZE, size=size)

    def do_chmod(self, path: str, mode: int) -> None:
        self.set(self.there(path).ino, c.SET_MODE, mode=mode)

    def do_utime(self, path: str, atime: int | str, mtime: int | str, follow: bool) -> None:
        if atime == mtime == "omit":
            return  # even of what is not there
        found = self.there(path, follow)
        mask, values = 0, {}
        for name, bit, value in (("atime_ns", c.SET_ATIME, atime), ("mtime_ns", c.SET_MTIME, mtime)):
            mask |= 0 if value == "omit" else bit
            values[name] = value if isinstance(value, int) else None
        self.set(found.ino, mask, **values)

    def key(self, path: str, key: str, follow: bool = True, *, write: bool) -> tuple[int, bytes]:
        """What the kernel asks us for; what it refuses by itself (xattr_permission) it refuses before it looks at the rest of the name."""
        if len(key) > 255:
            raise FsError(errno.ERANGE)
        found = self.there(path, follow)
        if key.startswith("user.") and not (stat.S_ISREG(found.mode) or stat.S_ISDIR(found.mode)):
            raise FsError(errno.EPERM if write else errno.ENODATA)
        return found.ino, key.encode()

    def do_getxattr(self, path: str, key: str) -> bytes:
        return bytes(self.call("getxattr", *self.key(path, key, write=False)))

    def do_removexattr(self, path: str, key: str) -> None:
        self.call("removexattr", *self.key(path, key, write=True))

    def do_listxattr(self, path: str) -> list[str]:
        return sorted(name.decode() for name in self.call("listxattr", self.there(path).ino))

    def do_setxattr(self, path: str, key: str, length: int, flags: int, follow: bool) -> None:
        self.call("setxattr", *self.key(path, key, follow, write=True), filling(length, length), flags)


def check_open(mode: int, flags: int) -> None:
    """What open(2) says of a file that is there."""
    if flags & os.O_CREAT and flags & os.O_EXCL:
        raise FsError(errno.EEXIST)
    if stat.S_ISLNK(mode):  # with O_NOFOLLOW
        raise FsError(errno.ENOTDIR if flags & os.O_DIRECTORY & ~os.O_CREAT else errno.ELOOP)
    if flags & os.O_DIRECTORY and not stat.S_ISDIR(mode):
        raise FsError(errno.ENOTDIR)
    if stat.S_ISDIR(mode) and (flags & (os.O_CREAT | os.O_TRUNC) or flags & os.O_ACCMODE != os.O_RDONLY):
        raise FsError(errno.EISDIR)
    if stat.S_ISSOCK(mode) or stat.S_ISCHR(mode):  # of character devices there are whiteouts only, which are no device's
        raise FsError(errno.ENXIO)


def attributes(attr: Attr) -> tuple[Any, ...]:
    """As attributes of user_process.py."""
    size = None if stat.S_ISDIR(attr.mode) else attr.size
    times = tuple(map(time_shown, (attr.atime_ns, attr.mtime_ns, attr.ctime_ns)))
    return oct(attr.mode), attr.nlink, attr.uid, attr.gid, size, attr.rdev, times


def kinds() -> set[str]:
    return {name[3:] for name in dir(VfsSide) if name.startswith("do_")}
