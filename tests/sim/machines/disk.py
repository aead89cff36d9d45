"""A simulated disk for the journal (implements meta/disk.Disk).

A file has what is durable and, in order, the writes since the last sync; reads see both.  A power cut keeps of the writes that were not
synced any subset of their 512-byte sectors: so they are lost, kept in part, torn and reordered.  Names (create, rename, unlink) are
durable in order up to some point of those since the last sync of the directory, as a journaling file system does it.  A process that dies
loses nothing: its page cache goes on.

A sync is the only guarantee, and it can fail, be slow, or be the moment of a crash: `budget` counts calls down to a power cut in the
middle of whatever the production code is doing.  Bit flips hit what is durable.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from random import Random

SECTOR = 512


class PowerCut(BaseException):
    """The machine dies in this very call.  No production code may catch it."""


class _File:
    __slots__ = ("dirty", "durable", "now")

    def __init__(self) -> None:
        self.durable = bytearray()
        self.now = bytearray()
        self.dirty: list[tuple[int, bytes]] = []  # writes since the last sync

    def write(self, offset: int, data: bytes) -> None:
        _put(self.now, offset, data)
        self.dirty.append((offset, data))

    def sync(self) -> None:
        for offset, data in self.dirty:
            _put(self.durable, offset, data)
        self.dirty.clear()

    def cut(self, dice: Random, keep: float) -> None:
        for offset, data in self.dirty:
            end = offset + len(data)
            if len(data) > 64 * SECTOR and not any(data):  # a spare being zeroed
                if dice.random() < keep:
                    _put(self.durable, offset, data)
                continue
            start = offset
            while start < end:
                stop = min((start // SECTOR + 1) * SECTOR, end)
                if dice.random() < keep:
                    _put(self.durable, start, data[start - offset : stop - offset])
                start = stop
        self.dirty.clear()
        self.now = bytearray(self.durable)


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class SimDisk:
    def __init__(self, dice: Random, spend: Callable[[int], None]) -> None:
        self._dice = dice
        self._spend = spend  # called with the nanoseconds that a call takes
        self._files: dict[str, _File] = {}  # by name, as programs see it
        self._durable: dict[str, _File] = {}
        self._renamings: list[Callable[[dict[str, _File]], None]] = []  # since the last sync of the directory
        self._handles: dict[int, _File] = {}
        self._next_handle = 100
        self.budget = -1  # calls until the power cut; -1: none
        self.full = False
        self.fail_sync = 0  # so many syncs fail
        self.sync_ns = 100_000
        self.write_ns = 5_000
        self.syncs = 0

    def step(self, name: str) -> None:
        if self.budget >= 0:
            self.budget -= 1
            if self.budget < 0:
                raise PowerCut(name)

    # --- Disk --------------------------------------------------------------------------------------------------------------
    def open(self, path: str, flags: int) -> int:
        self.step("open")
        file = self._files.get(path)
        if file is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            if self.full:
                raise OSError(errno.ENOSPC, "the disk is full")
            file = _File()
            self._rename(lambda names, made=file: names.__setitem__(path, made))
        elif flags & os.O_TRUNC:
            file.now.clear()
            file.durable.clear()
            file.dirty.clear()
        self._next_handle += 1
        self._handles[self._next_handle] = file
        return self._next_handle

    def close(self, fd: int) -> None:
        del self._handles[fd]

    def size(self, fd: int) -> int:
        return len(self._handles[fd].now)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._handles[fd].now[offset : offset + length])

    def pwrite(self, fd: int, data, offset: int) -> None:
        self.step("pwrite")
        file = self._handles[fd]
        raw = bytes(data)
        if self.full and offset + len(raw) > len(file.now):
            raise OSError(errno.ENOSPC, "the disk is full")
        file.write(offset, raw)
        self._spend(self.write_ns)
        self.step("pwritten")

    def fdatasync(self, fd: int) -> None:
        self.step("fdatasync")
        if self.fail_sync:
            self.fail_sync -= 1
            raise OSError(errno.EIO, "the disk does not answer")
        self._spend(int(self.sync_ns * (0.5 + self._dice.random())))
        self._handles[fd].sync()
        self.syncs += 1
        self.step("synced")

    def sync_directory(self, path: str) -> None:
        self.step("sync_directory")
        self._durable = dict(self._files)
        self._renamings.clear()
        self.step("directory synced")

    def rename(self, old: str, new: str) -> None:
        self.step("rename")
        file = self._files[old]

        def change(names: dict[str, _File]) -> None:
            names.pop(old, None)
            names[new] = file

        self._rename(change)
        self.step("renamed")

    def unlink(self, path: str) -> None:
        self.step("unlink")
        if path not in self._files:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        self._rename(lambda names: names.pop(path, None))
        self.step("unlinked")

    def names(self, directory: str) -> list[str]:
        prefix = directory.rstrip("/") + "/"
        return [path[len(prefix) :] for path in self._files if path.startswith(prefix) and "/" not in path[len(prefix) :]]

    def lock(self, directory: str) -> int:
        """The nodes are one process: nothing to keep out."""
        self._next_handle += 1
        self._handles[self._next_handle] = _File()
        return self._next_handle

    def beside(self, work: Callable[[], None]) -> Callable[[], None]:
        """Done before the caller goes on."""
        work()
        return lambda: None

    def _rename(self, change: Callable[[dict[str, _File]], None]) -> None:
        change(self._files)
        self._renamings.append(change)

    # --- faults ------------------------------------------------------------------------------------------------------------
    def process_died(self) -> None:
        self._handles.clear()
        self.budget = -1

    def power_cut(self) -> None:
        """What was not synced is there in any part."""
        self._handles.clear()
        self.budget = -1
        kept = self._dice.randrange(len(self._renamings) + 1)
        for change in self._renamings[:kept]:
            change(self._durable)
        self._renamings.clear()
        self._files = dict(self._durable)
        keep = self._dice.choice([0.0, 0.3, 0.7, 0.95, 1.0])
        for path in sorted(self._files):
            self._files[path].cut(self._dice, keep)

    def wipe(self) -> None:
        self._files.clear()
        self._durable.clear()
        self._renamings.clear()

    def unsynced(self, suffix: str) -> list[str]:
        """Files with writes that a power cut may take."""
        return [path for path, file in sorted(self._files.items()) if path.endswith(suffix) and file.dirty]

    def used_bytes(self, path: str) -> int:
        return len(bytes(self._files[path].durable).rstrip(b"\0"))

    def paths(self) -> list[str]:
        return sorted(self._files)

    def flip(self, path: str, offset: int) -> None:
        """One bit of what is durable."""
        file = self._files[path]
        bit = 1 << self._dice.randrange(8)
        file.durable[offset] ^= bit
        file.now[offset] ^= bit
