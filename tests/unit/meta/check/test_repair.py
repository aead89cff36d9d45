"""fsck --repair: each planted fault goes, a second run finds nothing, and files that were not touched stay as they were."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from awsomefsd.base.errors import Corrupt
from awsomefsd.base.types import Extent
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages
from awsomefsd.meta.check import repair
from awsomefsd.meta.check.check import check
from awsomefsd.meta.check.repair import Plan, commands, plan
from awsomefsd.meta.check.repair_txn import DeviceFacts, FrameFacts, Hints, no_frame
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.row_codecs import OWN_KEY
from awsomefsd.meta.state.rows_cache import INCOMPAT_SNAPSHOTS
from tests.rigs.machine_driver import MIB, SEGMENT_BYTES, START_NS
from tests.rigs.memory_txn import MemTxn
from tests.unit.meta.check.test_check import IN_HISTORY, IN_POOLS, Ground
from tests.unit.meta.check.test_check import PLANTS as ALL_PLANTS

PLANTS = [one for one in ALL_PLANTS if one[1] not in IN_POOLS and one not in IN_HISTORY]  # no repair of pools and of history is built

Frames = dict[tuple[int, int], FrameFacts]


def frames_of(txn: MemTxn) -> Frames:
    """What a device would hold for the extents of a sound state."""
    found: Frames = {}
    for key, raw in txn.rows.items():
        _, volume, kind = keys.kind_of(key)
        if kind == keys.EXTENT and (row := rows.EXTENT.loads(raw)).segment and not row.shared:
            start = keys.last_u64(key) - row.skip
            facts = FrameFacts(
                volume, keys.first_u64(key), start, row.segment, row.incarnation, row.sequence, row.skip + row.length, row.header_bytes
            )
            found[row.segment, row.frame_offset] = facts
    return found


def hints(frames: Frames | None = None, **fields: Any) -> Hints:
    facts = DeviceFacts("d-uuid", SEGMENT_BYTES * 16 + MIB, SEGMENT_BYTES, 16, MIB)

    def frame(uuid: str, at: int) -> FrameFacts | None:
        assert uuid == "d-uuid" and frames is not None
        return frames.get(((at - MIB) // SEGMENT_BYTES + 1, (at - MIB) % SEGMENT_BYTES))

    return Hints(START_NS, [facts], no_frame if frames is None else frame, **fields)


def apply(ground: Ground, made: Iterable[c.RepairRows]) -> None:
    """As entries of the log, as fsck does."""
    drive = ground.drive
    drive.session = drive.epoch = drive.mount = 0
    drive.machine = type(drive.machine)(ground.txn)
    for command in made:
        drive.ok(command)
    drive.machine.flush()


def content(txn: MemTxn, volume: int, ino: int) -> dict[bytes, bytes]:
    spans = [keys.extents_range(volume, ino)]
    found = {key: raw for span in spans for key, raw in txn.scan(*span)}
    inline = txn.get(keys.inline(volume, ino))
    return found | ({} if inline is None else {keys.inline(volume, ino): inline})


@pytest.mark.parametrize(("kind", "plant"), PLANTS, ids=[f"{kind}-{at}" for at, (kind, _) in enumerate(PLANTS)])
def test_each_planted_fault_is_repaired(kind: str, plant: Callable[[Ground], None]) -> None:
    ground = Ground()
    frames = frames_of(ground.txn)
    plant(ground)
    before = dict(ground.txn.rows)
    planned = plan(ground.txn, hints(frames))
    assert ground.txn.rows == before, "planning writes"
    assert kind in {fault.kind for fault in planned.found} and planned.actions
    assert planned.remaining == [], (planned.remaining, planned.actions)
    apply(ground, commands(planned))
    assert check(ground.txn) == []
    again = plan(ground.txn, hints(frames))
    assert (again.found, again.deletes, again.puts, again.actions) == ([], [], [], [])


@pytest.mark.parametrize(("kind", "plant"), PLANTS, ids=[f"{kind}-{at}" for at, (kind, _) in enumerate(PLANTS)])
def test_a_repair_that_is_interrupted_between_two_entries_is_repeated(
    kind: str, plant: Callable[[Ground], None], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry may be the last one that is durable.  The next run repairs the rest, and loses no file that the whole one keeps."""
    monkeypatch.setattr(repair, "REPAIR_ENTRY_ROWS", 1)
    whole, ground = Ground(), Ground()
    frames = frames_of(ground.txn)
    plant(whole)
    plant(ground)
    made = list(commands(plan(ground.txn, hints(frames))))
    done = random.Random(f"{seed} {kind}").randrange(len(made) + 1)
    apply(ground, made[:done])
    apply(ground, commands(plan(ground.txn, hints(frames))))
    assert plan(ground.txn, hints(frames)).found == [], f"{done} of {len(made)} rows were written before"
    apply(whole, made)
    kept, there = (sum(keys.kind_of(key)[2] == keys.INODE for key in one.txn.rows) for one in (whole, ground))
    assert kept <= there, f"{done} of {len(made)} rows were written before"  # lost+found may have been made twice


