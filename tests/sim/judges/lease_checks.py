"""What must hold between mounts that share a volume, in true time; part of checks.py.

A file's value is what is held back by the one that holds its write lease, else what the log's newest commit says; a directory's is its
names.  Each moment has one value, so a read, cached or not, must return one that was current between its start and its end, and a cached
read, which takes no time, the current one.  Leases are judged by what the workers themselves believe, with their own clocks, now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from awsomefsd.base.types import LEASE_NONE, LEASE_READ, LEASE_WRITE
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.sim.mounts.device import Device
from tests.sim.world import World


@dataclass
class Watched:
    """A file (value: bytes) or a directory (value: frozenset of (name, inode))."""

    committed: Any
    events: list[tuple[int, Any]] = field(default_factory=list)  # when which value became current
    held: tuple[int, int, bytes] | None = None  # mount, sequence, value that is held back
    log: tuple[int, int] = (0, 0)  # of the newest commit
    changes: dict[int, int] = field(default_factory=dict)  # mount → how often it changed the data

    @property
    def current(self) -> Any:
        return self.committed if self.held is None else self.held[2]

    def foreign(self, mount: int) -> int:
        """How often others than that mount changed the data."""
        return sum(self.changes.values()) - self.changes.get(mount, 0)


class LeaseChecks:
    def __init__(self, world: World) -> None:
        self.world = world
        self.volume = -1
        self.mounts: dict[str, Any] = {}  # host → its present mount
        self._watched: dict[int, Watched] = {1: Watched(frozenset(), [(0, frozenset())])}
        self._writers: dict[int, tuple[int, int]] = {}  # inode → session, epoch, as the log says
        self._knew: dict[tuple[int, int, int], int] = {}  # mount, inode, what it was told → changes of others then
        self._based: dict[tuple[int, int, int], int] = {}  # mount, inode, sequence of what is held back → changes of others before
        self._ended: set[int] = set()
        self.device = Device(world)
        self.device.ended = self._ended

    def begin_again(self, volume: int) -> None:
        """With another volume, which is empty; the device and who has leased it stay."""
        self.volume = volume
        self.mounts.clear()
        self._watched = {1: Watched(frozenset(), [(0, frozenset())])}
        self._writers.clear()
        self._knew.clear()
        self._based.clear()

    # --- what the log says --------------------------------------------------------------------------------------------------------
    def applied(self, entry: c.Entry, reply: m.Reply) -> None:
        command = entry.command
        if isinstance(reply, m.SegmentsLeased):
            self.device.leased(entry.session, reply.segments)
        if getattr(command, "volume", -1) != self.volume or isinstance(reply, m.Failed):
            return
        if isinstance(command, c.AcquireLease) and isinstance(reply, m.Leased):
            self._writers[command.ino] = (entry.session, reply.epoch)
        elif isinstance(command, c.ReleaseLease):
            if self._writers.get(command.ino) == (entry.session, command.lease):
                self._lease_ended(command.ino)
        elif isinstance(command, c.Commit) and isinstance(reply, m.Committed):
            for step, number in zip(command.inodes, reply.errnos, strict=True):
                if not number:
                    self._committed(entry, step)
        elif isinstance(command, c.WriteData):
            self._written(entry, command.ino, self.device.value_of(command.extents))
        else:
            self._named(entry, command, reply)

    def _lease_ended(self, ino: int) -> None:
        session, _ = self._writers.pop(ino)
        held = self._watched[ino].held if ino in self._watched else None
        if held is not None:
            raise self.world.broken(f"the write lease of session {session} on inode {ino} ended while {held[2]!r} was held back under it")

    def sessions_ended(self, sessions: Iterable[int]) -> None:
        """With them their write leases, and what was held back under those."""
        ended = set(sessions)
        self._ended |= ended
        for ino in [ino for ino, (session, _) in self._writers.items() if session in ended]:
            del self._writers[ino]
            if ino in self._watched and self._watched[ino].held is not None:
                self._watched[ino].held = None
                self._event(ino)

    def _committed(self, entry: c.Entry, step: c.InodeCommit) -> None:
        watched = self._watched.setdefault(step.ino, Watched(b"", [(0, b"")]))
        if step.log == watched.log[0] and step.sequence <= watched.log[1]:
            if watched.held is not None and watched.held[:2] == (step.log, step.sequence):
                watched.held = None  # under an ended session, and again under the next one
            return  # committed before, also if the lease has ended since
        base = self._based.pop((step.log, step.ino, step.sequence), None)
        if base is not None and base != watched.foreign(step.log):
            raise self.world.broken(
                f"inode {step.ino}: session {entry.session} overwrites {watched.committed!r}, which is newer than its data"
            )
        writer = self._writers.get(step.ino, (0, 0))
        if writer != (entry.session, step.lease) if step.lease else writer[0] not in (0, entry.session):
            raise self.world.broken(
                f"inode {step.ino}: session {entry.session} committed under lease {step.lease}; session, epoch of the lease: {writer}"
            )
        watched.log = (step.log, step.sequence)
        if watched.held is not None and watched.held[:2] == (entry.mount, step.sequence):
            watched.held = None
        self._written(entry, step.ino, step.inline[0][1] if step.inline else self.device.value_of(step.extents))

    def _written(self, entry: c.Entry, ino: int, value: bytes) -> None:
        self._nobody_else(entry.session, ino)
        watched = self._watched.setdefault(ino, Watched(b"", [(0, b"")]))
        watched.committed = value
        watched.changes[entry.mount] = watched.changes.get(entry.mount, 0) + 1
        self._event(ino)

    def _named(self, entry: c.Entry, command: Any, reply: m.Reply) -> None:
        watched = self._watched[1]
        names = dict(watched.committed)
        if isinstance(command, c.Create) and isinstance(reply, m.Found):
            names[command.name] = reply.attr.ino
            if reply.leased is not None:
                self._writers[reply.attr.ino] = (entry.session, reply.leased.epoch)
        elif isinstance(command, c.Unlink):
            del names[command.name]
        elif isinstance(command, c.Rename) and command.name in names:
            names[command.new_name] = names.pop(command.name)
        if frozenset(names.items()) != watched.committed:
            self._nobody_else(entry.session, 1)
            watched.committed = frozenset(names.items())
            self._event(1)

    def _event(self, ino: int) -> None:
        watched = self._watched[ino]
        if not watched.events or watched.events[-1][1] != watched.current:
            watched.events.append((self.world.now_ns, watched.current))

    # --- what workers believe -----------------------------------------------------------------------------------------------------
    def _believers(self, ino: int) -> list[tuple[int, Any]]:
        """(mode, mount) of all that would serve something now."""
        found = []
        for mount in self.mounts.values():
            if mount.up and not mount.dead and mount.session:
                mode = mount.sharing.holder.mode(ino)
                if mode != LEASE_NONE:
                    found.append((mode, mount))
        return found

    def _nobody_else(self, session: int, ino: int) -> None:
        for mode, mount in self._believers(ino):
            if mount.session != session:
                held = "reads" if mode == LEASE_READ else "writes"
                raise self.world.broken(f"inode {ino} is changed by session {session} while {mount.host.name} {held} under a lease")

    def overlap(self, ino: int) -> None:
        believers = self._believers(ino)
        if len(believers) > 1 and any(mode == LEASE_WRITE for mode, _ in believers):
            raise self.world.broken(f"conflicting leases on inode {ino}: {[(mount.host.name, mode) for mode, mount in believers]}")

    def granted(self, mount: Any, ino: int, reply: m.Leased, known: int) -> None:
        self.overlap(ino)
        self.world.count("leases granted")
        watched = self._watched.get(ino)
        total = 0 if watched is None else watched.foreign(mount.number)
        before = self._knew.get((mount.number, ino, known))
        self.world.count("foreign changes told", int(reply.changed_by_others))
        if not mount.sharing.holder.mode(ino):
            return  # it came so late that it is worth nothing, and others may have changed the data since
        self._knew.setdefault((mount.number, ino, reply.changes), total)
        if known and before is None:
            return  # that was told too late
        if reply.changed_by_others != (bool(known) and before != total):
            raise self.world.broken(
                f"{mount.host.name}: lease on {ino} says {reply.changed_by_others}; changes of others {total}, {before} when it was told"
            )

    def buffered(self, mount: Any, ino: int, value: bytes, sequence: int, epoch: int) -> None:
        self.overlap(ino)
        if self._writers.get(ino) != (mount.session, epoch):
            raise self.world.broken(f"{mount.host.name} holds back data of inode {ino} under lease {epoch}, which has ended")
        watched = self._watched.setdefault(ino, Watched(b"", [(0, b"")]))
        watched.held = (mount.number, sequence, value)
        self._based.setdefault((mount.number, ino, sequence), watched.foreign(mount.number))
        self._event(ino)
        self.world.count("writes held back")

    def dropped(self, ino: int, mount: Any, sequence: int) -> None:
        """Its mount has given it up."""
        watched = self._watched[ino]
        if watched.held is not None and watched.held[:2] == (mount.number, sequence):
            watched.held = None
            self._event(ino)

    def may_refuse(self, mount: Any, session: int) -> None:
        """A commit of held back data was refused: the session it was written under must have ended."""
        if session not in self._ended:
            raise self.world.broken(f"{mount.host.name}: a commit under a lease of session {session}, which lives, was refused")

    def read(self, mount: Any, ino: int, value: Any, since_ns: int, how: str) -> None:
        watched = self._watched.get(ino)
        events = [(0, b"")] if watched is None or not watched.events else watched.events
        self.world.count(f"shared reads {how}")
        for place in range(len(events) - 1, -1, -1):
            if events[place][1] == value:
                return
            if events[place][0] < since_ns:
                break
        raise self.world.broken(
            f"{mount.host.name}: stale read ({how}) of inode {ino}: {value!r}, asked at {since_ns / 1e9:.6f} s; it is {events[-1]}"
        )
