"""Rows that contradict themselves are refused when they are saved and when they are read."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.base.types import SEGMENT_FREE, SEGMENT_LEASED, SEGMENT_METADATA, SEGMENT_QUARANTINED, SEGMENT_SEALED
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.machine.ledger import LEADER
from awsomefsd.meta.state import invariants, keys, rows
from awsomefsd.meta.state.rows_cache import State
from tests.rigs.machine_driver import Drive
from tests.rigs.memory_txn import MemTxn

KEY = b"a key"
INODE = rows.InodeRow(0o100644, 1, 0, 0, 0, 10, 10, 1, 1, 1, 1, 1, 0, extents=1)
VOLUME = rows.VolumeRow(1, "uuid", "name", 0, 0)
SESSION = rows.SessionRow(3, 4, 1, 1, "node", "boot", 1)
DEVICE = rows.DeviceRow(1, "uuid", 1 << 30, 1 << 26, 10, 0, True, 1, 8, 3)
SEGMENT = rows.SegmentRow(1, 1, 0, SEGMENT_SEALED, 1, live_bytes=5)

BROKEN: list[tuple[Any, Any, dict[str, Any]]] = [
    (rows.INODE, INODE, {"nlink": -1}),
    (rows.INODE, INODE, {"size": -1}),
    (rows.INODE, INODE, {"allocated_bytes": 11}),
    (rows.INODE, INODE, {"inline": True}),
    (rows.INODE, INODE, {"xattrs": 1}),
    (rows.INODE, INODE, {"trims": -1}),
    (rows.INODE, INODE, {"entries": 1}),
    (rows.VOLUME, VOLUME, {"used_bytes": -1}),
    (rows.VOLUME, VOLUME, {"used_inodes": -1}),
    (rows.VOLUME, VOLUME, {"reserved_bytes": -1}),
    (rows.VOLUME, VOLUME, {"sharers": -1}),
    (rows.SESSION, SESSION, {"session": 9}),
    (rows.SESSION, SESSION, {"epoch": 9}),
    (rows.SESSION, SESSION, {"reserved_bytes": -1}),
    (rows.SESSION, SESSION, {"segments_leased": -1}),
    (rows.DEVICE, DEVICE, {"segments_free": 11}),
    (rows.DEVICE, DEVICE, {"segments_free": 6}),
    (rows.DEVICE, DEVICE, {"unused_from": 11}),
    (rows.SEGMENT, SEGMENT, {"live_bytes": -1}),
    (rows.SEGMENT, SEGMENT, {"state": SEGMENT_LEASED}),
    (rows.SEGMENT, SEGMENT, {"session": 3}),
    (rows.SEGMENT, SEGMENT, {"state": SEGMENT_FREE}),
    (rows.SEGMENT, SEGMENT, {"state": SEGMENT_METADATA}),
]


def state() -> State:
    made = State(MemTxn(), LEADER)
    made.cluster.next_session = made.cluster.next_epoch = 9
    return made


@pytest.mark.parametrize(("codec", "row"), [(rows.INODE, INODE), (rows.VOLUME, VOLUME), (rows.SESSION, SESSION), (rows.DEVICE, DEVICE)])
def test_sound_rows_are_saved_and_read(codec: Any, row: Any) -> None:
    one = state()
    one.save(KEY, row, codec)
    one.flush()
    two = State(one.txn, LEADER)
    assert two.load(KEY, codec) == row


@pytest.mark.parametrize(("codec", "row", "change"), BROKEN, ids=[f"{type(row).__name__}-{change}" for _, row, change in BROKEN])
def test_a_row_that_contradicts_itself_is_not_saved_and_not_read(codec: Any, row: Any, change: dict[str, Any]) -> None:
    broken = replace(row, **change)
    with pytest.raises(AssertionError):
        state().save(KEY, broken, codec)
    one = state()
    one.txn.put(KEY, codec.dumps(broken))
    with pytest.raises(AssertionError):
        one.load(KEY, codec)


@pytest.mark.parametrize(("codec", "row", "change"), BROKEN, ids=[f"{type(row).__name__}-{change}" for _, row, change in BROKEN])
def test_a_running_service_reads_such_a_row(codec: Any, row: Any, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same on every voter: an assertion would end all of them, where fsck corrects a number (decision 114)."""
    monkeypatch.setattr(invariants, "ASSERTED", False)
    broken = replace(row, **change)
    one = state()
    one.txn.put(KEY, codec.dumps(broken))
    assert one.load(KEY, codec) == broken
    one.save(KEY, broken, codec)


# --- the segments of a device ------------------------------------------------------------------------------------------------------


def drive() -> Drive:
    """A device with a segment in each state, and some that were never leased."""
    one = Drive(segments=8)
    one.make_volume()
    for mount, filled, exited in ((7, False, False), (8, True, True), (9, False, True), (10, False, None)):
        one.open(mount=mount)
        (segment,) = one.lease(safe_index=0)
        if filled:
            one.write(segment, one.create(b"file"), 0, 4_096)
        if exited is not None:
            one.ok(c.EndSession(one.session, one.epoch, exited))
    found = [row.state for number in range(1, 9) if (row := one.machine.state.segment(number)) is not None]
    assert found == [SEGMENT_QUARANTINED, SEGMENT_SEALED, SEGMENT_FREE, SEGMENT_LEASED]
    return one


def spoil(one: Drive, key: bytes, codec: Any, **change: Any) -> None:
    """Changes a row below the machine, as a rule with a mistake would have left it."""
    one.machine.flush()
    one.txn.put(key, codec.dumps(replace(codec.loads(one.txn.get(key)), **change)))
    one.reload()


@pytest.mark.parametrize("off", [-1, 1])
def test_an_entry_that_changes_a_device_whose_segments_do_not_add_up_fails(off: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one = drive()
    spoil(one, keys.device(1), rows.DEVICE, segments_free=one.machine.state.device(1).segments_free + off)
    with pytest.raises(AssertionError, match="not all of it"):
        one.lease(safe_index=0)
    monkeypatch.setattr(invariants, "ASSERTED", False)
    one.lease(safe_index=0)


def test_a_segment_whose_state_the_device_has_not_counted_is_found() -> None:
    one = drive()
    leased = one.lease()[0].segment
    spoil(one, keys.segment(leased), rows.SEGMENT, state=SEGMENT_FREE, session=0)
    with pytest.raises(AssertionError, match="not all of it"):
        one.lease()


def test_a_segment_that_lost_its_row_is_found() -> None:
    one = drive()
    leased = one.lease()[0].segment
    one.machine.flush()
    one.txn.delete(keys.segment(leased))
    one.reload()
    with pytest.raises(AssertionError, match="has no row"):
        one.lease()


def test_an_entry_that_changes_no_device_reads_no_segments() -> None:
    one = drive()
    spoil(one, keys.device(1), rows.DEVICE, segments_free=one.machine.state.device(1).segments_free - 1)
    one.create(b"another file")


def test_nobody_but_tests_asserts_rows() -> None:
    modules = "awsomefsd.daemon.daemon, awsomefsd.recovery.fsck"
    code = f"import {modules}; from awsomefsd.meta.state import invariants; print(invariants.ASSERTED)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
