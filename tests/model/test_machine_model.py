"""Random commands against a machine and a plain model of files in memory.

The model knows paths, links, contents and nothing else.  After each run the machine shows the same tree and bytes, the check finds nothing,
and a second machine that was flushed and made again between random entries has given the same replies and holds the same rows.
"""

from __future__ import annotations

import errno
import random
import stat
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from awsomefsd.base.levels import LEVEL
from awsomefsd.base.limits import INLINE_BYTES_MAX
from awsomefsd.base.types import Extent, SegmentInfo
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages import collection as cm
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine import allocation, copy_range, filemap, ledger, sessions
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.state import rows_cache
from tests.rigs.machine_driver import HEADER, Drive
from tests.rigs.memory_txn import MemTxn

NAMES = [b"a", b"b", b"c", b"d", b"e"]


@dataclass
class Node:
    kind: int
    parent: int = 0
    links: int = 1
    names: dict[bytes, int] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    pinned: bool = False


class Model:
    """What the machine should show, and the commands that change both."""

    def __init__(self, seed: int, level: int = LEVEL) -> None:
        self.random = random.Random(seed)
        self.drive = Drive(segments=256, level=level)
        self.drive.make_volume()
        self.drive.open()
        self.nodes: dict[int, Node] = {1: Node(stat.S_IFDIR, 1, 2)}
        self.places: dict[tuple[int, int], bytes] = {}  # (segment, frame offset) -> logical bytes of the frame
        self.copies: dict[tuple[int, ...], list[tuple[int, Extent]]] = {}  # by new segment and old frame
        self.segment: SegmentInfo | None = None
        self.unique = 0
        self.acks: list[int] = []

    def propose(self, command: c.Command) -> m.Reply:
        self.unique += 1
        acks, self.acks = (self.acks, []) if self.random.random() < 0.5 else ([], self.acks)
        reply = self.drive.apply(command, unique=self.unique, acks=acks)
        self.acks.append(self.unique)
        kept = self.drive.machine.stored_result(self.drive.mount, self.unique)
        assert kept == reply or (isinstance(command, c.Draw) and reply.errno == errno.ENOSPC and kept is None)
        if kept is not None and self.random.random() < 0.05:  # the same request again: the same answer, and nothing happens
            assert self.drive.apply(command, unique=self.unique) == reply
        return reply

    def expect(self, command: c.Command, number: int) -> m.Reply:
        reply = self.propose(command)
        got = reply.errno if isinstance(reply, m.Failed) else 0
        assert got == number, f"{command}: {reply}, expected {errno.errorcode.get(number, number)}"
        return reply

    # --- choices --------------------------------------------------------------------------------------------------------
    def directory(self) -> int:
        return self.random.choice([i for i, n in self.nodes.items() if n.kind == stat.S_IFDIR and n.links])

    def file(self) -> int | None:
        files = [i for i, n in self.nodes.items() if n.kind == stat.S_IFREG]
        return self.random.choice(files) if files else None

    def name(self) -> bytes:
        return self.random.choice(NAMES)

    def below(self, ino: int, ancestor: int) -> bool:
        while ino != ancestor and ino != 1:
            ino = self.nodes[ino].parent
        return ino == ancestor

    # --- names ----------------------------------------------------------------------------------------------------------
    def create(self) -> None:
        parent, name = self.directory(), self.name()
        kind = self.random.choice([stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO])
        held = self.nodes[parent].names.get(name)
        opening = self.random.random() < 0.3
        command = c.Create(self.drive.volume, parent, name, kind | 0o644, 0, 0, 0, b"target" if kind == stat.S_IFLNK else b"", opening)
        if held is not None:
            if opening and self.nodes[held].kind == stat.S_IFREG:
                reply = self.expect(command, 0)
                assert reply.attr.ino == held and not reply.created
            else:
                self.expect(command, errno.EEXIST)
            return
        ino = self.expect(command, 0).attr.ino
        assert ino not in self.nodes
        self.nodes[parent].names[name] = ino
        self.nodes[ino] = Node(kind, parent, 2 if kind == stat.S_IFDIR else 1)
        if kind == stat.S_IFDIR:
            self.nodes[parent].links += 1

    def link(self) -> None:
        ino, parent, name = self.random.choice(list(self.nodes)), self.directory(), self.name()
        node = self.nodes[ino]
        number = 0
        if node.kind == stat.S_IFDIR:
            number = errno.EPERM
        elif not node.links:
            number = errno.ENOENT
        elif name in self.nodes[parent].names:
            number = errno.EEXIST
        self.expect(c.Link(self.drive.volume, ino, parent, name), number)
        if not number:
            self.nodes[parent].names[name] = ino
            node.links += 1

    def lose(self, ino: int, pinned: bool) -> None:
        node = self.nodes[ino]
        node.links = 0 if node.kind == stat.S_IFDIR else node.links - 1
        if not node.links:
            if pinned:
                node.pinned = True
            else:
                del self.nodes[ino]

    def unlink(self) -> None:
        parent, name, pinned = self.directory(), self.name(), self.random.random() < 0.3
        ino = self.nodes[parent].names.get(name)
        number = errno.ENOENT if ino is None else errno.EISDIR if self.nodes[ino].kind == stat.S_IFDIR else 0
        self.expect(c.Unlink(self.drive.volume, parent, name, pinned), number)
        if ino is not None and not number:
            del self.nodes[parent].names[name]
            self.lose(ino, pinned)

    def rmdir(self) -> None:
        parent, name, pinned = self.directory(), self.name(), self.random.random() < 0.2
        ino = self.nodes[parent].names.get(name)
        node = self.nodes[ino] if ino is not None else None
        number = 0
        if node is None:
            number = errno.ENOENT
        elif node.kind != stat.S_IFDIR:
            number = errno.ENOTDIR
        elif node.names:
            number = errno.ENOTEMPTY
        self.expect(c.Rmdir(self.drive.volume, parent, name, pinned), number)
        if ino is not None and not number:
            del self.nodes[parent].names[name]
            self.nodes[parent].links -= 1
            self.lose(ino, pinned)

    def rename_errno(self, command: c.Rename, ino: int | None, target: int | None) -> int:
        if ino is None:
            return errno.ENOENT
        node = self.nodes[ino]
        if target is None:
            if command.flags == 2:
                return errno.ENOENT
        elif command.flags == 1:
            return errno.EEXIST
        elif target == ino:
            return 0
        if node.kind == stat.S_IFDIR and self.below(command.new_parent, ino):
            return errno.EINVAL
        if target is None:
            return 0
        other = self.nodes[target]
        if other.kind == stat.S_IFDIR and self.below(command.parent, target):
            return errno.EINVAL if command.flags == 2 else errno.ENOTEMPTY
        if command.flags == 2:
            return 0
        if other.kind == stat.S_IFDIR and node.kind != stat.S_IFDIR:
            return errno.EISDIR
        if other.kind == stat.S_IFDIR and other.names:
            return errno.ENOTEMPTY
        return errno.ENOTDIR if other.kind != stat.S_IFDIR and node.kind == stat.S_IFDIR else 0

    def rename(self) -> None:
        flags, pinned = self.random.choice([0, 0, 1, 2]), self.random.random() < 0.3
        command = c.Rename(self.drive.volume, self.directory(), self.name(), self.directory(), self.name(), flags, pinned)
        old, new = self.nodes[command.parent], self.nodes[command.new_parent]
        ino, target = old.names.get(command.name), new.names.get(command.new_name)
        number = self.rename_errno(command, ino, target)
        self.expect(command, number)
        if number or ino is None or ino == target:
            return
        node = self.nodes[ino]
        if flags == 2 and target is not None:
            old.names[command.name] = target
            self.moved(target, new, old, command.parent)
        else:
            del old.names[command.name]
            if target is not None:
                if self.nodes[target].kind == stat.S_IFDIR:
                    new.links -= 1
                self.lose(target, pinned)
        new.names[command.new_name] = ino
        self.moved(ino, old, new, command.new_parent)
        assert node.links

    def moved(self, ino: int, old: Node, new: Node, new_ino: int) -> None:
        if self.nodes[ino].kind == stat.S_IFDIR:
            old.links -= 1
            new.links += 1
            self.nodes[ino].parent = new_ino

    def release(self) -> None:
        pinned = [i for i, n in self.nodes.items() if n.pinned]
        chosen = self.random.sample(pinned, self.random.randint(0, len(pinned)))
        self.expect(c.ReleaseOrphan(self.drive.volume, [*chosen, 999_999]), 0)
        for ino in chosen:
            del self.nodes[ino]

    # --- data -----------------------------------------------------------------------------------------------------------
    def leased(self) -> SegmentInfo:
        if self.segment is None or self.drive.frames[self.segment.segment] > self.segment.bytes - (1 << 18):
            if self.segment is not None:
                self.expect(self.drive.commit(self.segment, sealed=True), 0)
            reply = self.propose(c.LeaseSegments(1, self.drive.index))
            assert isinstance(reply, m.SegmentsLeased), reply
            self.segment = reply.segments[0]
            self.drive.frames[self.segment.segment] = 0
        return self.segment

    def write(self) -> None:
        """One to four writes of one inode in one commit, as extents or inline patches."""
        ino = self.file()
        if ino is None:
            return
        node, drive = self.nodes[ino], self.drive
        attr = drive.ask(m.GetAttr(drive.volume, ino)).attr
        writes = []
        for _ in range(self.random.randint(1, 4)):
            offset = self.random.choice([0, len(node.data), self.random.randrange(9_000)])
            writes.append((offset, self.random.randbytes(self.random.randint(1, 3_000))))
        end = max(offset + len(data) for offset, data in writes)
        inline = attr.inline and end <= INLINE_BYTES_MAX
        segment = None if inline else self.leased()
        drive.sequence += 1
        step = c.InodeCommit(ino, 1, drive.sequence, end, drive.now, [], list(writes) if inline else [])
        if segment is not None:
            stored = bytes(node.data[: attr.stored_bytes]) if attr.inline else b""
            writes = ([(0, stored)] if stored else []) + writes
            for offset, data in writes:
                extent = drive.frame(segment, offset, len(data))
                self.places[(extent.segment, extent.frame_offset)] = data
                step.extents.append(extent)
            step.sequence = drive.sequence
        reply = self.expect(drive.commit(segment, step), 0)
        assert reply.errnos == [0], reply
        for offset, data in writes:
            if len(node.data) < offset + len(data):
                node.data.extend(bytes(offset + len(data) - len(node.data)))
            node.data[offset : offset + len(data)] = data
        assert reply.attrs[0].size == len(node.data)

    def truncate(self) -> None:
        ino = self.file()
        if ino is None:
            return
        node = self.nodes[ino]
        size = self.random.choice([0, self.random.randint(0, len(node.data)), self.random.randint(0, 12_000)])
        self.expect(c.SetAttr(self.drive.volume, ino, c.SET_SIZE, size=size, log=1, sequence=self.drive.sequence), 0)
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))

    def fallocate(self) -> None:
        ino = self.file()
        if ino is None:
            return
        node, drive = self.nodes[ino], self.drive
        mode = self.random.choice([0, 1, 3, 3, 16, 17])
        start, length = self.random.randrange(14_000), self.random.randint(1, 9_000)
        command = c.Fallocate(drive.volume, ino, mode, start, length)
        attr = drive.ask(m.GetAttr(drive.volume, ino)).attr
        if mode != 3 and attr.inline and attr.stored_bytes:
            reply = drive.apply(command, unique=1 << 40)
            assert reply.errno == errno.EAGAIN and drive.machine.stored_result(drive.mount, 1 << 40) is None
            return
        reply = self.expect(command, 0)
        end = start + length
        if mode in (3, 16, 17):
            node.data[start:end] = bytes(max(0, min(end, len(node.data)) - start))
        if mode in (0, 16):
            node.data.extend(bytes(max(0, end - len(node.data))))
        assert reply.attr.size == len(node.data)
        while mode != 3 and reply.reached < end:
            before = reply.reached
            reply = self.expect(c.Fallocate(drive.volume, ino, 1, before, end - before, goes_on=True), 0)
            assert reply.reached > before

    def copy(self) -> None:
        ino, new = self.file(), self.file()
        if ino is None or new is None:
            return
        drive, old, node = self.drive, self.nodes[ino], self.nodes[new]
        start, at = self.random.randrange(len(old.data) + 100), self.random.randrange(len(node.data) + 3_000)
        length = self.random.randint(1, 6_000)
        command = c.CopyRange(drive.volume, ino, start, new, at, length)
        inline = [one.inline and one.stored_bytes for one in (drive.ask(m.GetAttr(drive.volume, i)).attr for i in (ino, new))]
        if ino == new and abs(start - at) < length:
            self.expect(command, errno.EINVAL)
        elif start >= len(old.data):
            assert self.expect(command, 0).reached == 0
        elif any(inline):
            self.expect(command, errno.EOPNOTSUPP)
        else:
            count = self.expect(command, 0).reached
            assert 0 < count <= length
            data = bytes(old.data[start : start + count])
            assert len(data) == count
            node.data.extend(bytes(max(0, at - len(node.data))))
            node.data[at : at + count] = data

    def draw(self) -> None:
        ino = self.file()
        if ino is not None:
            start, length = self.random.randrange(12_000), self.random.randint(1, 2_000)
            before = self.drive.ask(m.GetAttr(self.drive.volume, ino)).attr.stored_bytes
            reply = self.propose(c.Draw(self.drive.volume, ino, start, length, length + 100))
            taken = length if isinstance(reply, m.Reserved) else 0
            assert self.drive.ask(m.GetAttr(self.drive.volume, ino)).attr.stored_bytes == before - taken

    def xattr(self) -> None:
        ino = self.random.choice(list(self.nodes))
        node, name = self.nodes[ino], b"user." + self.name()
        if self.random.random() < 0.4:
            self.expect(c.RemoveXattr(self.drive.volume, ino, name), 0 if name in node.xattrs else errno.ENODATA)
            node.xattrs.pop(name, None)
            return
        flags, value = self.random.choice([0, 0, 1, 2]), self.random.randbytes(20)
        number = 0
        if flags == 1 and name in node.xattrs:
            number = errno.EEXIST
        elif flags == 2 and name not in node.xattrs:
            number = errno.ENODATA
        self.expect(c.SetXattr(self.drive.volume, ino, name, value, flags), number)
        if not number:
            node.xattrs[name] = value

    def background(self) -> None:
        """What happens beside the files: locks, reservations, readers of the stream, takeovers, new sessions, collection."""
        drive, what = self.drive, self.random.randrange(7)
        if what == 0:
            start = self.random.randrange(100)
            ino = self.random.choice(list(self.nodes))
            owner, kind = self.random.randrange(3), self.random.randrange(3)
            self.propose(c.SetLock(drive.volume, ino, self.random.randrange(2), owner, 9, kind, start, start + self.random.randrange(50)))
        elif what == 1:
            self.propose(c.Reserve(drive.volume, self.random.randint(-1 << 20, 1 << 20), 0))
        elif what == 2:
            self.propose(c.RegisterReader("r", drive.index))
        elif what == 3:
            self.propose(self.random.choice([c.AdvanceReader("r", drive.index - 5), c.RemoveReader("r")]))
        elif what == 4:
            self.propose(c.Reap(self.random.randint(1, 40)))
        elif what == 5:
            worker = drive.index  # only grows
            drive.open(worker=worker, predecessor_exited=self.random.random() < 0.5)
            self.segment = None
        else:
            drive.ok(c.EndSession(drive.session, drive.epoch, self.random.random() < 0.5))
            old, self.segment = drive.session, None
            drive.open(worker=drive.index)
            drive.ok(c.ClearQuarantine(old, "the process has exited"))
            for ino in [i for i, n in self.nodes.items() if n.pinned]:
                del self.nodes[ino]

    def collect(self) -> None:
        """As the collector: copy what lives in one segment, with changes of others between the look and the entry."""
        drive = self.drive
        sparse = drive.ask(cm.GetSparse(0, 1_000)).segments
        if not sparse:
            return
        place: tuple[int, ...] | None = (0, 0, 0, 0)
        victim, found, until = self.random.choice(sparse), [], 0
        while place is not None:
            reply = drive.ask(cm.GetPieces(victim.segment, *place, self.random.randint(1, 9), until))
            found, place, until = found + reply.pieces, reply.after, reply.until
        own = (drive.session, drive.epoch, drive.mount)
        opened = drive.ok(c.OpenCollector("n1", "b1"), session=0, epoch=0, mount=0)
        drive.session, drive.epoch, drive.mount = opened.session, opened.epoch, 0
        info = drive.lease(safe_index=drive.index)[0]
        moves = [c.Relocation(one.volume, one.ino, one.extent, self.copied(info, one.extent), one.until) for one in found]
        command = c.Relocate(moves, [drive.progress(info, self.random.random() < 0.5)])
        collector = (drive.session, drive.epoch, drive.mount)
        drive.session, drive.epoch, drive.mount = own
        for _ in range(self.random.randrange(3)):
            self.random.choice([self.write, self.truncate, self.copy, self.fallocate, self.unlink, self.rename])()
        drive.session, drive.epoch, drive.mount = collector
        before = sum(one.length for one in (piece.extent for piece in found))
        done = drive.ok(command)
        assert done.moved_bytes + done.skipped_bytes == before
        drive.session, drive.epoch, drive.mount = own

    def copied(self, info: SegmentInfo, extent: Extent) -> list[Extent]:
        """Copies of an extent's bytes; of each frame one copy in a segment, so that shared bytes stay shared."""
        key = (info.segment, info.incarnation, extent.segment, extent.incarnation, extent.frame_offset)
        if key not in self.copies:
            data = self.places[(extent.segment, extent.frame_offset)]
            cut = self.random.choice([0, self.random.randint(0, len(data))])
            halves = [(start, end) for start, end in ((0, cut), (cut, len(data))) if start < end]
            self.copies[key] = [(start, self.drive.frame(info, 0, end - start)) for start, end in halves]
            for start, copy in self.copies[key]:
                self.places[(copy.segment, copy.frame_offset)] = data[start : start + copy.length]
        placed = []
        for start, copy in self.copies[key]:
            low, high = max(start, extent.skip), min(start + copy.length, extent.skip + extent.length)
            if low < high:
                at = extent.file_offset + low - extent.skip
                placed.append(replace(copy, file_offset=at, length=high - low, skip=low - start))
        return placed

    # --- comparison -----------------------------------------------------------------------------------------------------
    def contents(self, ino: int) -> bytes:
        layout = self.drive.ask(m.GetLayout(self.drive.volume, ino, 0, 1 << 40))
        data = bytearray(layout.size)
        if layout.inline is not None:
            data[: len(layout.inline)] = layout.inline
        segments = {info.segment: info for info in layout.segments}
        for extent in layout.extents:
            assert segments[extent.segment].incarnation == extent.incarnation and extent.header_bytes == HEADER
            frame = self.places[(extent.segment, extent.frame_offset)]
            data[extent.file_offset : extent.file_offset + extent.length] = frame[extent.skip : extent.skip + extent.length]
        assert len(data) == layout.size
        return bytes(data)

    def compare(self) -> None:
        drive = self.drive
        for ino, node in self.nodes.items():
            attr = drive.ask(m.GetAttr(drive.volume, ino)).attr
            assert (stat.S_IFMT(attr.mode), attr.nlink, attr.xattrs) == (node.kind, node.links, len(node.xattrs))
            assert drive.ask(m.ListXattr(drive.volume, ino)).names == sorted(node.xattrs)
            if node.kind == stat.S_IFREG:
                assert self.contents(ino) == node.data
            if node.kind == stat.S_IFDIR:
                listed = drive.ask(m.ReadDir(drive.volume, ino, 0, 500, True)).entries
                assert {entry.name: entry.ino for entry in listed} == node.names
                assert all(entry.attr.ino == entry.ino for entry in listed)
                for name, child in node.names.items():
                    assert drive.ask(m.Lookup(drive.volume, ino, name)).attr.ino == child
        drive.machine.flush()
        assert check(drive.txn) == []
        volume = drive.ask(m.GetVolumes()).volumes[0]
        if not drive.machine.state.cluster.reaps:  # orphans of ended sessions may wait there
            assert volume.used_inodes == len(self.nodes)


