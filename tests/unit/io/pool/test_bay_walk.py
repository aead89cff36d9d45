"""The walk over a bay, and Verify: a whole segment has no findings, and no byte of it can change without one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from awsomefsd.base.limits import BLOCK_BYTES, MIB
from awsomefsd.io.pool.bay_findings import Findings, verify
from awsomefsd.io.pool.bay_walk import TILE_BYTES_MAX, BayExtent, BayWalk, read_footer
from awsomefsd.io.transport.messages import WRONG_MAX, Verified
from tests.rigs.bay_content import Content, content

FOOTERS = pytest.mark.parametrize("footer", [True, False])


def reader(raw: bytes | bytearray) -> Callable[[int, int], memoryview]:
    def read(offset: int, length: int) -> memoryview:
        assert 0 <= offset <= offset + length <= len(raw)
        return memoryview(bytes(raw[offset : offset + length]))

    return read


def verified(raw: bytes | bytearray, extent: BayExtent, *, ends_only: bool = False) -> Verified:
    return verify(extent, reader(raw), Findings(), ends_only=ends_only)


@FOOTERS
@pytest.mark.parametrize("number", range(12))
def test_a_whole_segment_has_no_findings(footer: bool, number: int) -> None:
    made = content(seed=number, footer=footer)
    assert verified(made.raw, made.extent) == Verified(len(made.frames), made.data_bytes)
    assert verified(made.raw, made.extent, ends_only=True).wrong_count == 0


@FOOTERS
def test_no_byte_changes_without_a_finding_and_the_other_frames_still_count(footer: bool, seed: int) -> None:
    made = content(seed=3, footer=footer)
    rng = random.Random(seed)
    inside = [offset + rng.randrange(header + stored) for offset, header, stored in made.frames]
    for at in [*inside, *(rng.randrange(len(made.raw)) for _ in range(40))]:
        raw = bytearray(made.raw)
        raw[at] ^= 1 << rng.randrange(8)
        found = verified(raw, made.extent)
        in_footer_padding = footer and at >= made.extent.footer and not any(made.raw[at:])
        assert found.wrong_count >= (0 if in_footer_padding else 1), at
        assert found.frames >= len(made.frames) - 1, (at, found)


@FOOTERS
def test_lost_writes_are_found_whatever_lies_there_instead(footer: bool, seed: int) -> None:
    made, before = content(seed=4, footer=footer), content(seed=5, segment=12, footer=False)
    rng = random.Random(seed)
    for _ in range(20):
        low = rng.randrange(made.extent.data_end // BLOCK_BYTES)
        high = min(low + rng.choice([1, 2, 17, 300]), made.extent.data_end // BLOCK_BYTES)
        for stale in (bytes(len(made.raw)), before.raw.ljust(len(made.raw), b"x")):
            raw = bytearray(made.raw)
            raw[low * BLOCK_BYTES : high * BLOCK_BYTES] = stale[low * BLOCK_BYTES : high * BLOCK_BYTES]
            touched = sum(
                offset < high * BLOCK_BYTES and offset + header + stored > low * BLOCK_BYTES for offset, header, stored in made.frames
            )
            found = verified(raw, made.extent)
            assert found.wrong_count or raw == made.raw
            assert len(made.frames) - touched <= found.frames < len(made.frames) + (raw == made.raw)


@FOOTERS
def test_a_frame_of_the_same_segment_in_another_place_is_wrong(footer: bool) -> None:
    made = content(seed=6, footer=footer)
    large = [(offset, header + stored) for offset, header, stored in made.frames if stored >= 65_536 and offset % BLOCK_BYTES == 0]
    (first, size), (second, other) = large[0], large[-1]
    assert first != second
    raw = bytearray(made.raw)
    length = min(size, other)
    raw[second : second + length] = made.raw[first : first + length]
    found = verified(raw, made.extent)
    assert second in [one.offset for one in found.wrong]


def test_a_bay_that_was_never_written_and_one_of_another_incarnation(seed: int) -> None:
    made = content(seed=7)
    zeros = verified(bytes(len(made.raw)), made.extent)
    assert zeros.frames == 0 and zeros.wrong_count >= 2
    for extent in (BayExtent(70, 2, made.extent.end, made.extent.footer), BayExtent(71, 1, made.extent.end)):
        for ends_only in (False, True):
            found = verified(made.raw, extent, ends_only=ends_only)
            assert found.frames == 0 and found.wrong_count and len(found.wrong) <= WRONG_MAX
    noise = verified(random.Random(seed).randbytes(len(made.raw)), made.extent)
    assert noise.frames == 0 and noise.wrong_count
    assert verified(b"", BayExtent(70, 1, 0)) == verified(b"", BayExtent(70, 1, 0), ends_only=True) == Verified(0, 0)


@FOOTERS
def test_the_ends_tell_a_bay_that_was_rolled_back(footer: bool) -> None:
    made = content(seed=8, footer=footer)
    offset, header, stored = made.frames[-1]
    for cut in (offset, offset // BLOCK_BYTES * BLOCK_BYTES):
        raw = made.raw[:cut].ljust(len(made.raw), b"\0")
        assert verified(raw, made.extent, ends_only=True).wrong_count
    raw = bytearray(made.raw)
    raw[0] ^= 1
    assert verified(raw, made.extent, ends_only=True).wrong[0].offset == 0
    if not footer:
        raw = bytearray(made.raw)
        raw[offset + header + stored - 1] ^= 1
        assert verified(raw, made.extent, ends_only=True).wrong_count


def test_a_large_footer_is_checked_by_its_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.io.pool.bay_walk.FOOTER_TABLE_BYTES_MAX", 100)
    made = content(seed=9)
    assert read_footer(made.extent, reader(made.raw)) == (None, "")
    assert verified(made.raw, made.extent) == Verified(len(made.frames), made.data_bytes)
    for at in (0, 16, 40, 60, 64, 200):
        raw = bytearray(made.raw)
        raw[made.extent.footer + at] ^= 1
        assert read_footer(made.extent, reader(raw))[1]


def test_no_more_is_read_than_twice_what_there_is(seed: int) -> None:
    made, total = content(seed=seed % 50, batches=12), 0

    def read(offset: int, length: int) -> memoryview:
        nonlocal total
        total += length
        return memoryview(made.raw)[offset : offset + length]

    assert not verify(made.extent, read, Findings()).wrong_count
    assert total <= 2 * len(made.raw)


def test_a_walk_never_takes_more_than_it_sees_and_always_goes_on(seed: int) -> None:
    rng = random.Random(seed)
    whole: Content = content(seed=rng.randrange(100))
    table, _ = read_footer(whole.extent, reader(whole.raw))
    for _ in range(30):
        raw = bytearray(whole.raw)
        for _ in range(rng.randrange(1, 200)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.choice([1, 64, 4_096])] = rng.choice([b"\0", b"\xff"])
        raw = raw[: len(whole.raw)].ljust(len(whole.raw), b"\0")
        walk = BayWalk(whole.extent, rng.choice([table, None]))
        while wanted := walk.wanted():
            assert wanted <= TILE_BYTES_MAX
            view = memoryview(bytes(raw[walk.position : walk.position + wanted]))
            tile = walk.judge(view)
            assert 0 < tile.length <= wanted <= MIB + BLOCK_BYTES
            needed = walk.needed(view[: rng.choice([0, 64, 200, 4_096, wanted])])
            assert 0 < needed <= wanted
            enough = walk.judge(view[:needed])
            assert 0 < enough.length <= needed and (not tile.sequence or enough == tile)
            walk.step(tile)
        assert walk.position == whole.extent.data_end
