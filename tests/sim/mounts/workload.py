"""What programs on a mount do, and what they must see.

A program is a generator: it yields a proposal, a query or a pause and gets (reply, error).  Each works in a directory of its own, so its
own model says exactly what every answer must be: a request that was executed twice, lost, or read stale shows as a wrong answer.  The
registers (quotas of volumes that nobody mounts) are shared by all mounts; checks.py judges them against the order of the log.  So are the
locks on one file of the volume, which exclude each other in true time.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import LOCK_POSIX
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.sim.mounts.mount import Host, Mount
from tests.sim.world import MS, SECOND

REGISTERS = 3
PAUSE_NS = 1_400 * MS
F_WRLCK, F_UNLCK = 1, 2
LOCK_FILE = b"locked"


@dataclass
class Propose:
    command: c.Command
    wait: bool = False
    final: bool = False  # ESTALE is an outcome


@dataclass
class Query:
    body: m.Body


@dataclass
class Call:
    """Something of the mount that calls back when it is done."""

    start: Callable[[Callable[[], None]], None]


@dataclass
class Pause:
    ns: int


Program = Generator[Any, tuple[Any, Any], None]


@dataclass
class Directory:
    """What one program has made; survives the machine in the volume, and in the judge's memory."""

    name: bytes
    ino: int = 0
    names: dict[bytes, int] = field(default_factory=dict)
    content: dict[int, bytes] = field(default_factory=dict)
    doubtful: set[bytes] = field(default_factory=set)  # names of an operation without an outcome
    doubtful_inos: set[int] = field(default_factory=set)


class Runner:
    """Runs one program of one mount."""

    def __init__(self, mount: Mount, program: Program, name: str) -> None:
        self.mount, self.name = mount, name
        self.world = mount.world
        self.done = False
        self._program = program

    def start(self) -> None:
        self._step((None, None))

    def _step(self, value: tuple[Any, Any]) -> None:
        if self.mount.dead:
            return
        try:
            wanted = self._program.send(value if self._started else None)  # type: ignore[arg-type]
        except StopIteration:
            self.done = True
            return
        finally:
            self._started = True
        if isinstance(wanted, Pause):
            self.world.after(wanted.ns, self._step, (None, None))
        elif isinstance(wanted, Call):
            wanted.start(lambda: self.world.after(0, self._step, (None, None)))
        elif isinstance(wanted, Query):
            self.mount.query(wanted.body, self._resume)
        else:
            self.mount.propose(wanted.command, self._resume, wait=wanted.wait, final=wanted.final)

    _started = False

    def _resume(self, reply: Any, error: Any) -> None:
        self.world.count("operations")
        if error is not None and not isinstance(error, FsError):
            raise self.world.broken(f"{self.name}: {error!r}")
        self._step((reply, error))


def number_of(error: Any) -> int:
    return 0 if error is None else error.errno


