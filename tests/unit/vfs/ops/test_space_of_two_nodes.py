"""Quotas and full devices of a volume that two nodes have mounted: what one node has reserved and does not need is the other's to write."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.wait import block_on
from tests.rigs.sharing_nodes import Sharing, sound, two_nodes
from tests.unit.vfs.ops.test_buffered_writes import Leased

MIB = 1 << 20
PIECE = 256 << 10


@pytest.fixture(params=[Sharing, Leased])
def kind(request: pytest.FixtureRequest) -> type[Sharing]:
    found: type[Sharing] = request.param
    return found


@pytest.fixture(params=["quota", "device"])
def nodes(tmp_path: Path, kind: type[Sharing], request: pytest.FixtureRequest) -> Iterator[list[Sharing]]:
    options = {"quota_bytes": 8 * MIB} if request.param == "quota" else {"segments": 20}
    yield from two_nodes(kind, tmp_path, **options)


def fill(node: Sharing, name: bytes, bound: int = 1 << 30) -> int:
    """Writes pieces to a new file until there is no room; returns the bytes that were written."""
    ino, fh = node.create(name)
    for at in range(0, bound, PIECE):
        try:
            node.write(ino, fh, at, b"%c" % (at // PIECE % 256) * PIECE)
        except FsError as err:
            if err.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return at
    return bound


def test_what_one_has_reserved_the_other_may_write(nodes: list[Sharing]) -> None:
    """Without the recall the second is refused for what the first does not need, until that has been idle for some seconds."""
    one, two = nodes
    reserved = one.mount.buffered.reservation
    ino, fh = one.create(b"small")
    one.write(ino, fh, 0, b"x" * PIECE)
    one.fsync(ino, fh)
    reserve_all(one)
    held = reserved.left_bytes
    assert held > 4 * MIB, "the first holds most of the space, and needs none of it"
    assert fill(two, b"there") > held // 2
    assert reserved.left_bytes < held // 2
    sound(nodes)


def reserve_all(node: Sharing) -> None:
    """Reserves all that there is."""
    step = 8 * MIB
    while step >= PIECE:
        try:
            block_on(node.mount.buffered.reservation.refill(node.mount.buffered.reservation.left_bytes + step))
        except FsError:
            step //= 2


def test_full_is_told_to_both_and_nothing_acknowledged_is_lost(nodes: list[Sharing]) -> None:
    one, two = nodes
    first, second = fill(one, b"one"), fill(two, b"two")
    assert first > MIB
    assert fill(one, b"more", 64 * PIECE) < 64 * PIECE and fill(two, b"too", 64 * PIECE) < 64 * PIECE
    for node in nodes:
        node.flush()
    for name, size in ((b"one", first), (b"two", second)):
        for node in nodes:
            ino = node.lookup(name).ino
            fh = node.open(ino)
            for at in range(0, size, PIECE):
                assert node.read(ino, fh, at, PIECE) == b"%c" % (at // PIECE % 256) * PIECE, (name, at)
            node.close_file(ino, fh)
    sound(nodes)
