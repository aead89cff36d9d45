"""Programs on mounts that decide names: bursts of changes, mostly in a directory of their own, questions about everybody's, and fsync.

What is named is what the mount can know: what the log has, and what it has decided itself.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

from awsomefsd.base.types import ROOT_INO
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.sim.names.mount import NamesHost, NamesMount
from tests.sim.world import MS

NAMES = (b"a", b"b", b"c", b"d")
DIRECTORIES_MAX = 8
BURST_MAX = 8
PAUSE_NS, STEPS_NS = 400 * MS, (1 * MS, 4 * MS)
AT_HOME = 0.9
KINDS = (*["create"] * 4, "mkdir", "unlink", "unlink", "rmdir", *["rename"] * 3, "link", "chmod", "truncate")
Resume = Callable[[Any, "BaseException | None"], None]


@dataclass
class Act:
    """Something of the mount that calls back with a reply or an error."""

    start: Callable[[Resume], None]


Program = Generator[Any, tuple[Any, Any], None]


class Runner:
    """One program; it ends with its machine."""

    def __init__(self, mount: NamesMount, program: Program, name: str) -> None:
        self.mount, self.name, self.done = mount, name, False
        self._program = program

    def start(self) -> None:
        self._go_on(None)

    def _resume(self, reply: Any, error: BaseException | None) -> None:
        self._go_on((reply, error))

    def _go_on(self, value: Any) -> None:
        if self.mount.dead:
            return
        try:
            wanted = self._program.send(value)
        except StopIteration:
            self.done = True
            return
        if isinstance(wanted, Act):
            wanted.start(self._resume)
        else:
            self.mount.world.after(wanted, self._go_on, None)


class NamesPrograms:
    def __init__(self, host: NamesHost, count: int) -> None:
        self.host, self.world, self.count = host, host.world, count
        self.dice = host.world.dice(f"programs/{host.name}")
        self._home = b"home%d" % host.place
        self._step_ns = self.dice.choice(STEPS_NS)
        self.runners: list[Runner] = []

    def start(self) -> None:
        mount = self.host.mount
        assert isinstance(mount, NamesMount)
        self.runners = [Runner(mount, self._program(mount), f"{self.host.name} names{number}") for number in range(self.count)]
        for runner in self.runners:
            runner.start()

    def _program(self, mount: NamesMount) -> Program:
        yield Act(partial(mount.request, c.Create(self.host.volume, ROOT_INO, self._home, stat.S_IFDIR | 0o755, 0, 0, lease=True)))
        while not self.host.stopping:
            yield int(self.dice.expovariate(1) * PAUSE_NS) + MS
            for _ in range(self.dice.randrange(1, BURST_MAX)):
                yield self._act(mount)
                yield int(self.dice.expovariate(1) * self._step_ns)
        yield Act(partial(mount.sync, ROOT_INO))
        for ino in self._known(mount)[0]:
            yield Act(partial(mount.question, m.ReadDir(self.host.volume, ino, 0, 100, True)))

    # --- what is chosen ----------------------------------------------------------------------------------------------------
    def _known(self, mount: NamesMount) -> tuple[list[int], list[int]]:
        """Directories and files that the mount can know of."""
        judge = self.host.judge
        model = judge.committed
        directories, files = set(model.directories), set(model.files)
        for one in judge.pending.get(mount.number, ()):
            if one.made:
                (directories if stat.S_ISDIR(one.command.mode) else files).add(one.made)
        return sorted(directories), sorted(files)

    def _at_home(self, known: list[int]) -> list[int]:
        """The directory of this mount, and what is in it, of those."""
        model = self.host.judge.shown
        home = model.find(ROOT_INO, self._home)
        return [ino for ino in (home, *model.directories.get(home, {}).values()) if ino in known]

    def _one_of(self, known: list[int]) -> int:
        """Mostly one of this mount's own."""
        near = self._at_home(known) if self.dice.random() < AT_HOME else []
        return self.dice.choice(near or known)

    def _directory(self, mount: NamesMount) -> int:
        return self._one_of(self._known(mount)[0])

    def _act(self, mount: NamesMount) -> Act:
        roll = self.dice.random()
        if roll < 0.06:
            directories, files = self._known(mount)
            return Act(partial(mount.sync, self.dice.choice([*directories, *files])))
        if roll < 0.09:
            return Act(partial(mount.give_back, self.dice))
        if roll < 0.25:
            return Act(partial(mount.question, self._question(mount)))
        if roll < 0.4:
            return Act(partial(self._at_once, mount))
        return Act(partial(mount.request, self._command(mount)))

    def _at_once(self, mount: NamesMount, resume: Resume) -> None:
        """A question of a directory, and a change of it while that is on its way."""
        left = [resume, lambda reply, error: None]

        def ended(reply: Any, error: BaseException | None) -> None:
            left.pop()(reply, error)

        command = self._command(mount)
        parent, name = getattr(command, "parent", ROOT_INO), getattr(command, "name", b"a")
        body = m.ReadDir(self.host.volume, parent, 0, 100, True) if self.dice.random() < 0.5 else m.Lookup(self.host.volume, parent, name)
        mount.question(body, ended)
        mount.request(command, ended)

    def _question(self, mount: NamesMount) -> Any:
        volume, parent = self.host.volume, self._directory(mount)
        roll = self.dice.random()
        if roll < 0.5:
            return m.Lookup(volume, parent, self.dice.choice(NAMES))
        if roll < 0.75:
            return m.ReadDir(volume, parent, 0, 100, True)
        directories, files = self._known(mount)
        return m.GetAttr(volume, self._one_of(files or directories))

    def _command(self, mount: NamesMount) -> Any:
        dice, volume = self.dice, self.host.volume
        parent, name = self._directory(mount), dice.choice(NAMES)
        directories, files = self._known(mount)
        kind = dice.choice(KINDS)
        if kind == "mkdir" and len(directories) >= DIRECTORIES_MAX:
            kind = "rmdir"
        if kind in ("link", "chmod", "truncate") and not files:
            kind = "create"
        if kind == "create":
            return c.Create(volume, parent, name, stat.S_IFREG | 0o644, 0, 0, lease=True)
        if kind == "mkdir":
            return c.Create(volume, parent, name, stat.S_IFDIR | 0o755, 0, 0, lease=True)
        if kind == "unlink":
            return c.Unlink(volume, parent, name)
        if kind == "rmdir":
            return c.Rmdir(volume, parent, name)
        if kind == "rename":
            return c.Rename(volume, parent, name, self._directory(mount), dice.choice(NAMES))
        if kind == "link":
            return c.Link(volume, self._one_of(files), parent, name)
        if kind == "chmod":
            return c.SetAttr(volume, self._one_of(files), c.SET_MODE, mode=dice.choice([0o600, 0o640, 0o644]))
        return c.SetAttr(volume, self._one_of(files), c.SET_SIZE, size=dice.choice([0, 10, 20]))
