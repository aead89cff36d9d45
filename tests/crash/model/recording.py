"""All writes and flushes of a node's three media in one order, and the images a power cut may leave at any point of it.

journal   a simulated disk (tests/sim/machines/disk.py): a sync makes a file's writes durable, a sync of the directory its names
store     the simulated store (tests/sim/machines/store.py): a commit is there whole or not at all, which is LMDB's promise
device    blocks in memory: a flush makes what was written before durable

What was not synced is there in any part, by sectors of 512 bytes, each medium by itself; names are there up to some point of their order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from xxhash import xxh64_digest, xxh64_hexdigest

from awsomefsd.meta.replica.store import StoreIdentity
from tests.sim.machines.disk import SECTOR, SimDisk, _File
from tests.sim.machines.store import Durable, SimStore

BLOCK = 4096
ZEROS = bytes(BLOCK)
Write = tuple[int, bytes]


@dataclass(frozen=True)
class Image:
    """What a machine finds when it starts."""

    files: dict[str, bytes]
    rows: dict[bytes, bytes]
    identity: StoreIdentity | None
    blocks: dict[int, bytes]

    def key(self, base: Mapping[int, bytes]) -> str:
        parts = [name.encode() + xxh64_digest(data.rstrip(b"\0")) for name, data in sorted(self.files.items())]
        parts += [key + b"=" + value for key, value in sorted(self.rows.items())]
        parts += [b"%d" % number + xxh64_digest(data) for number, data in sorted(self.blocks.items()) if base.get(number, ZEROS) != data]
        return xxh64_hexdigest(b"\0".join(parts))


class Recording:
    """Events, each a tuple that begins with its kind.  Nothing is recorded once it is stopped."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.lock = threading.RLock()
        self.running = True

    def add(self, *event: Any) -> None:
        with self.lock:
            if self.running:
                self.events.append(event)

    def stop(self) -> None:
        with self.lock:
            self.running = False


class RecordedDisk(SimDisk):
    """The journal's disk, recorded."""

    def __init__(self, recording: Recording, files: Mapping[str, bytes]) -> None:
        super().__init__(Random(0), lambda _ns: None)
        self._recording = recording
        self._known: dict[int, tuple[Any, int | str]] = {}  # by id: the file, kept alive, and its name on the recording
        for path, data in files.items():
            file = _File()
            file.now, file.durable = bytearray(data), bytearray(data)
            self._files[path] = self._durable[path] = file
            self._known[id(file)] = (file, path)

    def _name_of(self, handle: int) -> int | str:
        """Files of the first image are called by their path of then, new ones by a number."""
        file = self._handles[handle]
        return self._known.setdefault(id(file), (file, len(self._known)))[1]

    def open(self, path: str, flags: int) -> int:
        with self._recording.lock:
            new = path not in self._files
            handle = super().open(path, flags)
            if new:
                self._recording.add("name", "create", path, self._name_of(handle))
            elif flags & os.O_TRUNC:
                raise AssertionError("the journal never empties a file that has a name")
            return handle

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        with self._recording.lock:
            super().pwrite(fd, data, offset)
            self._recording.add("write", self._name_of(fd), offset, bytes(data))

    def fdatasync(self, fd: int) -> None:
        with self._recording.lock:
            super().fdatasync(fd)
            self._recording.add("sync", self._name_of(fd))

    def sync_directory(self, path: str) -> None:
        with self._recording.lock:
            super().sync_directory(path)
            self._recording.add("sync names")

    def rename(self, old: str, new: str) -> None:
        with self._recording.lock:
            super().rename(old, new)
            self._recording.add("name", "rename", old, new)

    def unlink(self, path: str) -> None:
        with self._recording.lock:
            super().unlink(path)
            self._recording.add("name", "unlink", path)


class RecordedStore(SimStore):
    """A generation becomes durable at the POLLS-th look after it was begun, or when somebody waits: entries are applied in between."""

    POLLS = 2

    def __init__(self, recording: Recording, image: Image) -> None:
        durable = Durable()
        durable.rows, durable.identity = dict(image.rows), image.identity
        self._recording = recording
        self._due: list[Callable[[], None]] = []
        self._polls = 0

        def step(name: str) -> None:
            if name == "store committed":
                recording.add("commit", dict(durable.rows), durable.identity)

        super().__init__(durable, self._later, step)

    def _later(self, work: Callable[[], None]) -> Callable[[], None]:
        self._due.append(work)
        self._polls = 0
        return self._finish

    def _finish(self) -> None:
        while self._due:
            with self._recording.lock:
                self._due.pop()()

    @property
    def ended(self) -> bool:
        self._polls += 1
        if self._polls >= self.POLLS:
            self._finish()
        return super().ended


class RecordedDevice:
    """Implements io/device.BlockDevice.  `on_write`, `on_flush` come first and may raise."""

    def __init__(self, recording: Recording, blocks: Mapping[int, bytes], size: int) -> None:
        self._recording = recording
        self.blocks = dict(blocks)
        self.physical_block_bytes = 4_096
        self.path, self.bytes, self.logical_block_bytes, self.direct = "recording", size, 512, True
        self.failed = False
        self.on_write: Callable[[], None] = lambda: None
        self.on_flush: Callable[[], None] = lambda: None

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        return self.preadv([buffer], offset)

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        total = 0
        for buffer in buffers:
            buffer[:] = read(self.blocks, offset + total, len(buffer))
            total += len(buffer)
        return total

    def pwritev(self, buffers: Sequence[memoryview], offset: int) -> None:
        self.on_write()
        data = b"".join(buffers)
        assert offset % 512 == 0 and len(data) % 512 == 0 and offset + len(data) <= self.bytes
        with self._recording.lock:
            put(self.blocks, offset, data)
            self._recording.add("device", offset, data)

    def flush(self) -> None:
        self.on_flush()
        self._recording.add("flush")


