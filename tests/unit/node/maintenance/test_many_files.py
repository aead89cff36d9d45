"""A state of many files goes through a checkpoint and a recovery, and comes back row for row."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from awsomefsd.base.clock import HybridClock, wall_ns
from awsomefsd.base.limits import MIB
from awsomefsd.base.rule_levels import ERAS
from awsomefsd.base.types import HOST_UNIQUE, ROOT_INO
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.superblock import Superblock, write_superblock
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.checkpoint_progress import UNKNOWN, CheckpointProgress
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.replica.store import Store
from awsomefsd.meta.state import keys, rows
from awsomefsd.recovery import device_recover
from tests.rigs.metadata_service import CLUSTER, NODE, Host
from tests.unit.node.maintenance.test_checkpoints import SECOND, Rig

FILES_A_DIRECTORY = 1_000
BATCH = 500
TAIL = 20


def fill(directory: Path, files: int) -> None:
    """Creates the files by entries, as a service that is stopped now would have applied them."""
    replica = Replica.open_single(directory / "meta", CLUSTER, NODE, Machine)
    try:
        machine = replica.machine
        assert isinstance(machine, Machine)
        clock = HybridClock(machine.last_stamp, wall_ns)

        def done(commands: list[c.AnyCommand], session: int = 0, epoch: int = 0) -> list[m.Reply]:
            level, site = machine.level, machine.site
            replica.propose(
                [c.Entry(0, 0, level, 0, site, clock.now(), wall_ns(), HOST_UNIQUE, 0, session, epoch, [], one) for one in commands]
            )
            replies = [reply for _, reply in replica.ready()]
            assert not any(isinstance(reply, m.Failed) for reply in replies), replies
            return replies

        (opened,) = done([c.OpenSession(HOST_UNIQUE, 1, NODE, "boot", 1, False, True)])
        assert isinstance(opened, m.SessionOpened)
        for number in range(-(-files // FILES_A_DIRECTORY)):
            (parent,) = done([c.Create(1, ROOT_INO, b"d%d" % number, 0o040755, 0, 0, 0, b"")], opened.session, opened.epoch)
            ino = parent.attr.ino  # type: ignore[attr-defined]
            wanted = min(FILES_A_DIRECTORY, files - number * FILES_A_DIRECTORY)
            for first in range(0, wanted, BATCH):
                names = [b"file-%d-%d" % (number, at) for at in range(first, min(first + BATCH, wanted))]
                done([c.Create(1, ino, name, 0o100644, 1000, 1000, 0, b"") for name in names], opened.session, opened.epoch)
            if number % 20 == 19:
                replica.commit()
        replica.commit()
    finally:
        replica.close()


def compared(before: Path, after: Path) -> int:
    """Compares all rows of the volume but its own counters; returns the number of inodes."""
    stores = [Store.open(one / "meta" / "store", readonly=True) for one in (before, after)]
    try:
        inodes = 0
        left, right = (store.scan(*keys.volume_range(1)) for store in stores)
        for ours, theirs in zip(left, right, strict=True):
            assert ours == theirs
            inodes += keys.kind_of(ours[0])[2] == keys.INODE
        ours, theirs = (rows.VOLUME.loads(store.get(keys.volume(1))) for store in stores)
        assert (ours.used_inodes, ours.used_bytes) == (theirs.used_inodes, theirs.used_bytes)
        return inodes
    finally:
        for store in stores:
            store.close()


def there_and_back(tmp_path: Path, files: int, segments: int) -> dict[str, float]:
    """Returns how long each step took, in seconds, and how large the copy is, in MiB."""
    took, began = {}, time.monotonic()

    def lap(step: str) -> None:
        nonlocal began
        took[step], began = round(time.monotonic() - began, 1), time.monotonic()

    path = tmp_path / "device"
    with path.open("wb") as file:
        file.truncate((segments + 2) * MIB)
    with Device.open(path) as device:
        write_superblock(device, Superblock(CLUSTER, SECOND, device.bytes, MIB, segments, 1))
    on = Host(tmp_path, checkpoint_progress=CheckpointProgress(UNKNOWN))
    made, runs = Rig(on, path), True
    on.begin()
    try:
        made.propose(c.RaiseLevel(ERAS))
        made.propose(c.AddDevice(SECOND, (segments + 2) * MIB, MIB, segments, MIB))
        assert on.service is not None
        on.service.stop()
        runs = False
        fill(tmp_path, files)
        lap("fill")
        on.start()
        runs = True
        made.start()
        made.await_durable()
        for number in range(TAIL):
            made.propose(c.CreateVolume(f"tail-{number}", f"uuid-{number}"))
        made.await_durable()
        lap("checkpoint")
        took["copy MiB"] = round(made.made._bytes / MIB, 1) if made.made is not None else 0.0
        made.stop()
        on.service.stop()
        runs = False
        report = device_recover.recover(tmp_path / "new", [str(path)], "test", dry_run=False)
        lap("recover")
        assert (report.faults, report.done, report.checkpointed) == ([], True, True)
        assert compared(tmp_path, tmp_path / "new") == 1 + files + -(-files // FILES_A_DIRECTORY)
        lap("compare")
        return took
    finally:
        made.stop()
        if runs:
            on.crash()


@pytest.mark.timeout(1_200)
def test_twenty_thousand_files_come_back_from_the_device(tmp_path: Path) -> None:
    there_and_back(tmp_path, 20_000, 256)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_a_million_files_come_back_from_the_device(tmp_path: Path, figures: list[str]) -> None:
    took = there_and_back(tmp_path, 1_000_000, 8_192)
    figures.append("a million files: " + ", ".join(f"{step} {value}" for step, value in took.items()))
