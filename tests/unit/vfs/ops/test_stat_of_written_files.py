"""stat(2) of a file that another node writes: right, and without a flush there (vfs/ops/shown_to_others.py)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from awsomefsd.base.types import LEASE_READ, LEASE_WRITE, ROOT_INO
from awsomefsd.meta.api import commands as c
from awsomefsd.vfs.api.context import SetAttrIn
from tests.rigs.mount_without_kernel import LIMIT_S, Started, until
from tests.unit.vfs.ops.test_buffered_writes import Leased, nodes, sound

__all__ = ["nodes"]


@pytest.fixture
def still(nodes: list[Leased]) -> Iterator[list[Leased]]:
    """Nothing is flushed on the first node: whatever waits for that hangs."""
    nodes[0].worker.data.flusher.pause(True)
    yield nodes
    nodes[0].worker.data.flusher.pause(False)
    sound(nodes)


def stat(node: Leased, ino: int) -> Any:
    return node.begin("getattr", ino, None).result(LIMIT_S)


def listed(node: Leased) -> dict[bytes, Any]:
    """What READDIRPLUS shows, and LOOKUP of those that it shows no attributes of."""
    fh = node.call("opendir", ROOT_INO, 0)
    fh = getattr(fh, "fh", fh)
    page = Started(node.vfs.readdir(node.ctx(), ROOT_INO, fh, 0, True)).result(LIMIT_S)
    entries = getattr(page, "entries", page)
    names = [entry.name for entry in entries if entry.name not in (b".", b"..")]
    return {name: node.begin("lookup", ROOT_INO, name).result(LIMIT_S) for name in names}


@pytest.mark.parametrize("how", ["getattr", "lookup"])
def test_stat_shows_what_was_written_and_flushes_nothing(still: list[Leased], how: str) -> None:
    one, two = still
    ino, fh = one.create(b"f")
    flusher = one.worker.data.flusher
    for turn in range(1, 4):
        one.write(ino, fh, 0, b"x" * 3_000 * turn)
        batches, mine = flusher.batches, one.attr(ino)
        seen = stat(two, ino) if how == "getattr" else two.begin("lookup", ROOT_INO, b"f").result(LIMIT_S)
        assert seen == mine and seen.size == 3_000 * turn
        assert one.holds(ino) == LEASE_WRITE and flusher.batches == batches
        assert one.mount.buffered.dirty.dirty_bytes == sum(3_000 * n for n in range(1, turn + 1))
    flusher.pause(False)
    one.fsync(ino, fh)
    now = stat(two, ino)
    assert (now.size, now.stored_bytes, now.mtime_ns, now.ctime_ns) == (seen.size, seen.stored_bytes, seen.mtime_ns, seen.ctime_ns), (
        "the commit stores what was shown"
    )


def test_a_file_that_was_only_made_and_one_that_is_committed_show_alike(still: list[Leased]) -> None:
    one, two = still
    ino, fh = one.create(b"f")
    assert stat(two, ino) == one.attr(ino) and one.holds(ino) == LEASE_WRITE
    one.worker.data.flusher.pause(False)
    one.write(ino, fh, 0, b"hello")
    one.fsync(ino, fh)
    assert stat(two, ino) == one.attr(ino) and one.holds(ino) == LEASE_WRITE
    one.call("setattr", ino, None, SetAttrIn(c.SET_MODE | c.SET_SIZE, mode=0o600, size=2))
    assert stat(two, ino) == one.attr(ino) and stat(two, ino).size == 2


def test_a_listing_with_attributes_flushes_nothing(still: list[Leased]) -> None:
    one, two = still
    made = {b"f%d" % number: one.create(b"f%d" % number) for number in range(5)}
    for number, (ino, fh) in enumerate(made.values()):
        one.write(ino, fh, 0, bytes(100 * number + 1))
    assert {name: attr.size for name, attr in listed(two).items()} == {b"f%d" % number: 100 * number + 1 for number in range(5)}
    assert all(one.holds(ino) == LEASE_WRITE for ino, _ in made.values())


def test_stat_while_the_writer_writes_never_goes_back_and_holds_up_nobody(still: list[Leased]) -> None:
    one, two = still
    ino, fh = one.create(b"f")
    written, errors = [0], []  # acknowledged bytes

    def look() -> None:
        try:
            before = 0
            while before < 300:
                least = written[0]
                size = stat(two, ino).size
                assert max(least, before) <= size <= 300, (least, before, size)
                before = size
        except BaseException as err:
            errors.append(err)

    lookers = [threading.Thread(target=look) for _ in range(6)]
    for thread in lookers:
        thread.start()
    for number in range(300):
        one.write(ino, fh, number, b"x")
        written[0] = number + 1
    for thread in lookers:
        thread.join(LIMIT_S)
    assert not errors and not any(thread.is_alive() for thread in lookers)
    assert one.holds(ino) == LEASE_WRITE and one.mount.buffered.dirty.dirty_bytes == 300


def test_bytes_are_committed_before_they_are_read_and_what_was_shown_stands(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"hello")
    shown = stat(two, ino)
    there = two.open(ino)
    assert two.read(ino, there, 0, 99) == b"hello" and one.holds(ino) == LEASE_READ
    assert stat(two, ino) == shown == one.attr(ino)
    sound(nodes)


def test_a_worker_that_dies_while_it_is_looked_at_has_a_successor_that_commits(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"hello")
    assert stat(two, ino).size == 5
    one.kill()
    looking = two.begin("getattr", ino, None)
    one.start()
    assert looking.result(LIMIT_S).size == 5, "what was shown does not go back with a worker"
    sound(nodes)


def test_attributes_that_have_no_outcome_yet_are_not_told(nodes: list[Leased]) -> None:
    """A truncation is on its way: the lease is recalled, and the question waits for what becomes of it."""
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"hello")
    one.fsync(ino, fh)
    one.mount.caches.begin_change([ino])
    looking = two.begin("getattr", ino, None)
    until(lambda: one.holds(ino) == LEASE_READ)
    assert looking.result(LIMIT_S).size == 5
    one.mount.caches.leases.end_change([ino])  # type: ignore[union-attr]
    sound(nodes)
