"""Scrub over a real store and device: finds what rots, names the file, repairs what has a second copy, and raises no false alarm."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from awsomefsd.base.errors import FsError, Refused
from awsomefsd.base.limits import SCRUB_ROOM_BYTES
from awsomefsd.base.types import DeviceInfo, Extent, SegmentInfo, SegmentProgress
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.open_devices import OpenDevices
from awsomefsd.io.device.signature import format_device
from awsomefsd.io.segment.reader import SegmentReader
from awsomefsd.io.segment.writer import Piece, SegmentWriter
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Devices, Done, Failed, GetDevices, GetSegments, Propose, Renew
from awsomefsd.meta.api.messages.devices import GetSightings
from awsomefsd.meta.client.paths import path_of
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.machine import queries
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.store import Store
from awsomefsd.meta.state import keys, rows
from awsomefsd.node.maintenance import segment_check
from awsomefsd.node.maintenance.collection import Collection
from awsomefsd.node.maintenance.io_budget import IoBudget
from awsomefsd.node.maintenance.scrub import DONE, FAILED, NS_PER_S, STOPPED, Scrub, ScrubProgress, Upkeep
from tests.rigs.machine_driver import Drive

MIB = 1 << 20
DAY_S = 86_400
CLUSTER = "115109b7-70e3-407b-ad77-56fbd188106d"


class Ground:
    """One volume with files on a device, served by a machine over LMDB; `call` is what the daemon would answer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = directory / "disk"
        with self.disk.open("wb") as file:
            file.truncate(64 * MIB)
        self.superblock = s = format_device(str(self.disk), CLUSTER)
        DeviceTable(directory).add(s.device_uuid, str(self.disk))
        (directory / "store").mkdir()
        self.store = Store.open(directory / "store")
        self.lock = threading.Lock()
        self.drive = drive = Drive(txn=self.store)  # type: ignore[arg-type]
        drive.ok(c.Init(CLUSTER, 0))
        drive.ok(c.AddDevice(s.device_uuid, s.device_bytes, s.segment_bytes, s.segments, s.first_segment_offset))
        drive.make_volume()
        drive.open()
        self.device = Device.open(str(self.disk))
        self.writer = SegmentWriter({1: self.device}, lambda count: self.drive.ok(c.LeaseSegments(count, 1 << 60)).segments)
        self.folder = drive.mkdir(b"folder")
        self.small = self.write(b"small", b"s" * 9_000)
        self.large = self.write(b"large", bytes(range(256)) * 4_096, self.folder)
        self.report(self.writer.seal_all())
        self.extents = {ino: self.layout(ino) for ino in (self.small, self.large)}
        self.commit()
        (directory / "meta" / "journal").mkdir(parents=True)
        self.upkeep = Upkeep(28 * DAY_S, IoBudget(1 << 40), list, lambda: True)
        self.before_answer: Callable[[Any], None] = lambda _: None

    def write(self, name: bytes, data: bytes, parent: int = 1) -> int:
        ino = self.drive.create(name, parent)
        buffer = aligned_buffer(len(data))
        buffer[:] = data
        written = self.writer.write([Piece(self.drive.volume, ino, 0, [buffer])])
        step = c.InodeCommit(ino, 1, self.drive.index + 1, len(data), self.drive.now, written.extents[0])
        self.drive.ok(c.Commit(self.drive.volume, [step], 0, written.progress))
        return ino

    def report(self, progress: list[SegmentProgress]) -> None:
        self.drive.ok(c.Commit(self.drive.volume, [], 0, progress))

    def layout(self, ino: int) -> list[tuple[Extent, SegmentInfo]]:
        from awsomefsd.meta.api.messages import GetLayout

        found = self.drive.ask(GetLayout(1, ino, 0, 1 << 40))
        infos = {info.segment: info for info in found.segments}
        return [(extent, infos[extent.segment]) for extent in found.extents]

    def commit(self) -> None:
        self.drive.machine.flush()
        self.store.commit()

    def call(self, body: Any) -> Any:
        with self.lock:
            self.before_answer(body)
            reply = queries.answer(self.drive.machine, body)
        if isinstance(reply, Failed):
            raise FsError(reply.errno, reply.detail)
        if isinstance(reply, Devices):
            for info in reply.devices:
                info.path = str(self.disk)
        return reply

    def scrub(self, **options: Any) -> Scrub:
        return Scrub(self.directory, CLUSTER, self.call, self.store.copy_pages_to, self.upkeep, **options)

    def run(self, scrub: Scrub | None = None) -> ScrubProgress:
        scrub = scrub or self.scrub()
        scrub.start(1 << 40)
        assert scrub._thread is not None
        scrub._thread.join()
        return scrub.status()

    def flip(self, offset: int) -> None:
        with self.disk.open("r+b") as file:
            file.seek(offset)
            (value,) = file.read(1)
            file.seek(offset)
            file.write(bytes([value ^ 16]))


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    made = Ground(tmp_path)
    yield made
    made.device.close()
    made.store.close()


