"""A program on a mount that other nodes have too; it believes nothing and writes down what it sees, for shared_judge.py.

Run as a process of its own: ``shared_client.py ROOT --number N --seed S --log FILE [--locks]``.  Each operation is two lines of JSON in
FILE: ["c", n, object, call, time] before it and ["r", n, result, time] after it; ["e", n, errno, time] where the system call failed, so
that nobody knows the outcome; ["w", text, time] for what cannot be, whatever else happened.  Times are CLOCK_MONOTONIC, one clock for
all processes of the machine.

Objects, all in ROOT: r… registers (a block of one repeated value; a write includes its fsync), z… registers that are not synced, c…
registers that are changed under an fcntl lock only (read, write, fsync: a compare-and-set), l… files to which everybody appends records,
d… directories of a few names each (a new one every while, so that unknown outcomes do not pile up).  s-N is this program's own file,
never synced and always dirty.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import random
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

REGISTERS, LAZY, COMPARED, LOGS = 8, 3, 3, 2
BLOCK_BYTES = 4_096
RECORD = struct.Struct("<QQQII")  # client, number, bytes so far of this client, length, checksum
RECORD_BYTES = 128
NAMES = ["a", "b", "c"]
DIRECTORY_S = 12.0
THINK_S = 0.012
RECOVER_S = 0.1
MARKER = "here"


def block(value: int) -> bytes:
    return struct.pack("<Q", value) * (BLOCK_BYTES // 8)


def record(client: int, number: int) -> bytes:
    head = RECORD.pack(client, number, number * RECORD_BYTES, RECORD_BYTES, 0)[:-4]
    filler = bytes([client % 251]) * (RECORD_BYTES - RECORD.size)
    return head + struct.pack("<I", zlib.crc32(head + filler)) + filler


def read_record(raw: bytes) -> tuple[int, int] | None:
    """(client, number); None for what nobody wrote so."""
    if len(raw) != RECORD_BYTES:
        return None
    client, number, _, _, _ = RECORD.unpack_from(raw)
    return (client, number) if raw == record(client, number) else None


class Failed(Exception):
    """The system call failed; its outcome is unknown."""


class Program:
    def __init__(self, root: str, number: int, seed: int, log: int) -> None:
        self.root, self.number = root, number
        self.dice = random.Random(seed)
        self.log = log
        self.count = self.values = self.records = 0
        self.open: dict[str, int] = {}
        self.since: dict[str, float] = {}  # when each of them was opened
        self.scratch = b""  # what s-N must show; empty: unknown
        self.private = ""

    # --- writing down ----------------------------------------------------------------------------------------------------
    def say(self, *row: Any) -> None:
        os.write(self.log, json.dumps(row).encode() + b"\n")

    def wrong(self, text: str) -> None:
        self.say("w", text, time.monotonic())

    def done(self, which: str, call: tuple[Any, ...], work: Callable[[], Any], called: float = 0) -> Any:
        """`work` returns the result for the history."""
        self.count += 1
        number = self.count
        self.say("c", number, which, call, called or time.monotonic())
        try:
            result = work()
        except OSError as err:
            self.say("e", number, errno.errorcode.get(err.errno or 0, str(err)), time.monotonic(), self.since.get(which, 0))
            raise Failed from err
        self.say("r", number, result, time.monotonic())
        return result

    # --- files -----------------------------------------------------------------------------------------------------------
    def path(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    def fd(self, name: str, flags: int = os.O_RDWR) -> int:
        if name not in self.open:
            self.since[name] = time.monotonic()
            self.open[name] = os.open(self.path(name), flags, 0o600)
        return self.open[name]

    def value(self) -> int:
        self.values += 1
        return self.number << 32 | self.values

    def look_at(self, which: str, fd: int) -> int | None:
        data = os.pread(fd, BLOCK_BYTES + 1, 0)
        words = struct.unpack(f"<{BLOCK_BYTES // 8}Q", data) if len(data) == BLOCK_BYTES else (0, 1)
        if len(set(words)) != 1:
            self.wrong(f"{which} is torn or foreign: {len(data)} bytes, {sorted(set(words))[:4]}")
            return None
        return words[0]

    def register(self) -> str:
        lazy = self.dice.random() < 0.25
        return f"z{self.dice.randrange(LAZY)}" if lazy else f"r{self.dice.randrange(REGISTERS)}"

    def read(self) -> None:
        which = self.register()
        self.done(which, ("read",), lambda: self.look_at(which, self.fd(which)))

    def write(self) -> None:
        which, value = self.register(), self.value()

        def work() -> None:
            fd = self.fd(which)
            if os.pwrite(fd, block(value), 0) != BLOCK_BYTES:
                self.wrong(f"short write of {which}")
            if which[0] == "r":
                os.fsync(fd)

        self.done(which, ("write", value), work)

    def compare_and_set(self) -> None:
        which = f"c{self.dice.randrange(COMPARED)}"
        fd = os.open(self.path(which), os.O_RDWR)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX)
            called = time.monotonic()
            old, new = self.look_at(which, fd), self.value()

            def work() -> str:
                os.pwrite(fd, block(new), 0)
                os.fsync(fd)
                return "ok"

            self.done(which, ("cas", old, new), work, called)
        finally:
            os.close(fd)

    def append(self) -> None:
        which = f"l{self.dice.randrange(LOGS)}"
        self.records += 1
        data = record(self.number, self.records)

        def work() -> None:
            fd = self.fd(which, os.O_RDWR | os.O_APPEND)
            if os.write(fd, data) != len(data):
                self.wrong(f"short append to {which}")
            os.fsync(fd)

        self.done(which, ("append", self.records), work)

    def tail(self) -> None:
        which = f"l{self.dice.randrange(LOGS)}"

        def work() -> int:
            fd = self.fd(which, os.O_RDWR | os.O_APPEND)
            size = os.fstat(fd).st_size
            at = max(0, size // RECORD_BYTES - 8) * RECORD_BYTES
            data = os.pread(fd, size - at, at)
            pieces = [data[start : start + RECORD_BYTES] for start in range(0, len(data), RECORD_BYTES)]
            if size % RECORD_BYTES or not all(map(read_record, pieces)):
                self.wrong(f"{which}: a record at its end ({size} bytes) is torn or foreign")
            return size

        self.done(which, ("size",), work)

    def own(self) -> None:
        """This program's own dirty file: what it wrote last is there, whatever happens to others."""
        name = f"s-{self.number}"

        def work() -> None:
            fd = self.fd(name, os.O_RDWR | os.O_CREAT)
            if self.scratch and os.pread(fd, len(self.scratch) + 1, 0) != self.scratch:
                self.wrong(f"{name} is not what its only writer wrote")
            self.scratch = self.dice.randbytes(self.dice.choice((100, 5_000, 20_000)))
            os.ftruncate(fd, len(self.scratch))
            os.pwrite(fd, self.scratch, 0)

        self.done(name, ("own",), work)

    # --- names -----------------------------------------------------------------------------------------------------------
    def directory(self) -> str:
        which = f"d{int(time.monotonic() / DIRECTORY_S)}"
        os.makedirs(self.path(which), exist_ok=True)
        return which

    def refusable(self, work: Callable[[], Any]) -> Callable[[], Any]:
        def attempt() -> Any:
            try:
                return work()
            except FileExistsError:
                return "EEXIST"
            except FileNotFoundError:
                os.stat(self.path(MARKER))  # else it is the whole tree that is not there
                return "ENOENT"

        return attempt

    def add(self) -> None:
        """A file of this program gets a name that others give too."""
        if not self.private:
            private = self.path(f"p-{self.number}-{self.count}")
            os.close(os.open(private, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            self.private = private
        which, name = self.directory(), self.dice.choice(NAMES)
        private, inode = self.private, os.stat(self.private).st_ino
        self.private = ""
        done = self.done(which, ("add", name, inode), self.refusable(lambda: os.link(private, self.path(which, name)) or "ok"))
        if done == "ok":
            os.unlink(private)
        else:
            self.private = private

    def remove(self) -> None:
        which, name = self.directory(), self.dice.choice(NAMES)
        self.done(which, ("remove", name), self.refusable(lambda: os.unlink(self.path(which, name)) or "ok"))

    def move(self) -> None:
        which, (old, new) = self.directory(), self.dice.sample(NAMES, 2)
        self.done(which, ("move", old, new), self.refusable(lambda: os.rename(self.path(which, old), self.path(which, new)) or "ok"))

    def look(self) -> None:
        which, name = self.directory(), self.dice.choice(NAMES)
        self.done(which, ("look", name), self.refusable(lambda: os.stat(self.path(which, name)).st_ino))

    def list(self) -> None:
        """A name that is removed and made anew meanwhile may be listed twice, or not at all."""
        which = self.directory()

        def work() -> None:
            if foreign := set(os.listdir(self.path(which))) - set(NAMES):
                self.wrong(f"{which} lists {foreign}")

        self.done("listing", ("list",), work)

    # --- the loop --------------------------------------------------------------------------------------------------------
    def recover(self) -> None:
        """Every handle is given up; goes on when the tree is there (again)."""
        self.scratch = self.private = ""  # type: ignore[assignment]
        for fd in self.open.values():
            try:
                os.close(fd)
            except OSError:
                pass
        self.open.clear()
        self.since.clear()
        while True:
            try:
                os.stat(self.path(MARKER))
                return
            except OSError:
                time.sleep(RECOVER_S)

    def one(self, operation: Callable[[], None]) -> None:
        try:
            operation()
        except Failed:
            self.recover()
        except OSError as err:  # of a step that is not judged
            self.say("o", operation.__name__, errno.errorcode.get(err.errno or 0, str(err)), time.monotonic())
            self.recover()


def prepare(root: Path) -> None:
    """Once, before programs begin: everything shows value 0."""
    root.mkdir()
    for name in [f"r{n}" for n in range(REGISTERS)] + [f"z{n}" for n in range(LAZY)] + [f"c{n}" for n in range(COMPARED)]:
        with (root / name).open("wb") as file:
            file.write(block(0))
            file.flush()
            os.fsync(file.fileno())
    for name in [f"l{n}" for n in range(LOGS)] + [MARKER]:
        (root / name).touch()


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("root")
    arguments.add_argument("--number", type=int, required=True)
    arguments.add_argument("--seed", type=int, required=True)
    arguments.add_argument("--log", required=True)
    arguments.add_argument("--locks", action="store_true", help="nothing but locks: it may wait long for one")
    chosen = arguments.parse_args()
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    signal.siginterrupt(signal.SIGTERM, False)
    log = os.open(chosen.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    it = Program(chosen.root, chosen.number, chosen.seed, log)
    weights: dict[Callable[[], None], int] = {it.compare_and_set: 3, it.read: 1} if chosen.locks else {
        it.read: 36, it.write: 24, it.append: 8, it.tail: 4, it.own: 6, it.add: 6, it.remove: 4, it.move: 4, it.look: 6, it.list: 2,
    }  # fmt: skip
    operations, shares = list(weights), list(weights.values())
    while not stop:
        it.one(it.dice.choices(operations, shares)[0])
        time.sleep(it.dice.random() * THINK_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
