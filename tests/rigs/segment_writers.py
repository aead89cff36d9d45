"""Mounts that write to volumes of their own, over the real machine and devices in memory; no block of these is written twice, also where
a cut took what was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awsomefsd.base.limits import BLOCK_BYTES, KIB, MIB
from awsomefsd.base.types import Extent, SegmentProgress
from awsomefsd.io.collect.collector import Collector
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.file.draining import REST_S, Draining
from awsomefsd.io.segment.checksum_cache import ChecksumCache
from awsomefsd.io.segment.locations import Locations
from awsomefsd.io.segment.reader import SegmentReader
from awsomefsd.io.segment.seen_leases import SeenLeases
from awsomefsd.io.segment.writer import Piece, SegmentWriter
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.rigs.machine_driver import SEGMENT_BYTES, Drive


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


class Cluster:
    """A machine, and devices that all writers see; at first it is one."""

    def __init__(self, segments: int, *, physical_block_bytes: int = 4 * KIB, **fields: Any) -> None:
        self.drive = Drive(segments, **fields)
        self.device = MemoryDevice(segments * SEGMENT_BYTES + MIB, physical_block_bytes=physical_block_bytes)
        self.devices = {1: self.device}
        self.clock = Clock()
        self.workers = 0
        self.mounts: list[Mount] = []

    def mount(self, name: str, node: str = "n1", devices: dict[int, MemoryDevice] | None = None) -> Mount:
        """`devices`: those that the node sees, all without it."""
        self.mounts.append(Mount(self, name, node, self.devices if devices is None else devices))
        return self.mounts[-1]

    def used(self) -> int:
        """Segments that are not free."""
        device = self.drive.ask(m.GetDevices()).devices[0]
        return int(device.segments - device.segments_free)

    def pause(self) -> None:
        """Nobody writes for a while."""
        for _ in range(3):
            self.clock.s += REST_S
            for mount in self.mounts:
                mount.draining.poll()

    def cut(self, survives: Callable[[int], bool]) -> None:
        """The power of everything is cut; what was written may not be written again, also where a cut took it."""
        for block, old in self.device.durable.items():
            if not survives(block):
                self.device.content[block * BLOCK_BYTES : block * BLOCK_BYTES + len(old)] = old
        self.device.durable.clear()
        for mount in self.mounts:
            mount.begin()

    def ask(self, body: Any) -> Any:
        if isinstance(body, m.Propose):
            return self.drive.ok(body.command, session=body.session, epoch=body.epoch, mount=0)
        return None if isinstance(body, m.Renew) else self.drive.ask(body)

    def collect(self) -> None:
        made = Collector(self.ask, self.devices, "node", "boot", lambda: 0)
        while chosen := made.candidates.choose(made.candidates.refresh(), 12):
            made.round(chosen, merge=False)
        made.rest()

    def read(self, piece: Any, reader: SegmentReader) -> bytes:
        into = aligned_buffer(piece.extent.length)
        reader.read(piece.extent, piece.volume, piece.ino, 0, piece.extent.length, into)
        return bytes(into)


class Mount:
    """A mounted volume with one file."""

    def __init__(self, cluster: Cluster, name: str, node: str, devices: dict[int, MemoryDevice]) -> None:
        self.cluster, self.node, self.devices = cluster, node, devices
        self.drive = cluster.drive
        self.number = cluster.workers + 10
        self.volume: int = self.drive.ok(c.CreateVolume(name, f"uuid-{name}"), session=0, epoch=0, mount=0).number
        self.size = self.sequence = self.ino = 0
        self.content = bytearray()
        self.begin()
        self.ino = self.propose(c.Create(self.volume, 1, b"f", 0o100644, 0, 0)).attr.ino

    def begin(self) -> None:
        """A new session, of a new worker."""
        self.cluster.workers += 1
        command = c.OpenSession(self.number, self.volume, self.node, "b1", self.cluster.workers)
        opened = self.drive.ok(command, session=0, epoch=0, mount=self.number)
        self.who = {"session": opened.session, "epoch": opened.epoch, "mount": self.number}
        self.locations = Locations(self.drive.ask, self.propose)
        self.writer = SegmentWriter(self.devices, SeenLeases(self.devices, self.locations.lease).lease, None, lambda: 42)
        self.draining = Draining(self.writer, lambda: (set(), set()), self.report, self.cluster.clock)

    def propose(self, command: Any) -> Any:
        return self.drive.ok(command, **self.who)

    def report(self, progress: list[SegmentProgress]) -> None:
        self.propose(c.Commit(self.volume, [], 0, progress))

    def write(self, data: bytes) -> list[Extent]:
        """Appends to the file; committed."""
        written = self.writer.write([Piece(self.volume, self.ino, self.size, [memoryview(data)])])
        self.size += len(data)
        self.sequence += 1
        step = c.InodeCommit(self.ino, self.number, self.sequence, self.size, self.sequence, written.extents[0])
        reply = self.propose(c.Commit(self.volume, [step], 0, written.progress))
        assert reply.errnos == [0]
        self.content += data
        return written.extents[0]

    def unmount(self) -> None:
        if progress := self.writer.seal_all():
            self.report(progress)
        self.propose(c.EndSession(self.who["session"], self.who["epoch"], True))
        self.cluster.mounts.remove(self)

    def read(self) -> bytes:
        found = bytearray(self.size)
        reader = SegmentReader(self.cluster.devices, Locations(self.drive.ask, self.propose).locate, ChecksumCache())
        layout = self.drive.ask(m.GetLayout(self.volume, self.ino, 0, 1 << 40))
        for extent in layout.extents:
            into = aligned_buffer(extent.length)
            reader.read(extent, self.volume, self.ino, 0, extent.length, into)
            found[extent.file_offset : extent.file_offset + extent.length] = into
        return bytes(found)
