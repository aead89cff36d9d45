"""Random operations on mounts of one volume, at the same time, while their connections to the leader are cut: the history is judged.

Real workers without a kernel over a real metadata service in this process (tests/rigs/mount_without_kernel.py, connection_cuts.py beside
this file).  What every call returned is one history; `tests/rigs/linearizability.py` looks for an order in which one model of two
directories and their files gives all of it.  After each round every mount shows every name, attribute and byte alike, and that is what the
next round begins with.

Of what the kernel guarantees only this is kept: on one mount names are changed one at a time, and a file's data and attributes too.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import GeneratorType
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import ROOT_INO, Attr
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.client.connection import connect
from awsomefsd.vfs.api.context import SetAttrIn
from tests.rigs import linearizability
from tests.rigs.mount_without_kernel import LIMIT_S, error_of, finish
from tests.rigs.sharing_nodes import FIRST, append, sound
from tests.unit.vfs.connection_cuts import Cuts
from tests.unit.vfs.ops.test_buffered_writes import Leased

MOUNTS, CLIENTS, ROUNDS, STEPS, SEEDS = 3, 2, 4, 15, 3
CHANCES = (0.01, 0.03, 0.1)  # of each transfer, to end the connection
SOAK_SEEDS = 40
DEATHS = 0.2  # in the soak: of a worker after a round, with what it holds back; each takes seconds
NAMES = (b"a", b"b", b"c")
SIZE_MAX = 9_000  # beyond what is kept inline
HANDLES_MAX = 3
BUDGET = 300_000

Key = tuple[int, bytes]


class Content(bytes):
    """Of a file, as a failure shows it."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes {zlib.crc32(self):08x}>"


class Tree(NamedTuple):
    names: frozenset[tuple[Key, int]]
    inodes: frozenset[tuple[int, int, Content]]  # number, mode, content


Step = Callable[..., list[Tree]]


def links(tree: Tree, ino: int) -> int:
    return sum(target == ino for _, target in tree.names)


def changed(tree: Tree, ino: int, seen: Any, change: Callable[[int, Content], tuple[int, bytes]]) -> list[Tree]:
    """Of an inode by its number: one without names may be gone."""
    row = next((row for row in tree.inodes if row[0] == ino), None)
    if seen == "ENOENT":
        return [tree] if row is None or not links(tree, ino) else []
    if row is None:  # without a name, and no handle of a client: it may not be gone yet
        return [tree]
    if seen is not None:
        return []
    mode, data = change(row[1], row[2])
    return [tree._replace(inodes=tree.inodes - {row} | {(ino, mode, Content(data))})]


def laid(data: bytes, offset: int, piece: bytes) -> bytes:
    return data[:offset].ljust(offset, b"\0") + piece + data[offset + len(piece) :]


def shown(tree: Tree, ino: int) -> tuple[int, int, int, int] | None:
    return next(((ino, mode, links(tree, ino), len(data)) for number, mode, data in tree.inodes if number == ino), None)


def do_create(tree: Tree, key: Key, seen: Any) -> list[Tree]:
    if key in dict(tree.names):
        return [tree] if seen == "EEXIST" else []
    return [Tree(tree.names | {(key, seen)}, tree.inodes | {(seen, 0o644, Content())})] if type(seen) is int else []


def do_lookup(tree: Tree, key: Key, seen: Any) -> list[Tree]:
    ino = dict(tree.names).get(key)
    return [tree] if seen == ("ENOENT" if ino is None else shown(tree, ino)) else []


def do_stat(tree: Tree, ino: int, seen: Any) -> list[Tree]:
    told = shown(tree, ino)
    return [tree] if told is None or seen == told or (seen == "ENOENT" and not told[2]) else []


def do_unlink(tree: Tree, key: Key, seen: Any) -> list[Tree]:
    ino = dict(tree.names).get(key)
    if ino is None:
        return [tree] if seen == "ENOENT" else []
    return [tree._replace(names=tree.names - {(key, ino)})] if seen is None else []


