"""What a crash may leave, told by what every call had promised when it returned (docs/CONSISTENCY.md).

Names, attributes, links: as after the last call that returned, or as after the one that was under way; nothing between, nothing older.
Content: of each file one of its versions, whole: not older than what the last fsync (or a call that flushes) promised, not newer than
what was written.  A file that was renamed over a name has, under that name, all that it had then.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from awsomefsd.base.types import ROOT_INO
from tests.rigs.mount_without_kernel import Rig


class Row(NamedTuple):
    """One name.  Times of regular files are left out: those of writes come with their commit."""

    ino: int
    mode: int
    nlink: int
    owner: tuple[int, int]
    rdev: int
    times: tuple[int, int] | None
    target: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]


Tree = dict[str, Row]


def tree_of(rig: Rig) -> Tree:
    found: Tree = {".": _row(rig, ROOT_INO)}
    _below(rig, ROOT_INO, "", found)
    return found


def _below(rig: Rig, folder: int, prefix: str, found: Tree) -> None:
    for name, ino in rig.listdir(folder).items():
        path = prefix + name.decode()
        assert rig.lookup(name, folder).ino == ino, f"{path}: lookup and readdir differ"
        found[path] = _row(rig, ino)
        if stat.S_ISDIR(found[path].mode):
            _below(rig, ino, f"{path}/", found)


def _row(rig: Rig, ino: int) -> Row:
    attr = rig.attr(ino)
    target = rig.call("readlink", ino) if stat.S_ISLNK(attr.mode) else b""
    xattrs = tuple((name, bytes(rig.call("getxattr", ino, name))) for name in sorted(rig.call("listxattr", ino)))
    times = None if stat.S_ISREG(attr.mode) else (attr.mtime_ns, attr.ctime_ns)
    return Row(ino, attr.mode, attr.nlink, (attr.uid, attr.gid), attr.rdev, times, target, xattrs)


def contents_of(rig: Rig, tree: Tree) -> dict[int, bytes]:
    found = {}
    for path, row in tree.items():
        if stat.S_ISREG(row.mode) and row.ino not in found:
            found[row.ino] = rig.content(row.ino)
            assert len(found[row.ino]) == rig.attr(row.ino).size, f"{path}: size"
    return found


@dataclass
class Moment:
    """After one call: the tree, and of each file how many versions there were and which of them is promised.

    `floor`: the newest moment whose names were durable then.
    """

    floor: int
    tree: Tree
    promised: dict[int, int]
    count: dict[int, int]


@dataclass
class Oracle:
    versions: dict[int, list[bytes]] = field(default_factory=dict)
    promised: dict[int, int] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)

    def begin(self, tree: Tree, contents: dict[int, bytes]) -> None:
        self.versions = {ino: [data] for ino, data in contents.items()}
        self.promised = dict.fromkeys(contents, 0)
        self._moment(tree)

    def _moment(self, tree: Tree, *, synced: bool = True) -> None:
        floor = len(self.moments) if synced else self.moments[-1].floor
        self.moments.append(Moment(floor, tree, dict(self.promised), {ino: len(list_) for ino, list_ in self.versions.items()}))

    def after(self, tree: Tree, *, synced: bool = True) -> None:
        """`synced`: all names are durable now; else what they are after a crash is what they were after some call since they were."""
        self._moment(tree, synced=synced)

    # --- what a call does -------------------------------------------------------------------------------------------------
    def now(self, ino: int) -> bytes:
        return self.versions[ino][-1]

    def made(self, ino: int) -> None:
        self.versions[ino], self.promised[ino] = [b""], 0

    def change(self, ino: int, data: bytes) -> None:
        self.versions[ino].append(data)

    def undo(self, ino: int) -> None:
        self.versions[ino].pop()

    def promise(self, ino: int) -> None:
        self.promised[ino] = len(self.versions[ino]) - 1

    # --- what a crash left ------------------------------------------------------------------------------------------------
    def judge(self, done: int, tree: Tree, contents: dict[int, bytes]) -> str:
        """"" or what is wrong, after `done` calls had returned."""
        before = self.moments[done]
        after = self.moments[min(done + 1, len(self.moments) - 1)]
        wrong = self._differs(before, after, tree, contents)
        if wrong and after is not before:
            other = self._differs(after, after, tree, contents)
            if not other or any(not self._differs(older, after, tree, contents) for older in self.moments[before.floor : done]):
                return ""
            return f"as before the call: {wrong}; as after it: {other}; names of {before.floor} calls are durable"
        if wrong and any(not self._differs(older, after, tree, contents) for older in self.moments[before.floor : done]):
            return ""
        return wrong

    def _differs(self, names: Moment, last: Moment, tree: Tree, contents: dict[int, bytes]) -> str:
        if tree != names.tree:
            paths = [path for path in sorted({*tree, *names.tree}) if tree.get(path) != names.tree.get(path)]
            return f"names differ: {[(path, tree.get(path), names.tree.get(path)) for path in paths[:3]]}"
        for ino, data in contents.items():
            allowed = self.versions[ino][names.promised[ino] : last.count[ino]]
            if data not in allowed:
                known = [number for number, version in enumerate(self.versions[ino]) if version == data]
                return f"inode {ino}: {len(data)} bytes, version {known}, allowed from {names.promised[ino]} to {last.count[ino] - 1}"
        return ""


def describe(event: tuple[Any, ...]) -> str:
    return " ".join(f"{len(part)} bytes" if isinstance(part, bytes | dict) else str(part) for part in event)
