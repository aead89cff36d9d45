"""Finding devices by their superblock, growing superblocks, proofs that a worker has exited, and the operator's word."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from awsomefsd.base import worker_locks
from awsomefsd.base.errors import ConfigError, NotFound, Refused, WouldLoseData
from awsomefsd.base.limits import DEVICE_SCAN_MS, MIB
from awsomefsd.base.types import DeviceInfo, SessionInfo
from awsomefsd.io.device.block_devices import FoundDevice, block_devices
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.signature import format_device
from awsomefsd.io.device.superblock import grown, pack, read_superblock, second_copy_offset, wipe_superblock, write_superblock
from awsomefsd.meta.api.commands import ClearQuarantine
from awsomefsd.meta.api.messages import Devices, Sessions, Volumes
from awsomefsd.meta.api.messages.devices import Quarantine, QuarantineInfo, ReportDevices
from awsomefsd.meta.api.messages.nodes import NodeInfo, Nodes
from awsomefsd.node.devices.device_scan import OK, Looked, Prober, looked, scan
from awsomefsd.node.devices.device_watch import DeviceWatch
from awsomefsd.node.maintenance.quarantine_admin import QuarantineAdmin
from awsomefsd.node.maintenance.quarantine_proofs import QuarantineProofs

CLUSTER, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


def image(path: Path, mib: int = 64, cluster: str = CLUSTER) -> str:
    """A formatted device; its uuid."""
    with path.open("wb") as file:
        file.truncate(mib * MIB)
    return format_device(str(path), cluster).device_uuid


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


# --- superblocks that grow -----------------------------------------------------------------------------------------------------------
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


# --- proofs ------------------------------------------------------------------------------------------------------------------------
HOLD = """
import sys
from awsomefsd.base import worker_locks
held = worker_locks.hold(sys.argv[1], 0xabc, int(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


def running(state_dir: Path, worker: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", HOLD, str(state_dir), str(worker)]
    made = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None and made.stdout.readline() == "held\n"
    return made


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_lock_is_free_only_when_its_process_has_exited(tmp_path: Path) -> None:
    assert not worker_locks.exited(tmp_path, 0xABC, 1), "what never ran here proves nothing"
    first = running(tmp_path, 1)
    try:
        with pytest.raises(Refused):
            worker_locks.hold(tmp_path, 0xABC, 1)
        second = running(tmp_path, 2)
        try:
            worker_locks.tidy(tmp_path, ())  # both live: their files stay
            assert not worker_locks.exited(tmp_path, 0xABC, 1) and not worker_locks.exited(tmp_path, 0xABC, 2)
        finally:
            end(second)
        assert not worker_locks.exited(tmp_path, 0xABC, 2), "an earlier worker runs still"
    finally:
        end(first)
    assert worker_locks.exited(tmp_path, 0xABC, 1) and worker_locks.exited(tmp_path, 0xABC, 2)
    worker_locks.tidy(tmp_path, {0xABC})
    assert worker_locks.exited(tmp_path, 0xABC, 2), "the proof stays as long as a session needs it"
    worker_locks.tidy(tmp_path, ())
    assert not list((tmp_path / "workers").iterdir())


def test_the_daemon_vouches_for_what_it_can_know_and_nothing_else(tmp_path: Path) -> None:
    held = worker_locks.hold(tmp_path, 1, 3)
    worker_locks.hold(tmp_path, 2, 3)  # let go at once
    rows = [  # session, mount, node, boot, worker
        (10, 1, "me", "now", 3, ""),
        (11, 2, "me", "now", 3, "worker 3 of mount 2 has exited, and no worker before it runs"),
        (12, 4, "me", "now", 3, ""),  # never seen here
        (13, 1, "me", "before", 3, "the node has booted since"),
        (14, 2, "other", "now", 3, ""),
        (15, 0, "me", "now", 0, "15 collects no more"),
        (16, 0, "me", "now", 0, ""),  # it may still write
    ]
    sessions = [SessionInfo(one, 1, mount, 1, node, boot, worker, 0, 0, True, 2) for one, mount, node, boot, worker, _ in rows]
    sessions += [SessionInfo(20, 1, 2, 1, "me", "now", 3, 0, 0, False, 0), SessionInfo(21, 1, 2, 1, "me", "now", 3, 0, 0, True, 0)]
    said: list[ClearQuarantine] = []
    proof = {15: "15 collects no more", 16: ""}.__getitem__
    QuarantineProofs(tmp_path, "me", "now", lambda body: Sessions(sessions), said.append, proof).poll()
    del held
    assert {one.session: one.proof for one in said} == {row[0]: row[5] for row in rows if row[5]}


# --- the operator ----------------------------------------------------------------------------------------------------------------
def test_the_operators_word_is_typed_and_kept_and_not_taken_for_the_living() -> None:
    said: list[ClearQuarantine] = []

    def node(name: str, heard_ms: int) -> NodeInfo:
        return NodeInfo(f"uuid-{name}", name, "node", "active", "", "", {}, 0, "1", 2, True, 0, b"", heard_ms_ago=heard_ms)

    def ask(body: Any) -> Any:
        if type(body).__name__ == "GetQuarantine":
            return Quarantine([QuarantineInfo(n, 5, 1, f"uuid-{name}", "b", 1, 0, 3, 3, 0) for n, name in ((7, "dead"), (8, "well"))], 60)
        return Nodes([node("dead", 60_000), node("well", 100)]) if type(body).__name__ == "ListNodes" else Volumes([])

    quarantine = QuarantineAdmin("me", ask, said.append)
    with pytest.raises(NotFound, match="sessions that have: 7, 8"):
        quarantine.release(9, "why", "dead")
    with pytest.raises(ConfigError):
        quarantine.release(7, " \n", "dead")
    with pytest.raises(WouldLoseData):
        quarantine.release(7, "why", "deaf")
    with pytest.raises(Refused, match="runs and ends the quarantine itself"):
        quarantine.release(8, "why", "well")
    assert not said
    assert quarantine.release(7, "it burnt\ndown", "dead") == 3
    assert said == [ClearQuarantine(7, "operator at node me: it burnt down")]
