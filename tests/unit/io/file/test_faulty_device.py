"""A mount over a device that fails, forgets what it did not flush, and stops: no acknowledged byte is lost, and no request hangs.

Files are cells of one length, each written whole with a version.  A cell shows the newest version while the machine runs, and after a power
cut one that is not older than the newest acknowledged one.  In each phase some threads write and sync while the device has a fault of one
kind; then the device is well again, and the worker, the mount or the machine ends.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from random import Random
from types import GeneratorType

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import BLOCK_BYTES
from awsomefsd.base.wait import Steps
from awsomefsd.vfs.api.context import Context
from tests.rigs.mount_without_kernel import LIMIT_S, MIB, Rig, finish, rig, shared_memory, until

CELL_BYTES, CELLS = 3_000, 500
FILES, PHASES, PHASE_S = 3, 4, 0.8
READ_BYTES = MIB
TOLD = frozenset({errno.EIO, errno.ENOSPC, errno.ETIMEDOUT})  # to who syncs, while the device fails


class FaultyRig(Rig):
    """A rig that several threads ask, and whose machine can lose power; the metadata keeps all of it."""

    _numbers = threading.Lock()

    def hold_lease_clock(self) -> None:
        """It goes: what is freed is leased again when the session was renewed."""

    def ctx(self, unique: int | None = None, uid: int = 0, open_flags: int = 0) -> Context:
        with self._numbers:
            return super().ctx(unique, uid, open_flags)

    def read(self, ino: int, fh: int, offset: int, size: int) -> bytes:
        """The bytes as they are where the read ends: its buffer is the thread's, which reads for others then."""
        ctx = self.ctx()
        found = self.request("read", ctx, ino, fh, offset, size)

        def steps() -> Steps:
            parts = (yield from found) if isinstance(found, GeneratorType) else found
            return b"".join(bytes(part) for part in parts)

        whole: bytes = finish(steps())
        self.vfs.replied(ctx.unique)
        return whole

    def cut_power(self, dice: Random) -> None:
        self.kill()
        after = self.device.crash(lambda _block: dice.random() < 0.5)
        self.device.content[:] = after.content
        self.device.durable.clear()
        for fd in self.fds.values():
            os.close(fd)
        self.fds, self.workers = shared_memory(), 0
        self.boot_id, self.mount_id = f"{self.boot_id}+", self.mount_id + 1
        self.start()


class LeasedRig(FaultyRig):
    shared = caches = True


class ThroughRig(FaultyRig):
    shared = True


class Fault:
    """What the device does wrong, now and then."""

    def __init__(self, made: Rig, dice: Random) -> None:
        self.device, self.dice = made.device, dice
        self.number = dice.choice([errno.EIO, errno.ETIMEDOUT, errno.ENOSPC])
        self.share = dice.choice([0.05, 0.4, 1.0])
        self.over = threading.Event()
        kind = dice.choice(["write", "flush", "hang", "both"])
        self.name = f"{kind} {errno.errorcode[self.number]} {self.share}"
        if kind in ("write", "both"):
            self.device.on_write = lambda *_: self._fail()
        if kind in ("flush", "both"):
            self.device.on_flush = self._fail_to_flush
        if kind == "hang":
            self.device.on_flush = self._stop

    def _fail(self) -> None:
        if not self.over.is_set() and self.dice.random() < self.share:
            raise OSError(self.number, "the device says no")

    def _fail_to_flush(self) -> None:
        try:
            self._fail()
        except OSError:  # what was in its cache may be gone, and no later flush says so
            for block, old in list(self.device.durable.items()):
                if self.dice.random() < 0.5:
                    self.device.content[block * BLOCK_BYTES : block * BLOCK_BYTES + len(old)] = old
                    del self.device.durable[block]
            raise

    def _stop(self) -> None:
        if self.dice.random() < self.share:
            self.over.wait(self.dice.choice([0.05, LIMIT_S]))

    def end(self) -> None:
        self.over.set()
        self.device.on_write, self.device.on_flush = (lambda *_: None), (lambda: None)


