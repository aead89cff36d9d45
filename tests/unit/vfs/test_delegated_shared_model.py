"""Three mounts decide names of one volume, one operation after the other, judged by a model; workers die and sessions end in between.

As nothing is at the same time, there is one order, and each answer has to be what a model of directories and files says.  When a session
ends, what its mount had not shipped is lost, and nothing else: the cluster has a prefix of what the mount did.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import ROOT_INO
from awsomefsd.io.file import shipper_core
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.server.leases.contention import Contention
from awsomefsd.vfs.api.context import SetAttrIn
from awsomefsd.vfs.state.shared_names import SharedNames
from awsomefsd.worker import session_change
from tests.rigs.delegated_mount import replace_session
from tests.rigs.sharing_nodes import FIRST, sound
from tests.unit.vfs.test_delegated_shared import Deciding, hold

MOUNTS, STEPS, SEEDS = 3, 250, 4
NAMES = (b"a", b"b", b"c")
STAYS = 0.9  # of a step, to be of the mount of the step before
HELD = 0.7  # of a directory or file, to be held before it is changed
KILL, LOSE = 0.02, 0.02


class Model:
    """Directories by the names on the way to them, files by their numbers.  Paths are tuples of names."""

    def __init__(self) -> None:
        self.directories: dict[int, dict[bytes, int]] = {ROOT_INO: {}}
        self.modes: dict[int, int] = {}
        self.links: dict[int, int] = {}

    def kind(self, ino: int) -> str:
        return "directory" if ino in self.directories else "file"


class Run:
    """`kept`: of each mount, what all showed when it had shipped everything, and after each step since."""

    def __init__(self, nodes: list[Deciding], seed: int) -> None:
        self.nodes, self.dice, self.model = nodes, random.Random(seed), Model()
        self.node = nodes[0]
        self.kept = {node.mount_id: [Model()] for node in nodes}  # before the first step there is nothing, for everybody
        self.decided = self.lost = self.kills = 0

    def directory(self) -> int:
        ino = self.dice.choice(list(self.model.directories))
        if self.dice.random() < HELD and self.node.worker.names.decides:
            hold(self.node, ino)
        return ino

    def file(self) -> int:
        ino = self.dice.choice(list(self.model.links)) if self.model.links else 0
        if ino and self.dice.random() < HELD and self.node.worker.names.decides:
            hold(self.node, ino)
        return ino

    def step(self) -> None:
        if self.dice.random() > STAYS:
            self.node = self.dice.choice(self.nodes)
            self.judge(self.node)  # from the root: no mount speaks of an inode that it was not told of
        roll = self.dice.random()
        if roll < KILL:
            self.node.restart()
            self.kills += 1
        elif roll < KILL + LOSE:
            self.lose()
        else:
            before = self.node.worker.names.decided
            kind = self.dice.choice(("create", "create", "mkdir", "unlink", "rmdir", "rename", "link", "chmod", "lookup", "list", "stat"))
            getattr(self, kind)(self.directory(), self.dice.choice(NAMES))
            self.decided += self.node.worker.names.decided > before
            self.remember()

    def remember(self) -> None:
        """Only the mounts that have something unshipped may lose it."""
        for node in self.nodes:
            if node.worker.names.synced() is None:
                self.kept[node.mount_id] = [deepcopy(self.model)]
            else:
                self.kept[node.mount_id].append(deepcopy(self.model))

    def lose(self) -> None:
        """Nobody else has unshipped changes then: whose are lost is known."""
        for node in self.nodes:
            if node is not self.node:
                node.flush()
        self.remember()
        before = self.node.worker.memory.control.state.session
        self.node.end_session()
        replace_session(self.node, before)
        self.lost += bool(self.node.worker.names.shipper.has_refused)
        other = next(node for node in self.nodes if node is not self.node)
        shown = self.shown(other)
        states = [*self.kept[self.node.mount_id], self.model]
        fits = [state for state in states if (state.directories, state.links) == (shown.directories, shown.links)]
        assert fits, f"no prefix: {shown.directories}, of {[state.directories for state in states]}"
        shown.modes = {ino: mode for ino, mode in shown.modes.items() if ino in shown.links}
        assert any(all(state.modes.get(ino) == mode for ino, mode in shown.modes.items()) for state in fits)
        self.model = shown
        if not self.node.worker.names.decides:
            self.node.restart()

    def shown(self, node: Deciding) -> Model:
        """All that a mount shows, from the root."""
        found = Model()
        ways = [ROOT_INO]
        while ways:
            ino = ways.pop()
            found.directories[ino] = node.listdir(ino)
            for name, child in found.directories[ino].items():
                attr = node.lookup(name, ino)
                assert attr.ino == child
                if stat.S_ISDIR(attr.mode):
                    ways.append(child)
                else:
                    found.links[child], found.modes[child] = attr.nlink, attr.mode & 0o7777
        return found

    def judge(self, node: Deciding) -> None:
        shown, model = self.shown(node), self.model
        assert (shown.directories, shown.links, shown.modes) == (model.directories, model.links, model.modes)

    def told(self, method: str, *args: Any) -> Any:
        try:
            return self.node.call(method, *args)
        except FsError as err:
            return errno.errorcode[err.errno]

    # --- operations --------------------------------------------------------------------------------------------------------
    def create(self, parent: int, name: bytes) -> None:
        names, found = self.model.directories[parent], self.told("create", parent, name, 0o644, os.O_RDWR | os.O_EXCL)
        if name in names:
            assert found == "EEXIST"
            return
        attr, opened = found
        self.node.close_file(attr.ino, opened.fh)
        names[name] = attr.ino
        self.model.links[attr.ino], self.model.modes[attr.ino] = 1, 0o644

    def mkdir(self, parent: int, name: bytes) -> None:
        names, found = self.model.directories[parent], self.told("mkdir", parent, name, 0o755)
        if name in names:
            assert found == "EEXIST"
            return
        names[name] = found.ino
        self.model.directories[found.ino] = {}

    def unlink(self, parent: int, name: bytes) -> None:
        ino, found = self.model.directories[parent].get(name, 0), self.told("unlink", parent, name)
        if not ino or self.model.kind(ino) == "directory":
            assert found == ("EISDIR" if ino else "ENOENT")
            return
        assert found is None
        del self.model.directories[parent][name]
        self.dropped(ino)

    def dropped(self, ino: int) -> None:
        self.model.links[ino] -= 1
        if not self.model.links[ino]:
            del self.model.links[ino], self.model.modes[ino]

    def rmdir(self, parent: int, name: bytes) -> None:
        ino, found = self.model.directories[parent].get(name, 0), self.told("rmdir", parent, name)
        if not ino or self.model.kind(ino) == "file":
            assert found == ("ENOTDIR" if ino else "ENOENT")
        elif self.model.directories[ino]:
            assert found == "ENOTEMPTY"
        else:
            assert found is None
            del self.model.directories[parent][name], self.model.directories[ino]

    def rename(self, parent: int, name: bytes) -> None:
        """Of a file, to where there is none or another file; a directory to a free name of the same directory."""
        new_parent, new_name = self.directory(), self.dice.choice(NAMES)
        directories = self.model.directories
        ino, target = directories[parent].get(name, 0), directories[new_parent].get(new_name, 0)
        if ino and self.model.kind(ino) == "directory":
            new_parent, target = parent, directories[parent].get(new_name, 0)
        if target and (target == ino or "directory" in (self.model.kind(target), self.model.kind(ino) if ino else "")):
            return
        found = self.told("rename", parent, name, new_parent, new_name, 0)
        if not ino:
            assert found == "ENOENT"
            return
        assert found is None
        del directories[parent][name]
        directories[new_parent][new_name] = ino
        if target:
            self.dropped(target)

    def link(self, parent: int, name: bytes) -> None:
        ino = self.file()
        if not ino:
            return
        found = self.told("link", ino, parent, name)
        if name in self.model.directories[parent]:
            assert found == "EEXIST"
            return
        self.model.links[ino] += 1
        assert found.nlink == self.model.links[ino]
        self.model.directories[parent][name] = ino

    def chmod(self, _parent: int, _name: bytes) -> None:
        ino, mode = self.file(), self.dice.choice((0o600, 0o640, 0o644))
        if ino:
            assert self.told("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=mode)).mode & 0o7777 == mode
            self.model.modes[ino] = mode

    def lookup(self, parent: int, name: bytes) -> None:
        ino, found = self.model.directories[parent].get(name, 0), self.told("lookup", parent, name)
        assert found == "ENOENT" if not ino else found.ino == ino

    def list(self, parent: int, _name: bytes) -> None:
        assert self.node.listdir(parent) == self.model.directories[parent]

    def stat(self, _parent: int, _name: bytes) -> None:
        if self.model.links:
            ino = self.dice.choice(list(self.model.links))
            attr = self.node.attr(ino)
            assert (attr.nlink, attr.mode & 0o7777) == (self.model.links[ino], self.model.modes[ino])


def go(directory: Path, seed: int) -> str:
    nodes = [Deciding(directory)]
    nodes[0].hold_lease_clock()
    nodes += [Deciding(directory, nodes[0], FIRST + number) for number in range(1, MOUNTS)]
    try:
        for node in nodes:
            node.start()
        run = Run(nodes, seed)
        try:
            for _ in range(STEPS):
                run.step()
            for node in nodes:
                run.judge(node)
        except BaseException as err:
            err.add_note(f"seed {seed}, {run.decided} decided, {run.kills} kills, {run.lost} losses")
            raise
        assert not any(node.worker.names.figures()["names_diverged"] for node in nodes)
        sound(nodes)
    finally:
        for node in reversed(nodes):
            node.close()
    assert run.decided > STEPS // 15
    return f"{run.decided} of {STEPS} decided, {run.kills} kills, {run.lost} sessions lost with something decided"


def test_every_answer_fits_one_order_and_a_lost_session_loses_the_end_of_it(
    tmp_path: Path, seed: int, figures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contention, "pause_ms", lambda *_: 0)
    monkeypatch.setattr(shipper_core, "SHIP_GAP_MS", 3_000)  # nothing is shipped unless somebody waits for it
    monkeypatch.setattr(session_change, "SESSION_SELF_FENCE_MS", 0)  # there is no kernel that could believe anything
    monkeypatch.setattr(SharedNames, "_miss", lambda names, ino: names.leases.want_to_decide(ino))
    for number in range(SEEDS):
        place = tmp_path / str(number)
        place.mkdir()
        figures.append(f"three mounts that decide names, by a model, seed {seed + number}: {go(place, seed + number)}")
