"""Collection under a live mount: contents, readers, damage, deaths, and how much space comes back."""

from __future__ import annotations

import errno
import math
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import FsError, Refused, Unavailable
from awsomefsd.base.limits import KIB
from awsomefsd.base.types import ROOT_INO, DeviceInfo
from awsomefsd.base.wait import Signal, Task, block_on
from awsomefsd.io.collect.collector import Collector
from awsomefsd.io.device.open_devices import OpenDevices
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.commands import EndSession, LeaseSegments, Relocate
from awsomefsd.meta.api.messages.collection import GetSparse
from awsomefsd.meta.api.messages.devices import GetSightings, SeenDevice, Sightings
from awsomefsd.meta.api.messages.nodes import NodeInfo, Nodes
from awsomefsd.meta.machine.quota import ALLOCATED_SHARE
from awsomefsd.node.maintenance.collection import Collection, collectors_of
from awsomefsd.node.maintenance.io_budget import IoBudget
from tests.rigs.metadata_service import MIB
from tests.rigs.mount_without_kernel import LIMIT_S, VOLUME, Rig, rig, until


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


class Asked:
    """The daemon's way to the service; `before(body)` may do something first, or raise."""

    def __init__(self, r: Rig) -> None:
        self.r = r
        self.before: Any = lambda body: None

    def __call__(self, body: Any) -> Any:
        self.before(body)
        assert self.r.host.service is not None
        reply = self.r.host.service.query(body, 60)
        if isinstance(reply, m.Failed):
            raise Unavailable(reply.detail) if reply.retry else FsError(reply.errno, reply.detail)
        return reply


def collector(r: Rig) -> Collector:
    return Collector(Asked(r), {1: r.device}, "node", "boot", time.monotonic_ns, nap=lambda _: passed(r))


def collect(made: Collector, percent: int = 12, *, merge: bool = True) -> int:
    """Until nothing is left to do; how many rounds that took."""
    rounds = 0
    while chosen := made.candidates.choose(made.candidates.refresh(), percent):
        made.round(chosen, merge=merge)
        rounds += 1
        assert rounds < 200, "collection does not end"
    made.rest()
    return rounds


def segments(made: Collector) -> int:
    """In use."""
    made.candidates.refresh()
    return made.figures.segments_total - made.figures.segments_free


def remove(r: Rig, name: bytes) -> None:
    r.call("unlink", ROOT_INO, name)


def passed(r: Rig) -> None:
    """The worker's session says that it uses nothing old: what was freed may be leased again.  (The rig's clock stands still.)"""
    state = r.worker.memory.control.state
    Asked(r)(m.Renew(state.session, state.epoch, (1 << 62) - 1))


def content(r: Rig, ino: int) -> bytes:
    """As a reply to the kernel: the bytes are taken on the thread that read them, whose buffer is then used for the next one."""
    fh = r.open(ino, os.O_RDONLY)
    taken = Signal()
    result = r.vfs.read(r.ctx(), ino, fh, 0, MIB)
    if isinstance(result, list):
        taken.fire(b"".join(map(bytes, result)))
    else:
        Task(result, lambda value, error: taken.fire(b"" if error else b"".join(map(bytes, value)), error)).start()
    found: bytes = block_on(taken, LIMIT_S)
    r.close_file(ino, fh)
    return found


def extents(r: Rig, ino: int) -> list[Any]:
    assert r.host.service is not None
    found: list[Any] = r.host.service.query(m.GetLayout(VOLUME, ino, 0, 1 << 40)).extents  # type: ignore[union-attr]
    return found


def test_sparse_segments_become_free_and_contents_stay(r: Rig, seed: int) -> None:
    chance = random.Random(seed)
    files = {}
    for number in range(64):
        ino, fh = r.create(b"f%d" % number)
        data = chance.randbytes(200 * KIB)
        r.write(ino, fh, 0, data)
        files[ino] = (number, data)
        r.close_file(ino, fh)
    r.flush()
    kept = {}
    for ino, (number, data) in files.items():
        if number % 4:
            remove(r, b"f%d" % number)
        else:
            kept[ino] = data
    made = collector(r)
    before = segments(made)
    assert collect(made) > 0
    after = segments(made)
    live = sum(map(len, kept.values()))
    assert after <= live // MIB + 3 < before - 5
    assert made.figures.moved_bytes >= made.figures.copied_bytes - made.figures.skipped_bytes > 0
    for ino, data in kept.items():
        assert r.content(ino) == data, "through a layout that is old by now"
    assert collect(made) == 0, "nothing is copied round and round"
    r.restart()
    for ino, data in kept.items():
        assert r.content(ino) == data
    r.check()