def again(entries: list[c.Entry], chance: random.Random) -> tuple[list[m.Reply], dict[bytes, bytes]]:
    """The replies and rows of a machine that is made again now and then, and meets entries twice."""
    txn = MemTxn()
    machine = Machine(txn)
    replies = []
    for at, entry in enumerate(entries):
        decoded = c.entry_decode(c.entry_encode(entry))
        replies.append(machine.apply(decoded))
        if chance.random() < 0.1:
            machine.flush()
            machine = Machine(txn)
            for old in entries[max(0, at - 3) : at + 1]:
                machine.apply(old)
    machine.flush()
    return replies, txn.rows


@pytest.mark.parametrize("run", range(6))
def test_random_commands(seed: int, run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if run % 2:  # bounds so small that truncations and deletions are left to Reap
        for module in (filemap, allocation, copy_range):
            monkeypatch.setattr(module, "REAP_EXTENTS_PER_ENTRY", 2)
        monkeypatch.setattr(copy_range, "PIECES_PER_COPY_MAX", 2)
        monkeypatch.setattr(copy_range, "SHARED_RUNS_MAX", 1 << 20)
        monkeypatch.setattr(ledger, "SMALL_FILE_EXTENTS", 1)
        monkeypatch.setattr(sessions, "REAP_EXTENTS_PER_ENTRY", 1)
    model = Model(seed + run)
    steps = [model.create, model.link, model.unlink, model.rmdir, model.rename, model.release]
    steps += [model.write, model.truncate, model.xattr, model.background]
    steps += [model.fallocate, model.copy, model.draw, model.collect]
    weights = [8, 3, 5, 3, 8, 1, 10, 4, 4, 3, 7, 9, 1, 4]
    for step in range(700):
        model.random.choices(steps, weights)[0]()
        if step % 100 == 99:
            model.compare()
    model.compare()
    monkeypatch.setattr(rows_cache, "ROWS_CACHED_MAX", 2)  # and a cache that forgets after every entry
    replies, rows = again(model.drive.entries, random.Random(seed + run))
    assert replies == model.drive.replies
    assert rows == model.drive.txn.rows


def test_what_is_deleted_leaves_nothing(seed: int) -> None:
    model = Model(seed)
    for _ in range(300):
        model.random.choice([model.create, model.write, model.rename, model.xattr, model.copy, model.fallocate])()
    drive = model.drive
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    drive.session = drive.epoch = 0
    drive.ok(c.DeleteVolume(drive.volume, True))
    reaped = 0
    while drive.machine.reap_pending():
        drive.ok(c.Reap(15))
        drive.machine.flush()
        assert check(drive.txn) == []
        reaped += 1
    assert reaped > 1
    assert all(key[2:6] == bytes(4) for key in drive.txn.rows), "rows of the volume are left"
    device = drive.ask(m.GetDevices()).devices[0]
    assert device.segments_free == device.segments
