# ruff: noqa: T201
"""A client that believes nothing: ordinary file operations, each checked against a model of what the filesystem acknowledged.

Run as a program in its own process: ``load.py DIR --seed N``.  It works in DIR/client-N (nobody else does, so the model is exact) and
takes turns with the other clients on DIR/counter-fcntl and DIR/counter-flock, under a lock: read, add one, write; a lock that two hold
at once, or that a killed server forgets, loses an increment.  Every 0.2 s it prints a line of JSON with its counts; on SIGTERM it checks
every file once more and prints a last line with `final`: errors, the slow operations with their times on CLOCK_MONOTONIC, and a manifest
(name -> size, SHA-256) that `check_manifest` compares after a remount.

An operation counts only if its effect was checked.  Any OSError is an error: no operation here may fail, whatever is killed meanwhile.
While faults are injected some may: with ``--accept EIO`` an operation may be refused so, and must then have changed nothing that the model
does not know of (a failed fsync keeps the data).  The last check accepts nothing: the faults have ended by then.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import json
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

SLOW_S = 0.05
FILES_MAX = 120
FILE_BYTES_MAX = 2 << 20
ERRORS_MAX = 20
SLOWEST_MAX = 400


class Wrong(Exception):
    """The filesystem showed something that the model does not."""


def read_all(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def read_fully(fd: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes, fewer only at the end of the file: a read that meets an error behind its first pages is short."""
    data = b""
    while len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data


def write_fully(fd: int, data: bytes, offset: int | None = None) -> None:
    """All of `data`; a short write of a regular file is an error here (no signal of ours interrupts it)."""
    count = os.write(fd, data) if offset is None else os.pwrite(fd, data, offset)
    if count != len(data):
        raise Wrong(f"short write: {count} of {len(data)}")


class Nothing(Exception):
    """Nothing to do this operation on: it does not count."""


