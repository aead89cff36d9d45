"""A reader with a stale layout, where places are used again all the time: never wrong bytes, never EIO; an old frame is found by nobody.

Two mounts share a volume on a device of few, small segments.  One writes all files anew without end, so that every segment is freed and
leased again over and over; the other is stopped between layout and read until that has happened.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import Error
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api.messages import GetLayout, Layout
from tests.rigs.mount_without_kernel import LIMIT_S, VOLUME, Rig
from tests.rigs.sharing_nodes import FIRST, Sharing, two_nodes

FILES, BLOCK_BYTES, BLOCKS = 4, 4_096, 45
SEGMENTS, ROUNDS = 9, 50
PAUSES_IN_A_ROW_MAX = 3


class Small(Sharing):
    def __init__(self, directory: Path, other: Rig | None = None, number: int = FIRST) -> None:
        if other is None:
            Rig.__init__(self, directory, segments=SEGMENTS)
            self.mount_id, self.node, self.shared, self.other = number, f"node{number}", True, None
        else:
            super().__init__(directory, other, number)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Small]]:
    yield from two_nodes(Small, tmp_path)


def content(file: int, version: int) -> bytes:
    """No block of any file and version is like another."""
    return b"".join(
        b"%d.%d.%d|" % (file, version, number) + bytes(BLOCK_BYTES - len(b"%d.%d.%d|" % (file, version, number)))
        for number in range(BLOCKS)
    )


def version_of(data: bytes, file: int) -> int:
    """Of a whole file; -1 for what nobody wrote."""
    try:
        version = int(data.split(b"|")[0].split(b".")[1])
    except (IndexError, ValueError):
        return -1
    return version if data == content(file, version) else -1


class Paused:
    """The reader's way to the device: some transfers wait until places were used again."""

    def __init__(self, device: Any, dice: random.Random, turn: threading.Condition, written: list[int]) -> None:
        self._device, self._dice, self._turn, self._written = device, dice, turn, written
        self._in_a_row = 0
        self.pauses = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        return self.preadv([buffer], offset)

    def preadv(self, buffers: Any, offset: int) -> int:
        if self._dice.random() < 0.3 and self._in_a_row < PAUSES_IN_A_ROW_MAX:
            self._in_a_row += 1
            self.pauses += 1
            with self._turn:
                until = self._written[0] + 2 * SEGMENTS
                self._turn.wait_for(lambda: self._written[0] >= until or self._written[0] >= ROUNDS * FILES, LIMIT_S)
        else:
            self._in_a_row = 0
        read: int = self._device.preadv(buffers, offset)
        return read


def test_stale_layouts_never_show_what_came_after_them(nodes: list[Small], seed: int, figures: list[str]) -> None:
    reader, writer = nodes
    dice, turn, written = random.Random(seed), threading.Condition(), [0]
    inodes = [writer.create(b"f%d" % file) for file in range(FILES)]
    newest = [0] * FILES
    for file, (ino, fh) in enumerate(inodes):
        writer.write(ino, fh, 0, content(file, 0))
    paused = Paused(reader.device, dice, turn, written)
    reader.worker.data.devices._open[1] = paused  # type: ignore[assignment]
    wrong: list[str] = []
    layouts: list[tuple[int, int, list[Any]]] = []

    def write() -> None:
        try:
            for version in range(1, ROUNDS + 1):
                for file, (ino, fh) in enumerate(inodes):
                    writer.write(ino, fh, 0, content(file, version))
                    newest[file] = version
                    with turn:
                        written[0] += 1
                        turn.notify_all()
        except BaseException as err:
            wrong.append(f"the writer: {err!r}")
        finally:
            with turn:
                written[0] = ROUNDS * FILES
                turn.notify_all()

    thread = threading.Thread(target=write)
    handles = [reader.open(ino) for ino, _ in inodes]
    thread.start()
    reads = 0
    while thread.is_alive() and not wrong:
        file = dice.randrange(FILES)
        ino = inodes[file][0]
        reply = block_on(reader.worker.client.ask(GetLayout(VOLUME, ino, 0, BLOCKS * BLOCK_BYTES)), LIMIT_S)
        assert isinstance(reply, Layout)
        layouts.append((file, ino, reply.extents))
        oldest = newest[file]
        seen = version_of(reader.read(ino, handles[file], 0, BLOCKS * BLOCK_BYTES), file)
        reads += 1
        if seen < oldest:
            wrong.append(f"file {file} shows version {seen} although {oldest} was written before the read began")
    thread.join(LIMIT_S)
    assert not wrong, wrong
    assert paused.pauses, "nothing was read late"
    refused = find_again(reader, layouts)
    figures.append(f"stale layouts: {reads} reads while {written[0]} files were written anew, {paused.pauses} stops on the way, {refused}")


def find_again(reader: Small, layouts: list[tuple[int, int, list[Any]]]) -> str:
    """Every extent that was ever told: the bytes it was told for, or a refusal."""
    found = refused = 0
    for file, ino, extents in layouts:
        for extent in extents:
            into = memoryview(bytearray(extent.length))
            try:
                reader.worker.data.reader.read(extent, VOLUME, ino, 0, extent.length, into)
            except Error:
                refused += 1
                continue
            found += 1
            at = extent.file_offset // BLOCK_BYTES
            block = bytes(into[:BLOCK_BYTES]).split(b"|")[0].split(b".")
            assert int(block[0]) == file and int(block[2]) == at, f"extent {extent} of file {file} shows {block}"
            whole = content(file, int(block[1]))
            assert bytes(into) == whole[extent.file_offset : extent.file_offset + extent.length]
    assert refused, "no place was used again"
    return f"{refused} of {refused + found} extents refused afterwards"