def do_rename(tree: Tree, old: Key, new: Key, seen: Any) -> list[Tree]:
    names = dict(tree.names)
    ino = names.get(old)
    if ino is None:
        return [tree] if seen == "ENOENT" else []
    if seen is not None:
        return []
    if names.get(new) == ino:
        return [tree]
    return [tree._replace(names=tree.names - {(old, ino), (new, names.get(new, 0))} | {(new, ino)})]


def do_link(tree: Tree, ino: int, key: Key, seen: Any) -> list[Tree]:
    if seen == "EEXIST":
        return [tree] if key in dict(tree.names) else []
    if seen == "ENOENT":
        return [tree] if not links(tree, ino) else []
    fits = seen is None and key not in dict(tree.names) and links(tree, ino) > 0
    return [tree._replace(names=tree.names | {(key, ino)})] if fits else []


def do_read(tree: Tree, ino: int, offset: int, size: int, seen: Any) -> list[Tree]:
    return [tree] if any(row[0] == ino and row[2][offset : offset + size] == seen for row in tree.inodes) else []


def do_whole(tree: Tree, seen: Tree) -> list[Tree]:
    """What is there at the end of a round; inodes that nobody has open or a name for are gone."""
    return [tree] if tree.names == seen.names and tree.inodes >= seen.inodes else []


STEP: dict[str, Step] = {
    "create": do_create,
    "lookup": do_lookup,
    "stat": do_stat,
    "unlink": do_unlink,
    "rename": do_rename,
    "link": do_link,
    "read": do_read,
    "whole": do_whole,
    "open": lambda tree, ino, seen: changed(tree, ino, seen, lambda mode, data: (mode, data)),
    "utimes": lambda tree, ino, seen: changed(tree, ino, seen, lambda mode, data: (mode, data)),
    "chmod": lambda tree, ino, mode, seen: changed(tree, ino, seen, lambda _, data: (mode, data)),
    "truncate": lambda tree, ino, size, seen: changed(tree, ino, seen, lambda mode, data: (mode, data[:size].ljust(size, b"\0"))),
    "write": lambda tree, ino, at, piece, seen: changed(tree, ino, seen, lambda mode, data: (mode, laid(data, at, piece))),
    "append": lambda tree, ino, piece, seen: changed(tree, ino, seen, lambda mode, data: (mode, data + piece)),
    "list": lambda tree, folder, seen: [tree] if seen == {(key[1], ino) for key, ino in tree.names if key[0] == folder} else [],
}
IDLE = frozenset({"lookup", "stat", "read", "open", "utimes", "list", "whole"})


def judged(tree: Tree, history: Sequence[linearizability.Operation]) -> linearizability.Finding:
    def step(state: Tree, call: tuple[Any, ...]) -> list[tuple[Any, Tree]]:
        return [("as seen", after) for after in STEP[call[0]](state, *call[1:])]

    return linearizability.check(linearizability.Model(tree, step, IDLE), history, BUDGET)


