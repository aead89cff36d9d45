"""What statfs shows can be had: allocated at once, and never more than the devices have; what a quota leaves is shared by those who ask."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.base.limits import SEGMENTS_RESERVED
from awsomefsd.base.rule_levels import MENDED_RULES
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.quota import GRANT_SHARE
from tests.rigs.machine_driver import MIB, SEGMENT_BYTES, Drive, sound

LEFT_OUT = MIB // 2


def driven(segments: int, **volume: int) -> Drive:
    drive = Drive(segments=segments)
    drive.machine.state.cluster.level = MENDED_RULES
    drive.make_volume(**volume)
    drive.open()
    return drive


@pytest.mark.parametrize("free_bytes", [MIB, 64 * MIB, 1 << 30, 1 << 40])
@pytest.mark.parametrize("bound", ["device", "quota"])
def test_what_is_shown_as_available_can_be_allocated(free_bytes: int, bound: str) -> None:
    """All of it but half a MiB, in one call, on an empty volume."""
    if bound == "quota":
        drive = driven(2 * free_bytes // SEGMENT_BYTES + 2 * SEGMENTS_RESERVED, quota_bytes=free_bytes)
    else:
        drive = driven(-(-free_bytes // SEGMENT_BYTES) + SEGMENTS_RESERVED + 1)
    ino = drive.create(b"f")
    shown = drive.ask(m.GetStatFs(drive.volume)).stat.bytes_writable
    assert shown >= free_bytes * 9 // 10
    reply = drive.ok(c.Fallocate(drive.volume, ino, 0, 0, shown - LEFT_OUT))
    assert reply.reached >= shown - LEFT_OUT
    after = drive.ask(m.GetStatFs(drive.volume)).stat
    assert LEFT_OUT - 8192 <= after.bytes_writable <= LEFT_OUT
    sound(drive)


def test_a_quota_over_the_devices_shows_an_empty_volume_as_empty() -> None:
    drive = driven(64, quota_bytes=1 << 40)
    stat = drive.ask(m.GetStatFs(drive.volume)).stat
    assert stat.bytes_total == stat.bytes_free == 1 << 40, "nothing is used"
    assert 0 < stat.bytes_writable < 64 * SEGMENT_BYTES, "and the devices bound what can be written"


@pytest.mark.parametrize("quota_bytes", [0, 64 * MIB])
def test_what_is_reserved_and_not_needed_is_shown_as_free(quota_bytes: int) -> None:
    """A mount reserves with its first byte; the volume is as empty as before.  What write(2) has taken is not free."""
    drive = driven(64, **({"quota_bytes": quota_bytes} if quota_bytes else {}))

    def shown(session: int, unneeded: int) -> tuple[int, int]:
        stat = drive.ask(m.GetStatFs(drive.volume, session, unneeded)).stat
        return stat.bytes_free, stat.bytes_writable

    empty = shown(0, 0)
    held = drive.ok(c.Reserve(drive.volume, 64 * MIB, 4_096)).bytes
    assert held > MIB
    assert shown(0, 0) == shown(drive.session, held) == empty, "it would be given back"
    assert shown(drive.session + 1, 0)[1] <= empty[1] - held // 2, "another session does not know how much of it is needed"
    taken = MIB
    assert empty[0] - taken - MIB // 8 <= shown(drive.session, held - taken)[0] <= empty[0] - taken + MIB // 8
    assert shown(drive.session, held * 100) == empty, "nobody gives back more than it has"
    assert drive.ask(m.GetStatFs(drive.volume)).stat.bytes_free < empty[0], "builds before are told what they know"


def test_one_who_asks_ahead_gets_a_part_of_what_a_quota_leaves() -> None:
    drive = driven(512, quota_bytes=64 * MIB)
    first = drive.ok(c.Reserve(drive.volume, 64 * MIB, 4_096)).bytes
    assert first == 64 * MIB // GRANT_SHARE
    rest = 64 * MIB - first
    assert drive.ok(c.Reserve(drive.volume, rest, rest)).bytes == rest, "what is needed now is granted whole"


def test_a_refusal_to_reserve_is_not_kept() -> None:
    """So that the leader may propose it again under the same request id, when others have given space back."""
    drive = driven(64, quota_bytes=MIB)
    drive.ok(c.Reserve(drive.volume, MIB, MIB))
    refused = drive.apply(c.Reserve(drive.volume, 10, 10), unique=9)
    assert refused == m.Failed(errno.EDQUOT, "the quota of volume vol leaves 0 bytes")
    assert drive.machine.stored_result(drive.mount, 9) is None
    drive.ok(c.Reserve(drive.volume, -MIB, 0))
    assert drive.ok(c.Reserve(drive.volume, 10, 10), unique=9).bytes >= 10


def test_below_its_level_the_rule_is_what_older_builds_do() -> None:
    drive = driven(512, quota_bytes=64 * MIB)
    drive.machine.state.cluster.level = MENDED_RULES - 1
    assert drive.ok(c.Reserve(drive.volume, 64 * MIB, 4_096)).bytes == 64 * MIB
    assert isinstance(drive.apply(c.Reserve(drive.volume, 10, 10), unique=9), m.Failed)
    assert drive.machine.stored_result(drive.mount, 9) is not None
