"""Devices of a worker: opened when first used, one by one, and each only after its superblock has said that it is the one."""

from __future__ import annotations

import ast
import errno
import gc
import hashlib
import os
import threading
import uuid
from pathlib import Path

import pytest
from msgspec.structs import replace

import awsomefsd
from awsomefsd.base.errors import NotFound, Refused, Unavailable
from awsomefsd.base.types import DeviceInfo, SegmentInfo
from awsomefsd.base.wait import MustWait, begin_reading_requests
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.identified import WrongDevice, open_identified
from awsomefsd.io.device.open_devices import DevicesForReads, OpenDevices
from awsomefsd.io.device.signature import format_device
from awsomefsd.io.device.superblock import Superblock, pack, write_superblock
from awsomefsd.io.segment.writer import Piece, SegmentWriter

MIB = 1 << 20
COPIES = [0, 63 * MIB]  # where an image has its superblocks
CLUSTER = "115109b7-70e3-407b-ad77-56fbd188106d"


def image(directory: Path, name: str, cluster: str = CLUSTER) -> tuple[Path, Superblock]:
    path = directory / name
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    return path, format_device(str(path), cluster, force=True)


def info(number: int, path: Path, s: Superblock) -> DeviceInfo:
    return DeviceInfo(number, s.device_uuid, s.device_bytes, s.segment_bytes, s.segments, s.segments, s.first_segment_offset, str(path))


def content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_device_added_later_is_found_and_one_that_is_not_there_is_a_key_error(tmp_path: Path) -> None:
    found = [info(1, *image(tmp_path, "one"))]
    devices = OpenDevices(lambda: found, CLUSTER)
    assert 1 in devices and 2 not in devices
    found.append(info(2, *image(tmp_path, "two")))
    assert devices[2].path.endswith("two") and sorted(devices) == [1, 2]
    with pytest.raises(KeyError):
        devices[3]


def test_a_thread_that_reads_requests_does_not_ask_for_a_device(tmp_path: Path) -> None:
    """With the service away all of them would stop at a device that this node does not see, and the mount with them."""
    one: DeviceInfo = info(1, *image(tmp_path, "one"))
    asked: list[str] = []
    met: list[object] = []

    def find() -> list[DeviceInfo]:
        asked.append(threading.current_thread().name)
        return [one]

    every = OpenDevices(find, CLUSTER)
    devices = DevicesForReads(every)

    def read() -> None:
        begin_reading_requests()
        with pytest.raises(MustWait):
            devices.get(2)
        assert not asked
        assert every.get(2) is None, "a thread that writes has let another one read the requests"
        met.append(devices.get(1))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert met == [every[1]] and list(devices) == [1] and len(devices) == 1


def test_a_device_of_a_pool_is_its_segment_servers_alone(tmp_path: Path) -> None:
    path, superblock = image(tmp_path, "one")
    with path.open("r+b") as file:
        file.write(bytes(4_096))  # one copy of the superblock, which nobody else may mend
    before = content(path)
    devices = OpenDevices(lambda: [replace(info(1, path, superblock), pool=1), info(2, *image(tmp_path, "two"))], CLUSTER)
    assert devices.get(1) is None and sorted(devices) == [2]
    assert content(path) == before


def test_a_device_that_cannot_be_opened_stops_no_other(tmp_path: Path) -> None:
    _, gone = image(tmp_path, "one")
    devices = OpenDevices(lambda: [info(1, tmp_path / "gone", gone), info(2, *image(tmp_path, "two"))], CLUSTER)
    assert devices.get(2) is not None
    assert devices.get(1) is None


def test_names_that_a_reboot_has_swapped_are_written_by_nobody(tmp_path: Path) -> None:
    """A write for device 1 is refused while its path leads to device 2, and works as soon as the table has the right path."""
    (one, first), (two, second) = image(tmp_path, "sdb"), image(tmp_path, "sdc")
    before = content(one), content(two)
    table = [info(1, two, first), info(2, one, second)]
    segment = SegmentInfo(1, 1, 1, first.first_segment_offset, first.segment_bytes, 1, 0, 0, 0, 0)
    piece = Piece(1, 2, 0, [memoryview(b"x" * 5_000)])

    def write(devices: OpenDevices) -> None:
        SegmentWriter(devices, lambda _: [segment]).write([piece])

    running = OpenDevices(lambda: table, CLUSTER)
    for devices in (running, OpenDevices(lambda: table, CLUSTER), OpenDevices(lambda: table, "")):  # a worker, and its successors
        with pytest.raises(Unavailable, match="which this node does not have"):
            write(devices)
        assert not list(devices), "neither is open"
    assert (content(one), content(two)) == before
    table[:] = [info(1, one, first), info(2, two, second)]
    write(running)
    assert content(one) != before[0] and content(two) == before[1]


