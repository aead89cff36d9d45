"""A pool whose bays lie on real files behind real segment servers, and whose log is a real machine: no leader, no daemon, no mount."""

from __future__ import annotations

import threading
from pathlib import Path
from random import Random
from typing import Any

from awsomefsd.base.errors import Unavailable
from awsomefsd.base.types import Redundancy, SegmentInBays, SegmentProgress
from awsomefsd.io.pool.bay_leases import BayLeases
from awsomefsd.io.pool.fanout import Fanout
from awsomefsd.io.pool.remote_device import RemoteDevice
from awsomefsd.io.pool.remote_server import RemoteServer
from awsomefsd.io.segment.writer import SegmentWriter, Written
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import BaysLeased, GetSegments
from awsomefsd.meta.api.messages.devices import BayInfo, GetBays
from tests.rigs.machine_driver import SAFE, SEGMENT_BYTES
from tests.rigs.pool_driver import PoolDrive
from tests.rigs.segment_servers import BAY_BYTES, BAYS, ServedCluster, node_of

assert BAY_BYTES == SEGMENT_BYTES


class _Drive(PoolDrive):
    """The machine; device N is node N's.  Segment servers ask it from threads of their own, while a test changes it."""

    def __init__(self, *args: Any) -> None:
        self.lock = threading.RLock()
        super().__init__(*args)

    def apply(self, command: Any, **fields: Any) -> Any:
        with self.lock:
            return super().apply(command, **fields)

    def ask(self, body: Any) -> Any:
        with self.lock:
            return super().ask(body)

    def add(self, number: int, node: str, bays: int = BAYS, device_class: str = "ssd") -> None:
        super().add(number, node_of(number), bays, device_class)

    def attach(self, device: int, node: str = "", **fields: bool) -> None:
        super().attach(device, node or node_of(device), **fields)


class ServedPool:
    """`hosts` nodes with a device each; the writer is a mount on the client's node."""

    def __init__(self, folder: Path, hosts: int = 3, want: Redundancy | None = None) -> None:
        self.cluster = ServedCluster(folder, hosts)
        self.drive = _Drive(hosts, BAYS, want)
        self.cluster.leader.bay = self._bay  # type: ignore[method-assign]
        self.drive.open(node=ServedCluster.CLIENT)
        self._servers: dict[int, RemoteServer] = {}
        self.fanout = Fanout(self.device)
        self.leases = BayLeases(self.fanout, self._lease)
        self._dice = Random(self.drive.session)

    def _bay(self, device: int, index: int) -> BayInfo | None:
        if self.cluster.leader.away:
            raise Unavailable("no quorum")
        bays = self.drive.ask(GetBays(device, index, 1)).bays
        return bays[0] if bays else None

    def device(self, number: int) -> RemoteDevice:
        served = self.cluster.nodes[number - 1]
        if number not in self._servers:
            own = ServedCluster.CLIENT
            made = RemoteServer(served.endpoint, own, self.cluster.tls(own), lambda: (self.drive.session, self.drive.epoch))
            self._servers[number] = made
        return RemoteDevice(self._servers[number], number, BAY_BYTES)

    def _lease(self, count: int, avoid: list[int]) -> BaysLeased:
        with self.drive.lock:
            ensembles = self.drive.machine.choose_bays(self.drive.session, c.LeaseBays(count, SAFE, avoid), self._dice.randrange)
            leased: BaysLeased = self.drive.ok(c.LeaseBays(count, SAFE, avoid, ensembles))
        return leased

    def writer(self) -> SegmentWriter:
        return SegmentWriter({}, self.leases.lease, bays=self.leases)

    def report(self, progress: list[SegmentProgress]) -> None:
        """Commits what has become of segments."""
        self.drive.ok(c.Commit(self.drive.volume, [], 0, progress))

    def commit(self, written: Written, ino: int, length: int) -> Any:
        """What a flusher does with what was written of one file."""
        self.drive.sequence += 1
        steps = [c.InodeCommit(ino, 1, self.drive.sequence, length, self.drive.now, extents) for extents in written.extents]
        return self.drive.ok(c.Commit(self.drive.volume, steps, 0, written.progress))

    def info(self, segment: int) -> SegmentInBays:
        info = self.drive.ask(GetSegments([segment])).segments[0]
        assert isinstance(info, SegmentInBays)
        return info

    def end_session(self) -> None:
        """The session of the mount ends, and another one is opened."""
        self.drive.ok(c.EndSession(self.drive.session, self.drive.epoch, False), session=0, epoch=0, mount=0)
        self.drive.open(mount=self.drive.mount + 1, node=ServedCluster.CLIENT)

    def close(self) -> None:
        self.fanout.close()
        for server in self._servers.values():
            server.close()
        self.cluster.close()
