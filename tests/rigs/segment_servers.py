"""Segment servers of a small cluster: real sockets and files, certificates of a cluster's own authority, and a leader made of a table."""

from __future__ import annotations

import errno
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from awsomefsd.base.errors import Unavailable
from awsomefsd.base.limits import MIB
from awsomefsd.base.sockets import listen_unix
from awsomefsd.base.tls import TlsFiles
from awsomefsd.base.types import BAY_MIRROR, SEGMENT_LEASED
from awsomefsd.cluster.pki import ca
from awsomefsd.io.device.device import Device
from awsomefsd.io.pool.device_bays import DeviceBays
from awsomefsd.io.pool.gate import Gate
from awsomefsd.io.pool.remote_device import RemoteDevice
from awsomefsd.io.pool.remote_server import RemoteServer
from awsomefsd.io.pool.server import KnownNode, SegmentServer
from awsomefsd.meta.api.messages.devices import BayInfo

BAY_BYTES, BAYS, FIRST = 4 * MIB, 8, MIB
SESSION = (7, 3)


def node_of(number: int) -> str:
    return str(uuid.UUID(int=number))


def until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not so():
        assert time.monotonic() < end, "it never became so"
        threading.Event().wait(0.005)


class Leader:
    """What the log says of bays: (device, index) → row."""

    def __init__(self) -> None:
        self.bays: dict[tuple[int, int], BayInfo] = {}
        self.away = False
        self.before: Callable[[], None] = lambda: None

    def bay(self, device: int, index: int) -> BayInfo | None:
        self.before()
        if self.away:
            raise Unavailable("no quorum")
        return self.bays.get((device, index))

    def put(self, device: int, index: int, role: int, segment: int, **fields: object) -> BayInfo:
        made = self.bays[device, index] = BayInfo(index, role, 100, segment, 1, **fields)  # type: ignore[arg-type]
        return made

    def lease(self, device: int, index: int, segment: int, node: str) -> None:
        self.put(device, index, BAY_MIRROR, segment, state=SEGMENT_LEASED, session=SESSION[0], epoch=SESSION[1], node=node)


class FailingFile(Device):
    """A file whose reads, writes and flushes fail, or wait, when they are told to."""

    fail_reads = fail_writes = fail_flushes = False
    bad_blocks: frozenset[int] | set[int] = frozenset()  # offsets on the device
    before_read: Callable[[], None] = staticmethod(lambda: None)
    before_flush: Callable[[], None] = staticmethod(lambda: None)

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        self.before_read()
        if self.fail_reads or any(offset <= block < offset + len(buffer) for block in self.bad_blocks):
            raise OSError(errno.EIO, "the disk says no")
        return super().pread_into(buffer, offset)

    def pwritev(self, buffers: object, offset: int) -> None:
        if self.fail_writes:
            raise OSError(errno.EIO, "the disk says no")
        super().pwritev(buffers, offset)  # type: ignore[arg-type]

    def flush(self) -> None:
        self.before_flush()
        if self.fail_flushes:
            raise OSError(errno.EIO, "the disk says no")
        super().flush()


class ServedNode:
    """A node with one device and a segment server, which can be ended and started again at the same address."""

    def __init__(self, cluster: ServedCluster, number: int) -> None:
        self.cluster, self.node, self.device = cluster, node_of(number), number
        folder = cluster.folder / str(number)
        folder.mkdir()
        self.path, self.unix = folder / "disk", folder / "segments.sock"
        with open(self.path, "wb") as file:
            file.truncate(FIRST + BAYS * BAY_BYTES)
        self.file = FailingFile.open(self.path)
        self._port = socket.socket()  # the server's, also while it is ended: nobody else gets it
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        self.address = self._port.getsockname()
        self.start()

    def start(self) -> None:
        listener = socket.create_server(self.address)
        self.gate, self.changed = Gate(), threading.Condition()
        self.bays = DeviceBays(self.device, self.file, FIRST, BAY_BYTES, BAYS, self.gate, self.changed)
        listeners = [listener, listen_unix(self.unix, 0o600)]
        self.server = SegmentServer(
            self.node, "node", [self.bays], self.gate, self.changed, self.cluster.leader, self.cluster.tls(self.node), listeners
        )  # fmt: skip
        self.server.members(self.cluster.everybody())
        self.server.start()

    def close(self) -> None:
        self.server.stop()
        self.file.close()
        self._port.close()

    @property
    def endpoint(self) -> str:
        return f"{self.node}@127.0.0.1:{self.address[1]}"

    def medium(self, index: int, length: int, offset: int = 0) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(FIRST + index * BAY_BYTES + offset)
            return file.read(length)

    def put(self, index: int, content: bytes, offset: int = 0) -> None:
        """Changes the medium behind the server's back."""
        with open(self.path, "r+b") as file:
            file.seek(FIRST + index * BAY_BYTES + offset)
            file.write(content)


class ServedCluster:
    """Some nodes with a server each (1, 2, …), and clients: node 100 of role client, every other one of role node."""

    CLIENT = node_of(100)

    def __init__(self, folder: Path, count: int = 1) -> None:
        self.folder, self.leader = folder, Leader()
        self._authority = ca.make_authority(node_of(999))
        self._tls: dict[str, TlsFiles] = {}
        self.members = {self.CLIENT: "client", **{node_of(number): "node" for number in (*range(1, count + 1), 50)}}
        self.nodes: list[ServedNode] = []
        for number in range(1, count + 1):
            self.nodes.append(ServedNode(self, number))
        for node in self.nodes:
            node.server.members(self.everybody())
        self._remote: list[RemoteServer] = []

    def everybody(self) -> dict[str, KnownNode]:
        """The nodes as the leader's rows say."""
        at = {node.node: f"127.0.0.1:{node.address[1]}" for node in self.nodes}
        return {node: KnownNode(role, at.get(node, "")) for node, role in self.members.items()}

    def tls(self, node: str) -> TlsFiles:
        """The identity of a node, as joining gives it: files with the authority, a certificate, and the key."""
        if node not in self._tls:
            folder, key = self.folder / f"pki-{node}", ca.make_key()
            folder.mkdir()
            files = [folder / name for name in ("ca.pem", "cert.pem", "key.pem")]
            certificate = ca.sign(self._authority, ca.make_request(key, node), node, self.members.get(node, "node"))
            for file, text in zip(files, (self._authority.certificate, certificate, key), strict=True):
                file.write_text(text)
            self._tls[node] = TlsFiles(*files)
        return self._tls[node]

    def server(self, served: ServedNode, own: str = CLIENT, endpoint: str = "") -> RemoteServer:
        """The server of a node, as node `own` knows it."""
        made = RemoteServer(endpoint or served.endpoint, own, self.tls(own), lambda: SESSION)
        self._remote.append(made)
        return made

    def remote(self, served: ServedNode, own: str = CLIENT) -> RemoteDevice:
        return RemoteDevice(self.server(served, own), served.device, BAY_BYTES)

    def close(self) -> None:
        for remote in self._remote:
            remote.close()
        for node in self.nodes:
            node.close()