def test_what_else_may_be_at_a_path(tmp_path: Path) -> None:
    path, ours = image(tmp_path, "ours")
    foreign, theirs = image(tmp_path, "theirs", str(uuid.uuid4()))
    blank = tmp_path / "blank"
    blank.write_bytes(bytes(64 * MIB))
    for place, wanted, words in (
        (blank, ours, "has no superblock"),
        (foreign, ours, "belongs to another cluster"),
        (foreign, theirs, "belongs to another cluster"),
        (path, theirs, f"is device {ours.device_uuid} now"),
    ):
        with pytest.raises(WrongDevice, match=words):
            open_identified(str(place), CLUSTER, wanted.device_uuid, 0)
    with pytest.raises(NotFound):
        open_identified(str(tmp_path / "nothing"), CLUSTER, ours.device_uuid, 0)
    open_identified(str(path), CLUSTER, ours.device_uuid, 0).close()


def test_a_device_that_a_newer_build_has_marked_is_read_and_not_written(tmp_path: Path) -> None:
    path, ours = image(tmp_path, "ours")
    with path.open("r+b") as file:
        for offset in COPIES:
            file.seek(offset)
            file.write(pack(replace(ours, ro_compat=1 << 9)))
    with open_identified(str(path), CLUSTER, ours.device_uuid, 0) as device:
        assert device.pread_into(memoryview(bytearray(0)), 0) == 0
        with pytest.raises(OSError) as refused:
            write_superblock(device, ours)
        with pytest.raises(Refused, match="newer build"):
            write_superblock(device, replace(ours, ro_compat=1 << 9))
    assert refused.value.errno == errno.EROFS and "newer build" in str(refused.value)


def is_open(path: Path) -> bool:
    return any(os.path.realpath(link) == str(path) for link in Path("/proc/self/fd").iterdir())


def test_a_disk_that_was_unplugged_is_closed_and_opened_anew_under_its_next_name(tmp_path: Path) -> None:
    """Its descriptor stays dead also when it is back; here the file that stands for it has no bytes any more."""
    (first, ours), second = image(tmp_path, "sdb"), tmp_path / "sdc"
    table = [info(1, first, ours)]
    devices = OpenDevices(lambda: table, CLUSTER)
    held = devices[1]
    buffer = aligned_buffer(4_096)
    assert held.pread_into(buffer, 0) == 4_096
    content_of_it = first.read_bytes()
    os.truncate(first, 0)
    for _ in range(2):
        with pytest.raises(OSError, match="short read"):
            held.pread_into(buffer, 0)
    assert 1 not in devices, "it is not there"
    assert is_open(first), "somebody still uses it"
    del held
    gc.collect()  # the errors above have frames that name it
    assert not is_open(first)
    second.write_bytes(content_of_it)
    table[:] = [info(1, second, ours)]
    assert devices[1].pread_into(buffer, 0) == 4_096
    assert devices[1].path == str(second)


def test_an_error_of_a_disk_that_is_there_changes_nothing(tmp_path: Path) -> None:
    path, ours = image(tmp_path, "sdb")
    devices = OpenDevices(lambda: [info(1, path, ours)], CLUSTER)
    held = devices[1]
    with pytest.raises(OSError, match="Invalid argument"):
        held.pread_into(aligned_buffer(4_096), -4_096)
    assert held.failed
    assert devices[1] is held
    assert not held.failed


OPEN_BY_PATH = {
    "io/device/identified.py": "it reads the superblock",
    "io/device/signature.py": "it looks for data of others, before the device has a superblock",
    "io/pool/attach.py": "it has locked the device, and compares its superblock with the log before it writes",
    "node/devices/device_scan.py": "it reads the superblock to find out what is there",
    "node/devices/operations.py": "it reads the superblock of a path that somebody gave, or shows it",
    "node/maintenance/checkpoints.py": "`device recover` and `meta restore` read the superblock of a path that somebody gave",
}


