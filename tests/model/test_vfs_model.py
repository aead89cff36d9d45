"""Random system calls on a whole mount against a dict, with flushes, kills, lost sessions and remounts in between.

The model knows directories, links and contents.  Handles stay open over kills, as the kernel keeps them; files without names live as
long as their handles.  After each run everything is read back after a remount, space and reservation add up, and the check finds nothing.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import ROOT_INO
from awsomefsd.io.file import file_data, flusher
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.machine import allocation, copy_range, filemap, queries
from awsomefsd.vfs.api.context import SetAttrIn
from awsomefsd.vfs.state import names
from tests.rigs.mount_without_kernel import After, Gate, Held, Rig, error_of, rig, until

NAMES = [b"a", b"b", b"c", b"d", b"e", b"f"]
SIZES = [1, 100, 2_000, 4_096, 4_097, 20_000, 150_000]
STEPS = 350
LATE_S = 0.03  # at most
KEEP, PUNCH, ZERO = c.FALLOC_KEEP_SIZE, c.FALLOC_PUNCH_HOLE | c.FALLOC_KEEP_SIZE, c.FALLOC_ZERO_RANGE


@dataclass
class Node:
    kind: int
    parent: int = 0
    links: int = 1
    names: dict[bytes, int] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    mode: int = 0o644
    mtime_ns: int | None = None  # where utimens has set it and nothing was written since


class Model:
    weights: ClassVar[tuple[float, ...]] = (0.8, 0.5, 0.3)  # of a kill, a lost session, a remount

    def __init__(self, r: Rig, seed: int) -> None:
        self.r = r
        self.random = random.Random(seed)
        self.nodes: dict[int, Node] = {ROOT_INO: Node(stat.S_IFDIR, ROOT_INO, 2)}
        self.handles: list[tuple[int, int]] = []
        self.history: list[str] = []

    # --- choices ---------------------------------------------------------------------------------------------------------
    def directory(self) -> int:
        return self.random.choice([ino for ino, node in self.nodes.items() if node.kind == stat.S_IFDIR])

    def place(self) -> tuple[int, bytes, int | None]:
        parent = self.directory()
        name = self.random.choice(NAMES)
        return parent, name, self.nodes[parent].names.get(name)

    def note(self, *what: object) -> None:
        self.history.append(" ".join(map(str, what)))

    # --- names -----------------------------------------------------------------------------------------------------------
    def create(self) -> None:
        parent, name, ino = self.place()
        flags = os.O_RDWR | self.random.choice([0, 0, os.O_EXCL, os.O_TRUNC])
        self.note("create", parent, name, flags)
        kind = None if ino is None else self.nodes[ino].kind
        if ino is not None and (flags & os.O_EXCL or kind != stat.S_IFREG):
            assert error_of(self.r.create, name, parent, flags) == errno.EEXIST
            return
        made, fh = self.r.create(name, parent, flags)
        assert ino in (None, made)
        if ino is None:
            self.nodes[made] = Node(stat.S_IFREG, parent)
            self.nodes[parent].names[name] = made
        elif flags & os.O_TRUNC:
            self.cut(self.nodes[made], 0)
        self.handles.append((made, fh))

    def mkdir(self) -> None:
        parent, name, ino = self.place()
        self.note("mkdir", parent, name)
        if ino is not None:
            assert error_of(self.r.mkdir, name, parent) == errno.EEXIST
            return
        made = self.r.mkdir(name, parent)
        self.nodes[made] = Node(stat.S_IFDIR, parent, 2, mode=0o755)
        self.nodes[parent].names[name] = made
        self.nodes[parent].links += 1

    def symlink(self) -> None:
        parent, name, ino = self.place()
        target = self.random.randbytes(20).hex().encode()
        self.note("symlink", parent, name)
        if ino is not None:
            assert error_of(self.r.call, "symlink", parent, name, target) == errno.EEXIST
            return
        made = self.r.call("symlink", parent, name, target).ino
        self.nodes[made] = Node(stat.S_IFLNK, parent, data=bytearray(target), mode=0o777)
        self.nodes[parent].names[name] = made

    def link(self) -> None:
        parent, name, ino = self.place()
        found = [i for i, node in self.nodes.items() if node.kind == stat.S_IFREG and node.links]
        if not found:
            return
        source = self.random.choice(found)
        self.note("link", source, parent, name)
        if ino is not None:
            assert error_of(self.r.call, "link", source, parent, name) == errno.EEXIST
            return
        assert self.r.call("link", source, parent, name).nlink == self.nodes[source].links + 1
        self.nodes[source].links += 1
        self.nodes[parent].names[name] = source

    def unlink(self) -> None:
        parent, name, ino = self.place()
        self.note("unlink", parent, name, ino)
        if ino is None:
            assert error_of(self.r.call, "unlink", parent, name) == errno.ENOENT
        elif self.nodes[ino].kind == stat.S_IFDIR:
            assert error_of(self.r.call, "unlink", parent, name) == errno.EISDIR
        else:
            self.r.call("unlink", parent, name)
            del self.nodes[parent].names[name]
            self.lose_name(ino)

    def rmdir(self) -> None:
        parent, name, ino = self.place()
        self.note("rmdir", parent, name, ino)
        if ino is None:
            assert error_of(self.r.call, "rmdir", parent, name) == errno.ENOENT
        elif self.nodes[ino].kind != stat.S_IFDIR:
            assert error_of(self.r.call, "rmdir", parent, name) == errno.ENOTDIR
        elif self.nodes[ino].names:
            assert error_of(self.r.call, "rmdir", parent, name) == errno.ENOTEMPTY
        else:
            self.r.call("rmdir", parent, name)
            del self.nodes[parent].names[name]
            del self.nodes[ino]
            self.nodes[parent].links -= 1

    def lose_name(self, ino: int) -> None:
        self.nodes[ino].links -= 1
        if not self.nodes[ino].links and all(one[0] != ino for one in self.handles):
            del self.nodes[ino]

    def below(self, ino: int, ancestor: int) -> bool:
        while ino != ROOT_INO and ino != ancestor:
            ino = self.nodes[ino].parent
        return ino == ancestor

    def rename(self) -> None:
        parent, name, ino = self.place()
        new_parent, new_name, target = self.place()
        flags = self.random.choice([0, 0, 0, c.RENAME_NOREPLACE, c.RENAME_EXCHANGE])
        self.note("rename", parent, name, new_parent, new_name, flags)
        want = self.rename_errno(ino, parent, new_parent, target, flags)
        if want:
            assert error_of(self.r.call, "rename", parent, name, new_parent, new_name, flags) in want
            return
        self.r.call("rename", parent, name, new_parent, new_name, flags)
        assert ino is not None
        if ino == target:
            return
        del self.nodes[parent].names[name]
        self.nodes[new_parent].names[new_name] = ino
        self.moved(ino, parent, new_parent)
        if target is not None and flags == c.RENAME_EXCHANGE:
            self.nodes[parent].names[name] = target
            self.moved(target, new_parent, parent)
        elif target is not None and self.nodes[target].kind == stat.S_IFDIR:
            del self.nodes[target]
            self.nodes[new_parent].links -= 1
        elif target is not None:
            self.lose_name(target)

    def moved(self, ino: int, parent: int, new_parent: int) -> None:
        if self.nodes[ino].kind == stat.S_IFDIR:
            self.nodes[parent].links -= 1
            self.nodes[new_parent].links += 1
            self.nodes[ino].parent = new_parent

    def rename_errno(self, ino: int | None, parent: int, new_parent: int, target: int | None, flags: int) -> set[int]:
        if ino is None or (flags == c.RENAME_EXCHANGE and target is None):
            return {errno.ENOENT, errno.EEXIST} if target is not None else {errno.ENOENT}
        if flags == c.RENAME_NOREPLACE and target is not None:
            return {errno.EEXIST}
        if ino == target:
            return set()
        is_dir = self.nodes[ino].kind == stat.S_IFDIR
        loops = {errno.EINVAL} if is_dir and self.below(new_parent, ino) else set()
        if target is None:
            return loops
        other_dir = self.nodes[target].kind == stat.S_IFDIR
        if other_dir and self.below(parent, target):
            loops |= {errno.EINVAL, errno.ENOTEMPTY}
        if flags != c.RENAME_EXCHANGE:
            if other_dir and not is_dir:
                loops.add(errno.EISDIR)
            elif is_dir and not other_dir:
                loops.add(errno.ENOTDIR)
            elif other_dir and self.nodes[target].names:
                loops.add(errno.ENOTEMPTY)
        return loops

    # --- files -----------------------------------------------------------------------------------------------------------
    def open(self) -> None:
        found = [i for i, node in self.nodes.items() if node.kind == stat.S_IFREG]
        if found:
            ino = self.random.choice(found)
            flags = os.O_RDWR | self.random.choice([0, 0, 0, os.O_TRUNC])
            self.note("open", ino, flags)
            self.handles.append((ino, self.r.open(ino, flags)))
            if flags & os.O_TRUNC:
                self.cut(self.nodes[ino], 0)

    def close(self) -> None:
        if self.handles:
            ino, fh = self.handles.pop(self.random.randrange(len(self.handles)))
            self.note("close", ino)
            self.r.close_file(ino, fh)
            if not self.nodes[ino].links and all(one[0] != ino for one in self.handles):
                del self.nodes[ino]

    def write(self) -> None:
        if not self.handles:
            return
        ino, fh = self.random.choice(self.handles)
        node = self.nodes[ino]
        offset = self.random.choice([0, len(node.data), self.random.randrange(len(node.data) + 5_000)])
        data = self.random.randbytes(self.random.choice(SIZES))
        self.note("write", ino, offset, len(data))
        self.r.write(ino, fh, offset, data)
        if len(node.data) < offset:
            node.data += bytes(offset - len(node.data))
        node.data[offset : offset + len(data)] = data
        node.mtime_ns = None

    def truncate(self) -> None:
        found = [i for i, node in self.nodes.items() if node.kind == stat.S_IFREG]
        if found:
            ino = self.random.choice(found)
            node = self.nodes[ino]
            size = self.random.choice([0, len(node.data) // 2, len(node.data) + 3_000, self.random.choice(SIZES)])
            self.note("truncate", ino, size)
            assert self.r.truncate(ino, size).size == size
            self.cut(node, size)

    @staticmethod
    def cut(node: Node, size: int) -> None:
        del node.data[size:]
        node.data += bytes(size - len(node.data))
        node.mtime_ns = None

    def fallocate(self) -> None:
        if not self.handles:
            return
        ino, fh = self.random.choice(self.handles)
        node = self.nodes[ino]
        mode = self.random.choice([0, KEEP, PUNCH, PUNCH, ZERO, ZERO | KEEP])
        start = self.random.randrange(len(node.data) + 5_000)
        end = start + self.random.choice(SIZES)
        self.note("fallocate", ino, mode, start, end)
        self.r.call("fallocate", ino, fh, mode, start, end - start)
        if mode in (PUNCH, ZERO, ZERO | KEEP):
            node.data[start:end] = bytes(max(0, min(end, len(node.data)) - start))
        if mode in (0, ZERO):
            node.data += bytes(max(0, end - len(node.data)))
        node.mtime_ns = None

    def copy(self) -> None:
        if not self.handles:
            return
        (ino, _), (new, fh) = self.random.choice(self.handles), self.random.choice(self.handles)
        old, node = self.nodes[ino], self.nodes[new]
        start, at = self.random.randrange(len(old.data) + 1), self.random.randrange(len(node.data) + 3_000)
        length = min(self.random.choice(SIZES), abs(start - at) if ino == new else 1 << 20)
        self.note("copy", ino, start, new, at, length)
        while length and start < len(old.data):
            try:
                count = self.r.call("copy_file_range", ino, start, new, fh, at, length, 0)
            except FsError as err:
                if err.errno != errno.EOPNOTSUPP or not (self.r.attr(ino).inline or self.r.attr(new).inline):
                    raise
                return
            assert 0 < count <= length
            part = bytes(old.data[start : start + count])
            node.data += bytes(max(0, at - len(node.data)))
            node.data[at : at + count] = part
            node.mtime_ns = None
            start, at, length = start + count, at + count, length - count

    def seek(self) -> None:
        """What is told to be a hole reads as zeros; data and holes take turns up to the end."""
        if not self.handles:
            return
        ino, fh = self.random.choice(self.handles)
        data, at = self.nodes[ino].data, 0
        while at < len(data):
            hole = self.r.call("lseek", ino, fh, at, os.SEEK_HOLE)
            assert at <= hole <= len(data)
            try:
                at = self.r.call("lseek", ino, fh, hole, os.SEEK_DATA) if hole < len(data) else len(data)
            except FsError as err:
                if err.errno != errno.ENXIO:
                    raise
                at = len(data)
            assert at > hole or hole == len(data), (hole, at)
            assert not any(data[hole:at])

    def read(self) -> None:
        if self.handles:
            ino, fh = self.random.choice(self.handles)
            data = self.nodes[ino].data
            offset, size = self.random.randrange(len(data) + 100), self.random.randrange(1, 200_000)
            assert self.r.read(ino, fh, offset, size) == data[offset : offset + size], f"inode {ino} at {offset}"

    def fsync(self) -> None:
        if self.handles:
            ino, fh = self.random.choice(self.handles)
            self.note("fsync", ino)
            self.r.fsync(ino, fh)

    # --- attributes ------------------------------------------------------------------------------------------------------
    def chmod(self) -> None:
        ino = self.random.choice([i for i in self.nodes if i != ROOT_INO] or [ROOT_INO])
        mode = self.random.choice([0o600, 0o644, 0o755])
        self.note("chmod", ino)
        self.r.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=mode))
        self.nodes[ino].mode = mode

    def utimens(self) -> None:
        found = [i for i, node in self.nodes.items() if node.kind == stat.S_IFREG]
        if found:
            ino = self.random.choice(found)
            self.nodes[ino].mtime_ns = self.random.randrange(1 << 60)
            self.note("utimens", ino)
            self.r.call("setattr", ino, None, SetAttrIn(c.SET_MTIME, mtime_ns=self.nodes[ino].mtime_ns))

    def xattr(self) -> None:
        ino = self.random.choice(list(self.nodes))
        node, name = self.nodes[ino], b"user." + self.random.choice(NAMES)
        self.note("xattr", ino, name)
        if self.random.random() < 0.6:
            node.xattrs[name] = self.random.randbytes(self.random.randrange(50))
            self.r.call("setxattr", ino, name, node.xattrs[name], 0)
        elif name in node.xattrs:
            self.r.call("removexattr", ino, name)
            del node.xattrs[name]
        else:
            assert error_of(self.r.call, "removexattr", ino, name) == errno.ENODATA

    # --- what happens to the worker --------------------------------------------------------------------------------------
    def flush(self) -> None:
        self.note("flush")
        self.r.flush()

    def kick(self) -> None:
        self.note("kick")
        self.r.worker.data.flusher.kick()

    def kill(self) -> None:
        self.note("kill")
        self.r.restart()

    def forget(self) -> None:
        """What eviction may do at any time."""
        self.note("forget")
        self.random.choice([self.r.mount.caches.names.clear, self.r.mount.buffered.files.forget_clean])()

    def lose_session(self) -> None:
        """Handles of files without names are lost with it, so they are closed first."""
        self.note("lose the session")
        for ino, fh in [one for one in self.handles if not self.nodes[one[0]].links]:
            self.handles.remove((ino, fh))
            self.r.close_file(ino, fh)
            self.nodes.pop(ino, None)
        worker = self.r.worker
        before = worker.memory.control.state.session
        self.r.end_session()
        worker.client._keeper.doubt()
        until(lambda: worker.memory.control.state.session != before and not worker.sessions._busy.locked())

    def remount(self) -> None:
        self.note("remount")
        for ino, fh in self.handles:
            self.r.close_file(ino, fh)
        self.nodes = {ino: node for ino, node in self.nodes.items() if node.links}
        self.handles.clear()
        self.r.remount()

    # --- the whole -------------------------------------------------------------------------------------------------------
    def step(self) -> None:
        kinds = [
            (6, self.create), (3, self.mkdir), (1, self.symlink), (3, self.link), (6, self.unlink), (2, self.rmdir), (8, self.rename),
            (4, self.open), (5, self.close), (16, self.write),  (6, self.truncate), (10, self.read), (3, self.fsync), (2, self.chmod),
            (3, self.utimens), (3, self.xattr), (2, self.flush), (3, self.kick), (2, self.forget), (2, self.list_),
            (6, self.fallocate), (6, self.copy), (3, self.seek),
            *zip(self.weights, (self.kill, self.lose_session, self.remount), strict=True),
        ]  # fmt: skip
        (action,) = self.random.choices([action for _, action in kinds], [weight for weight, _ in kinds])
        action()

    def list_(self) -> None:
        parent = self.directory()
        assert self.r.listdir(parent, plus=self.random.random() < 0.5) == self.nodes[parent].names

    def compare(self) -> None:
        for ino, node in self.nodes.items():
            if not node.links and all(one[0] != ino for one in self.handles):
                continue
            attr = self.r.attr(ino)
            assert (stat.S_IFMT(attr.mode), attr.nlink) == (node.kind, node.links), f"inode {ino}"
            if ino != ROOT_INO:
                assert stat.S_IMODE(attr.mode) == node.mode
            if node.kind == stat.S_IFDIR:
                assert self.r.listdir(ino) == node.names
                for name in NAMES:
                    if name in node.names:
                        assert self.r.lookup(name, ino).ino == node.names[name]
                    else:
                        assert error_of(self.r.lookup, name, ino) == errno.ENOENT
            elif node.kind == stat.S_IFLNK:
                assert self.r.call("readlink", ino) == node.data
            else:
                assert attr.size == len(node.data), f"inode {ino}"
                assert self.r.content(ino) == node.data, f"inode {ino}"
                assert node.mtime_ns in (None, attr.mtime_ns)
            assert {name: self.r.call("getxattr", ino, name) for name in self.r.call("listxattr", ino)} == node.xattrs

    def balance(self) -> None:
        self.r.flush()
        assert self.r.mount.buffered.dirty.dirty_bytes == 0
        assert self.r.mount.buffered.reservation.left_bytes == self.r.volume().reserved_bytes
        assert self.r.volume().used_inodes == len(self.nodes)


class DelegatedRig(Rig):
    delegated = True


class DelegatedModel(Model):
    """More of what happens to a worker: what it has decided is on its way then."""

    weights = (5.0, 5.0, 1.0)

    def balance(self) -> None:
        super().balance()
        names = self.r.worker.names
        assert names is not None and names.decides, "a record was refused"
        assert names.shipper.differing == 0, "the leader's rows are others after a record than this mount's"


class LateModel(DelegatedModel):
    """Commits of data go with records, and names and files change while they are on their way."""

    def step(self) -> None:
        if not self.handles or self.random.random() < 0.8:
            super().step()
            return
        ino, fh = self.random.choice(self.handles)
        self.note("chmod, write and fsync", ino)
        self.nodes[ino].mode = 0o600 + self.random.randrange(0o100)
        self.r.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=self.nodes[ino].mode))
        data = self.random.randbytes(self.random.choice(SIZES))
        self.r.write(ino, fh, 0, data)
        self.nodes[ino].data[: len(data)] = data
        self.nodes[ino].mtime_ns = None
        synced = self.r.begin("fsync", ino, fh, False)
        for _ in range(self.random.randrange(4)):
            self.random.choice([self.create, self.mkdir, self.link, self.unlink, self.rename, self.write, self.truncate, self.chmod])()
        synced.result()
        self.r.mount.caches.names.clear()
        self.r.mount.buffered.files.forget_clean()
        assert self.r.attr(ino).size == len(self.nodes[ino].data), f"inode {ino}: what the rows say"


class LateRig(DelegatedRig):
    """Batches of records, or the answers to them, are on their way for a while: much is asked and decided meanwhile."""

    chance = random.Random()

    def start(self, *repeat: Any, exited: bool = True) -> Any:
        results = super().start(*repeat, exited=exited)
        gate = Gate(self.worker.client)
        gate.on_propose = self.late
        assert self.worker.names is not None
        self.worker.names.shipper._metadata = gate  # type: ignore[assignment]
        return results

    def late(self, command: Any, unique: int) -> Any:
        if type(command) is not c.Apply or self.chance.random() < 0.3:
            return None
        assert self.worker.names is not None
        asked = self.worker.client.propose(command, unique, self.worker.names.shipper._token)
        made = self.chance.choice([After, Held])(asked)
        later = threading.Timer(self.chance.random() * LATE_S, made.release)
        later.daemon = True
        later.start()
        return made


def run(directory: Path, seed: int, steps: int, kind: type[Model] = Model, made_by: type[Rig] = Rig) -> None:
    with rig(directory, segments=200, made_by=made_by) as r:
        model = kind(r, seed)
        try:
            for _ in range(steps):
                model.step()
            model.compare()
            model.balance()
            model.remount()
            model.compare()
            model.balance()
            r.unmount()
            assert r.volume().reserved_bytes == 0
            r.check()
        except BaseException:
            print(f"seed {seed}, {len(model.history)} operations:\n" + "\n".join(model.history[-40:]))
            raise


@pytest.mark.parametrize("round_", range(6))
def test_random_operations(tmp_path: Path, seed: int, round_: int) -> None:
    run(tmp_path, seed * 100 + round_, STEPS)


@pytest.mark.parametrize("round_", range(4))
def test_random_operations_on_a_mount_that_decides_names(tmp_path: Path, seed: int, round_: int) -> None:
    """Nobody else has the volume when its session ends: nothing may become a conflict."""
    run(tmp_path, seed * 100 + 80 + round_, STEPS, DelegatedModel, DelegatedRig)


@pytest.mark.parametrize("round_", range(2))
def test_random_operations_while_records_are_on_their_way(tmp_path: Path, seed: int, round_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LateRig, "chance", random.Random(seed * 100 + 90 + round_))
    run(tmp_path, seed * 100 + 90 + round_, STEPS, LateModel, LateRig)


@pytest.mark.parametrize("round_", range(4))
def test_random_operations_with_small_caches_and_batches(tmp_path: Path, seed: int, round_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "INODES_CACHED_MAX", 16)
    monkeypatch.setattr(names, "DENTRIES_CACHED_MAX", 6)
    monkeypatch.setattr(names, "DIRECTORY_LISTED_ENTRIES_MAX", 3)
    monkeypatch.setattr(file_data, "FILES_CACHED_MAX", 8)
    monkeypatch.setattr(file_data, "EXTENTS_CACHED_MAX", 10)
    monkeypatch.setattr(flusher, "BATCH_BYTES_MAX", 6_000)
    monkeypatch.setattr(queries, "LAYOUT_EXTENTS_MAX", 4)
    monkeypatch.setattr(copy_range, "PIECES_PER_COPY_MAX", 3)
    for module in (filemap, allocation, copy_range):
        monkeypatch.setattr(module, "REAP_EXTENTS_PER_ENTRY", 5)
    run(tmp_path, seed * 100 + 50 + round_, STEPS)