def test_what_was_overwritten_at_random_becomes_large_frames_again(r: Rig, seed: int) -> None:
    chance = random.Random(seed)
    size = 4 * MIB
    ino, fh = r.create(b"f")
    data = bytearray(chance.randbytes(size))
    for offset in range(0, size, MIB):
        r.write(ino, fh, offset, bytes(data[offset : offset + MIB]))
    r.fsync(ino, fh)
    for _ in range(20):
        for _ in range(60):
            offset = chance.randrange(size // 4096) * 4096
            piece = chance.randbytes(4096)
            data[offset : offset + 4096] = piece
            r.write(ino, fh, offset, piece)
        r.fsync(ino, fh)
    scattered = len(extents(r, ino))
    made = collector(r)
    rounds = collect(made)
    merged = len(extents(r, ino))
    assert rounds and merged * 3 < scattered, (scattered, merged)  # 3.9 times is seen with one seed in a hundred
    assert r.content(ino, size) == data
    r.restart()
    assert r.content(ino, size) == data
    r.check()


def test_shared_bytes_stay_shared(r: Rig, seed: int) -> None:
    """Copies by reference, overwritten in part: contents stay, and no byte is stored twice after moving."""
    chance = random.Random(seed)
    ino, fh = r.create(b"f")
    data = chance.randbytes(MIB)
    r.write(ino, fh, 0, data)
    r.fsync(ino, fh)
    contents = {ino: bytearray(data)}
    for number in range(6):
        new, new_fh = r.create(b"copy%d" % number)
        start = chance.randrange(0, MIB // 2)
        copied = r.call("copy_file_range", ino, start, new, new_fh, 0, MIB // 2, 0)
        contents[new] = bytearray(data[start : start + copied])
        for _ in range(5):
            offset, piece = chance.randrange(copied - 5_000), chance.randbytes(5_000)
            r.write(new, new_fh, offset, piece)
            contents[new][offset : offset + 5_000] = piece
        r.fsync(new, new_fh)
    for _ in range(30):  # most of the first copy dies, what is shared with the others lives on
        offset, piece = chance.randrange(MIB - 30_000), chance.randbytes(30_000)
        r.write(ino, fh, offset, piece)
        contents[ino][offset : offset + 30_000] = piece
        r.fsync(ino, fh)
    r.restart()  # seals what is open

    def live() -> int:
        return sum(info.live_bytes for info in Asked(r)(m.GetSegments(list(range(1, 40)))).segments)

    before = live()
    made = collector(r)
    made.round(made.candidates.refresh(), merge=True)
    made.rest()
    assert made.figures.moved_bytes > made.figures.copied_bytes > 0, "owners of shared bytes move by one copy"
    assert live() <= before
    for number, wanted in contents.items():
        assert r.content(number) == wanted
    r.check()


def test_a_damaged_block_is_never_copied_as_good(r: Rig, caplog: pytest.LogCaptureFixture) -> None:
    inos = {}
    for number in range(40):
        inos[number] = r.file(b"f%d" % number, bytes([number]) * 100_000)
    r.flush()
    r.restart()
    for number in range(40):
        if number % 5:
            remove(r, b"f%d" % number)
    (broken,) = extents(r, inos[10])
    (info,) = Asked(r)(m.GetSegments([broken.segment])).segments
    r.device.content[info.byte_offset + broken.frame_offset + broken.header_bytes + 50_000] ^= 1
    made = collector(r)
    assert collect(made) > 0
    assert made.figures.corrupt_pieces == 1 and f"not moved: volume=1 ino={inos[10]} offset=0" in caplog.text
    assert extents(r, inos[10]) == [broken], "it stays where it is"
    for number in range(0, 40, 5):
        if number != 10:
            assert r.content(inos[number]) == bytes([number]) * 100_000
    with pytest.raises(Exception, match="checksum mismatch"):
        r.content(inos[10])


def test_readers_are_never_disturbed(r: Rig, seed: int) -> None:
    """Reads of files that move again and again, while the places they had are written by others."""
    chance = random.Random(seed)
    files = {}
    for number in range(30):
        data = chance.randbytes(60_000)
        files[r.file(b"f%d" % number, data)] = data
    r.flush()
    errors: list[BaseException] = []
    stop = threading.Event()
    reads = [0]

    def read() -> None:
        own = random.Random(seed)
        try:
            while not stop.is_set():
                ino = own.choice(list(files))
                assert content(r, ino) == files[ino]
                reads[0] += 1
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    made = collector(r)
    moved = 0
    for turn in range(6):
        for number in range(8):
            r.file(b"g%d-%d" % (turn, number), chance.randbytes(200_000))
        r.flush()
        for number in range(8):
            remove(r, b"g%d-%d" % (turn, number))
        found = made.candidates.refresh()
        if found:
            made.round(found, merge=True)  # whether it pays or not
            made.rest()
        passed(r)
        moved = made.figures.moved_bytes
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert reads[0] > 20 and moved > 2 * 30 * 60_000, (reads, moved)
    assert r.counter("corrupt_reads") == 0
    r.check()


def sparse(r: Rig, seed: int) -> dict[int, bytes]:
    """Files that are still there, in segments of which most is dead."""
    chance = random.Random(seed)
    kept = {}
    for number in range(60):
        data = chance.randbytes(150_000)
        ino = r.file(b"f%d" % number, data)
        if number % 3 == 0:
            kept[ino] = data
    r.flush()
    r.restart()
    for number in range(60):
        if number % 3:
            remove(r, b"f%d" % number)
    passed(r)
    return kept


@pytest.mark.parametrize("when", ["lease", "relocate", "relocated", "renew"])
def test_a_collector_that_dies_loses_nothing(r: Rig, seed: int, when: str) -> None:
    """The daemon is killed at each step: its successor goes on, and no space is lost."""
    kept = sparse(r, seed)

    class Killed(Exception):
        pass

    def die(body: Any) -> None:
        command = getattr(body, "command", None)
        if when == "lease" and isinstance(command, LeaseSegments):
            raise Killed
        if when == "relocate" and isinstance(command, Relocate):
            raise Killed
        if when == "relocated" and isinstance(command, Relocate):
            asked.before = lambda _: None
            asked(body)
            raise Killed
        if when == "renew" and isinstance(body, m.Renew):
            raise Killed

    for _ in range(3):
        dying = collector(r)
        asked: Any = dying._ask
        asked.before = die
        with pytest.raises(Killed):
            dying.round(dying.candidates.choose(dying.candidates.refresh(), 12), merge=True)
    r.restart()
    made = collector(r)
    collect(made)
    passed(r)
    for ino, data in kept.items():
        assert r.content(ino) == data
    assert segments(made) <= sum(map(len, kept.values())) // MIB + 4
    assert Asked(r)(GetSparse(0, 1)).free + segments(made) == 62
    r.check()


def test_only_devices_of_this_node_are_collected(r: Rig, seed: int) -> None:
    sparse(r, seed)
    made = collector(r)
    made.candidates._collects = lambda info: False
    assert not made.candidates.refresh()
    made.candidates._collects = lambda info: info.device == 1
    assert made.candidates.refresh()


def test_one_of_the_nodes_that_see_a_shared_device_collects_it() -> None:
    def seen(node: str, uuid: str, state: str = "ok") -> SeenDevice:
        return SeenDevice(node, node, uuid, "/dev/x", 1, state, 0)

    def row(node: str, role: str) -> NodeInfo:
        return NodeInfo(node, node, role, "active", "", "", {}, 0, "", 3, False, 0, b"")

    listed = [seen("a", "d1", "does not answer"), seen("b", "d1"), seen("c", "d1"), seen("c", "d2"), seen("gone", "d2"), seen("Gone", "d3")]
    listed += [seen("B", "d1"), seen("B", "d2")]

    def answer(body: Any) -> Any:
        if isinstance(body, GetSightings):
            return Sightings(listed, ["a", "b", "c", "B"], {})
        return Nodes([row("a", "node"), row("B", "client")])

    chosen = collectors_of(answer)
    assert chosen == {"d1": "b", "d2": "c"}, "no client, not one that is silent, nor one to which the device does not answer"

    def refuse(body: Any) -> Any:
        raise FsError(errno.EOPNOTSUPP)

    assert collectors_of(refuse) is None

    shared = DeviceInfo(1, "d1", 0, 0, 0, 0, 0, "/dev/x", True)
    own, other = DeviceInfo(2, "o", 0, 0, 0, 0, 0, "/dev/y", False, "b"), DeviceInfo(3, "p", 0, 0, 0, 0, 0, "/dev/z", False, "c")
    for node, wanted in (("b", [True, True, False]), ("c", [False, False, True])):
        collection = Collection(refuse, list, OpenDevices(list, ""), node, "boot", IoBudget(1 << 60))
        collection._collectors = chosen
        assert [collection._collects(one) for one in (shared, own, other)] == wanted
        collection._collectors = None
        assert collection._collects(shared), "without a choice, or on command: whoever sees it"


def test_a_client_of_the_cluster_does_not_ask_to_collect() -> None:
    """It is refused the session of a collector, and would ask again for ever."""
    asked: list[Any] = []
    collection = Collection(asked.append, list, OpenDevices(list, ""), "node", "boot", IoBudget(1 << 60), collects=False)
    collection.start()
    with pytest.raises(Refused, match="client"):
        collection.order("start")
    assert collection.status()[0] == "stopped"
    collection.stop()
    assert not asked


def test_a_collection_looks_again_when_something_was_applied() -> None:
    asked: list[Any] = []
    index = [7]

    def devices() -> list[DeviceInfo]:
        asked.append(None)
        return []

    collection = Collection(asked.append, devices, OpenDevices(list, ""), "node", "boot", IoBudget(1 << 60), applied=lambda: index[0])
    collection._look_s = math.inf
    collection._turn()
    collection._turn()
    assert len(asked) == 1, "nobody has leased, freed, drained or added anything"
    index[0] = 8
    collection._turn()
    assert len(asked) == 2
    collection.empty({(1, 1)})
    collection._turn()
    assert len(asked) == 3, "it was asked to empty a segment"
    collection._collector.candidates.damaged = frozenset()
    collection._look_s = 0.0
    collection._turn()
    assert len(asked) == 4, "all segments are read again from time to time"
    index[0] = 0
    collection._look_s = math.inf
    collection._turn()
    collection._turn()
    assert len(asked) == 6, "how far the log is, is not known"


def test_a_collection_sleeps_until_something_is_applied() -> None:
    index = [7]
    looks = threading.Semaphore(0)

    def devices() -> list[DeviceInfo]:
        looks.release()
        return []

    collection = Collection(list, devices, OpenDevices(list, ""), "node", "boot", IoBudget(1 << 60), applied=lambda: index[0])
    assert not collection.due(), "it does not sleep yet"
    collection.start()
    try:
        assert looks.acquire(timeout=60)
        until(lambda: collection._resting)
        assert not collection.due()
        index[0] = 8
        assert collection.due()
        collection.wake()
        assert looks.acquire(timeout=60), "it would have slept for half a minute"
    finally:
        collection.stop()


def test_a_collection_that_is_ordered_where_there_is_nothing_to_collect_ends() -> None:
    """It went on for ever, without a pause."""
    collection = Collection(list, list, OpenDevices(list, ""), "node", "boot", IoBudget(1 << 60))
    collection.start()
    try:
        collection.order("start")
        until(lambda: collection.status()[0] == "idle")
    finally:
        collection.stop()


def test_a_collection_that_is_ordered_pauses_after_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tried again at once, and a device that fails filled the log with that."""
    troubles = [OSError(errno.EIO, "a device"), Unavailable("no leader")]
    paused: list[float] = []
    looks: list[int] = []

    def devices() -> list[DeviceInfo]:
        looks.append(len(paused))
        if troubles:
            raise troubles.pop()
        collection._ending = True
        return []

    collection = Collection(list, devices, OpenDevices(list, ""), "node", "boot", IoBudget(1 << 60))
    monkeypatch.setattr(collection._cond, "wait", paused.append)
    collection.order("start")
    collection._run()
    assert looks == [0, 1, 2] and paused == sorted(paused), "longer and longer"


def test_a_collection_whose_session_has_expired_goes_on_and_vouches_for_its_writes(r: Rig, seed: int) -> None:
    """Its node stood still, or was cut off: it may not ask with the session that is gone for ever, nor leave its segments in quarantine."""
    kept = sparse(r, seed)
    made = collector(r)
    collection = Collection(made._ask, list, OpenDevices(list, ""), "node", "boot", IoBudget(1 << 60))
    collection._collector = made
    asked: Any = made._ask
    ended: list[int] = []

    def expire(body: Any) -> None:
        if isinstance(getattr(body, "command", None), Relocate) and not ended:
            ended.append(made._session)
            asked(m.Propose(0, 0, 0, [], EndSession(made._session, made._epoch, True)))

    asked.before = expire
    with pytest.raises(FsError):
        made.round(made.candidates.choose(made.candidates.refresh(), 12), merge=True)
    assert collection.proof(ended[0]), "it writes no more under that"
    made._open()
    ended.append(made._session)
    assert not collection.proof(ended[1]), "under this it may"
    asked(m.Propose(0, 0, 0, [], EndSession(made._session, made._epoch, True)))
    made._renew_ns = 0
    with pytest.raises(FsError):
        made.round(made.candidates.choose(made.candidates.refresh(), 12), merge=True)
    assert collection.proof(ended[1]) and "exited" in collection.proof(12_345)
    collect(made)
    for ino, data in kept.items():
        assert r.content(ino) == data


def fill(r: Rig, prefix: bytes, chance: random.Random, files: dict[bytes, tuple[int, int]]) -> None:
    """Files, open still, until there is no space."""
    while True:
        name = b"%s-%d" % (prefix, len(files))
        files[name] = ino, fh = r.create(name)
        size = chance.choice([3_000, 50_000, 900_000])
        for offset in range(0, size, 300_000):
            r.write(ino, fh, offset, b"x" * min(300_000, size - offset))


def test_filled_emptied_and_refilled_it_ends_as_it_began(r: Rig, seed: int) -> None:
    chance = random.Random(seed)
    made = collector(r)
    used = []
    room = []
    for turn in range(10):
        files: dict[bytes, tuple[int, int]] = {}
        free = r.call("statfs", ROOT_INO).bytes_free
        room.append(free)
        with pytest.raises(FsError, match="the devices leave"):
            fill(r, b"t%d" % turn, chance, files)
        written = sum(r.attr(ino).size for ino, _ in files.values())
        most = free + free // ALLOCATED_SHARE  # what can be allocated is told; plain writes leave that share unused
        assert 0.8 * free < written < 1.02 * most, "statfs told what can be written"
        for ino, fh in files.values():
            r.fsync(ino, fh)  # all that was accepted
            r.close_file(ino, fh)
        for name in files:
            remove(r, name)
        until(lambda: not Asked(r)(m.GetStatus()).figures["reaping"])
        collect(made)
        passed(r)
        used.append(segments(made))
    assert max(used) <= 3 and max(room) - min(room) <= 3 * MIB, (used, room)
    r.check()


@pytest.mark.parametrize("pattern", ["big", "appends", "overwrites", "small"])
def test_no_space_is_said_by_write_and_never_later(tmp_path: Path, seed: int, pattern: str) -> None:
    """Until ENOSPC by one pattern; then fsync holds for all that was accepted, and what is removed can be written again."""
    chance = random.Random(seed)
    with rig(tmp_path, segments=40) as r:
        ino, fh = r.create(b"big")
        data = bytearray(chance.randbytes(30 * MIB if pattern != "big" else MIB))
        for offset in range(0, len(data), MIB):
            r.write(ino, fh, offset, bytes(data[offset : offset + MIB]))
        r.fsync(ino, fh)
        small: dict[int, bytes] = {}
        handles = {ino: fh}

        def one() -> None:
            if pattern == "big":
                r.write(ino, fh, len(data), b"B" * MIB)
                data.extend(b"B" * MIB)
            elif pattern == "appends":
                r.write(ino, fh, len(data), b"a")
                data.append(97)
            elif pattern == "overwrites":
                offset, piece = chance.randrange(len(data) - 4096), chance.randbytes(4096)
                r.write(ino, fh, offset, piece)
                data[offset : offset + 4096] = piece
            else:
                made, handle = r.create(b"s%d" % len(small))
                handles[made] = handle
                small[made] = b""
                piece = chance.randbytes(chance.randint(5_000, 50_000))
                r.write(made, handle, 0, piece)
                small[made] = piece

        def until_full(limit: int) -> None:
            for number in range(limit):
                one()
                if pattern == "overwrites" and number % 100 == 99:
                    r.fsync(ino, fh)

        if pattern == "appends":
            r.flush()
            left = r.call("statfs", ROOT_INO).bytes_free - 200_000
            filler, filler_fh = r.create(b"filler")
            for offset in range(0, left - left % 100_000, 100_000):
                r.write(filler, filler_fh, offset, b"f" * 100_000)
            r.fsync(filler, filler_fh)
            until_full(3_000)  # one byte after the other is one run: its space comes back with each flush
        else:
            with pytest.raises(FsError, match="the devices leave"):
                until_full(20_000)
        for number, handle in handles.items():
            r.fsync(number, handle)
        assert r.content(ino, 40 * MIB) == data
        for number, wanted in small.items():
            assert r.content(number) == wanted
        r.truncate(ino, 5 * MIB)
        r.call("mkdir", ROOT_INO, b"names are made on a full device", 0o755)
        until(lambda: not Asked(r)(m.GetStatus()).figures["reaping"])
        collect(collector(r))
        passed(r)
        before = r.call("statfs", ROOT_INO).bytes_free
        again, again_fh = r.create(b"again")
        for offset in range(0, 10 * MIB, MIB):
            r.write(again, again_fh, offset, b"z" * MIB)
        r.fsync(again, again_fh)
        assert before > 10 * MIB and r.content(again, 12 * MIB) == b"z" * (10 * MIB)
        assert r.content(ino, 6 * MIB) == data[: 5 * MIB]
        r.check()


def test_random_overwrites_for_long_stay_within_bounds(r: Rig, seed: int, figures: list[str]) -> None:
    """Six times the device in random overwrites of half of it: segments in use and extents of a MiB stay bounded."""
    chance = random.Random(seed)
    size = 24 * MIB
    ino, fh = r.create(b"f")
    data = bytearray(chance.randbytes(size))
    for offset in range(0, size, MIB):
        r.write(ino, fh, offset, bytes(data[offset : offset + MIB]))
    r.fsync(ino, fh)
    made = collector(r)
    most = 0
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.02):
            passed(r)

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    for _ in range(60):
        for _ in range(96):
            offset = chance.randrange(size // 16_384) * 16_384
            piece = chance.randbytes(16_384)
            data[offset : offset + 16_384] = piece
            r.write(ino, fh, offset, piece)
        r.fsync(ino, fh)
        low = made.candidates.free_percent() < 25
        while chosen := made.candidates.choose(made.candidates.refresh(), 12 if low else 50):
            made.round(chosen, merge=not low)
        made.rest()
        most = max(most, segments(made))
    collect(made)
    stop.set()
    renewing.join()
    share = segments(made) * MIB / size
    density = len(extents(r, ino)) / (size / MIB)
    written = 60 * 96 * 16_384
    copied = made.figures.copied_bytes / written
    figures.append(
        f"random overwrites: at most {most} of 62 segments, {share:.2f} of the live bytes at the end, "
        f"{density:.1f} extents a MiB (64 were written), {copied:.2f} bytes copied for each written"
    )
    assert most <= 2 * size // MIB and share <= 1.3 and density <= 32
    assert r.content(ino, size) == data
    r.check()


def test_a_segment_that_was_leased_again_meanwhile_is_no_damage(r: Rig, seed: int) -> None:
    """What was seen of a segment before it was freed must not make wrong bytes of what a neighbour has in its next incarnation."""
    data = random.Random(seed).randbytes(200_000)
    ino, fh = r.create(b"f")
    for at in range(0, len(data), 10_000):
        r.write(ino, fh, at, data[at : at + 10_000])
        r.fsync(ino, fh)
        other = r.file(b"g%d" % at, data)  # small pieces of the file lie in several segments
        r.flush()
        assert other
    made = collector(r)
    assert r.host.service is not None
    used = sorted({one.segment for one in extents(r, ino)})
    infos = list(r.host.service.query(m.GetSegments(used)).segments)  # type: ignore[union-attr]
    assert len(infos) > 1
    first, *rest = infos
    made.round([first, *(replace(info, incarnation=info.incarnation - 1) for info in rest)], merge=True)
    made.rest()
    assert made.figures.merged_bytes > 0 and made.figures.corrupt_pieces == 0
    assert r.content(ino) == data
    r.check()