def test_nobody_else_opens_a_device_by_its_path_alone() -> None:
    root = Path(awsomefsd.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "open" and isinstance(node.value, ast.Name) and node.value.id == "Device":
                found.add(str(path.relative_to(root)))
    assert found == set(OPEN_BY_PATH)


# --- repair of a damaged superblock ------------------------------------------------------------------------------------------------
ROTTEN: dict[str, dict[int, int]] = {"a field": {60: 0xFF}, "the magic": {3: 0, 5: 7}, "the checksum": {4095: 1}}


def rot(path: Path, at: int, changes: dict[int, int]) -> None:
    with path.open("r+b") as file:
        for offset, change in changes.items():
            file.seek(at + offset)
            (old,) = file.read(1)
            file.seek(at + offset)
            file.write(bytes([old ^ (change or 0x55)]))


@pytest.mark.parametrize("at", COPIES)
@pytest.mark.parametrize("changes", ROTTEN.values(), ids=ROTTEN)
def test_a_damaged_superblock_is_rewritten_when_its_device_is_opened(
    tmp_path: Path, at: int, changes: dict[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    path, superblock = image(tmp_path, "one")
    before = content(path)
    rot(path, at, changes)
    repaired: list[int] = []
    assert OpenDevices(lambda: [info(1, path, superblock)], CLUSTER, lambda: repaired.append(1)).get(1) is not None
    assert content(path) == before and repaired == [1]
    assert any("rewritten from the other one" in record.message for record in caplog.records)
    OpenDevices(lambda: [info(1, path, superblock)], CLUSTER, lambda: repaired.append(1)).get(1)
    assert repaired == [1]


def untouched(path: Path, row: DeviceInfo, cluster: str = CLUSTER) -> None:
    before, repaired = content(path), []
    assert OpenDevices(lambda: [row], cluster, lambda: repaired.append(1)).get(1) is not None
    assert content(path) == before and not repaired


@pytest.mark.parametrize("at", COPIES)
def test_what_is_not_proved_to_be_a_damaged_copy_is_left_alone(tmp_path: Path, at: int) -> None:
    path, superblock = image(tmp_path, "one")
    row = info(1, path, superblock)
    with path.open("r+b") as file:
        for foreign in (bytes(4096), b"\x7f\x80" * 2048):  # wiped, or somebody's since: for a person to decide
            file.seek(at)
            file.write(foreign)
            file.flush()
            untouched(path, row)


def test_nothing_is_rewritten_without_the_identity_of_another_size_or_read_only(tmp_path: Path) -> None:
    path, superblock = image(tmp_path, "one")
    rot(path, 63 * MIB, {60: 0xFF})
    row = info(1, path, superblock)
    untouched(path, row, cluster="")
    untouched(path, replace(row, bytes=128 * MIB))  # its row knows of a growth
    before = content(path)
    open_identified(str(path), CLUSTER, superblock.device_uuid, 0, read_only=True).close()
    assert content(path) == before
    with path.open("r+b") as file:
        file.truncate(65 * MIB)  # it is growing
    untouched(path, row)


def test_a_device_that_goes_while_it_is_written_is_an_error_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor is dead and its path leads nowhere.  Whoever writes meets an error as of any device that fails, and goes on later."""
    path, s = image(tmp_path, "sdb")
    devices = OpenDevices(lambda: [info(1, path, s)], CLUSTER)
    bytes_ = s.segment_bytes
    segments = [SegmentInfo(n, 1, 1, s.first_segment_offset + (n - 1) * bytes_, bytes_, 1, 0, 0, 0, 0) for n in range(1, 6)]
    writer = SegmentWriter(devices, lambda _: [segments.pop(0)])
    piece = Piece(1, 2, 0, [memoryview(b"x" * 5_000)])
    writer.write([piece])

    def dead(*_: object) -> int:
        raise OSError(errno.ENODEV, "unplugged")

    with monkeypatch.context() as patched:
        for call in ("pwritev", "preadv", "fdatasync"):
            patched.setattr(os, call, dead)
        path.rename(tmp_path / "away")
        for _ in range(3):
            with pytest.raises((OSError, Unavailable)):
                writer.write([piece])
    (tmp_path / "away").rename(path)
    assert writer.write([piece]).extents[0][0].length == 5_000
    writer.seal_all()


def test_the_footer_of_a_device_that_is_gone_is_left_out(tmp_path: Path) -> None:
    path, s = image(tmp_path, "sdb")
    devices = OpenDevices(lambda: [info(1, path, s)], CLUSTER)
    segment = SegmentInfo(1, 1, 1, s.first_segment_offset, s.segment_bytes, 1, 0, 0, 0, 0)
    writer = SegmentWriter(devices, lambda _: [segment])
    writer.write([Piece(1, 2, 0, [memoryview(b"x" * 5_000)])])
    devices._open.clear()  # it failed, and was left
    path.rename(tmp_path / "away")
    assert [(step.sealed, step.footer_bytes) for step in writer.seal_all()] == [(True, 0)]
