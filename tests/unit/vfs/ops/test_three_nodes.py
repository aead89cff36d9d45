"""Three nodes work on one volume at the same time: ranges of files that another node is writing, and the last of the space."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.worker import background
from tests.rigs.mount_without_kernel import LIMIT_S, error_of, until
from tests.rigs.sharing_nodes import FIRST, Sharing, append, sound
from tests.unit.vfs.ops.test_buffered_writes import Leased

MIB, KIB = 1 << 20, 1 << 10
PIECE = 128 * KIB
LEFT_OUT = MIB // 2
FILE_BYTES = 200_000
SPACE = (errno.ENOSPC, errno.EDQUOT)

Nodes = list[Sharing]
Make = Callable[..., Nodes]


@pytest.fixture(params=[Sharing, Leased])
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes the nodes, with options of the first one's rig.

    A node that does not yet ask who needs space is not asked for any, and one that has nothing to do for a while gives it back unasked.
    """
    kind: type[Sharing] = request.param
    with patch.object(background, "REPORT_S", LIMIT_S), ExitStack() as stack:

        def made(**options: int) -> Nodes:
            first = kind(tmp_path, **options)
            first.hold_lease_clock()
            nodes = [first, kind(tmp_path, first, FIRST + 1), kind(tmp_path, first, FIRST + 2)]
            for node in nodes:
                stack.callback(node.close)
                node.start()
            asking = first.host._turns.leader._space._awaiting
            until(lambda: all(node.worker.client.session in asking for node in nodes))
            return nodes

        yield made