def test_rows_that_stand_in_each_others_places_are_all_kept(seed: int) -> None:
    """Two that have changed places, or a row of them that have all moved on: none is in the way of another, and none goes."""
    chance = random.Random(seed)
    sound = Ground()
    frames = frames_of(sound.txn)
    moved = 0
    for kind in OWN_KEY:
        there = [key for key, _ in sound.txn.scan(*keys.kind_range(0, kind))]
        if not there:
            continue
        spare = there[-1][:-1] + bytes([there[-1][-1] ^ 0x40])
        for _ in range(20):
            places = [*there, spare]
            chance.shuffle(places)
            ground = Ground()
            for key in there:
                ground.txn.delete(key)
            for key, place in zip(there, places, strict=False):
                ground.txn.put(place, sound.txn.rows[key])
            planned = plan(ground.txn, hints(frames))
            apply(ground, commands(planned))
            found = dict(ground.txn.scan(*keys.kind_range(0, kind)))
            assert found == {key: sound.txn.rows[key] for key in there}, (kind, places, planned.actions)
            moved += 1
    assert moved >= 60, "void: of too few kinds are there rows"


def test_a_state_with_snapshots_is_left_alone() -> None:
    """A repair that does not know the rows of history would take them for strays, and what they hold for lost."""
    ground = Ground()
    ground.cluster(incompat=INCOMPAT_SNAPSHOTS, reaps=7)
    kept = keys.history(keys.inode(1, ground.file), 5)
    ground.txn.put(kept, ground.txn.rows[keys.inode(1, ground.file)])
    planned = plan(ground.txn, hints())
    assert planned.found == planned.remaining != [] and (planned.deletes, planned.puts) == ([], [])
    ground.txn.delete(keys.cluster())  # it cannot say so any more, and the row of a snapshot does
    assert kept in plan(ground.txn, hints()).deletes
    ground.txn.put(keys.snapshot(1, 1), rows.SNAPSHOT.dumps(rows.SnapshotRow(1, 1)))
    assert plan(ground.txn, hints()).deletes == []


def test_a_sound_state_is_left_alone() -> None:
    planned = plan(Ground().txn, hints())
    assert (planned.found, planned.remaining, planned.actions, planned.deletes, planned.puts) == ([], [], [], [], [])