class Client(threading.Thread):
    """One program on a mount."""

    def __init__(self, run: Run, number: int, node: Leased, seed: int) -> None:
        super().__init__()
        self.run_, self.number, self.node, self.dice = run, number, node, random.Random(seed)
        self.handles: list[tuple[int, int]] = []
        self.names, self.inodes = run.names_of[node.mount_id], run.inodes_of[node.mount_id]
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in range(self.run_.steps):
                self.step()
        except BaseException as err:
            self.error = err

    def seen(self, name: str, *args: Any, do: Callable[[], Any]) -> Any:
        """The result of one call, an errno's name if it is refused, in the history."""
        called = time.monotonic()
        try:
            found = do()
        except FsError as err:
            found = "ENOENT" if err.errno == errno.ESTALE else errno.errorcode[err.errno]
        row = linearizability.Operation(0, self.number, (name, *args, found), "as seen", called, time.monotonic())
        self.run_.history.append(row)
        return found

    def key(self) -> Key:
        return self.dice.choice(self.run_.folders), self.dice.choice(NAMES)

    def inode(self) -> int:
        known = list(self.run_.known[self.node.mount_id])
        return self.dice.choice(known) if known else 0

    def step(self) -> None:
        dice = self.dice
        if self.handles and dice.random() < 0.5:
            self.step_handle(*dice.choice(self.handles))
            return
        by_name = (
            self.step_lookup, self.step_lookup, self.step_create, self.step_create, self.step_unlink, self.step_rename, self.step_list,
        )  # fmt: skip
        by_number = (self.step_link, self.step_stat, self.step_chmod, self.step_utimes, self.step_open, self.step_open)
        ino = self.inode()
        if not ino or dice.random() < 0.5:
            dice.choice(by_name)()
        else:
            dice.choice(by_number)(ino)

    def know(self, ino: int) -> None:
        known = self.run_.known[self.node.mount_id]
        known[ino] = None
        while len(known) > 6:
            known.pop(next(iter(known)), None)

    def step_lookup(self) -> None:
        key = self.key()
        found = self.seen("lookup", key, do=lambda: told(self.node.lookup(key[1], key[0])))
        if found != "ENOENT":
            self.know(found[0])

    def step_create(self) -> None:
        key, made = self.key(), []

        def do() -> int:
            attr, opened = self.node.call("create", *key, 0o644, os.O_RDWR | os.O_EXCL)
            made.append((attr.ino, opened.fh))
            return int(attr.ino)

        with self.names:
            found = self.seen("create", key, do=do)
        if made:
            self.know(found)
            self.opened(*made[0])

    def opened(self, ino: int, fh: int) -> None:
        self.handles.append((ino, fh))
        if len(self.handles) > HANDLES_MAX:
            self.node.close_file(*self.handles.pop(0))

    def step_unlink(self) -> None:
        key = self.key()
        with self.names:
            self.seen("unlink", key, do=lambda: self.node.call("unlink", *key))

    def step_rename(self) -> None:
        old, new = self.key(), self.key()
        with self.names:
            self.seen("rename", old, new, do=lambda: self.node.call("rename", *old, *new, 0))

    def step_list(self) -> None:
        folder = self.dice.choice(self.run_.folders)
        self.seen("list", folder, do=lambda: listed(self.node, folder, self.run_.folders))

    def step_link(self, ino: int) -> None:
        key = self.key()
        with self.names, self.inodes[ino]:
            self.seen("link", ino, key, do=lambda: self.node.call("link", ino, *key) and None)

    def step_stat(self, ino: int) -> None:
        self.seen("stat", ino, do=lambda: told(self.node.attr(ino)))

    def step_chmod(self, ino: int) -> None:
        mode = self.dice.choice((0o600, 0o644, 0o755))
        with self.inodes[ino]:
            self.seen("chmod", ino, mode, do=lambda: self.node.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=mode)) and None)

    def step_utimes(self, ino: int) -> None:
        change = SetAttrIn(c.SET_MTIME, mtime_ns=self.dice.randrange(10**18))
        with self.inodes[ino]:
            self.seen("utimes", ino, do=lambda: self.node.call("setattr", ino, None, change) and None)

    def step_open(self, ino: int) -> None:
        def do() -> None:
            self.opened(ino, self.node.open(ino))

        self.seen("open", ino, do=do)

    def step_handle(self, ino: int, fh: int) -> None:
        dice, node = self.dice, self.node
        kind = dice.choice(("write", "write", "append", "read", "read", "truncate", "stat", "fsync", "close"))
        at, piece = dice.randrange(SIZE_MAX), Content(dice.randbytes(dice.choice((1, 40, 3_000))))
        if kind == "close":
            self.handles.remove((ino, fh))
            node.close_file(ino, fh)
        elif kind == "fsync":
            node.fsync(ino, fh)
        elif kind == "read":
            self.seen("read", ino, at, 2 * SIZE_MAX, do=lambda: Content(node.read(ino, fh, at, 2 * SIZE_MAX)))
        elif kind == "stat":
            self.seen("stat", ino, do=lambda: told(node.call("getattr", ino, fh)))
        else:
            with self.inodes[ino]:
                if kind == "write":
                    self.seen("write", ino, at, piece, do=lambda: node.write(ino, fh, at, piece))
                elif kind == "append":
                    self.seen("append", ino, piece, do=lambda: append(node, ino, fh, piece) == len(piece) and None)
                else:
                    size = dice.choice((0, at))
                    self.seen("truncate", ino, size, do=lambda: node.truncate(ino, size, fh) and None)


