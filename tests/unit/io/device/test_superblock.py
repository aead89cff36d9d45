"""Both copies of a superblock: which one counts, and devices that grow."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from awsomefsd.base.errors import Corrupt, FormatTooNew, NotFound, Refused
from awsomefsd.base.limits import BLOCK_BYTES, GIB, MIB, SEGMENT_BYTES_MIN, SEGMENTS_MIN
from awsomefsd.io.device import superblock
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.device.signature import format_device
from awsomefsd.io.device.superblock import grown, pack, read_superblock, second_copy_offset, wipe_superblock, write_superblock
from tests.unit.io.test_formats import CLUSTER, a_superblock

OTHER_CLUSTER = "99999999-2222-3333-4444-555555555555"


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


def test_geometry_keeps_enough_segments(rng: random.Random) -> None:
    assert superblock.geometry(1024 * GIB) == (64 * MIB, 1024 * 16 - 1)
    assert superblock.geometry(superblock.DEVICE_BYTES_MIN) == (SEGMENT_BYTES_MIN, SEGMENTS_MIN)
    with pytest.raises(Refused, match="at least"):
        superblock.geometry(superblock.DEVICE_BYTES_MIN - 1)
    for _ in range(2_000):
        size = superblock.DEVICE_BYTES_MIN + int(2 ** rng.uniform(0, 50))
        segment_bytes, segments = superblock.geometry(size)
        assert segment_bytes & (segment_bytes - 1) == 0 and SEGMENT_BYTES_MIN <= segment_bytes <= 64 * MIB
        assert segments >= SEGMENTS_MIN
        assert superblock.FIRST_SEGMENT_OFFSET + segments * segment_bytes <= superblock.second_copy_offset(size) <= size - MIB


def test_either_copy_serves_and_repair_mends_the_other() -> None:
    size = 64 * MIB
    made = a_superblock(size)
    for damaged in (0, superblock.second_copy_offset(size)):
        device = MemoryDevice(size)
        superblock.write_superblock(device, made)
        device.allow_rewrites()
        device.content[damaged + 100] ^= 1
        assert superblock.read_superblock(device, CLUSTER) == made
        assert len(device.writes) == 2
        superblock.read_superblock(device, CLUSTER, repair=True)
        assert superblock.unpack(device.content[damaged : damaged + BLOCK_BYTES]) == made


def test_newest_copy_wins_and_refusals() -> None:
    size = 64 * MIB
    device = MemoryDevice(size)
    with pytest.raises(NotFound):
        superblock.read_superblock(device)
    made = a_superblock(size)
    superblock.write_superblock(device, made)
    newer = superblock.grown(made, made.device_bytes)
    device.content[:BLOCK_BYTES] = superblock.pack(newer)
    assert superblock.read_superblock(device) == newer
    with pytest.raises(Refused, match="another cluster"):
        superblock.read_superblock(device, OTHER_CLUSTER)
    device.content[50] ^= 1
    device.content[superblock.second_copy_offset(size) + 50] ^= 1
    with pytest.raises(Corrupt):
        superblock.read_superblock(device)
    device.content[:BLOCK_BYTES] = superblock.pack(a_superblock(80 * MIB))
    with pytest.raises(Refused, match="fewer"):
        superblock.read_superblock(device)


def test_second_copy_of_a_grown_device_is_found() -> None:
    made = a_superblock(64 * MIB)
    device = MemoryDevice(80 * MIB)
    superblock.write_superblock(device, made)
    device.allow_rewrites()
    assert superblock.read_superblock(device, repair=True) == made
    assert len(device.writes) == 2, "nothing had to be repaired"


def image(path: Path, mib: int = 64, cluster: str = CLUSTER) -> str:
    """A formatted device; its uuid."""
    with path.open("wb") as file:
        file.truncate(mib * MIB)
    return format_device(str(path), cluster).device_uuid


@pytest.mark.parametrize("torn", [0, 1, 2])
def test_a_growth_may_stop_anywhere(tmp_path: Path, torn: int) -> None:
    """`torn`: how many of the two copies were written."""
    path = tmp_path / "device"
    image(path)
    os.truncate(path, 128 * MIB)
    with Device.open(path) as device:
        before = read_superblock(device)
        wanted = grown(before, device.bytes)
        assert wanted.segments > before.segments and wanted.segment_bytes == before.segment_bytes
        end = MIB + wanted.segments * wanted.segment_bytes
        assert end <= second_copy_offset(device.bytes)
        places = [second_copy_offset(device.bytes), 0][:torn]
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(pack(wanted))
    with Device.open(path) as device:
        assert read_superblock(device, CLUSTER) == (wanted if torn else before)
        again = grown(before, device.bytes)
        write_superblock(device, again)
        assert read_superblock(device, CLUSTER) == again
        wipe_superblock(device, again)
        with pytest.raises(NotFound):
            read_superblock(device)


def test_an_era_that_no_row_can_hold_is_refused() -> None:
    """It would win over the other copy, and nobody could take the device over."""
    device = MemoryDevice(64 * MIB)
    made = a_superblock(64 * MIB)
    superblock.write_superblock(device, made)
    device.content[:BLOCK_BYTES] = superblock.pack(superblock.with_era(made, 1 << 63))
    with pytest.raises(FormatTooNew, match="era 9223372036854775808"):
        superblock.read_superblock(device)
    device.content[:BLOCK_BYTES] = superblock.pack(superblock.with_era(made, superblock.ERA_MAX))
    assert superblock.read_superblock(device).era == superblock.ERA_MAX
