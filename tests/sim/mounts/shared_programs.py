"""Programs on a volume that several mounts share: files whose newest value each must see, and one directory that all change and list."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Generator
from typing import Any

from awsomefsd.base.types import LEASE_READ, LEASE_WRITE
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.sim.mounts.mount import Host, Mount
from tests.sim.mounts.shared_mount import commit, on_device
from tests.sim.mounts.workload import Call, Pause, Program, Propose, Query, Runner, number_of
from tests.sim.world import MS

FILES = 3
MADE = 40  # names of files that are made with their lease
Look = Callable[[int], Generator[Any, tuple[Any, Any], Any]]
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
        name = self.host.name
        self.runners = [Runner(mount, self._program(mount, number == 0), f"{name} shared{number}") for number in range(self.count)]
        for runner in self.runners:
            runner.start()

    def _wrong(self, what: str) -> None:
        raise self.world.broken(f"{self.host.name}: {what}")

    def _program(self, mount: Mount, first: bool) -> Program:
        files = []
        for number in range(FILES):
            name = b"file%d" % number
            reply = yield from self._change(mount, c.Create(self.host.volume, ROOT, name, stat.S_IFREG | 0o644, 0, 0, open_existing=True))
            files.append(reply.attr.ino)
        if self.host.uncached:
            works = [self._read] * 6 + [self._list] * 2 + [self._write_through] * 3 + [self._name, self._make]
        else:
            works = [self._read] * 4 + [self._write_back] * 3 + [self._list] * 2
            works += [self._write_through, self._sync, self._release, self._name, self._make, self._all_at_once]
        if first and self.host.uncached:
            works += [self._orphan] * 2
        while not self.host.stopping:
            yield Pause(int(mount.dice.expovariate(1) * PAUSE_NS) + MS)
            yield from mount.dice.choice(works)(mount, mount.dice.choice(files))
        for ino in sorted(mount.sharing.dirty):
            yield Call(lambda resume, ino=ino: mount.sharing.flush(ino, resume))

    def _lease(self, mount: Mount, ino: int, mode: int) -> Generator[Any, tuple[Any, Any], bool]:
        """Until it is held: a grant may be recalled at once, or come while the session is fenced.  False: the inode is contested."""
        sharing = mount.sharing
        while sharing.holder.mode(ino) < mode:
            if sharing.contested(ino) and ino not in sharing.dirty:
                return False
            yield Call(lambda resume: sharing.want(ino, mode, resume))
            if sharing.holder.mode(ino) < mode:
                yield Pause(20 * MS)
        return True

    # --- reads ----------------------------------------------------------------------------------------------------------------------
    def _ask(self, mount: Mount, ino: int, look: Look) -> Program:
        """From the cache, or asked for under a lease and then cached; without a lease asked for each time."""
        sharing, now = mount.sharing, self.world.now_ns
        if self.host.uncached or not (yield from self._lease(mount, ino, LEASE_READ)):
            value = yield from look(ino)
            self.checks.leases.read(mount, ino, value, now, "uncached" if self.host.uncached else "contested")
            return
        held = sharing.dirty.get(ino)
        stamp, value = sharing.cache.get(ino, (0, None))
        if held is not None:
            self.checks.leases.read(mount, ino, held.value, self.world.now_ns, "held back")
        elif sharing.holder.valid(ino, stamp):
            self.checks.leases.read(mount, ino, value, self.world.now_ns, "cached")
        else:
            stamp, life = sharing.holder.stamp(ino), mount.life
            now = self.world.now_ns
            value = yield from look(ino)
            self.checks.leases.read(mount, ino, value, now, "asked")
            if mount.up and mount.life == life and sharing.holder.valid(ino, stamp):
                sharing.cache[ino] = (stamp, value)

    def _query(self, body: m.Body) -> Generator[Any, tuple[Any, Any], Any]:
        reply, error = yield Query(body)
        if error is not None:
            self._wrong(f"{body}: {error!r}")
        return reply

    def _data(self, ino: int) -> Generator[Any, tuple[Any, Any], bytes]:
        """As io/segment/reader.py: what is not at its place any more is asked for again."""
        while True:
            reply = yield from self._query(m.GetLayout(self.host.volume, ino, 0, 4096))
            if not reply.extents:
                return reply.inline or b""
            yield Pause(MS)
            value = self.checks.leases.device.read(reply.extents)
            if value is not None:
                return value
            self.world.count("places used again before they were read")

    def _names(self, ino: int) -> Generator[Any, tuple[Any, Any], Any]:
        reply = yield from self._query(m.ReadDir(self.host.volume, ino, 0, 1000, True))
        return frozenset((entry.name, entry.ino) for entry in reply.entries)

    def _read(self, mount: Mount, ino: int) -> Program:
        yield from self._ask(mount, ino, self._data)

    def _list(self, mount: Mount, _ino: int) -> Program:
        yield from self._ask(mount, ROOT, self._names)

    # --- writes ---------------------------------------------------------------------------------------------------------------------
    def _alone(self, mount: Mount, ino: int, program: Program) -> Program:
        """One writing program of a mount at a time."""
        while ino in mount.sharing.writing or ino in mount.sharing.aside:
            yield Pause(20 * MS)
        mount.sharing.writing.add(ino)
        yield from program
        mount.sharing.writing.remove(ino)

    def _write_back(self, mount: Mount, ino: int) -> Program:
        yield from self._alone(mount, ino, self._buffer(mount, ino))

    def _buffer(self, mount: Mount, ino: int) -> Program:
        sharing = mount.sharing
        while not (mount.up and ino not in sharing.aside and (epoch := sharing.holder.may_buffer(ino))):
            if not (yield from self._lease(mount, ino, LEASE_WRITE)):
                yield from self._commit(mount, ino)
                return
            if not (mount.up and ino not in sharing.aside and sharing.holder.may_buffer(ino)):
                yield Pause(20 * MS)  # it is being recalled, its older data goes on first, or the worker is dead
        sharing.buffer(ino, self._value(mount), epoch)

    def _all_at_once(self, mount: Mount, ino: int) -> Program:
        """Often in a short time: with another mount that does the same, it becomes contested."""
        for _ in range(mount.dice.randrange(8, 24)):
            yield from mount.dice.choice([self._write_back, self._read])(mount, ino)
            yield Pause(int(mount.dice.expovariate(1) * 15 * MS) + MS)

    def _value(self, mount: Mount) -> bytes:
        return b"%016x" % mount.dice.getrandbits(64)

    def _write_through(self, mount: Mount, ino: int) -> Program:
        yield from self._alone(mount, ino, self._commit(mount, ino))

    def _commit(self, mount: Mount, ino: int) -> Program:
        sharing = mount.sharing
        while True:
            yield Call(lambda resume: sharing.flush(ino, resume))
            if ino in sharing.aside:  # its session ended under the flush: the older data goes on first, or is a conflict
                yield Pause(20 * MS)
                continue
            value, sequence, places = self._value(mount), sharing.next_sequence(), []
            if on_device(ino):
                yield Call(lambda resume: sharing.place(value, sequence, lambda *place: (places.append(place), resume())))  # noqa: B023
                if places[0][0] is None:
                    continue
            extent, progress = places[0] if places else (None, None)
            command: Any = commit(self.host.volume, ino, mount.number, sequence, value, 0, extent, progress)
            if extent is not None and mount.dice.random() < 0.5:
                command = c.WriteData(self.host.volume, ino, 0, len(value), False, False, [extent], 0, [progress])
            sharing.change([ino])
            reply, error = yield Propose(command, final=extent is not None)
            sharing.changed([ino])
            if number_of(error) == errno.ESTALE and extent is not None:
                continue  # its segment was a dead worker's, or an ended session's
            if error is not None or not (isinstance(reply, m.Found) or reply.errnos == [0]):
                self._wrong(f"{command}: {reply} {error!r}")
            return

    def _sync(self, mount: Mount, ino: int) -> Program:
        yield Call(lambda resume: mount.sharing.flush(ino, resume))

    def _release(self, mount: Mount, ino: int) -> Program:
        chance = mount.dice.random()
        if chance < 0.3:
            mount.sharing.lower(ino)
        else:
            mount.sharing.release(ino if chance < 0.8 else ROOT)
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

    def _make(self, mount: Mount, _ino: int) -> Program:
        """A file that is made with its write lease is written at once; one that is there is read."""
        sharing, session, life = mount.sharing, mount.session, mount.life
        command = c.Create(
            self.host.volume, ROOT, b"made%d" % mount.dice.randrange(MADE), stat.S_IFREG | 0o644, 0, 0, open_existing=True, lease=True
        )
        found = yield from self._change(mount, command)
        ino = found.attr.ino
        if mount.up and mount.life == life and found.created and sharing.client.made(session, found) and ino not in sharing.writing:
            self.world.count("files made with their lease")
            epoch = sharing.holder.may_buffer(ino)
            if epoch:
                sharing.buffer(ino, self._value(mount), epoch)
        elif mount.dice.random() < 0.5:
            yield from self._ask(mount, ino, self._data)
        else:
            yield from self._write_through(mount, ino)

    def _orphan(self, mount: Mount, _ino: int) -> Program:
        """What a mount has open stays when another one takes its last name, until it is told that nobody has it open any more."""
        volume, session = self.host.volume, mount.session
        reply, error = yield Query(m.Lookup(volume, ROOT, b"%d" % mount.dice.randrange(6)))
        if error is None:
            yield Pause(int(mount.dice.expovariate(1) * 4_000 * MS))
            _, error = yield Query(m.GetAttr(volume, reply.attr.ino))
            if error is not None and session == mount.session and mount.lease.left_ns(self.host.clock.boot_ns()) > 0:
                self._wrong(f"inode {reply.attr.ino}, which is open, is gone: {error!r}")
        session = mount.session
        orphans = (yield from self._query(m.GetOrphans(session))).inos if session else []
        if orphans and session == mount.session:
            self.world.count("orphans released", len(orphans))
            _, error = yield Propose(c.ReleaseOrphan(volume, orphans))
            if error is not None:
                self._wrong(f"ReleaseOrphan: {error!r}")