class File:
    """One file, which one thread writes and any thread syncs."""

    def __init__(self, made: Rig, name: bytes) -> None:
        self.rig, self.name = made, name
        self.ino, self.fh = made.create(name)
        self.newest, self.kept = [0] * CELLS, [0] * CELLS
        self._cuts = 0
        self._lock = threading.Lock()

    def cell(self, at: int, version: int) -> bytes:
        return (b"%s.%d.%d|" % (self.name, at, version) * CELL_BYTES)[:CELL_BYTES] if version else bytes(CELL_BYTES)

    def write(self, first: int, count: int, *, synced: bool = False) -> None:
        versions = [version + 1 for version in self.newest[first : first + count]]
        data = b"".join(self.cell(first + at, version) for at, version in enumerate(versions))
        try:
            self.rig.write(self.ino, self.fh, first * CELL_BYTES, data)
        except FsError as err:
            if err.errno not in TOLD or not self.rig.shared or self.rig.caches:  # one that is buffered waits until it can be
                raise
            found = self.read(first, count)
            if found == self._bytes(first, count):
                return
            if found != data:
                raise
        with self._lock:
            self.newest[first : first + count] = versions
            if self.rig.shared and not self.rig.caches:
                self.kept[first : first + count] = versions
        if synced:
            self.sync()

    def sync(self) -> bool:
        with self._lock:
            wanted, cuts = list(self.newest), self._cuts
        try:
            self.rig.fsync(self.ino, self.fh)
        except FsError as err:
            if err.errno not in TOLD:
                raise
            return False
        with self._lock:
            if cuts == self._cuts:
                self.kept = [max(pair) for pair in zip(self.kept, wanted, strict=True)]
        return True

    def cut(self) -> None:
        try:
            self.rig.truncate(self.ino, 0, self.fh)
        except FsError as err:
            if err.errno not in TOLD:
                raise
            return
        with self._lock:
            self.newest, self.kept, self._cuts = [0] * CELLS, [0] * CELLS, self._cuts + 1

    def _bytes(self, first: int, count: int) -> bytes:
        return b"".join(self.cell(at, self.newest[at]) for at in range(first, first + count))

    def read(self, first: int, count: int) -> bytes:
        found, end = b"", (first + count) * CELL_BYTES
        for offset in range(first * CELL_BYTES, end, READ_BYTES):
            found += self.rig.read(self.ino, self.fh, offset, min(READ_BYTES, end - offset))
        return found.ljust(count * CELL_BYTES, b"\0")

    def check(self, first: int, count: int) -> None:
        found = self.read(first, count)
        for at in range(count):
            cell = found[at * CELL_BYTES : (at + 1) * CELL_BYTES]
            want = self.cell(first + at, self.newest[first + at])
            assert cell == want, f"{self.name!r} cell {first + at}: {cell[:20]!r} for {want[:20]!r}, {self.kept[first + at]} is kept"

    def reopen(self) -> None:
        self.fh = self.rig.open(self.ino)

    def found_after_cut(self) -> None:
        """A power cut: what is there now is the newest."""
        self.reopen()
        found = self.read(0, CELLS)
        for at in range(CELLS):
            cell = found[at * CELL_BYTES : (at + 1) * CELL_BYTES]
            versions = [version for version in range(self.kept[at], self.newest[at] + 1) if cell == self.cell(at, version)]
            assert versions, f"{self.name!r} cell {at}: {cell[:20]!r}, {self.kept[at]} is kept, {self.newest[at]} the newest"
            self.newest[at] = self.kept[at] = versions[0]


def _work(file: File, others: list[File], dice: Random, over: threading.Event) -> None:
    while not over.is_set():
        count = dice.choice([1, 1, 7, 60, 300])
        first = dice.randrange(CELLS - count + 1)
        match dice.randrange(12):
            case 0 | 1 | 2 | 3 | 4:
                file.write(first, count)
            case 5 | 6:
                file.write(first, count, synced=True)
            case 7 | 8:
                file.sync()
            case 9:
                dice.choice(others).sync()
            case 10:
                file.check(first, count)
            case _:
                if dice.random() < 0.3:
                    file.cut()


def _phase(files: list[File], dice: Random) -> None:
    """Work while the device has a fault; all of it ends when the device is well."""
    over, failed = threading.Event(), list[BaseException]()

    def work(file: File, own: Random) -> None:
        try:
            _work(file, files, own, over)
        except BaseException as err:
            failed.append(err)
            over.set()

    threads = [threading.Thread(target=work, args=(file, Random(dice.random()))) for file in files]
    for thread in threads:
        thread.start()
    fault = Fault(files[0].rig, Random(dice.random()))
    over.wait(PHASE_S)
    over.set()
    fault.end()
    for thread in threads:
        thread.join(LIMIT_S)
    assert not failed, (fault.name, failed)
    assert not any(thread.is_alive() for thread in threads), f"{fault.name}: a request does not end"


def _ending(made: FaultyRig, files: list[File], dice: Random) -> str:
    """The worker, the mount, the machine or nobody ends; what files hold then."""
    how = dice.choice(["stays", "killed", "unmounted", "power"])
    if how == "power":
        made.cut_power(dice)
        for file in files:
            file.found_after_cut()
        return how
    if how == "killed":
        made.restart()
    elif how == "unmounted":
        made.remount()
    for file in files:
        if how == "unmounted":
            file.reopen()
            file.kept = list(file.newest)
        file.check(0, CELLS)
        until(file.sync)
        file.check(0, CELLS)
    return how


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("kind", [FaultyRig, LeasedRig, ThroughRig])
def test_a_device_that_fails_loses_nothing_that_was_acknowledged(tmp_path: Path, kind: type[FaultyRig], seed: int) -> None:
    dice = Random(seed)
    with rig(tmp_path, kind, segments=150) as made:
        files = [File(made, b"f%d" % number) for number in range(FILES)]
        done: list[str] = []
        for _ in range(PHASES):
            try:
                _phase(files, dice)
                done.append(_ending(made, files, dice))  # type: ignore[arg-type]
            except BaseException as err:
                err.add_note(f"after {done}")
                raise
