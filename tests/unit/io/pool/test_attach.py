"""Attaching a pool's device: a real file and the production machine; rolled back, copied, swapped, and crashed in between."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import FsError, Refused, Unavailable
from awsomefsd.base.limits import BLOCK_BYTES, MIB
from awsomefsd.base.types import DeviceInfo, Extent, Redundancy, SegmentInBays, SegmentProgress
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.identified import RecoveredDevice, WrongDevice
from awsomefsd.io.device.superblock import Superblock, read_superblock, with_era, write_superblock
from awsomefsd.io.pool import attach as module
from awsomefsd.io.pool import doubted_bays
from awsomefsd.io.pool.attach import RolledBack, attach, newest_bays
from awsomefsd.io.pool.device_bays import DeviceBays
from awsomefsd.io.pool.doubted_bays import DoubtedBays
from awsomefsd.io.pool.gate import Gate
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.queries import answer
from tests.rigs.bay_content import Content, content
from tests.rigs.machine_driver import SEGMENT_BYTES
from tests.rigs.pool_driver import HOST, PoolDrive

CLUSTER, UUID, OTHER = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
BAYS = 10
BYTES = (BAYS * SEGMENT_BYTES // MIB + 3) * MIB
DEVICE = 2  # the rig has one already


class Rig:
    """A cluster whose device 2, of node n2, is a file."""

    def __init__(self, folder: Path) -> None:
        self.drive = PoolDrive(hosts=1, bays=4, want=Redundancy(1, 1))
        self.path = folder / "disk"
        self.superblock = Superblock(CLUSTER, UUID, BYTES, SEGMENT_BYTES, BAYS, 5)
        with open(self.path, "wb") as file:
            file.truncate(BYTES)
        self.write(self.superblock)
        self.drive.ok(c.AddPoolDevice(UUID, BYTES, SEGMENT_BYTES, BAYS, MIB, "n2", 1, "ssd", 1), **HOST)
        self.info = DeviceInfo(DEVICE, UUID, BYTES, SEGMENT_BYTES, BAYS, BAYS, MIB, str(self.path), home="n2")
        self.proposed: list[c.AttachDevice] = []
        self.before: Callable[[], None] = lambda: None
        self.files = 0

    def write(self, superblock: Superblock) -> None:
        with Device.open(self.path) as device:
            write_superblock(device, superblock)

    def found(self) -> Superblock:
        with Device.open(self.path, read_only=True) as device:
            return read_superblock(device)

    def ask(self, body: Any) -> Any:
        reply = answer(self.drive.machine, body)
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        return reply

    def propose(self, command: c.AttachDevice) -> Any:
        self.before()
        self.proposed.append(command)
        reply = self.drive.apply(command, **HOST)
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        return reply

    def attach(self, node: str = "n2", cluster: str = CLUSTER, **changes: Any) -> tuple[Device, Superblock]:
        return attach(str(self.path), cluster, replace(self.info, **changes), node, self.ask, self.propose)

    def once(self) -> Superblock:
        device, superblock = self.attach()
        device.close()
        return superblock

    def refused(self, kind: type[Exception], words: str | None = None, **options: Any) -> None:
        """An attempt that changes nothing on the medium, and leaves the device unlocked."""
        before = self.path.read_bytes()
        with pytest.raises(kind, match=words):
            self.attach(**options)
        assert self.path.read_bytes() == before
        with Device.open(self.path) as device:
            device.lock()

    def store(self, *, sealed: bool, footer: bool = True, seed: int = 1) -> tuple[SegmentInBays, Content]:
        """A segment with a living file on device 2, as its writer leaves it."""
        if not self.drive.session:
            self.drive.open()
        (segment,) = self.drive.lease_bays([DEVICE])
        made = content(segment.segment, seed, SEGMENT_BYTES, footer=sealed and footer, incarnation=segment.incarnation)
        (bay,) = segment.bays
        self.put(bay.index, made.raw)
        self.files += 1
        ino = self.drive.create(b"file-%d" % self.files)
        offset, header, stored = made.frames[0]
        extent = Extent(0, stored, segment.segment, segment.incarnation, 1, offset, header, 0)
        ends = (made.extent.footer, made.extent.end - made.extent.footer) if made.extent.footer else (0, 0)
        step = SegmentProgress(
            segment.segment, segment.incarnation, made.extent.data_end, sealed, *ends, [(DEVICE, bay.index, made.extent.end)]
        )  # fmt: skip
        change = c.InodeCommit(ino, 1, 1, stored, 1_700_000_000_000_000_000, [extent])
        self.drive.ok(c.Commit(self.drive.volume, [change], 0, [step]))
        return segment, made

    def put(self, index: int, raw: bytes, offset: int = 0) -> None:
        with open(self.path, "r+b") as file:
            file.seek(MIB + index * SEGMENT_BYTES + offset)
            file.write(raw)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.path.unlink(missing_ok=True)


def test_each_attach_raises_the_generation_on_disk_before_the_log_has_it(rig: Rig) -> None:
    seen: list[int] = []
    rig.before = lambda: seen.append(rig.found().generation)
    assert [rig.once().generation for _ in range(3)] == [2, 3, 4]
    assert seen == [2, 3, 4] == [one.generation for one in rig.proposed]
    row = rig.drive.machine.state.device(DEVICE)
    assert (row.generation, row.server) == (4, "n2")


def test_a_device_is_served_by_one_process_at_a_time(rig: Rig) -> None:
    device, _ = rig.attach()
    with pytest.raises(Refused, match="in use"):
        rig.attach()
    device.close()
    assert rig.once().generation == 3


def test_a_copy_of_before_and_a_device_of_before_are_refused_unwritten(rig: Rig, tmp_path: Path) -> None:
    image = tmp_path / "image"
    shutil.copyfile(rig.path, image)
    rig.once()
    rig.once()
    shutil.copyfile(image, rig.path)
    rig.refused(RolledBack, "generation 1, and device 2 was attached with 3")


def test_a_crash_between_disk_and_log_is_gone_on_from(rig: Rig) -> None:
    def away() -> None:
        raise Unavailable("no quorum")

    rig.before = away
    for _ in range(3):
        with pytest.raises(Unavailable):
            rig.attach()
    assert rig.found().generation == 4 and rig.drive.machine.state.device(DEVICE).generation == 1
    rig.before = lambda: None
    assert rig.once().generation == 5


def test_nothing_is_written_to_what_is_another_device_cluster_or_era(rig: Rig) -> None:
    rig.refused(WrongDevice, uuid=OTHER)
    rig.refused(WrongDevice, cluster=OTHER)
    rig.refused(RecoveredDevice, era=5)
    rig.write(with_era(rig.superblock, 9))
    rig.refused(RecoveredDevice)
    rig.write(rig.superblock)
    rig.refused(FsError, "no device", device=1 << 20)


def test_another_node_than_its_home_does_not_get_it(rig: Rig) -> None:
    with pytest.raises(FsError, match="belongs to node n2"):
        rig.attach("n1")
    assert rig.drive.machine.state.device(DEVICE).server == ""
    assert rig.once().generation == 3


@pytest.mark.parametrize(("sealed", "footer"), [(False, False), (True, True), (True, False)])
def test_the_newest_bays_have_what_counts_in_them(rig: Rig, sealed: bool, footer: bool) -> None:
    rig.once()
    for seed in range(3):
        segment, made = rig.store(sealed=sealed, footer=footer, seed=seed)
    assert rig.once().generation == 3
    (bay,) = segment.bays
    offset, header, stored = made.frames[-1]
    place = made.extent.footer + 70 if made.extent.footer else offset + header + stored - 1
    for damage in (bytes([made.raw[place] ^ 1]), b"\0" * BLOCK_BYTES):
        at = place if len(damage) == 1 else place // BLOCK_BYTES * BLOCK_BYTES
        rig.put(bay.index, damage, at)
        rig.refused(RolledBack, f"bay {bay.index} of .* lacks what segment {segment.segment} had")
        rig.put(bay.index, made.raw)
    rig.put(bay.index, os.urandom(BLOCK_BYTES), len(made.raw))
    assert rig.once().generation == 4, "what lies behind the end does not count"


def test_a_rolled_back_device_of_the_right_generation_is_refused(rig: Rig, tmp_path: Path) -> None:
    """The generation alone does not tell it: nothing attached the device in between."""
    rig.once()
    rig.store(sealed=True, seed=1)
    image = tmp_path / "image"
    shutil.copyfile(rig.path, image)
    rig.store(sealed=False, seed=2)
    shutil.copyfile(image, rig.path)
    rig.refused(RolledBack, "restored from an image")


def test_of_many_bays_the_newest_are_looked_at(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_NEWEST_BAYS", 3)
    monkeypatch.setattr(module, "BAYS_PER_ANSWER_MAX", 2)
    rig.once()
    made = [rig.store(sealed=bool(number % 2), seed=number)[0] for number in range(7)]
    generation, newest = newest_bays(DEVICE, rig.ask)
    assert generation == 2 and [bay.segment for bay in newest] == [segment.segment for segment in reversed(made[-3:])]
    rig.put(made[0].bays[0].index, bytes(SEGMENT_BYTES))
    assert rig.once().generation == 3, "the scrub's, not ours"
    rig.put(made[-1].bays[0].index, bytes(SEGMENT_BYTES))
    rig.refused(RolledBack)


def test_a_bay_that_is_freed_meanwhile_is_passed_over(rig: Rig) -> None:
    rig.once()
    segment, _ = rig.store(sealed=True)
    rig.put(segment.bays[0].index, bytes(SEGMENT_BYTES))
    asked = rig.ask

    def ask(body: Any) -> Any:
        if isinstance(body, m.GetSegments):
            raise FsError(2, "no such segment")
        return asked(body)

    device, _ = attach(str(rig.path), CLUSTER, rig.info, "n2", ask, rig.propose)
    device.close()


def test_a_device_that_cannot_be_read_is_no_rolled_back_one(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.once()
    rig.store(sealed=True)

    def fails(self: Device, buffer: memoryview, offset: int) -> int:
        if offset >= MIB and offset < BYTES - 2 * MIB:
            raise OSError(5, "the disk says no")
        return self.preadv([buffer], offset)

    monkeypatch.setattr(Device, "pread_into", fails)
    rig.refused(OSError, "disk says no")


# --- after a recovery of the cluster ---------------------------------------------------------------------------------------
def looked(rig: Rig) -> tuple[list[tuple[int, int]], int]:
    """What the server of the device says of its doubted bays; and in how many steps."""
    said: list[tuple[int, int]] = []
    device, found = rig.attach()
    gate, changed = Gate(), threading.Condition()
    bays = DeviceBays(DEVICE, device, MIB, SEGMENT_BYTES, BAYS, gate, changed)

    def propose(command: c.BaysSeen) -> Any:
        said.extend(command.wrong)
        return rig.propose(command)  # type: ignore[arg-type]

    doubted, steps = DoubtedBays(bays, "n2", found.generation, rig.ask, propose), 1
    while doubted.look():
        steps += 1
    assert not rig.ask(m.GetBays(DEVICE, 0, 1)).doubted and not doubted.look()
    device.close()
    return said, steps


@pytest.mark.parametrize("footer", [False, True])
def test_a_device_that_is_newer_than_the_state_is_attached_and_its_bays_are_looked_at(
    rig: Rig, footer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first bay was given to another segment since, the second was begun to be written, the third discarded; the rest is as it was."""
    monkeypatch.setattr(doubted_bays, "LOOKED_AT_ONCE", 2)
    rig.once()
    stored = [rig.store(sealed=True, footer=footer, seed=number) for number in range(6)]
    other = content(900, 9, SEGMENT_BYTES, footer=footer, incarnation=900)
    index = [segment.bays[0].index for segment, _ in stored]
    rig.put(index[0], other.raw)
    rig.put(index[1], other.raw[: other.frames[1][0]])
    rig.put(index[2], bytes(SEGMENT_BYTES))
    rig.put(index[3], b"x", (stored[3][1].extent.footer or stored[3][1].extent.end - BLOCK_BYTES) + 40)
    rig.refused(RolledBack)
    rig.drive.ok(c.Recover(0, "nobody"), **HOST)
    said, steps = looked(rig)
    assert sorted(said) == sorted((index[number], stored[number][0].segment) for number in range(4)) and steps == 3
    rig.drive.attach(1)
    assert not rig.ask(m.GetBays(1, 0, 1)).doubted, "nothing was ever there"


def test_of_a_device_that_is_given_up_meanwhile_nothing_is_said(rig: Rig) -> None:
    rig.once()
    rig.store(sealed=True)
    rig.drive.ok(c.Recover(0, "nobody"), **HOST)
    device, found = rig.attach()
    bays = DeviceBays(DEVICE, device, MIB, SEGMENT_BYTES, BAYS, Gate(), threading.Condition())
    bays.start()
    bays.stop()
    assert not DoubtedBays(bays, "n2", found.generation, rig.ask, rig.propose).look()
    assert rig.ask(m.GetBays(DEVICE, 0, 1)).doubted
    assert not DoubtedBays(bays, "n2", found.generation - 1, rig.ask, rig.propose).look(), "it was attached again"
    device.close()