def read(blocks: Mapping[int, bytes], offset: int, length: int) -> bytes:
    first = offset // BLOCK
    raw = b"".join(blocks.get(number, ZEROS) for number in range(first, -(-(offset + length) // BLOCK)))
    return raw[offset - first * BLOCK :][:length]


def put(blocks: dict[int, bytes], offset: int, data: bytes) -> None:
    """Blocks are never changed in place: images share them."""
    end = offset + len(data)
    for number in range(offset // BLOCK, -(-end // BLOCK)):
        start = number * BLOCK
        low, high = max(start, offset), min(start + BLOCK, end)
        piece = data[low - offset : high - offset]
        if len(piece) < BLOCK:
            old = blocks.get(number, ZEROS)
            piece = old[: low - start] + piece + old[high - start :]
        blocks[number] = piece


@dataclass
class Cutter:
    """The media after the events fed so far."""

    first: Image
    files: dict[int | str, bytearray] = field(default_factory=dict)
    pending: dict[int | str, list[Write]] = field(default_factory=dict)
    names: dict[str, int | str] = field(default_factory=dict)  # durable
    renamings: list[tuple[Any, ...]] = field(default_factory=list)
    blocks: dict[int, bytes] = field(default_factory=dict)
    unflushed: list[Write] = field(default_factory=list)
    done: int = 0  # marks passed

    def __post_init__(self) -> None:
        self.files = {path: bytearray(data) for path, data in self.first.files.items()}
        self.names = {path: path for path in self.first.files}
        self.blocks = dict(self.first.blocks)
        self.rows, self.identity = self.first.rows, self.first.identity

    def feed(self, event: tuple[Any, ...]) -> None:
        kind, *what = event
        if kind == "write":
            self.pending.setdefault(what[0], []).append((what[1], what[2]))
        elif kind == "sync":
            for offset, data in self.pending.pop(what[0], []):
                lay(self.files.setdefault(what[0], bytearray()), offset, data)
        elif kind == "name":
            self.renamings.append(tuple(what))
        elif kind == "sync names":
            for change in self.renamings:
                rename(self.names, change)
            self.renamings.clear()
        elif kind == "device":
            self.unflushed.append((what[0], what[1]))
        elif kind == "flush":
            for offset, data in self.unflushed:
                put(self.blocks, offset, data)
            self.unflushed.clear()
        elif kind == "commit":
            self.rows, self.identity = what
        elif kind == "mark":
            self.done += 1

    def images(self, dice: Random, samples: int) -> Iterator[tuple[str, Image]]:
        """What a cut here may leave: nothing, all, or some of what was not synced; each medium by itself."""
        journal_at_rest = not self.renamings and not any(self.pending.values())
        ways = [("dropped", "dropped"), ("kept", "kept"), ("kept", "dropped"), ("dropped", "kept"), ("torn", "torn")]
        ways += [("some", "some")] * samples
        if journal_at_rest and not self.unflushed:
            ways = ways[:1]
        for journal, device in ways:
            yield (
                f"journal {journal}, device {device}",
                Image(self.journal_after(journal, dice), self.rows, self.identity, self.device_after(device, dice)),
            )

    def journal_after(self, way: str, dice: Random) -> dict[str, bytes]:
        files = dict(self.files)
        for number, writes in self.pending.items():
            content = bytearray(files.get(number, b""))
            for offset, data in survivors(writes, way, dice):
                lay(content, offset, data)
            files[number] = content
        names = dict(self.names)
        count = {"dropped": 0, "some": dice.randrange(len(self.renamings) + 1)}.get(way, len(self.renamings))
        for change in self.renamings[:count]:
            rename(names, change)
        return {path: bytes(files.get(number, b"")) for path, number in names.items()}

    def device_after(self, way: str, dice: Random) -> dict[int, bytes]:
        blocks = dict(self.blocks)
        for offset, data in survivors(self.unflushed, way, dice):
            put(blocks, offset, data)
        return blocks


def survivors(writes: list[Write], way: str, dice: Random) -> Iterator[Write]:
    if way == "dropped":
        return
    keep = dice.choice([0.1, 0.5, 0.9])
    for number, (offset, data) in enumerate(writes):
        if way == "kept" or (way == "torn" and number < len(writes) - 1):
            yield offset, data
        elif way == "torn":
            yield offset, data[: len(data) // 2 // SECTOR * SECTOR or min(len(data), SECTOR - offset % SECTOR)]
        else:
            for start in range(offset // SECTOR * SECTOR, offset + len(data), SECTOR):
                low, high = max(start, offset), min(start + SECTOR, offset + len(data))
                if dice.random() < keep:
                    yield low, data[low - offset : high - offset]


def lay(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def rename(names: dict[str, int | str], change: tuple[Any, ...]) -> None:
    if change[0] == "create":
        names[change[1]] = change[2]
    elif change[0] == "rename":
        names[change[2]] = names.pop(change[1])
    else:
        names.pop(change[1], None)