class Client:
    def __init__(self, directory: str, seed: int, accept: frozenset[int] = frozenset()) -> None:
        self.accept = accept
        self.refused = 0
        self.random = random.Random(seed)
        self.shared = directory
        self.directory = os.path.join(directory, f"client-{seed}")
        self.model: dict[str, bytearray] = {}
        self.increments = {"fcntl": 0, "flock": 0}
        self.serial = 0
        self.checked = ""
        self.counts: dict[str, int] = {}
        self.errors: list[str] = []
        self.slow: list[tuple[float, float, str]] = []
        os.makedirs(self.directory)
        self.orphan = os.open(self.path("orphan"), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)  # lives on without a name
        os.unlink(self.path("orphan"))
        self.orphan_model = bytearray()
        self.journal = os.open(self.path("journal"), os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o600)  # one handle, kept open
        self.model["journal"] = bytearray()

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    # --- choices ----------------------------------------------------------------------------------------------------------
    def fresh(self) -> str:
        self.serial += 1
        return f"f{self.serial}-" + "n" * self.random.choice((0, 0, 5, 60))

    def some(self) -> str:
        names = [name for name in self.model if name != "journal"]
        if not names:
            raise Nothing
        return self.random.choice(names)

    def bytes(self) -> bytes:
        length = self.random.choice((1, 100, 3000, 4096, 5000, 20_000, 70_000))
        if self.random.random() < 0.02:
            length = 1 << 20
        return self.random.randbytes(self.random.randint(1, length))

    # --- operations: each checks what it did --------------------------------------------------------------------------------
    def create(self) -> None:
        name, data = self.fresh(), self.bytes()
        fd = os.open(self.path(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
        self.model[name] = bytearray()
        try:
            write_fully(fd, data)
            self.model[name] += data
            if self.random.random() < 0.2:
                os.fsync(fd)
        finally:
            os.close(fd)
        self.same_size(name)

    def same_size(self, name: str) -> None:
        size = os.stat(self.path(name)).st_size
        if size != len(self.model[name]):
            raise Wrong(f"size of {name} is {size}, written were {len(self.model[name])}")

    def same_bytes(self, name: str) -> None:
        data = read_all(self.path(name))
        wanted = self.model[name]
        if data != wanted:
            at = next((i for i, (a, b) in enumerate(zip(data, wanted, strict=False)) if a != b), min(len(data), len(wanted)))
            raise Wrong(f"bytes of {name} differ from offset {at} on (length {len(data)}, expected {len(wanted)})")

    def read_back(self) -> None:
        self.same_bytes(self.some())

    def overwrite(self) -> None:
        name = self.some()
        data, content = self.bytes(), self.model[name]
        offset = self.random.randint(0, len(content) + 5000)
        fd = os.open(self.path(name), os.O_RDWR)
        try:
            write_fully(fd, data, offset)
            if offset > len(content):
                content += bytes(offset - len(content))
            content[offset : offset + len(data)] = data
            got = read_fully(fd, len(data), offset)
            if got != data:
                raise Wrong(f"{name}: what was just written at {offset} reads otherwise")
            if self.random.random() < 0.2:
                os.fdatasync(fd)
        finally:
            os.close(fd)

    def append(self) -> None:
        name = self.some()
        if len(self.model[name]) > FILE_BYTES_MAX:
            raise Nothing
        data = self.bytes()
        fd = os.open(self.path(name), os.O_WRONLY | os.O_APPEND)
        try:
            write_fully(fd, data)
            self.model[name] += data
        finally:
            os.close(fd)
        self.same_size(name)

    def append_journal(self) -> None:
        content = self.model["journal"]
        if len(content) > FILE_BYTES_MAX:
            os.ftruncate(self.journal, 0)
            content.clear()
        data = self.random.randbytes(self.random.randint(1, 400))
        write_fully(self.journal, data)
        content += data
        tail = read_fully(self.journal, 600, max(0, len(content) - 600))
        if tail != content[-600:]:
            raise Wrong("the end of the journal is not what was appended")

    def truncate(self) -> None:
        name = self.some()
        content = self.model[name]
        length = self.random.choice((0, len(content) // 2, len(content) + self.random.randint(1, 9000)))
        os.truncate(self.path(name), length)
        if length < len(content):
            del content[length:]
        else:
            content += bytes(length - len(content))
        self.same_size(name)

    def rename(self) -> None:
        name = self.some()
        target = self.some() if self.random.random() < 0.3 else self.fresh()
        if target == name:
            raise Nothing
        os.rename(self.path(name), self.path(target))
        self.model[target] = self.model.pop(name)
        if os.path.lexists(self.path(name)):
            raise Wrong(f"{name} is still there after its rename to {target}")
        self.same_size(target)

    def unlink(self) -> None:
        name = self.some()
        os.unlink(self.path(name))
        del self.model[name]
        try:
            os.stat(self.path(name))
        except FileNotFoundError:
            return
        raise Wrong(f"{name} is still there after its unlink")

    def link(self) -> None:
        name, other = self.some(), self.fresh()
        os.link(self.path(name), self.path(other))
        links = os.stat(self.path(name)).st_nlink
        if links != 2:
            raise Wrong(f"{name} has {links} links instead of 2")
        os.unlink(self.path(other))

    def directories(self) -> None:
        name = self.path("d-" + self.fresh())
        os.mkdir(name)
        os.symlink("target of the link", os.path.join(name, "link"))
        if os.readlink(os.path.join(name, "link")) != "target of the link" or os.listdir(name) != ["link"]:
            raise Wrong(f"{name} does not hold exactly the link that was made in it")
        os.unlink(os.path.join(name, "link"))
        os.rmdir(name)

    def listing(self) -> None:
        names = os.listdir(self.directory)
        if sorted(names) != sorted(self.model):
            raise Wrong(f"listing: unexpected {set(names) - set(self.model)}, missing {set(self.model) - set(names)}, {len(names)} names")

    def nameless(self) -> None:
        if len(self.orphan_model) > FILE_BYTES_MAX:
            os.ftruncate(self.orphan, 0)
            self.orphan_model.clear()
        data = self.bytes()
        write_fully(self.orphan, data, len(self.orphan_model))
        self.orphan_model += data
        start = self.random.randrange(len(self.orphan_model))
        wanted, got = self.orphan_model[start : start + 50_000], read_fully(self.orphan, 50_000, start)
        if got != wanted:
            at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
            raise Wrong(f"an open file without a name reads otherwise than it was written: {len(got)} of {len(wanted)} bytes, from {at} on")

    def _count(self, kind: str, lock: Callable[[int, int], object]) -> None:
        fd = os.open(os.path.join(self.shared, f"counter-{kind}"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            lock(fd, fcntl.LOCK_EX)
            (value,) = struct.unpack("<Q", os.pread(fd, 8, 0) or bytes(8))
            write_fully(fd, struct.pack("<Q", value + 1), 0)
            self.increments[kind] += 1
            if struct.unpack("<Q", os.pread(fd, 8, 0)) != (value + 1,):
                raise Wrong(f"counter under {kind}: somebody wrote while we held the lock")
            lock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    def lock_fcntl(self) -> None:
        self._count("fcntl", fcntl.lockf)

    def lock_flock(self) -> None:
        self._count("flock", fcntl.flock)

    # --- the loop ---------------------------------------------------------------------------------------------------------
    def one(self) -> None:
        crowded = len(self.model) > FILES_MAX
        weights = {
            self.create: 0 if crowded else 14,
            self.read_back: 14,
            self.overwrite: 12,
            self.append: 8,
            self.append_journal: 6,
            self.truncate: 6,
            self.rename: 10,
            self.unlink: 30 if crowded else 9,
            self.link: 3,
            self.directories: 3,
            self.listing: 2,
            self.nameless: 4,
            self.lock_fcntl: 4,
            self.lock_flock: 4,
        }
        operation = self.random.choices(list(weights), list(weights.values()))[0]
        self.timed(operation)

    def timed(self, operation: Callable[[], None]) -> None:
        name = operation.__name__
        began = time.monotonic()
        try:
            operation()
            self.counts[name] = self.counts.get(name, 0) + 1
        except Nothing:
            return
        except (OSError, Wrong) as err:
            if isinstance(err, OSError) and err.errno in self.accept:
                self.refused += 1
                return
            self.errors.append(f"{time.monotonic():.3f} {name}: {type(err).__name__} {err}")
        took = time.monotonic() - began
        if took > SLOW_S:
            self.slow.append((began, took, name))
            if len(self.slow) > 2 * SLOWEST_MAX:
                self.slow = sorted(sorted(self.slow, key=lambda row: -row[1])[:SLOWEST_MAX])

    def final_check(self) -> None:
        self.same_bytes(self.checked)

    def check_everything(self) -> None:
        self.accept = frozenset()
        self.timed(self.listing)
        for name in list(self.model):
            self.checked = name
            self.timed(self.final_check)

    def report(self, final: bool) -> dict[str, object]:
        row: dict[str, object] = {"ops": sum(self.counts.values()), "errors": self.errors[:ERRORS_MAX], "slow": self.slow[-1:]}
        row["refused"] = self.refused
        if final:
            row |= {"final": True, "counts": self.counts, "slow": self.slow, "increments": self.increments, "directory": self.directory}
            row["manifest"] = {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in self.model.items()}
        return row


def check_manifest(directory: str, manifest: dict[str, list[object]]) -> list[str]:
    """What differs between the files in `directory` and the manifest of a client that worked there."""
    wrong = []
    present = set(os.listdir(directory))
    if present != set(manifest):
        wrong.append(f"{directory}: unexpected {sorted(present - set(manifest))[:5]}, missing {sorted(set(manifest) - present)[:5]}")
    for name in sorted(present & set(manifest)):
        data = read_all(os.path.join(directory, name))
        if [len(data), hashlib.sha256(data).hexdigest()] != manifest[name]:
            wrong.append(f"{directory}/{name}: {len(data)} bytes with another checksum (expected {manifest[name][0]} bytes)")
    return wrong


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--seed", type=int, required=True)
    arguments.add_argument("--accept", default="", help="names of errnos, with commas")
    arguments.add_argument("--think", type=float, default=0.0, help="seconds to wait at most after each operation")
    chosen = arguments.parse_args()
    accept = frozenset(getattr(errno, name) for name in filter(None, chosen.accept.split(",")))
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    signal.siginterrupt(signal.SIGTERM, False)
    client = Client(str(chosen.directory), chosen.seed, accept)
    told = 0.0
    while not stop and len(client.errors) < ERRORS_MAX:
        client.one()
        if chosen.think:
            time.sleep(client.random.random() * chosen.think)
        if time.monotonic() - told > 0.2:
            told = time.monotonic()
            print(json.dumps(client.report(final=False)), flush=True)
    client.check_everything()
    print(json.dumps(client.report(final=True)), flush=True)
    return 1 if client.errors else 0


if __name__ == "__main__":
    sys.exit(main())