def test_a_sound_state(ground: Ground) -> None:
    done = ground.run()
    assert (done.state, done.found, done.reason) == (DONE, 0, ""), done
    assert done.bytes >= 9_000 + MIB and done.extents >= 2 and done.segments >= 1
    assert json.loads((ground.directory / "scrub.json").read_text())["state"] == DONE
    assert [path.name for path in (ground.directory / "scrub").iterdir()] == []
    assert {sample.name for sample in ground.scrub().samples()} >= {"awsomefsd_scrub_findings", "awsomefsd_scrub_running"}


def test_data_header_footer_and_superblock(ground: Ground, caplog: pytest.LogCaptureFixture) -> None:
    extent, info = ground.extents[ground.large][0]
    ground.flip(info.byte_offset + extent.frame_offset + extent.header_bytes + 300_000)  # data of /folder/large
    small, place = ground.extents[ground.small][0]
    ground.flip(place.byte_offset + small.frame_offset + 24)  # header of /small, which the footer has too
    ground.flip(40)  # superblock
    done = ground.run()
    found = {finding.kind: finding for finding in done.findings}
    assert set(found) == {"data", "header", "superblock"} and done.found == 3 and done.repaired == 1
    assert (found["data"].volume, found["data"].path) == ("1", "/folder/large")
    assert 0 <= 300_000 - found["data"].offset < segment_check.READ_BYTES
    assert found["header"].path == "/small" and found["superblock"].repaired
    assert any(getattr(record, "path", "") == "/folder/large" for record in caplog.records)
    assert {finding.kind for finding in ground.run().findings} == {"data", "header"}, "the superblock was repaired"
    ground.flip(info.byte_offset + info.footer_offset + 80)
    assert {finding.kind for finding in ground.run().findings} == {"data", "footer"}, "with the footer gone, no copy of the header is left"