def told(attr: Attr) -> tuple[int, int, int, int]:
    return attr.ino, attr.mode & 0o7777, attr.nlink, attr.size


def settled(attr: Attr) -> Attr:
    """Without what a commit of held data decides: how much room it takes."""
    return replace(attr, stored_bytes=0, inline=False)


def listed(node: Leased, folder: int, folders: Sequence[int]) -> set[tuple[bytes, int]]:
    """All of it is one answer."""
    fh = node.call("opendir", folder, 0).fh
    entries = node.readdir(folder, fh, 0)
    node.call("releasedir", folder, fh)
    return {(entry.name, entry.ino) for entry in entries if entry.name not in (b".", b"..") and entry.ino not in folders}


class Run:
    """The clients of all mounts, round after round.  A worker dies between two: its successor has what it held back."""

    client: type[Client] = Client
    more_folders = 1

    def __init__(self, nodes: list[Leased], seed: int, clients: int, steps: int, deaths: float) -> None:
        self.nodes, self.steps, self.deaths = nodes, steps, deaths
        self.dice = random.Random(seed)
        self.names_of: dict[int, threading.Lock] = defaultdict(threading.Lock)
        self.inodes_of: dict[int, Any] = defaultdict(lambda: defaultdict(threading.Lock))
        self.known: dict[int, dict[int, None]] = defaultdict(dict)
        made = [b"folder%d" % number for number in range(self.more_folders)]
        self.folders = [ROOT_INO, *(nodes[0].mkdir(name) for name in made)]
        for node in nodes:  # no mount speaks of an inode that it was not told of
            assert [node.lookup(name).ino for name in made] == self.folders[1:]
        self.history: list[linearizability.Operation] = []
        self.tree = Tree(frozenset(), frozenset())
        self.handles: dict[int, list[tuple[int, int]]] = {}
        self.clients = clients
        self.judged = self.unknown = 0

    def round(self) -> None:
        numbers = itertools.count()
        made = [self.client(self, next(numbers), node, self.dice.getrandbits(32)) for node in self.nodes for _ in range(self.clients)]
        for client in made:
            client.handles = self.handles.get(client.number, [])
        for client in made:
            client.start()
        end = time.monotonic() + LIMIT_S
        for client in made:
            client.join(max(end - time.monotonic(), 0))
        assert not any(client.is_alive() for client in made), "an operation does not end"
        for client in made:
            if client.error is not None:
                raise client.error
            self.handles[client.number] = client.handles
        if self.dice.random() < self.deaths:
            self.dice.choice(self.nodes).restart()
        before = time.monotonic()
        tree = self.whole(made)
        self.history.append(linearizability.Operation(0, len(made), ("whole", tree), "as seen", before, time.monotonic()))
        finding = judged(self.tree, self.history)
        assert finding.verdict is not linearizability.Verdict.BROKEN, finding.detail
        self.judged += len(self.history)
        self.unknown += finding.verdict is linearizability.Verdict.UNKNOWN
        self.history, self.tree = [], tree

    def whole(self, clients: Sequence[Client]) -> Tree:
        """As all mounts show it, in any order."""
        found: list[Any] = []
        for node in self.dice.sample(self.nodes, len(self.nodes)):
            names = {((folder, name), ino) for folder in self.folders for name, ino in listed(node, folder, self.folders)}
            attrs = {key: settled(node.lookup(key[1], key[0])) for key, _ in names}
            assert {(key, attr.ino) for key, attr in attrs.items()} == names
            assert all(attr == settled(node.attr(attr.ino)) for attr in attrs.values())
            missing = [key for key in itertools.product(self.folders, NAMES) if key not in attrs]
            assert all(error_of(node.lookup, key[1], key[0]) == errno.ENOENT for key in missing)
            contents = {attr.ino: Content(node.content(attr.ino)) for attr in attrs.values()}
            found.append((node.node, attrs, contents))
        for name, attrs, contents in found[1:]:
            assert attrs == found[0][1], f"{name} and {found[0][0]} show other attributes"
            assert contents == found[0][2], f"{name} and {found[0][0]} show other bytes"
        attrs, contents = found[0][1:]
        inodes = {(attr.ino, attr.mode & 0o7777, contents[attr.ino]) for attr in attrs.values()}
        for client in clients:
            for ino, fh in client.handles:
                if ino not in contents:
                    attr = client.node.call("getattr", ino, fh)
                    inodes.add((ino, attr.mode & 0o7777, Content(client.node.read(ino, fh, 0, 1 << 20))))
        return Tree(frozenset((key, attr.ino) for key, attr in attrs.items()), frozenset(inodes))