class Programs:
    """Makes the programs of a host; `directories` stay over boots."""

    def __init__(self, host: Host, registers: list[int], count: int) -> None:
        self.host, self.registers = host, registers
        self.world, self.checks = host.world, host.checks
        self.directories = [Directory(b"d%d" % number) for number in range(count)]
        self.runners: list[Runner] = []
        self.lock_file = 0
        self.lock_owner = 0

    def start(self) -> None:
        """On the host's present mount; the machine may have died before."""
        mount = self.host.mount
        assert mount is not None
        programs = [(self._names(mount, directory), directory.name.decode()) for directory in self.directories]
        programs += [(self._registers(mount), "registers"), (self._locks(mount), "locks1"), (self._locks(mount), "locks2")]
        self.runners = [Runner(mount, program, f"{self.host.name} {name}") for program, name in programs]
        for runner in self.runners:
            runner.start()

    def _wrong(self, what: str) -> None:
        raise self.world.broken(f"{self.host.name}: {what}")

    def _pause(self, mount: Mount) -> Pause:
        return Pause(int(mount.dice.expovariate(1) * PAUSE_NS) + MS)

    # --- names and data -----------------------------------------------------------------------------------------------------
    def _names(self, mount: Mount, directory: Directory) -> Program:
        if directory.ino:
            yield from self._verify(directory)
        else:
            yield from self._make(directory)
        operations = [self._create, self._create, self._unlink, self._rename, self._write, self._write, self._read, self._list]
        while not self.host.stopping:
            yield self._pause(mount)
            yield from mount.dice.choice(operations)(mount, directory)

    def _make(self, directory: Directory) -> Program:
        """Idempotent: the machine may die before the outcome is known."""
        command = c.Create(self.host.volume, 1, directory.name, stat.S_IFDIR | 0o755, 0, 0)
        reply, error = yield Propose(command)
        if number_of(error) == errno.EEXIST and self.host.boots > 1:
            reply, error = yield Query(m.Lookup(self.host.volume, 1, directory.name))
        if error is not None:
            self._wrong(f"mkdir {directory.name!r}: {error!r}")
        directory.ino = reply.attr.ino

    def _change(self, directory: Directory, command: Any, names: list[bytes], ino: int = 0) -> Generator[Any, tuple[Any, Any], Any]:
        directory.doubtful.update(names)
        directory.doubtful_inos.add(ino)
        reply, error = yield Propose(command)
        directory.doubtful.difference_update(names)
        directory.doubtful_inos.discard(ino)
        return reply, error

    def _expect(self, command: Any, error: Any, expected: int) -> None:
        if number_of(error) != expected:
            self._wrong(f"{command}: {errno.errorcode.get(number_of(error), 'done')}, expected {errno.errorcode.get(expected, 'done')}")

    def _create(self, mount: Mount, directory: Directory) -> Program:
        name = b"%d" % mount.dice.randrange(12)
        command = c.Create(self.host.volume, directory.ino, name, stat.S_IFREG | 0o644, 0, 0)
        reply, error = yield from self._change(directory, command, [name])
        self._expect(command, error, errno.EEXIST if name in directory.names else 0)
        if error is None:
            directory.names[name] = reply.attr.ino
            directory.content[reply.attr.ino] = b""

    def _unlink(self, mount: Mount, directory: Directory) -> Program:
        name = b"%d" % mount.dice.randrange(12)
        command = c.Unlink(self.host.volume, directory.ino, name)
        _, error = yield from self._change(directory, command, [name])
        self._expect(command, error, 0 if name in directory.names else errno.ENOENT)
        if error is None:
            directory.content.pop(directory.names.pop(name), None)

    def _rename(self, mount: Mount, directory: Directory) -> Program:
        old, new = b"%d" % mount.dice.randrange(12), b"%d" % mount.dice.randrange(12)
        command = c.Rename(self.host.volume, directory.ino, old, directory.ino, new)
        _, error = yield from self._change(directory, command, [old, new])
        self._expect(command, error, 0 if old in directory.names else errno.ENOENT)
        if error is None and old != new:
            directory.content.pop(directory.names.get(new, 0), None)
            directory.names[new] = directory.names.pop(old)

    def _write(self, mount: Mount, directory: Directory) -> Program:
        if not directory.names:
            return
        ino = directory.names[mount.dice.choice(sorted(directory.names))]
        data = b"%016x" % mount.dice.getrandbits(64)
        step = c.InodeCommit(ino, mount.number, mount.unique + 1, len(data), 0, [], [(0, data)])
        command = c.Commit(self.host.volume, [step], 0, [])
        reply, error = yield from self._change(directory, command, [], ino)
        self._expect(command, error, 0)
        if reply.errnos != [0]:
            self._wrong(f"{command}: {reply}")
        directory.content[ino] = data

    def _read(self, mount: Mount, directory: Directory) -> Program:
        name = b"%d" % mount.dice.randrange(12)
        reply, error = yield Query(m.Lookup(self.host.volume, directory.ino, name))
        found = 0 if error is not None else reply.attr.ino
        if found != directory.names.get(name, 0):
            self._wrong(f"stale lookup of {name!r} in {directory.name!r}: {found}, it is {directory.names.get(name, 0)}")
        if found:
            reply, error = yield Query(m.GetLayout(self.host.volume, found, 0, 4096))
            self._expect("GetLayout", error, 0)
            if (reply.inline or b"") != directory.content[found]:
                self._wrong(f"stale read of inode {found}: {reply.inline!r}, it is {directory.content[found]!r}")

    def _list(self, mount: Mount, directory: Directory) -> Program:
        reply, error = yield Query(m.ReadDir(self.host.volume, directory.ino, 0, 100, False))
        self._expect("ReadDir", error, 0)
        found = {entry.name: entry.ino for entry in reply.entries}
        if found != directory.names:
            self._wrong(f"listing of {directory.name!r}: {found}, it is {directory.names}")

    def _verify(self, directory: Directory) -> Program:
        """After the death of the machine: all that was acknowledged is there; what had no outcome is there or not."""
        reply, error = yield Query(m.ReadDir(self.host.volume, directory.ino, 0, 100, False))
        self._expect("ReadDir", error, 0)
        found = {entry.name: entry.ino for entry in reply.entries}
        for name in sorted((found.keys() | directory.names.keys()) - directory.doubtful):
            if found.get(name) != directory.names.get(name):
                self._wrong(f"after a reboot {name!r} of {directory.name!r} is {found.get(name)}, it was {directory.names.get(name)}")
        content = {}
        for name, ino in sorted(found.items()):
            reply, error = yield Query(m.GetLayout(self.host.volume, ino, 0, 4096))
            self._expect("GetLayout", error, 0)
            content[ino] = reply.inline or b""
            if name not in directory.doubtful and ino not in directory.doubtful_inos and content[ino] != directory.content[ino]:
                self._wrong(f"after a reboot inode {ino} holds {content[ino]!r}, it was {directory.content[ino]!r}")
        directory.names, directory.content = found, content
        directory.doubtful.clear()
        directory.doubtful_inos.clear()

    # --- what mounts share ------------------------------------------------------------------------------------------------------
    def _registers(self, mount: Mount) -> Program:
        while not self.host.stopping:
            yield self._pause(mount)
            number = mount.dice.choice(self.registers)
            if mount.dice.random() < 0.5:
                yield Propose(c.SetVolume(number, -1, self.checks.new_value()))
            else:
                before = self.checks.before_read()
                reply, error = yield Query(m.GetVolumes(f"register{number}"))
                self._expect("GetVolumes", error, 0)
                self.checks.after_read(mount, number, reply.volumes[0].quota_inodes, before)

    def _locks(self, mount: Mount) -> Program:
        self.lock_owner += 1
        owner = self.lock_owner
        while not self.lock_file:
            command = c.Create(self.host.volume, 1, LOCK_FILE, stat.S_IFREG | 0o644, 0, 0, open_existing=True)
            reply, error = yield Propose(command)
            self._expect(command, error, 0)
            self.lock_file = reply.attr.ino
        while not self.host.stopping:
            yield self._pause(mount)
            yield from self._lock_once(mount, owner)

    def _lock_once(self, mount: Mount, owner: int) -> Program:
        volume, ino = self.host.volume, self.lock_file
        session = mount.session  # which the handle is of
        _, error = yield Propose(c.SetLock(volume, ino, LOCK_POSIX, owner, 1, F_WRLCK, 0, 99), wait=mount.dice.random() < 0.7)
        if error is not None:
            self._expect("lock", error, errno.EAGAIN)
            return
        if self.checks.locked((volume, ino), mount, mount.last_answered, owner, session):
            yield Pause(int(mount.dice.expovariate(1) * SECOND))
            self.checks.unlocking((volume, ino), owner)
        # If the handle failed, vfs_locks takes the lock back: nobody else would.
        _, error = yield Propose(c.SetLock(volume, ino, LOCK_POSIX, owner, 1, F_UNLCK, 0, 99))
        self._expect("unlock", error, 0)