class Emptying:
    """Scrub and collection of one node, turn by turn, as its daemon has them."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.collection = Collection(self.ask, self.devices, OpenDevices(self.devices, CLUSTER), "n1", "b1", IoBudget(1 << 60))
        ground.upkeep = Upkeep(28 * DAY_S, IoBudget(1 << 40), list, lambda: True, empty=self.collection.empty)
        self.scrub = ground.scrub()

    def devices(self) -> list[DeviceInfo]:
        found: list[DeviceInfo] = self.ground.call(GetDevices()).devices
        return found

    def ask(self, body: Any) -> Any:
        if isinstance(body, GetSightings):
            raise FsError(errno.EOPNOTSUPP)
        if isinstance(body, Renew):
            return Done()
        if not isinstance(body, Propose):
            return self.ground.call(body)
        command = msgspec.structs.replace(body.command, safe_index=1 << 60) if isinstance(body.command, c.LeaseSegments) else body.command
        return self.ground.drive.ok(command, session=body.session, epoch=body.epoch, mount=0)

    def turn(self) -> ScrubProgress:
        """What scrub has found is asked for, moved, and looked at again."""
        self.scrub.mend()
        self.collection._turn()
        self.scrub.mend()
        return self.scrub.status()


def test_segments_with_a_damaged_header_or_footer_are_emptied(ground: Ground) -> None:
    """Their findings are repaired when nothing lives there any more; the files are what they were, and the next round finds nothing."""
    both = Emptying(ground)
    small, place = ground.extents[ground.small][0]
    ground.flip(place.byte_offset + small.frame_offset + 24)
    ground.write(b"other", b"o" * 70_000)
    ground.report(ground.writer.seal_all())
    other, elsewhere = ground.layout(ground.drive.machine.child(1, 1, b"other"))[0]
    ground.flip(elsewhere.byte_offset + elsewhere.footer_offset + 80)
    ground.commit()
    found = ground.run(both.scrub)
    assert sorted(finding.kind for finding in found.findings) == ["footer", "header"]
    assert (found.found, found.repaired, found.open) == (2, 0, 2)
    done = both.turn()
    assert (done.found, done.repaired, done.open) == (2, 2, 0) and all(finding.repaired for finding in done.findings)
    reader = SegmentReader({1: ground.device}, lambda number: ground.call(GetSegments([number])).segments[0])
    for ino, data in ((ground.small, b"s" * 9_000), (ground.large, bytes(range(256)) * 4_096)):
        read = b""
        for extent, info in ground.layout(ino):
            assert info.segment not in (place.segment, elsewhere.segment)
            into = aligned_buffer(extent.length)
            reader.read(extent, 1, ino, 0, extent.length, into)
            read += bytes(into)
        assert read == data
    ground.commit()
    assert ground.run(both.scrub).found == 0
    assert other.length == 70_000 and ground.scrub().status().found == 0


def test_what_cannot_be_moved_stays_a_finding(ground: Ground) -> None:
    """Data beside it is damaged, so the segment stays; the finding does too, over a restart, until the file is gone."""
    both = Emptying(ground)
    extent, info = ground.extents[ground.large][0]
    ground.flip(info.byte_offset + extent.frame_offset + extent.header_bytes + 300_000)
    small, place = ground.extents[ground.small][0]
    ground.flip(place.byte_offset + small.frame_offset + 24)
    assert ground.run(both.scrub).open == 1, "damage of a file is shown as that"
    assert both.turn().open == 1 and both.turn().open == 1
    again = Emptying(ground)
    assert again.turn().open == 1
    ground.drive.ok(c.Unlink(1, ground.folder, b"large"))
    assert again.turn().open == 0 and ground.scrub().status().open == 0


def test_a_header_in_a_segment_that_is_still_written_is_no_loss_once_it_has_its_footer(ground: Ground) -> None:
    """Its writer knows the checksums, and writes them into the footer; until then nobody else can verify the bytes."""
    both = Emptying(ground)
    ino = ground.write(b"open", b"o" * 9_000)
    ground.commit()
    ((extent, info),) = ground.layout(ino)
    ground.flip(info.byte_offset + extent.frame_offset + 24)
    [finding] = ground.run(both.scrub).findings
    assert (finding.kind, finding.path, finding.segment) == ("data", "/open", 0), "nobody empties a segment that is written"
    assert both.turn().repaired == 0
    ground.report(ground.writer.seal_all())
    ground.commit()
    [finding] = ground.run(both.scrub).findings
    assert finding.kind == "header" and both.turn().open == 0


def test_rows(ground: Ground) -> None:
    ground.store.delete(keys.dentry(1, ground.folder, b"large"))
    raw = ground.store.get(keys.inode(1, ground.small))
    assert raw is not None
    ground.store.put(keys.inode(1, ground.small), raw[:-1] + bytes([raw[-1] ^ 1]))
    ground.store.commit()
    kinds = {finding.kind for finding in ground.run().findings}
    assert {"undecodable", "inode-without-dentry", "wrong-entries"} <= kinds


def test_pages_that_end_a_process_do_not_end_this_one(ground: Ground) -> None:
    path = ground.directory / "store" / "data.mdb"

    def copy(target: Path) -> None:
        ground.store.copy_pages_to(target)
        raw = bytearray(target.read_bytes())
        for page in range(2, len(raw) // 4096):
            raw[page * 4096 + 8 : page * 4096 + 16] = b"\xff\x7f\xfe\x01\xff\xff\xff\x7f"
        target.write_bytes(raw)

    scrub = Scrub(ground.directory, CLUSTER, ground.call, copy, ground.upkeep)
    assert path.exists() and "store-structure" in {finding.kind for finding in ground.run(scrub).findings}


def test_what_changes_meanwhile_is_no_finding(ground: Ground) -> None:
    """A file is deleted, and its place rewritten, between the list of what lives and the read."""
    from awsomefsd.meta.api.messages.collection import GetFilePieces

    extent, info = ground.extents[ground.large][0]
    ground.flip(info.byte_offset + extent.frame_offset + extent.header_bytes + 5_000)

    def unlink(body: Any) -> None:
        if isinstance(body, GetFilePieces) and ground.drive.machine.child(1, ground.folder, b"large"):
            ground.drive.ok(c.Unlink(1, ground.folder, b"large"))

    ground.before_answer = unlink
    done = ground.run()
    assert done.found == 0 and done.rechecked == 1


def test_stop_resume_and_a_second_start(ground: Ground) -> None:
    scrub = ground.scrub()
    waiting, go = threading.Event(), threading.Event()

    def hold(body: Any) -> None:
        from awsomefsd.meta.api.messages.collection import GetPieces

        if isinstance(body, GetPieces):
            waiting.set()
            go.wait(60)

    ground.before_answer = hold
    scrub.start()
    assert waiting.wait(60)
    with pytest.raises(Refused):
        scrub.start()
    closer = threading.Thread(target=scrub.close)  # the daemon ends
    closer.start()
    while not scrub._stop.is_set():
        pass
    go.set()
    closer.join()
    ground.before_answer = lambda _: None
    again = ground.scrub()
    assert again.status().state == "segments"
    again.resume()
    assert again._thread is not None
    again._thread.join()
    assert again.status().state == DONE and again.status().found == 0
    assert again.stop().state == DONE
    (ground.directory / "scrub.json").write_text('{"state": 5}')
    assert ground.scrub().status().state == "never"


def test_stopped_for_good(ground: Ground) -> None:
    scrub = ground.scrub()
    scrub.start(1)  # a byte a second
    assert scrub.stop().state == STOPPED
    assert ground.scrub().status().state == STOPPED


def test_paths(ground: Ground) -> None:
    assert path_of(ground.call, 1, ground.large) == "/folder/large" and path_of(ground.call, 1, 1) == "/"
    assert path_of(ground.call, 1, 999) == "inode 999" and path_of(ground.call, 1, ground.large, pages_max=0) == f"inode {ground.large}"
    assert rows.INODE.loads(ground.store.get(keys.inode(1, ground.folder))).parent == 1
    assert isinstance(ground.drive.machine, Machine)


# --- by itself -------------------------------------------------------------------------------------------------------------------
class Days:
    """A scrub whose clock is set by hand."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.now = 1_000.0
        self.scrub = self.restarted()

    def restarted(self) -> Scrub:
        self.scrub = self.ground.scrub(now_ns=lambda: int(self.now * DAY_S * NS_PER_S))
        return self.scrub

    def poll(self) -> ScrubProgress:
        """After what it started has ended."""
        self.scrub.poll()
        if self.scrub._thread is not None:
            self.scrub._thread.join()
        return self.scrub.status()

    def behind(self) -> int:
        return self.scrub.status().behind_s(self.ground.upkeep.every_s, int(self.now * DAY_S * NS_PER_S))


