"""A pool on real segment servers and a real machine (served_pool.py), as the daemon of the leader looks after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.base.types import Redundancy
from awsomefsd.io.pool.bay_leases import BayLeases
from awsomefsd.io.pool.fanout import Fanout
from awsomefsd.io.pool.remote_server import RemoteServer
from awsomefsd.io.segment.writer import Piece
from awsomefsd.meta.api.commands import PlanMirror
from awsomefsd.meta.api.messages import Failed
from awsomefsd.meta.api.messages.pools import GetPool, Pool, PoolDeviceInfo
from awsomefsd.meta.machine.queries import answer
from tests.rigs.pool_driver import HOST
from tests.rigs.segment_servers import BAY_BYTES, node_of
from tests.rigs.served_pool import ServedPool

LEADER = node_of(50)


class UpkeptPool(ServedPool):
    """`safe`: what the leader says of it; None: every entry is."""

    def __init__(self, folder: Path, hosts: int = 3, want: Redundancy | None = None) -> None:
        self.safe: int | None = None
        self.asked: list[Any] = []
        self.proposed: list[Any] = []
        super().__init__(folder, hosts, want)
        self._orders: dict[str, RemoteServer] = {}

    def ask(self, body: Any) -> Any:
        """As MetadataAccess.ask."""
        with self.drive.lock:
            self.asked.append(body)
            reply = answer(self.drive.machine, body)
            _check(reply)
            if isinstance(reply, Pool):
                devices = [replace(device, address=self._address(device)) for device in reply.devices]
                return replace(reply, devices=devices, safe_index=self.safe_index())
            return reply

    def _address(self, device: PoolDeviceInfo) -> str:
        return f"127.0.0.1:{self.cluster.nodes[device.device - 1].address[1]}"

    def safe_index(self) -> int:
        return self.drive.index if self.safe is None else self.safe

    def propose(self, command: Any) -> Any:
        """As MetadataAccess.propose, by the daemon of the leader."""
        with self.drive.lock:
            self.proposed.append(command)
            if isinstance(command, PlanMirror):
                command = replace(command, safe_index=self.safe_index())
            reply = self.drive.apply(command, **HOST)
            _check(reply)
            return reply

    def server_of(self, device: PoolDeviceInfo) -> RemoteServer | None:
        node = self.cluster.nodes[device.device - 1]
        if node.endpoint not in self._orders:
            self._orders[node.endpoint] = RemoteServer(node.endpoint, LEADER, self.cluster.tls(LEADER))
        return self._orders[node.endpoint]

    def pool(self) -> Pool:
        found: Pool = self.ask(GetPool(1))
        return found

    def written(self, *lengths: int) -> dict[bytes, bytes]:
        """Writes files, each to segments of its own, and ends the session, which seals them; returns name → bytes."""
        found: dict[bytes, bytes] = {}
        for length in lengths:
            writer = self.writer()
            name, data = b"f%d" % self.drive.index, _bytes(self.drive.index, length)
            ino = self.drive.create(name)
            self.commit(writer.write([Piece(self.drive.volume, ino, 0, [memoryview(data)])]), ino, length)
            found[name] = data
        self.fanout.close()
        self.end_session()
        self.fanout = Fanout(self.device)
        self.leases = BayLeases(self.fanout, self._lease)
        return found

    def mirrors_of(self, segment: int) -> dict[int, bytes]:
        """Device → what is on its medium of a segment, up to its end; of the mirrors that count."""
        row = self.drive.row(segment)
        whole = [bay for bay in row.bays if bay.durable >= row.end]
        return {bay.device: self.cluster.nodes[bay.device - 1].medium(bay.index, row.end) for bay in whole}

    def close(self) -> None:
        for server in self._orders.values():
            server.close()
        super().close()


def _check(reply: Any) -> None:
    """Raises what a client of the metadata raises."""
    if isinstance(reply, Failed):
        raise Unavailable(reply.detail) if reply.retry else FsError(reply.errno, reply.detail)


def _bytes(seed: int, length: int) -> bytes:
    assert length <= BAY_BYTES
    return (seed.to_bytes(8, "little") * (length // 8 + 1))[:length]
