"""Block devices of the host, found by their superblocks, and the watch over those in use."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c
from msgspec.structs import replace

from awsomefsd.base.identity import POOL_DEVICES
from awsomefsd.base.limits import DEVICE_SCAN_MS, MIB
from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.device.block_devices import FoundDevice, block_devices
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.superblock import grown, pack, read_superblock, second_copy_offset, write_superblock
from awsomefsd.meta.api.messages import Devices
from awsomefsd.meta.api.messages.devices import UNDECIDED, ReportDevices
from awsomefsd.node.devices.device_scan import OK, Looked, Prober, looked, scan
from awsomefsd.node.devices.device_watch import DeviceWatch
from awsomefsd.node.devices.served_devices import ServedDevices
from tests.unit.io.device.test_superblock import CLUSTER, image

OTHER = str(uuid.UUID(int=2))


# --- which block devices there are -----------------------------------------------------------------------------------------------
def entry(sys_: Path, name: str, **files: str) -> Path:
    made = sys_ / name
    (made / "holders").mkdir(parents=True)
    for path, text in {"size": "2048", **files}.items():
        (made / path.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
        (made / path.replace("__", "/")).write_text(text + "\n")
    return made


def test_each_medium_has_one_name_and_the_one_that_lasts(tmp_path: Path) -> None:
    sys_, dev = tmp_path / "sys", tmp_path / "dev"
    for name in ("mapper", "disk/by-id"):
        (dev / name).mkdir(parents=True)
    for name in ("sda", "sdb", "sdc", "sdc1", "sdd", "dm-0", "ram0", "mapper/lun"):
        (dev / name).touch()
    for name in ("sda", "sdb"):  # two paths of one LUN
        (entry(sys_, name, device__wwid="naa.1") / "holders/dm-0").touch()
    entry(sys_, "dm-0", dm__name="lun", dm__uuid="mpath-1")
    entry(sys_, "sdc", device__wwid="naa.2")
    entry(sys_, "sdc/sdc1", partition="1")
    entry(sys_, "sdd", size="0")
    entry(sys_, "ram0")
    (dev / "disk/by-id/wwn-2").symlink_to(dev / "sdc")
    (dev / "disk/by-id/scsi-2").symlink_to(dev / "sdc")
    extra = tmp_path / "file"
    extra.touch()
    found = block_devices([str(extra), str(dev / "sdc"), "/nowhere"], sys_, dev)
    assert found == [
        FoundDevice(str(dev / "mapper/lun"), "mpath-1"),
        FoundDevice(str(dev / "disk/by-id/scsi-2"), "naa.2"),
        FoundDevice(str(dev / "sdc1"), "naa.2 part 1"),
        FoundDevice(str(extra), ""),
    ]


# --- whose they are ----------------------------------------------------------------------------------------------------------------
def test_what_may_not_be_used_comes_with_the_reason(tmp_path: Path) -> None:
    ours = image(tmp_path / "ours")
    image(tmp_path / "theirs", cluster=OTHER)
    smaller = image(tmp_path / "smaller", 80)
    os.truncate(tmp_path / "smaller", 64 * MIB)
    unknown = image(tmp_path / "unknown")
    newer = image(tmp_path / "newer")
    with (tmp_path / "newer").open("r+b") as file:
        with Device.open(tmp_path / "newer", read_only=True) as device:
            raw = bytearray(pack(read_superblock(device)))
        raw[8] = 99
        raw[-4:] = crc32c(bytes(raw[:-4])).to_bytes(4, "little")  # the checksum keeps its place in every version
        file.write(raw)
    (tmp_path / "nothing").write_bytes(bytes(MIB))
    names = ("nothing", "ours", "theirs", "smaller", "unknown", "newer")
    found = scan(Prober(CLUSTER), {ours, smaller, newer}, (), lambda extra: [FoundDevice(str(tmp_path / name), name) for name in names])
    told = {Path(one.path).name: (one.uuid, one.verdict) for one in found}
    assert told["ours"] == (ours, OK) and "nothing" not in told
    for name, words in {"theirs": "another cluster", "smaller": "fewer than", "newer": "newer than this build"}.items():
        assert words in told[name][1], told[name]
    assert told["smaller"][0] == smaller
    assert told["unknown"][0] == unknown and "does not know it" in told["unknown"][1]


def test_two_ways_are_one_device_and_two_media_are_none() -> None:
    seen = {name: Looked(name, "u", 5, OK) for name in ("a", "b", "c")}
    prober = Prober(CLUSTER, look=lambda path, cluster: seen.get(path))
    one = scan(prober, {"u"}, (), lambda extra: [FoundDevice("a", "naa.1"), FoundDevice("b", "naa.1"), FoundDevice("c", "")])
    assert [(found.path, found.verdict) for found in one] == [("a", OK)]
    two = scan(prober, {"u"}, (), lambda extra: [FoundDevice("a", "naa.1"), FoundDevice("b", "naa.2")])
    assert all("copy" in found.verdict for found in two) and len(two) == 2


def test_a_path_that_hangs_keeps_nobody_from_the_others() -> None:
    release = threading.Event()

    def look(path: str, cluster: str) -> Looked | None:
        if path == "hangs" and not release.wait(60):
            raise AssertionError("never released")
        return Looked(path, path, 5, OK)

    prober = Prober(CLUSTER, 200, look)
    places = [FoundDevice("hangs", ""), FoundDevice("well", "")]
    for _ in range(2):  # the second time nobody waits for it
        found = scan(prober, {"hangs", "well"}, (), lambda extra: places)
        assert [(one.path, one.verdict) for one in found] == [("hangs", "does not answer"), ("well", OK)]
    release.set()
    prober._hanging["hangs"].join()
    assert [one.verdict for one in scan(prober, {"hangs", "well"}, (), lambda extra: places)] == [OK, OK]


def test_a_device_is_found_wherever_it_is_and_a_good_path_is_kept(tmp_path: Path) -> None:
    ours = image(tmp_path / "a")
    info = DeviceInfo(1, ours, 64 * MIB, MIB, 62, 62, MIB, "", True)
    local = DeviceInfo(2, "u2", 64 * MIB, MIB, 62, 62, MIB, "", False, "n2")
    table, asked, now = DeviceTable(tmp_path), [], [0]
    scans: list[list[str]] = []
    places = ["a"]

    def ask(body: ReportDevices) -> Devices:
        asked.append(body)
        return Devices([info, local])

    def scanning(prober: Prober, known: Any, extra: Any) -> list[Looked]:
        scans.append(list(places))
        return scan(prober, known, (), lambda _: [FoundDevice(str(tmp_path / name), name) for name in places])

    watch = DeviceWatch(CLUSTER, "n1", table, ask, (), scanning, now_ns=lambda: now[0])
    watch.poll()
    assert table.paths() == {ours: str(tmp_path / "a")} and len(scans) == 1
    watch.poll()
    assert [(one.path, one.state, one.bytes) for one in asked[-1].sightings] == [(str(tmp_path / "a"), OK, 64 * MIB)]
    places[:] = ["b"]
    os.link(tmp_path / "a", tmp_path / "b")
    watch.search()
    assert table.paths() == {ours: str(tmp_path / "a")}, "a path that works is kept"
    (tmp_path / "a").unlink()
    image(tmp_path / "a", cluster=OTHER)  # the name is another device's now
    watch.poll()
    assert "another cluster" in asked[-1].sightings[0].state
    watch.poll()
    assert table.paths() == {ours: str(tmp_path / "b")}
    (tmp_path / "b").unlink()
    watch.poll()
    count = len(scans)
    watch.poll()
    assert len(scans) == count, "what is missing is not looked for all the time"
    now[0] += DEVICE_SCAN_MS * 1_000_000
    watch.poll()
    assert len(scans) == count + 1


def test_a_file_says_whether_devices_of_pools_are_this_nodes(tmp_path: Path) -> None:
    """Whoever starts this node's processes starts a segment server then."""
    state = tmp_path / "state"
    state.mkdir()
    ours = replace(DeviceInfo(1, "u1", 64 * MIB, MIB, 62, 62, MIB, "", False, "n1"), pool=1)
    there: list[DeviceInfo] = []

    def scanning(prober: Prober, known: Any, extra: Any) -> list[Looked]:
        return []

    mark = ServedDevices(state, tmp_path).mark
    watch = DeviceWatch(CLUSTER, "n1", DeviceTable(tmp_path), lambda body: Devices(list(there)), (), scanning, mark_pools=mark)
    for devices, expected in (
        ([], False),
        ([replace(ours, pool=0)], False),
        ([replace(ours, home="n2")], False),
        ([ours], True),
        ([ours], True),
        ([], False),
        ([], False),
    ):
        there[:] = devices
        watch.poll()
        assert (state / POOL_DEVICES).exists() == expected, devices


def test_what_lies_behind_the_old_end_is_nobodys_superblock(tmp_path: Path) -> None:
    """A LUN that grew over the remains of another device."""
    path, stale = tmp_path / "device", tmp_path / "stale"
    ours = image(path)
    image(stale, 128)
    with Device.open(stale) as device:
        write_superblock(device, grown(read_superblock(device), device.bytes))  # of a later generation than ours
        raw = pack(read_superblock(device))
    os.truncate(path, 128 * MIB)
    with path.open("r+b") as file:
        file.seek(second_copy_offset(128 * MIB))
        file.write(raw)
    seen = looked(str(path), CLUSTER)
    assert seen is not None and seen.uuid == ours


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_look_that_this_machine_had_nothing_for_says_nothing_of_the_device(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Device:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Device, "open", refuse)
    seen = looked("/dev/it", CLUSTER)
    assert seen is not None and seen.verdict.startswith(UNDECIDED)
