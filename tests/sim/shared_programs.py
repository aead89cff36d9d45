"""Programs on a volume that several mounts share: files whose newest value each must see, and one directory that all change and list."""

from __future__ import annotations

import errno
import stat
from collections.abc import Generator
from typing import Any

from awsomefsd.meta import commands as c
from awsomefsd.meta import messages as m
from awsomefsd.types import LEASE_READ, LEASE_WRITE
from tests.sim.mount import Host, Mount
from tests.sim.sharing import commit
from tests.sim.workload import Call, Pause, Program, Propose, Query, Runner, number_of
from tests.sim.world import MS

FILES = 3
PAUSE_NS = 900 * MS
ROOT = 1


class SharedPrograms:
    """As workload.Programs, for a host that shares its volume."""

    def __init__(self, host: Host, count: int) -> None:
        self.host, self.world, self.checks = host, host.world, host.checks
        self.count = count
        self.runners: list[Runner] = []

    def start(self) -> None:
        mount = self.host.mount
        assert mount is not None
        self.checks.leases.mounts[self.host.name] = mount
        self.runners = [Runner(mount, self._program(mount), f"{self.host.name} shared{number}") for number in range(self.count)]
        for runner in self.runners:
            runner.start()

    def _wrong(self, what: str) -> None:
        raise self.world.broken(f"{self.host.name}: {what}")

    def _program(self, mount: Mount) -> Program:
        files = []
        for number in range(FILES):
            name = b"file%d" % number
            reply = yield from self._change(mount, c.Create(self.host.volume, ROOT, name, stat.S_IFREG | 0o644, 0, 0, open_existing=True))
            files.append(reply.attr.ino)
        works = [self._read] * 4 + [self._write_back] * 3 + [self._list] * 2
        works += [self._write_through, self._sync, self._release, self._name]
        while not self.host.stopping:
            yield Pause(int(mount.dice.expovariate(1) * PAUSE_NS) + MS)
            yield from mount.dice.choice(works)(mount, mount.dice.choice(files))
        for ino in files:
            yield Call(lambda resume, ino=ino: mount.sharing.flush(ino, resume))

    def _lease(self, mount: Mount, ino: int, mode: int) -> Program:
        """Until it is held: a grant may be recalled at once, or come while the session is fenced."""
        while mount.sharing.holder.mode(ino) < mode:
            yield Call(lambda resume: mount.sharing.want(ino, mode, resume))
            if mount.sharing.holder.mode(ino) < mode:
                yield Pause(20 * MS)

    # --- reads ----------------------------------------------------------------------------------------------------------------------
    def _ask(self, mount: Mount, ino: int, body: m.Body, value_of: Any) -> Program:
        """From the cache, or asked for under a lease and then cached."""
        sharing, now = mount.sharing, self.world.now_ns
        yield from self._lease(mount, ino, LEASE_READ)
        held = sharing.dirty.get(ino)
        stamp, value = sharing.cache.get(ino, (0, None))
        if held is not None:
            self.checks.leases.read(mount, ino, held.value, self.world.now_ns, "held back")
        elif sharing.holder.valid(ino, stamp):
            self.checks.leases.read(mount, ino, value, self.world.now_ns, "cached")
        else:
            stamp, life = sharing.holder.stamp(ino), mount.life
            now = self.world.now_ns
            reply, error = yield Query(body)
            if error is not None:
                self._wrong(f"{body}: {error!r}")
            value = value_of(reply)
            self.checks.leases.read(mount, ino, value, now, "asked")
            if mount.up and mount.life == life and sharing.holder.valid(ino, stamp):
                sharing.cache[ino] = (stamp, value)

    def _read(self, mount: Mount, ino: int) -> Program:
        yield from self._ask(mount, ino, m.GetLayout(self.host.volume, ino, 0, 4096), lambda reply: reply.inline or b"")

    def _list(self, mount: Mount, _ino: int) -> Program:
        body = m.ReadDir(self.host.volume, ROOT, 0, 100, False)
        yield from self._ask(mount, ROOT, body, lambda reply: frozenset((entry.name, entry.ino) for entry in reply.entries))

    # --- writes ---------------------------------------------------------------------------------------------------------------------
    def _alone(self, mount: Mount, ino: int, program: Program) -> Program:
        """One writing program of a mount at a time."""
        while ino in mount.sharing.writing:
            yield Pause(20 * MS)
        mount.sharing.writing.add(ino)
        yield from program
        mount.sharing.writing.remove(ino)

    def _write_back(self, mount: Mount, ino: int) -> Program:
        yield from self._alone(mount, ino, self._hold_back(mount, ino))

    def _hold_back(self, mount: Mount, ino: int) -> Program:
        sharing = mount.sharing
        while not (mount.up and (epoch := sharing.holder.may_hold_back(ino))):
            yield from self._lease(mount, ino, LEASE_WRITE)
            if not (mount.up and sharing.holder.may_hold_back(ino)):
                yield Pause(20 * MS)  # it is being recalled, or the worker is dead
        sharing.hold_back(ino, self._value(mount), epoch)

    def _value(self, mount: Mount) -> bytes:
        return b"%016x" % mount.dice.getrandbits(64)

    def _write_through(self, mount: Mount, ino: int) -> Program:
        yield from self._alone(mount, ino, self._commit(mount, ino))

    def _commit(self, mount: Mount, ino: int) -> Program:
        sharing = mount.sharing
        yield Call(lambda resume: sharing.flush(ino, resume))
        sharing.change([ino])
        command = commit(self.host.volume, ino, mount.number, sharing.next_sequence(), self._value(mount), 0)
        reply, error = yield Propose(command)
        sharing.changed([ino])
        if error is not None or reply.errnos != [0]:
            self._wrong(f"{command}: {reply} {error!r}")

    def _sync(self, mount: Mount, ino: int) -> Program:
        yield Call(lambda resume: mount.sharing.flush(ino, resume))

    def _release(self, mount: Mount, ino: int) -> Program:
        mount.sharing.release(ino if mount.dice.random() < 0.7 else ROOT)
        yield Pause(MS)

    def _name(self, mount: Mount, _ino: int) -> Program:
        dice, volume = mount.dice, self.host.volume
        one, other = b"%d" % dice.randrange(6), b"%d" % dice.randrange(6)
        command: Any = c.Create(volume, ROOT, one, stat.S_IFREG | 0o644, 0, 0)
        if (roll := dice.random()) < 0.3:
            command = c.Unlink(volume, ROOT, one)
        elif roll < 0.5:
            command = c.Rename(volume, ROOT, one, ROOT, other)
        yield from self._change(mount, command)

    def _change(self, mount: Mount, command: Any) -> Generator[Any, tuple[Any, Any], Any]:
        mount.sharing.change([ROOT])
        reply, error = yield Propose(command)
        mount.sharing.changed([ROOT])
        if number_of(error) not in (0, errno.EEXIST, errno.ENOENT):
            self._wrong(f"{command}: {error!r}")
        return reply