def at_once(nodes: Nodes, work: Callable[[Sharing], None]) -> None:
    """Does the work on all nodes at the same time; raises the first error."""
    failed: list[BaseException] = []

    def perform(node: Sharing) -> None:
        try:
            work(node)
        except BaseException as err:
            failed.append(err)

    threads = [threading.Thread(target=perform, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert not any(thread.is_alive() for thread in threads)
    if failed:
        raise failed[0]


# --- ranges of files that another node is writing ---------------------------------------------------------------------------------
class Files:
    """Two files that all nodes have open, and what has to be in them."""

    def __init__(self, nodes: Nodes, dice: random.Random) -> None:
        self.nodes, self.dice = nodes, dice
        self.expected = [bytearray(), bytearray()]
        self.inos = [nodes[0].file(name) for name in (b"one", b"two")]
        self.handles = [[node.open(ino) for ino in self.inos] for node in nodes]

    def step(self) -> str:
        node, file = self.dice.randrange(len(self.nodes)), self.dice.randrange(2)
        names = ("write", "write", "append", "truncate", "allocate", "keep", "punch", "zero", "copy", "copy", "look", "look", "look")
        name = self.dice.choice(names)
        getattr(self, name)(node, file)
        return f"{name} of {file} by node {node}"

    def _range(self) -> tuple[int, int]:
        start = self.dice.randrange(FILE_BYTES)
        return start, self.dice.randrange(1, 60_000)

    def _put(self, file: int, start: int, data: bytes) -> None:
        content = self.expected[file]
        content.extend(bytes(max(0, start - len(content))))
        content[start : start + len(data)] = data

    def write(self, node: int, file: int) -> None:
        start, length = self._range()
        data = self.dice.randbytes(length)
        self.nodes[node].write(self.inos[file], self.handles[node][file], start, data)
        self._put(file, start, data)

    def append(self, node: int, file: int) -> None:
        data = self.dice.randbytes(self.dice.randrange(1, 9_000))
        append(self.nodes[node], self.inos[file], self.handles[node][file], data)
        self._put(file, len(self.expected[file]), data)

    def truncate(self, node: int, file: int) -> None:
        size = self.dice.randrange(FILE_BYTES)
        self.nodes[node].truncate(self.inos[file], size, self.handles[node][file])
        del self.expected[file][size:]
        self._put(file, size, b"")

    def _fallocate(self, node: int, file: int, mode: int) -> tuple[int, int]:
        start, length = self._range()
        self.nodes[node].call("fallocate", self.inos[file], self.handles[node][file], mode, start, length)
        return start, length

    def allocate(self, node: int, file: int) -> None:
        start, length = self._fallocate(node, file, 0)
        self._put(file, max(start + length, len(self.expected[file])), b"")

    def keep(self, node: int, file: int) -> None:
        self._fallocate(node, file, c.FALLOC_KEEP_SIZE)

    def punch(self, node: int, file: int) -> None:
        start, length = self._fallocate(node, file, c.FALLOC_PUNCH_HOLE | c.FALLOC_KEEP_SIZE)
        content = self.expected[file]
        content[start : start + length] = bytes(len(content[start : start + length]))

    def zero(self, node: int, file: int) -> None:
        start, length = self._fallocate(node, file, c.FALLOC_ZERO_RANGE)
        self._put(file, start, bytes(length))

    def copy(self, node: int, file: int) -> None:
        """As the kernel asks: within the size that it knows, and not where both ranges are in one file and meet."""
        size = self.nodes[node].attr(self.inos[file]).size
        start, length = self._range()
        length = min(length, size - start)
        if length <= 0:
            return
        target, other = self.dice.randrange(FILE_BYTES), 1 - file
        arguments = (self.inos[file], start, self.inos[other], self.handles[node][other], target, length, 0)
        try:
            copied = self.nodes[node].call("copy_file_range", *arguments)
        except FsError as err:
            if err.errno != errno.EOPNOTSUPP:  # then the kernel reads and writes
                raise
            data = self.nodes[node].read(self.inos[file], self.handles[node][file], start, length)
            self.nodes[node].write(self.inos[other], self.handles[node][other], target, data)
            copied = len(data)
        assert 0 < copied <= length
        self._put(other, target, bytes(self.expected[file][start : start + copied]))

    def look(self, node: int, file: int) -> None:
        """Size, contents, and that what is outside of the data that lseek finds are zeros."""
        rig, ino, fh, content = self.nodes[node], self.inos[file], self.handles[node][file], self.expected[file]
        assert rig.attr(ino).size == len(content)
        assert rig.read(ino, fh, 0, 2 * FILE_BYTES) == content
        at, holes = 0, bytearray(content)
        while True:
            try:
                data = rig.call("lseek", ino, fh, at, os.SEEK_DATA)
            except FsError as err:
                if err.errno != errno.ENXIO:
                    raise
                break
            at = rig.call("lseek", ino, fh, data, os.SEEK_HOLE)
            assert data < at <= len(content)
            holes[data:at] = bytes(at - data)
        assert not any(holes), "lseek says that there is a hole where there is data"
        assert error_of(lambda: rig.call("lseek", ino, fh, len(content), os.SEEK_HOLE)) == errno.ENXIO


def test_ranges_of_files_that_other_nodes_are_writing(make: Make, seed: int) -> None:
    """fallocate, copy_file_range and lseek of one node, while another has bytes in memory that nobody else has."""
    nodes = make()
    files = Files(nodes, random.Random(seed))
    done: list[str] = []
    for _ in range(150):
        try:
            done.append(files.step())
        except AssertionError as err:
            raise AssertionError(f"{err}, after {'; '.join(done[-20:])}") from err
    sound(nodes)


def test_a_copy_through_an_older_descriptor_has_what_another_node_appended(make: Make, seed: int) -> None:
    """The worker takes the end of the source from the leader.  Where a kernel cuts the length before it asks, it is the kernel's size."""
    one, two, three = make()
    ino, fh = one.create(b"source")
    target, into = one.create(b"target")
    data = random.Random(seed).randbytes(FILE_BYTES)
    one.write(ino, fh, 0, data)
    assert one.attr(ino).size == FILE_BYTES
    append(two, ino, two.open(ino, os.O_WRONLY | os.O_APPEND), data[::-1])  # where it writes back, in the memory of that node only
    assert one.call("copy_file_range", ino, 0, target, into, 0, 8 * FILE_BYTES, 0) == 2 * FILE_BYTES
    assert one.content(target) == data + data[::-1] == three.content(target)
    sound([one, two, three])


# --- the last of the space ----------------------------------------------------------------------------------------------------------
BOUNDS = [pytest.param({"quota_bytes": 12 * MIB}, id="quota"), pytest.param({"segments": 30}, id="device")]


def fill(node: Sharing, name: bytes) -> int:
    """Writes pieces to a file until there is no room; returns how many bytes were written."""
    ino, fh = node.create(name)
    at = 0
    while True:
        try:
            node.write(ino, fh, at, b"%c" % (at // PIECE % 256) * PIECE)
        except FsError as err:
            if err.errno not in SPACE:
                raise
            node.close_file(ino, fh)
            return at
        at += PIECE


@pytest.mark.parametrize("options", BOUNDS)
def test_three_nodes_fill_a_volume_at_once_and_fill_it_again(make: Make, options: dict[str, int]) -> None:
    """The second time only within a quota: the segments of removed files are freed by collection, which this rig has not."""
    nodes = make(**options)
    before = nodes[0].call("statfs", 1).bytes_writable
    written: dict[bytes, int] = {}
    for turn in range(2 if "quota_bytes" in options else 1):
        at_once(nodes, lambda node: written.update({b"%s" % node.node.encode(): fill(node, node.node.encode())}))
        assert sum(written.values()) > before // 2, (turn, written, before)
        for node in nodes:
            node.flush()
        for node in nodes:
            for name, size in written.items():
                ino = node.lookup(name).ino
                fh = node.open(ino, os.O_RDONLY)
                assert node.attr(ino).size == size
                assert all(node.read(ino, fh, at, PIECE) == b"%c" % (at // PIECE % 256) * PIECE for at in range(0, size, PIECE))
                node.close_file(ino, fh)
        at_once(nodes, lambda node: node.call("unlink", 1, node.node.encode()))
        until(lambda: nodes[0].call("statfs", 1).bytes_writable > before // 2)  # the removed files are reaped
    sound(nodes)


@pytest.mark.parametrize("options", BOUNDS)
def test_what_df_shows_can_be_allocated_while_others_hold_reservations(make: Make, options: dict[str, int]) -> None:
    nodes = make(**options)
    for node in nodes:  # each has data in memory, and more reserved than it needs
        ino, fh = node.create(node.node.encode())
        node.write(ino, fh, 0, b"x" * PIECE)
        reserve_more(node, 2 * MIB)
    for number, node in enumerate(nodes):
        shown = node.call("statfs", 1).bytes_writable
        assert shown > 2 * MIB
        ino, fh = node.create(b"large%d" % number)
        node.call("fallocate", ino, fh, 0, 0, shown - LEFT_OUT)
        assert node.attr(ino).size == shown - LEFT_OUT
        node.truncate(ino, 0, fh)
    sound(nodes)


@pytest.mark.parametrize("options", BOUNDS)
def test_unused_reservations_of_both_others_are_asked_back(make: Make, options: dict[str, int]) -> None:
    """`df` counts what is reserved as used: more than it shows is there once all three have given theirs back."""
    nodes = make(**options)
    for node in nodes:
        reserve_more(node, 2 * MIB)
    others = [node.mount.buffered.reservation for node in nodes[1:]]
    assert all(reservation.left_bytes >= 2 * MIB for reservation in others)
    shown = nodes[0].call("statfs", 1).bytes_writable
    ino, fh = nodes[0].create(b"large")
    nodes[0].call("fallocate", ino, fh, 0, 0, shown + MIB)
    assert all(reservation.left_bytes < 2 * MIB for reservation in others)
    sound(nodes)


def reserve_more(node: Sharing, more: int) -> None:
    reservation = node.mount.buffered.reservation
    try:
        block_on(reservation.refill(reservation.left_bytes + more))
    except FsError as err:
        if err.errno not in SPACE:
            raise