class Numbered(Leased):
    """Its requests are several threads'."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._uniques = itertools.count(2, 2)

    def read(self, ino: int, fh: int, offset: int, size: int) -> bytes:
        """Taken out of the buffer on the thread that read it, as a session does: the next read uses it again."""

        def taken() -> Any:
            parts = self.vfs.read(self.ctx(), ino, fh, offset, size)
            if isinstance(parts, GeneratorType):
                parts = yield from parts
            return b"".join(map(bytes, parts))

        found: bytes = finish(taken())
        return found

    def ctx(self, unique: int | None = None, uid: int = 0, open_flags: int = 0) -> Any:
        return super().ctx(next(self._uniques) if unique is None else unique, uid, open_flags)


@contextlib.contextmanager
def cut_nodes(directory: Path, seed: int, count: int, kind: type[Numbered] = Numbered) -> Iterator[tuple[list[Leased], Cuts]]:
    nodes: list[Leased] = [kind(directory)]
    cuts = Cuts(connect, seed)
    nodes[0].client_options = {"connect": cuts.connect}
    nodes[0].hold_lease_clock()
    try:
        nodes += [kind(directory, nodes[0], FIRST + number) for number in range(1, count)]
        for node in nodes:
            node.start()
        yield nodes, cuts
    finally:
        cuts.chance = 0.0
        for node in reversed(nodes):
            node.close()


def go(directory: Path, seed: int, rounds: int = ROUNDS, mounts: int = MOUNTS, clients: int = CLIENTS, deaths: float = 0.0) -> str:
    with cut_nodes(directory, seed, mounts) as (nodes, cuts):
        run = Run(nodes, seed, clients, STEPS, deaths)
        cuts.chance = run.dice.choice(CHANCES)
        try:
            for _ in range(rounds):
                run.round()
        except BaseException as err:
            err.add_note(f"seed {seed}, {run.judged} operations before this round, cuts: {dict(cuts.done)}")
            raise
        cuts.chance = 0.0
        sound(nodes)
    again = cuts.done["request lost"] + cuts.done["cut behind a request"] + cuts.done["answer lost"]
    assert again > 0
    return f"{run.judged} operations judged, {run.unknown} rounds unknown, {again} connections cut"


def test_mounts_whose_connections_are_cut_show_one_history(tmp_path: Path, seed: int, figures: list[str]) -> None:
    for number in range(SEEDS):
        place = tmp_path / str(number)
        place.mkdir()
        figures.append(f"random operations while connections are cut, seed {seed + number}: {go(place, seed + number)}")


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_long(tmp_path: Path, seed: int, figures: list[str]) -> None:
    for number in range(SOAK_SEEDS):
        place = tmp_path / str(number)
        place.mkdir()
        go(place, seed + number, deaths=DEATHS)
    figures.append(f"{SOAK_SEEDS} seeds of random operations while connections are cut, from {seed}")