def test_a_round_begins_by_itself_every_28_days_over_restarts(ground: Ground) -> None:
    days = Days(ground)
    assert days.poll().state == "never", "a new node has nothing that is old"
    days.now += 27.9
    days.restarted()
    assert days.poll().state == "never"
    days.now += 0.2
    first = days.poll()
    assert (first.state, first.by_itself, first.found, first.reason) == (DONE, True, 0, "")
    assert first.bytes_per_s == 4 * MIB, "a small device is read slowly"
    days.now += 27.9
    assert days.restarted().due_ns() == first.started_ns + 28 * DAY_S * NS_PER_S
    assert days.poll().started_ns == first.started_ns
    days.now += 0.2
    assert days.poll().started_ns > first.started_ns


def test_a_scrub_that_is_behind_and_one_that_failed(ground: Ground) -> None:
    days = Days(ground)
    days.poll()
    days.now += 55
    assert days.behind() == 0
    days.now += 2
    assert days.behind() == 57 * DAY_S
    refuse = True

    def fail(body: Any) -> None:
        if refuse:
            raise FsError(5)

    ground.before_answer = fail
    assert days.poll().state == FAILED and days.behind()
    began = days.scrub.status().started_ns
    assert days.poll().started_ns == began, "not again at once"
    refuse = False
    days.now += 0.1
    assert days.poll().state == DONE and not days.behind()


