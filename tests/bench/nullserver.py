"""A null FUSE server: names and sizes in memory, written bytes are discarded, read ones are zeros.  `nullserver.py DIR` mounts and serves.

The bound of what the interface allows in this language: blocking loops, no slots, no contexts, replies packed by the project's own abi.
As many loops as a worker has readers: where cores sleep between requests, several of them wake faster than one.  It ends when DIR is
unmounted, or by a signal (then the kernel aborts the connection).
"""

from __future__ import annotations

import errno
import gc
import itertools
import os
import stat
import sys
import threading
import time

from awsomefsd.base.limits import FUSE_READERS, FUSE_WRITE_BYTES_MAX
from awsomefsd.base.types import Attr, Dirent, StatFs
from awsomefsd.fuse import abi
from awsomefsd.fuse.abi import Opcode
from awsomefsd.fuse.negotiate import Overrides, agree, pack_init, read_offer
from awsomefsd.keeper.mount_syscalls import mount_fuse

TTL_NS = 1_000_000_000
ZEROS = memoryview(bytes(FUSE_WRITE_BYTES_MAX))
MODE_AT = {Opcode.CREATE: 4, Opcode.MKNOD: 0, Opcode.MKDIR: 0}
NAME_AT = {Opcode.CREATE: 16, Opcode.MKNOD: 16, Opcode.MKDIR: 8}


class Refused(Exception):
    """Answered with this errno."""


