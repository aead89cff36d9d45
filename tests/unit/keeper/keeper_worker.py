"""A worker for the tests of the keeper: serves one directory with the file `about`, whose content is made at each read.

`about` holds the worker's count, its pid and a number in shared memory that every worker raises by one at its start.
A request is read into shared memory, and its header zeroed after the reply, so that a successor answers what this one did not.
config: {"mode": "serve" | "die" | "mute", "flush": "ok" | "fail" | "hang"}.  die: exits with 3 at once; mute: never ready.
"""

from __future__ import annotations

import argparse
import errno
import json
import mmap
import os
import stat
import struct
import sys
import time

from awsomefsd.keeper import worker_link
from awsomefsd.keeper.worker_link import KeeperLink

HEADER = struct.Struct("<IIQQIIIHH")
OUT = struct.Struct("<IiQ")
FILE = 2
SLOT_BYTES = 1 << 17  # max_write and a header fit


def attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644
    return struct.pack("<QQQQQQIIIIIIIIII", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def dirent(node: int, offset: int, name: bytes) -> bytes:
    return struct.pack("<QQII", node, offset, len(name), 4 if node == 1 else 8) + name + bytes(-len(name) % 8)


class Server:
    def __init__(self, link: KeeperLink) -> None:
        self.link = link
        self.fd = link.fds["fuse"]
        control = link.fds["control"]
        self.starts = int.from_bytes(os.pread(control, 8, 0), "little") + 1
        os.pwrite(control, self.starts.to_bytes(8, "little"), 0)
        self.slot = mmap.mmap(link.fds["slot"], SLOT_BYTES, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)

    def about(self) -> bytes:
        start = self.link.start_message
        words = {key: start[key] for key in ("worker", "fresh", "previous")}
        return json.dumps(words | {"pid": os.getpid(), "starts": self.starts, "sid": os.getsid(0), "env": sorted(os.environ)}).encode()

    def reply_to(self, opcode: int, node: int, body: bytes) -> bytes | int | None:
        if opcode in (2, 42, 36):  # FORGET, BATCH_FORGET, INTERRUPT
            return None
        if opcode == 26:  # INIT
            _major, minor, readahead, _flags = struct.unpack_from("<IIII", body)
            return struct.pack("<IIIIHHIIHHIIIIII", 7, min(minor, 34), readahead, 0, 12, 9, 65536, 1, 0, 0, 0, 0, 0, 0, 0, 0)
        if opcode == 1:  # LOOKUP
            return struct.pack("<QQQQII", FILE, 0, 0, 0, 0, 0) + attributes(FILE) if body == b"about\0" else -errno.ENOENT
        if opcode == 3:  # GETATTR
            return struct.pack("<QII", 0, 0, 0) + attributes(node)
        if opcode in (14, 27):  # OPEN, OPENDIR
            return struct.pack("<QII", 0, 1 if opcode == 14 else 0, 0)  # FOPEN_DIRECT_IO
        if opcode == 15:  # READ
            offset, size = struct.unpack_from("<QQI", body)[1:3]
            return self.about()[offset : offset + size]
        if opcode == 28:  # READDIR
            offset = struct.unpack_from("<QQ", body)[1]
            return b"" if offset else dirent(1, 1, b".") + dirent(1, 2, b"..") + dirent(FILE, 3, b"about")
        if opcode == 17:  # STATFS
            return struct.pack("<QQQQQIII", 0, 0, 0, 0, 0, 4096, 255, 4096) + bytes(24)
        return b"" if opcode in (18, 25, 29) else -errno.ENOSYS  # FLUSH, RELEASE, RELEASEDIR

    def answer(self) -> None:
        """Answer what is in the slot, and empty it."""
        length, opcode, unique, node, *_ = HEADER.unpack_from(self.slot)
        if length:
            reply = self.reply_to(opcode, node, self.slot[HEADER.size : length])
            if reply is not None:
                body, error_number = (reply, 0) if isinstance(reply, bytes) else (b"", reply)
                try:
                    os.write(self.fd, OUT.pack(OUT.size + len(body), error_number, unique) + body)
                except OSError as error:
                    if error.errno != errno.ENOENT:  # interrupted, or answered by a worker that died right after
                        raise
                self.link.answered()
            self.slot[: HEADER.size] = bytes(HEADER.size)

    def serve(self) -> None:
        self.answer()
        while True:
            try:
                os.readv(self.fd, [self.slot])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno not in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    raise
            else:
                self.answer()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keeper-fd", type=int, required=True)
    parser.add_argument("--earlier-build", action="store_true", help="know nothing of the record of a mount")
    parser.add_argument("--memory-format", type=int, help="the format of the memory that this program knows")
    parser.add_argument("--needs", type=int, help="the format that it begins")
    arguments = parser.parse_args()
    if arguments.memory_format is not None:
        vars(worker_link)["MEMORY_FORMAT"] = arguments.memory_format
    if arguments.earlier_build:
        worker_link.RECORD = ""
    link = KeeperLink(arguments.keeper_fd)
    config = link.start_message["config"]

    def flush(tell: bool) -> None:
        if config.get("flush") == "fail":
            raise OSError(errno.EIO, "the device is gone")
        if config.get("flush") == "hang":
            time.sleep(600)

    mode = config.get("mode", "serve")
    if mode == "die" and not os.path.exists(config.get("live_if", "/nonexistent")):
        sys.stderr.write("cannot start: the test says so\n")
        return 3
    if mode == "mute":
        time.sleep(600)
    if arguments.needs is not None:
        assert link.needs(arguments.needs)
    server = Server(link)
    link.ready(flush)
    server.serve()
    link.bye(config.get("bye", True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