def test_what_was_found_stays_until_the_next_round_has_ended(ground: Ground) -> None:
    days = Days(ground)
    _, place = ground.extents[ground.small][0]
    ground.flip(place.byte_offset + place.footer_offset + 70)
    days.poll()
    days.now += 29
    assert days.poll().open == 1
    seen: list[int] = []
    ground.before_answer = lambda _: seen.append(days.scrub.status().open)
    days.now += 29
    ground.flip(place.byte_offset + place.footer_offset + 70)
    assert days.poll().open == 0 and set(seen) == {1}


def test_an_order_takes_the_place_of_a_round_that_goes_on_by_itself(ground: Ground) -> None:
    days = Days(ground)
    days.poll()
    ground.upkeep = Upkeep(28 * DAY_S, IoBudget(1), list, lambda: True)  # a byte a second
    days.restarted().poll()
    days.now += 29
    days.scrub.poll()
    assert days.scrub.status().by_itself
    days.scrub.start()
    assert not days.scrub.status().by_itself
    with pytest.raises(Refused):
        days.scrub.start()
    assert days.scrub.stop().state == STOPPED


def test_a_node_scrubs_its_own_devices_and_no_rows_it_does_not_have(ground: Ground) -> None:
    ground.flip(40)  # a superblock of a device of another node
    copied: list[Path] = []
    upkeep = Upkeep(DAY_S, IoBudget(1 << 40), lambda devices: [], lambda: False)
    done = ground.run(Scrub(ground.directory, CLUSTER, ground.call, copied.append, upkeep))
    assert (done.state, done.found, done.bytes, copied) == (DONE, 0, 0, [])
    upkeep = Upkeep(DAY_S, IoBudget(1 << 40), list, lambda: False)
    done = ground.run(Scrub(ground.directory, CLUSTER, ground.call, copied.append, upkeep))
    assert [finding.kind for finding in done.findings] == ["superblock"] and not copied


def test_the_journal(ground: Ground) -> None:
    directory = ground.directory / "meta" / "journal"
    journal = Journal.open(directory, b"c" * 16, b"n" * 16, create=True, file_bytes=MIB)
    for _ in range(30):
        journal.append(1, [b"e" * 60_000])
        journal.sync()
    files = sorted(directory.glob("*.journal"))
    assert len(files) > 1
    assert ground.run().found == 0
    raw = bytearray(files[0].read_bytes())
    raw[200_000] ^= 1
    files[0].write_bytes(raw)
    [finding] = ground.run().findings
    assert (finding.kind, finding.where) == ("journal", f"journal file {files[0].name}")
    newest = bytearray(files[-1].read_bytes())
    newest[5_000] ^= 1
    files[-1].write_bytes(newest)
    assert ground.run().found == 2, "a record that was durable"
    journal.close()


def test_a_copy_of_the_rows_leaves_room_for_the_journal(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node begins by itself, all at about the same age: the disks of all voters filled at once, and the metadata stopped."""
    store = ground.directory / "meta" / "store" / "data.mdb"
    store.parent.mkdir()
    store.write_bytes(bytes(100))
    free = [100 + SCRUB_ROOM_BYTES - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    copied: list[Path] = []
    made = Scrub(ground.directory, CLUSTER, ground.call, copied.append, ground.upkeep)
    ended = ground.run(made)
    assert ended.state == FAILED and not copied and str(ground.directory) in ended.reason and "room" in ended.reason
    free[0] += 1
    assert ground.run().state == DONE


def test_a_client_of_the_cluster_scrubs_nothing(ground: Ground) -> None:
    """It may not ask what lies where: each round failed, and its status said so for ever."""
    ground.upkeep = Upkeep(28 * DAY_S, IoBudget(1 << 40), list, lambda: False, checks=False)
    days = Days(ground)
    days.poll()
    days.now += 60
    assert days.poll().state == "never" and not days.behind() and not days.scrub.due_ns()
    with pytest.raises(Refused, match="client"):
        days.scrub.start()