class NullServer:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.attrs: dict[int, Attr] = {}
        self.children: dict[int, dict[bytes, int]] = {}
        self.targets: dict[int, bytes] = {}
        self.inos = itertools.count(abi.ROOT_ID)
        self.make(0, b"", stat.S_IFDIR | 0o755)
        self.calls = {
            Opcode.INIT: self.init, Opcode.LOOKUP: self.lookup, Opcode.GETATTR: self.getattr, Opcode.SETATTR: self.setattr,
            Opcode.CREATE: self.create,
            Opcode.MKNOD: self.create, Opcode.MKDIR: self.create, Opcode.SYMLINK: self.symlink, Opcode.READLINK: self.readlink,
            Opcode.UNLINK: self.unlink,
            Opcode.RMDIR: self.unlink, Opcode.RENAME: self.rename, Opcode.RENAME2: self.rename, Opcode.READ: self.read,
            Opcode.WRITE: self.write,
            Opcode.OPEN: self.open, Opcode.OPENDIR: self.open, Opcode.READDIR: self.readdir, Opcode.READDIRPLUS: self.readdir,
            Opcode.STATFS: self.statfs,
            Opcode.FSYNC: self.nothing, Opcode.FSYNCDIR: self.nothing, Opcode.FLUSH: self.nothing, Opcode.RELEASE: self.nothing,
            Opcode.RELEASEDIR: self.nothing,
        }  # fmt: skip

    def make(self, parent: int, name: bytes, mode: int) -> Attr:
        now = time.time_ns()
        attr = Attr(next(self.inos), mode, 2 if stat.S_ISDIR(mode) else 1, 0, 0, 0, 0, 0, now, now, now, now)
        self.attrs[attr.ino] = attr
        if stat.S_ISDIR(mode):
            self.children[attr.ino] = {}
        if parent:
            self.children[parent][name] = attr.ino
        return attr

    def serve(self) -> None:
        buffer = bytearray(abi.HEAD_BYTES + FUSE_WRITE_BYTES_MAX + 4096)
        view, calls, fd, unpack = memoryview(buffer), self.calls, self.fd, abi.IN_HEADER.unpack_from
        while True:
            try:
                length = os.readv(fd, [buffer])
            except OSError as err:
                if err.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                return
            _, opcode, unique, nodeid, *_ = unpack(buffer)
            if opcode in abi.WITHOUT_REPLY:
                continue
            call = calls.get(opcode)
            try:
                reply = call(opcode, unique, nodeid, view[40:length]) if call else abi.pack_error(unique, errno.ENOSYS)
            except Refused as err:
                reply = abi.pack_error(unique, err.args[0])
            try:
                if type(reply) is list:
                    os.writev(fd, reply)
                else:
                    os.write(fd, reply)
            except OSError:
                pass

    def init(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        return pack_init(unique, agree(read_offer(body), Overrides(resend=False, without=abi.SETXATTR_EXT)))

    def _find(self, parent: int, name: bytes) -> int:
        ino = self.children[parent].get(name)
        if ino is None:
            raise Refused(errno.ENOENT)
        return ino

    def lookup(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        return abi.pack_entry(unique, self.attrs[self._find(nodeid, bytes(body[:-1]))], TTL_NS, TTL_NS)

    def getattr(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        return abi.pack_attr(unique, self.attrs[nodeid], TTL_NS)

    def setattr(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        valid, _, _, size, *_ = abi.SETATTR_IN.unpack_from(body)
        attr = self.attrs[nodeid]
        if valid & abi.FATTR_SIZE:
            attr.size = size
        if valid & abi.FATTR_MODE:
            attr.mode = stat.S_IFMT(attr.mode) | (abi.SETATTR_IN.unpack_from(body)[11] & 0o7777)
        return abi.pack_attr(unique, attr, TTL_NS)

    def create(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        at = MODE_AT[Opcode(opcode)]
        mode = int.from_bytes(body[at : at + 4], "little")
        if opcode == Opcode.MKDIR:
            mode |= stat.S_IFDIR
        name = bytes(body[NAME_AT[Opcode(opcode)] : -1])
        if name in self.children[nodeid]:
            raise Refused(errno.EEXIST)
        attr = self.make(nodeid, name, mode)
        if opcode == Opcode.CREATE:
            return abi.pack_create(unique, attr, TTL_NS, attr.ino, abi.FOPEN_KEEP_CACHE)
        return abi.pack_entry(unique, attr, TTL_NS, TTL_NS)

    def symlink(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        name, target = bytes(body[:-1]).split(b"\0")
        attr = self.make(nodeid, name, stat.S_IFLNK | 0o777)
        self.targets[attr.ino] = target
        return abi.pack_entry(unique, attr, TTL_NS, TTL_NS)

    def readlink(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        return abi.pack_bytes(unique, self.targets[nodeid])

    def unlink(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        name = bytes(body[:-1])
        if self.children.get(self._find(nodeid, name)):
            raise Refused(errno.ENOTEMPTY)
        del self.children[nodeid][name]
        return abi.pack_error(unique, 0)

    def rename(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        (new_parent,) = abi.RENAME_IN.unpack_from(body)
        name, new_name = bytes(body[8 if opcode == Opcode.RENAME else 16 : -1]).split(b"\0")
        ino = self._find(nodeid, name)
        del self.children[nodeid][name]
        self.children[new_parent][new_name] = ino
        return abi.pack_error(unique, 0)

    def read(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> list[object]:
        _, offset, size, *_ = abi.READ_IN.unpack_from(body)
        size = max(0, min(size, self.attrs[nodeid].size - offset))
        return [abi.OUT_HEADER.pack(abi.OUT_HEADER_BYTES + size, 0, unique), ZEROS[:size]]

    def write(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        _, offset, size, *_ = abi.WRITE_IN.unpack_from(body)
        attr = self.attrs[nodeid]
        attr.size = max(attr.size, offset + size)
        return abi.pack_write(unique, size)

    def open(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        if opcode == Opcode.OPEN and abi.OPEN_IN.unpack_from(body)[0] & os.O_TRUNC:
            self.attrs[nodeid].size = 0
        return abi.pack_open(unique, nodeid, abi.FOPEN_KEEP_CACHE if opcode == Opcode.OPEN else 0)

    def readdir(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        _, offset, room, *_ = abi.READ_IN.unpack_from(body)
        packed = b""
        for cookie, (name, ino) in enumerate(list(self.children[nodeid].items())[offset:], offset + 1):
            entry = Dirent(name, ino, stat.S_IFMT(self.attrs[ino].mode), cookie, self.attrs[ino])
            record = abi.pack_direntplus(entry, TTL_NS, TTL_NS) if opcode == Opcode.READDIRPLUS else abi.pack_dirent(entry)
            if len(packed) + len(record) > room:
                break
            packed += record
        return abi.pack_bytes(unique, packed)

    def statfs(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        return abi.pack_statfs(unique, StatFs(1 << 40, 1 << 40, 1 << 30, 1 << 30))

    def nothing(self, opcode: int, unique: int, nodeid: int, body: memoryview) -> bytes:
        return abi.pack_error(unique, 0)


def main(directory: str) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount_fuse(fd, directory, "null", ["nosuid", "nodev"], "default_permissions,allow_other")
    server = NullServer(fd)
    sys.setswitchinterval(0.0005)
    gc.freeze()
    threads = [threading.Thread(target=server.serve, daemon=True) for _ in range(FUSE_READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
