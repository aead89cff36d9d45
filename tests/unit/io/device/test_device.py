"""Devices and signatures over plain files and, where root may make them, loop devices."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.errors import NotFound, Refused, WouldLoseData
from awsomefsd.base.limits import KIB, MIB
from awsomefsd.base.types import SEGMENT_LEASED, SegmentInfo
from awsomefsd.io.device import device as device_module
from awsomefsd.io.device import signature
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.device import Device, rest_of
from awsomefsd.io.device.signature import AlreadyFormatted, describe_tags, foreign_signature, format_device
from awsomefsd.io.device.superblock import DEVICE_BYTES_MIN, read_superblock, second_copy_offset
from awsomefsd.io.segment.checksum_cache import ChecksumCache
from awsomefsd.io.segment.reader import SegmentReader
from awsomefsd.io.segment.writer import Piece, SegmentWriter

CLUSTER = "11111111-2222-3333-4444-555555555555"
OTHER_CLUSTER = "99999999-2222-3333-4444-555555555555"
SIZE = DEVICE_BYTES_MIN  # of sparse files


def make_file(path: Path, size: int = SIZE) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def edges(path: Path) -> bytes:
    with path.open("rb") as file:
        first = file.read(2 * MIB)
        file.seek(-2 * MIB, os.SEEK_END)
        return first + file.read()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_file(tmp_path / "image")


@pytest.fixture
def loop(image: Path) -> Iterator[str]:
    """A loop device over a sparse file; detached whatever happens."""
    if os.geteuid() != 0 or shutil.which("losetup") is None or not os.path.exists("/dev/loop-control"):
        pytest.skip("needs root, losetup and the loop driver")
    made = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device can be made: {made.stderr.strip()}")
    name = made.stdout.strip()
    try:
        yield name
    finally:
        subprocess.run(["losetup", "-d", name], check=True)


# --- device -----------------------------------------------------------------------------------------------------------------------


def round_trip(path: str | Path) -> None:
    with Device.open(path) as device:
        assert device.bytes == SIZE
        head, body, back = aligned_buffer(4 * KIB), aligned_buffer(64 * KIB), aligned_buffer(68 * KIB)
        head[:5], body[-5:] = b"hello", b"world"
        device.pwritev([head, body], 8 * KIB)
        device.flush()
        assert device.pread_into(back, 8 * KIB) == len(back)
        assert back == bytes(head) + bytes(body)
        assert device.preadv([head, body], SIZE - 8 * KIB) == 8 * KIB, "short at the end"
        assert device.pread_into(head, SIZE) == 0
        with pytest.raises(OSError):
            device.pwritev([head], -4096)


def test_a_file_is_a_device(image: Path) -> None:
    round_trip(image)


def test_a_block_device(loop: str) -> None:
    round_trip(loop)
    with Device.open(loop) as device:
        assert device.is_block_device and device.direct and device.logical_block_bytes <= device.physical_block_bytes


def test_a_device_with_physical_blocks_larger_than_a_flush_is_padded_to_is_not_added(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = device_module._measure
    monkeypatch.setattr(device_module, "_measure", lambda fd, block: (*real(fd, block)[:2], 128 * KIB))
    with pytest.raises(Refused, match="physical blocks of 131072 bytes"):
        format_device(loop, CLUSTER, force=True)


def test_without_direct_io_it_says_so(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def as_old_tmpfs(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument", path)
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", as_old_tmpfs)
    with Device.open(image) as device:
        assert not device.direct
    round_trip(image)


def test_what_cannot_be_a_device(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Device.open(tmp_path / "absent")
    with pytest.raises(Refused, match="neither"):
        Device.open(tmp_path)
    with pytest.raises(Refused, match="neither"):
        Device.open("/dev/null")


def test_many_buffers_in_one_call(image: Path) -> None:
    with Device.open(image) as device:
        buffers = [aligned_buffer(4 * KIB) for _ in range(1_500)]
        for index, buffer in enumerate(buffers):
            buffer[:4] = index.to_bytes(4, "little")
        device.pwritev(buffers, 0)
        back = aligned_buffer(1_500 * 4 * KIB)
        assert device.pread_into(back, 0) == len(back)
        assert [int.from_bytes(back[at : at + 4], "little") for at in range(0, len(back), 4 * KIB)] == list(range(1_500))


def test_rest_of_buffers() -> None:
    parts = [memoryview(b"abc"), memoryview(b"de"), memoryview(b"f")]
    for done in range(7):
        assert b"".join(rest_of(parts, done)) == b"abcdef"[done:]


# --- whose is it ------------------------------------------------------------------------------------------------------------------


def test_format_then_again_then_by_another_cluster(image: Path) -> None:
    made = format_device(str(image), CLUSTER)
    with Device.open(image) as device:
        assert read_superblock(device, CLUSTER) == made
    with pytest.raises(AlreadyFormatted) as caught:
        format_device(str(image), CLUSTER, force=True)
    assert caught.value.superblock == made
    with pytest.raises(WouldLoseData, match=r"another cluster.*--force"):
        format_device(str(image), OTHER_CLUSTER)
    taken = format_device(str(image), OTHER_CLUSTER, force=True)
    assert taken.cluster_uuid == OTHER_CLUSTER and taken.device_uuid != made.device_uuid


def test_a_damaged_superblock_of_ours_is_not_taken_for_an_empty_device(image: Path) -> None:
    format_device(str(image), CLUSTER)
    with image.open("r+b") as file:
        for offset in (100, second_copy_offset(SIZE) + 100):
            file.seek(offset)
            file.write(b"rot")
    with pytest.raises(Refused, match="cannot be used"):
        format_device(str(image), CLUSTER)
    format_device(str(image), CLUSTER, force=True)


def test_formatting_wipes_both_ends_and_nothing_else(image: Path) -> None:
    places = {64 * KIB: True, MIB - 512: True, 2 * MIB: False, SIZE - 2 * MIB: False, SIZE - MIB + 8 * KIB: True, SIZE - 512: True}
    with image.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(b"_BHRfS_M")
    format_device(str(image), CLUSTER, force=True)
    with image.open("rb") as file:
        for place, wiped in places.items():
            file.seek(place)
            assert (file.read(8) == bytes(8)) == wiped, place


def test_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="at least"):
        format_device(str(make_file(tmp_path / "small", DEVICE_BYTES_MIN - MIB)), CLUSTER)
    with pytest.raises(NotFound):
        format_device(str(tmp_path / "absent"), CLUSTER)


@pytest.mark.parametrize(
    ("tool", "named"),
    [
        (["mkfs.ext4", "-q", "-F"], "ext4"),
        (["mkswap"], "swap"),
        (["sfdisk", "--label", "gpt"], "gpt"),
        (["mkfs.xfs", "-q"], "xfs"),
        (["mkfs.vfat"], "vfat"),
    ],
)
def test_foreign_signatures_are_named_and_refused(image: Path, tool: list[str], named: str) -> None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    program = shutil.which(tool[0], path=path)
    if program is None:
        pytest.skip(f"{tool[0]} is not installed")
    if shutil.which("blkid", path=path) is None:
        pytest.skip("blkid is not installed")
    made = subprocess.run([program, *tool[1:], str(image)], input="2048,,\n", capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"{tool[0]} makes nothing of {SIZE // MIB} MiB: {made.stderr.strip()[-100:]}")
    assert named in foreign_signature(str(image))
    before = edges(image)
    with pytest.raises(WouldLoseData, match=f"{named}.*--force"):
        format_device(str(image), CLUSTER)
    assert edges(image) == before, "a refused device is not touched"
    format_device(str(image), CLUSTER, force=True)
    assert foreign_signature(str(image)) == "", "no old signature is found beside ours"


def test_a_partition_table_is_refused(image: Path) -> None:
    if shutil.which("blkid", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
        pytest.skip("blkid is not installed")
    entry = bytes((0, 0, 2, 0, 0x83, 0, 0, 0)) + (2048).to_bytes(4, "little") + (4096).to_bytes(4, "little")
    with image.open("r+b") as file:
        file.seek(446)
        file.write(entry.ljust(64, b"\0") + b"\x55\xaa")
    with pytest.raises(Refused, match=r"partition table dos.*--force"):
        format_device(str(image), CLUSTER)


def test_without_blkid_only_zeros_are_taken(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature.shutil, "which", lambda *_args, **_kwargs: None)
    assert foreign_signature(str(image)) == ""
    for at in (MIB - 1, SIZE - 1):
        with image.open("r+b") as file:
            file.seek(at)
            file.write(b"x")
        with pytest.raises(Refused, match=r"blkid .*not installed"):
            format_device(str(image), CLUSTER)
        with image.open("r+b") as file:
            file.seek(at)
            file.write(b"\0")
    format_device(str(image), CLUSTER)


def test_words_for_tags() -> None:
    assert describe_tags({"TYPE": "ext4", "USAGE": "filesystem", "LABEL": "home"}) == "filesystem signature ext4, label home"
    assert describe_tags({"PTTYPE": "dos"}) == "partition table dos"
    assert describe_tags({"DEVNAME": "/dev/x", "STRANGE": "1"}) == "a signature (STRANGE)"


def test_a_file_below_a_loop_device_is_in_use(loop: str, image: Path) -> None:
    with pytest.raises(Refused, match=f"backing file of {loop}"):
        format_device(str(image), CLUSTER, force=True)
    format_device(loop, CLUSTER)


def test_a_mounted_device_is_never_taken(loop: str, tmp_path: Path) -> None:
    if shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None:
        pytest.skip("mkfs.ext4 is not installed")
    subprocess.run(["mkfs.ext4", "-q", "-F", loop], check=True, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})
    where = tmp_path / "mnt"
    where.mkdir()
    if subprocess.run(["mount", loop, str(where)], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(Refused, match=f"in use: mounted at {where}"):
            format_device(loop, CLUSTER, force=True)
        with pytest.raises(Refused, match="in use"):
            Device.open(loop, exclusive=True)
    finally:
        subprocess.run(["umount", str(where)], check=True)


# --- all together ---------------------------------------------------------------------------------------------------------------------


def test_write_and_read_on_a_real_device(loop: str, seed: int) -> None:
    superblock = format_device(loop, CLUSTER)
    size = superblock.segment_bytes
    with Device.open(loop) as device:
        free = [
            SegmentInfo(n, 1, 7, superblock.first_segment_offset + n * size, size, SEGMENT_LEASED, 0) for n in range(superblock.segments)
        ]
        infos = {info.segment: info for info in free}
        writer = SegmentWriter({7: device}, lambda count: [free.pop(0) for _ in range(count)])
        reader = SegmentReader({7: device}, infos.__getitem__, ChecksumCache())
        for length in (1, 4 * KIB, 70_001, 3 * MIB + 17):
            data = aligned_buffer(length)
            data[:] = random.Random(seed).randbytes(length)
            [extents] = writer.write([Piece(1, 2, 0, [data])]).extents
            for extent in extents:
                into = aligned_buffer(extent.length)
                reader.read(extent, 1, 2, 0, extent.length, into)
                assert into == data[extent.file_offset : extent.file_offset + extent.length]
        writer.seal_all()
        assert read_superblock(device, CLUSTER) == superblock, "segments do not touch either copy"