def damage(ground: Ground, chance: random.Random, count: int) -> None:
    for _ in range(count):
        key = chance.choice([key for key in ground.txn.order if key != keys.cluster()])
        how = chance.randrange(3)
        if how == 0:
            ground.txn.delete(key)
        elif how == 1:
            value = bytearray(ground.txn.rows[key])
            value[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
            ground.txn.rows[key] = bytes(value)
        else:
            chance.choice(PLANTS)[1](ground)


@pytest.mark.parametrize("round_", range(60))
def test_random_damage(seed: int, round_: int) -> None:
    """Several faults at once: the repair ends, its outcome is sound or it says what is left, and a second run changes nothing."""
    chance = random.Random(f"{seed} {round_}")
    ground = Ground()
    frames = frames_of(ground.txn)
    for _ in range(chance.randrange(1, 8)):
        try:
            damage(ground, chance, 1)
        except (AssertionError, KeyError, Corrupt):
            continue  # what a plant wants to damage is gone already
    planned = plan(ground.txn, hints(frames))
    if ground.txn.get(keys.cluster()) is None:
        return
    try:
        rows.CLUSTER.loads(ground.txn.rows[keys.cluster()])
    except Exception:
        assert planned.remaining
        return
    apply(ground, commands(planned))
    left = check(ground.txn)
    assert left == planned.remaining
    assert not {fault.kind for fault in left} - {"device-missing", "cluster-bytes", "segment-device"}, (left, planned.actions)
    again = plan(ground.txn, hints(frames))
    assert (again.deletes, again.puts) == ([], []), again.actions


def test_any_row_that_is_gone_or_rots_never_makes_zeros(seed: int) -> None:
    """Of every row in turn: after the repair each file reads as before, or says EIO, or is gone; and other files are untouched."""
    chance = random.Random(seed)
    sound = Ground()
    frames = frames_of(sound.txn)
    files = (sound.file, sound.copied, sound.inline)
    for key in list(sound.txn.order):
        for rot in (False, True):
            ground = Ground()
            if key == keys.cluster():
                continue
            if rot:
                value = bytearray(ground.txn.rows[key])
                value[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
                ground.txn.rows[key] = bytes(value)
            else:
                ground.txn.delete(key)
            planned = plan(ground.txn, hints(frames))
            assert planned.remaining == [], (key.hex(), rot, planned.remaining, planned.actions)
            apply(ground, commands(planned))
            _, volume, _ = keys.kind_of(key)
            for ino in files:
                after = content(ground.txn, 1, ino)
                same = _comparable(after) == _comparable(content(sound.txn, 1, ino))
                mine = volume and keys.first_u64(key) == ino
                assert same or (mine and _only_lost(content(sound.txn, 1, ino), after)), (key.hex(), rot, ino, planned.actions)


def _comparable(found: dict[bytes, bytes]) -> list[Any]:
    """Returns (key, value) pairs without the index of the entry, which may differ in an extent that was made again."""
    comparable: list[Any] = []
    for key, raw in sorted(found.items()):
        if keys.kind_of(key)[2] == keys.EXTENT:
            row = rows.EXTENT.loads(raw)
            row.index = 0
            comparable.append((key, row))
        else:
            comparable.append((key, raw))
    return comparable


def _only_lost(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> bool:
    """Every extent that there was is there, or its bytes are lost; nothing became a hole."""
    pieces = [(keys.last_u64(key), rows.EXTENT.loads(raw)) for key, raw in sorted(after.items()) if keys.kind_of(key)[2] == keys.EXTENT]
    for key, raw in before.items():
        if keys.kind_of(key)[2] != keys.EXTENT:
            start, end = 0, len(rows.INLINE.loads(raw).data)
            if after.get(key) == raw:
                continue
        else:
            row = rows.EXTENT.loads(raw)
            start, end = keys.last_u64(key), keys.last_u64(key) + row.length
            if not row.segment or (start, row) in pieces:
                continue
        spans = [(max(start, at), min(end, at + piece.length)) for at, piece in pieces if piece.lost]
        covered = sum(max(0, last - first) for first, last in spans)
        if covered < end - start:
            return False
    return True


def test_lost_bytes_are_told_to_readers_and_go_when_they_are_overwritten() -> None:
    ground = Ground()
    drive = ground.drive
    ground.remove(keys.extent(ground.volume, ground.file, 4000))
    ground.remove(keys.reverse(ground.sealed, 0, ground.volume, ground.file, 4000))
    planned = plan(ground.txn, hints())
    assert any(action.loss for action in planned.actions)
    apply(ground, commands(planned))
    layout = drive.ask(messages.GetLayout(ground.volume, ground.file, 0, 1 << 40))
    lost = [extent for extent in layout.extents if not extent.segment]
    assert any(extent.file_offset <= 4000 and extent.file_offset + extent.length == 5000 for extent in lost)
    assert all(info.segment for info in layout.segments)
    drive.session, drive.epoch, drive.mount = 1, 1, 7
    refused = drive.apply(c.CopyRange(ground.volume, ground.file, 0, ground.copied, 0, 5000))
    assert isinstance(refused, messages.Failed) and refused.errno == 5
    drive.ok(c.Fallocate(ground.volume, ground.file, 3, 0, 8000))  # a punched hole is a hole
    layout = drive.ask(messages.GetLayout(ground.volume, ground.file, 0, 1 << 40))
    assert [extent for extent in layout.extents if not extent.segment] == []
    drive.machine.flush()
    assert check(ground.txn) == []


def test_a_hole_that_was_none_is_never_read() -> None:
    """Before any fsck: a layout that does not have what the inode counts is refused."""
    ground = Ground()
    ground.remove(keys.inline(ground.volume, ground.inline))
    ground.drive.machine.state.reload()
    assert ground.drive.ask_errno(messages.GetLayout(ground.volume, ground.inline, 0, 1 << 40)) == 5
    ino = ground.drive.create(b"plain")
    leased = ground.drive.lease(1)[0]
    ground.drive.write(leased, ino, 0, 100)
    ground.drive.write(leased, ino, 5000, 100)
    ground.txn.delete(keys.extent(ground.volume, ino, 5000))
    assert ground.drive.ask_errno(messages.GetLayout(ground.volume, ino, 0, 1 << 40)) == 5


def test_only_the_host_repairs() -> None:
    ground = Ground()
    assert ground.drive.errno(c.RepairRows([], [(keys.cluster(), b"x")])) == 1


def test_the_cluster_row_comes_back_from_its_copy() -> None:
    ground = Ground()
    copy = ground.txn.rows[keys.cluster()]
    ground.txn.rows[keys.cluster()] = b"rotten"
    assert {fault.kind for fault in plan(ground.txn, hints()).remaining} >= {"undecodable"}
    planned = plan(ground.txn, hints(cluster_copy=copy))
    assert planned.remaining == [] and planned.puts == [(keys.cluster(), copy)]


def test_entries_are_bounded() -> None:
    planned = Plan([], [], [], [b"k%d" % at for at in range(2500)], [(b"p%d" % at, bytes(300_000)) for at in range(4)])
    made = list(commands(planned))
    assert [len(command.deletes) for command in made] == [0, 0, 0, 0, 1000, 1000, 500]
    assert [put for command in made for put in command.puts] == planned.puts


def test_the_reader_refuses_lost_bytes() -> None:
    from awsomefsd.io.segment.reader import SegmentReader

    with pytest.raises(Corrupt, match="volume 3 inode 4 offset 17"):
        SegmentReader({}, lambda _: None).read(Extent(10, 100, 0, 0, 0, 0, 0, 0), 3, 4, 7, 10, memoryview(bytearray(10)))  # type: ignore[arg-type,return-value]
