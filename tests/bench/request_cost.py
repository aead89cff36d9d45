"""What requests about names cost a worker whose mount decides them: `python -m tests.bench.request_cost`.

The session and all below it over a socket pair, without a kernel, in one process with the metadata service; µs of CPU of the thread that
reads and answers, so the load of the machine changes them less than the time that passes.  Two checkouts are compared by runs in turn.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from awsomefsd.fuse import abi
from awsomefsd.fuse.abi import Opcode
from awsomefsd.fuse.session import Session
from awsomefsd.fuse.turn import Turn
from buildtools.say import line
from tests.rigs.delegated_mount import Delegated

ROUNDS, OPERATIONS = 5, 1_000
ROOT = 1


class Reader:
    """The kernel's end and the worker's, on one thread."""

    def __init__(self, made: Delegated) -> None:
        self._kernel, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = made.worker.memory
        fd = self._ours.fileno()
        self._session = Session(fd, made.worker.vfs, memory.control, memory.slots, memory.park, fresh=True)
        self._turn = Turn(self._session._turns)
        self._turn.take()
        self._unique = 1 << 20
        self.used_ns = 0

    def ask(self, opcode: Opcode, nodeid: int, body: bytes) -> bytes:
        """Returns the body of the answer; counts what it costs until the reader would read again."""
        self._unique += 2
        self._kernel.send(abi.IN_HEADER.pack(abi.IN_HEADER.size + len(body), opcode, self._unique, nodeid, 0, 0, os.getpid(), 0, 0) + body)
        began = time.thread_time_ns()
        self._session.read_one(self._session.slots[0], self._turn)
        self._turn.take()
        self.used_ns += time.thread_time_ns() - began
        return self._kernel.recv(1 << 20)[abi.OUT_HEADER_BYTES :]

    def make(self, parent: int, name: bytes) -> int:
        return int.from_bytes(self.ask(Opcode.MKDIR, parent, abi.MKDIR_IN.pack(0o755, 0) + name + b"\0")[:8], "little")


def works(reader: Reader, place: int) -> dict[str, Callable[[int], object]]:
    """Each by name, for the number of the operation; each finds what those before it have left."""

    def create(number: int) -> None:
        name = b"file%06d\0" % number
        reader.ask(Opcode.LOOKUP, place, name)
        made = reader.ask(Opcode.CREATE, place, abi.CREATE_IN.pack(os.O_WRONLY | os.O_CREAT, 0o644, 0o22, 0) + name)
        ino, fh = int.from_bytes(made[:8], "little"), int.from_bytes(made[-16:-8], "little")
        reader.ask(Opcode.GETATTR, place, abi.GETATTR_IN.pack(0, 0, 0))
        reader.ask(Opcode.FLUSH, ino, abi.FLUSH_IN.pack(fh, 0, 0, 0))
        reader.ask(Opcode.RELEASE, ino, abi.RELEASE_IN.pack(fh, 0, 0, 0))

    def rename(number: int) -> None:
        reader.ask(Opcode.RENAME2, place, abi.RENAME2_IN.pack(place, 0, 0) + b"file%06d\0new%06d\0" % (number, number))

    return {
        "create + close (5 requests)": create,
        "lookup of a name that is there": lambda number: reader.ask(Opcode.LOOKUP, place, b"file%06d\0" % number),
        "rename": rename,
        "unlink": lambda number: reader.ask(Opcode.UNLINK, place, b"new%06d\0" % number),
        "mkdir": lambda number: reader.make(place, b"sub%06d" % number),
    }


def main() -> None:
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = Delegated(Path(folder))
        made.start()
        reader = Reader(made)
        for count in range(ROUNDS):
            for name, work in works(reader, reader.make(ROOT, b"round%d" % count)).items():
                reader.used_ns = 0
                for number in range(OPERATIONS):
                    work(number)
                found.setdefault(name, []).append(reader.used_ns / OPERATIONS / 1_000)
        made.close()
    for name, each in found.items():
        line(f"{name}: {statistics.median(each):,.0f} µs of CPU (least {min(each):,.0f})")


if __name__ == "__main__":
    main()
