"""A small cluster at the level of pools: one node leads, others have a device each, and one is a client.

The leader is a real metadata service with a metadata port, all certificates are of the cluster's own authority, devices are files.  The
segment servers of the nodes are for the tests to start: in this process (`serve`), or as a process (`launch`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from awsomefsd.base import durable
from awsomefsd.base.identity import Node
from awsomefsd.base.limits import BLOCK_BYTES, MIB
from awsomefsd.base.rule_levels import POOLS
from awsomefsd.base.tls import TlsFiles
from awsomefsd.base.types import Redundancy, SegmentInBays
from awsomefsd.base.wait import block_on
from awsomefsd.cluster.pki import ca
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.superblock import Superblock, read_superblock, write_superblock
from awsomefsd.io.pool.remote_device import RemoteDevice
from awsomefsd.io.pool.remote_server import RemoteServer
from awsomefsd.io.pool.server_state import ServerState, ask_state
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.nodes import NodeInfo
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.meta.client.endpoints import Endpoints, endpoint_of
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.net.peers import Voters
from awsomefsd.meta.replica.replica import ReplicaOptions
from awsomefsd.meta.server.service import MetadataService, Rules
from awsomefsd.segments.config import SegmentsConfig, hand_over
from awsomefsd.segments.process import SegmentsProcess
from buildtools import nodes as programs
from tests.rigs.free_ports import free_ports
from tests.rigs.segment_servers import node_of, until

CLUSTER, LEADER, CLIENT = node_of(999), node_of(900), node_of(100)
SEGMENT_BYTES, BAYS = 4 * MIB, 8
DEVICE_BYTES = BAYS * SEGMENT_BYTES + 3 * MIB
WAIT_S = 60


def block(letter: str) -> list[memoryview]:
    """What is appended to a bay: a block of one letter."""
    return [memoryview(letter.encode() * BLOCK_BYTES)]


class PoolNode:
    """Node `number`, whose device has the same number."""

    def __init__(self, cluster: PoolCluster, number: int) -> None:
        self.cluster, self.number, self.node = cluster, number, node_of(number)
        folder = cluster.folder / f"n{number}"
        self.state_dir, self.run_dir = folder / "state", folder / "run"
        for path in (folder, self.state_dir, self.run_dir):
            path.mkdir()
        self.path, self.uuid = folder / "disk", node_of(500 + number)
        with open(self.path, "wb") as file:
            file.truncate(DEVICE_BYTES)
        with Device.open(self.path) as device:
            write_superblock(device, Superblock(CLUSTER, self.uuid, DEVICE_BYTES, SEGMENT_BYTES, BAYS, 5))
        self.port = free_ports(1)[0]
        self.place(self.path)

    def place(self, path: Path | None) -> None:
        """Has the node find its device there; None: nowhere."""
        durable.write_json(self.state_dir / "devices.json", {self.uuid: str(path)} if path is not None else {})

    def add_second(self) -> tuple[int, Path]:
        """A second device of this node; returns its number and its path."""
        path, uuid = self.path.with_name("disk2"), node_of(600 + self.number)
        shutil.copy(self.path, path)
        with Device.open(path) as device:
            write_superblock(device, replace(self.superblock(), device_uuid=uuid))
        added = self.cluster.propose(c.AddPoolDevice(uuid, DEVICE_BYTES, SEGMENT_BYTES, BAYS, MIB, self.node, 1, "ssd", 1))
        durable.write_json(self.state_dir / "devices.json", {self.uuid: str(self.path), uuid: str(path)})
        return added.number, path

    def config(self, **changes: Any) -> SegmentsConfig:
        fields = {
            "cluster": CLUSTER, "node": self.node, "role": "node", "state_dir": str(self.state_dir), "run_dir": str(self.run_dir),
            "meta_sock": str(self.run_dir / "meta.sock"), "endpoints": "", "places": {LEADER: self.cluster.address},
            "tls": self.cluster.tls(self.node).paths, "listen": ("127.0.0.1", self.port),
        }  # fmt: skip
        return SegmentsConfig(**fields | changes)

    def superblock(self) -> Superblock:
        with Device.open(self.path, read_only=True) as device:
            return read_superblock(device)

    def medium(self, index: int, length: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(MIB + index * SEGMENT_BYTES)
            return file.read(length)

    @contextmanager
    def serve(self, **changes: Any) -> Iterator[SegmentsProcess]:
        """Its segment server, in this process; it looks when the test says so."""
        process = SegmentsProcess(self.config(**changes))
        try:
            yield process
        finally:
            process.close()

    def launch(self, **environ: str) -> subprocess.Popen[bytes]:
        """Its segment server, as the process that the command executes."""
        fd = hand_over(self.config())
        env = {name: value for name, value in os.environ.items() if not name.startswith("AWSOMEFSD_")} | environ
        env["PYTHONPATH"] = str(Path(__file__).parents[2])
        with (self.run_dir.parent / "log").open("ab") as log:
            process = subprocess.Popen(
                [*programs.program(), "segments", "--config-fd", str(fd)], env=env, pass_fds=[fd], stdout=log, stderr=log
            )  # fmt: skip
        os.close(fd)
        self.cluster.processes.append(process)
        return process

    def state(self) -> ServerState | None:
        """What its server says; None if it does not answer."""
        try:
            return ask_state(self.run_dir)
        except Exception:
            return None

    def is_served(self) -> bool:
        state = self.state()
        return state is not None and [one.state for one in state.devices] == ["ok"]

    def row(self) -> NodeInfo:
        return next(one for one in self.cluster.ask(m.ListNodes()).nodes if one.node == self.node)

    def generation(self) -> int:
        """Of its device, as the log has it."""
        found: int = self.cluster.ask(m.GetBays(self.number, 0, 1)).generation
        return found


class PoolCluster:
    """`count` nodes with devices 1, 2, …, in a pool, and a volume whose segments have as many mirrors."""

    def __init__(self, folder: Path, count: int = 1) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self.address = f"127.0.0.1:{self.port}"
        self._authority = ca.make_authority(CLUSTER)
        self._tls: dict[str, TlsFiles] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._ends: list[Callable[[], None]] = []
        self.roles = {LEADER: "node", CLIENT: "client", **{node_of(number): "node" for number in range(1, count + 1)}}
        self.service: MetadataService | None = None
        self.lead()
        self.nodes = [PoolNode(self, number) for number in range(1, count + 1)]
        self._fill(count)

    def _fill(self, count: int) -> None:
        self.propose(c.Init(CLUSTER, 1, POOLS))
        for number, (node, role) in enumerate(self.roles.items()):
            self.propose(c.AddNode(node, f"m{number}", role, bytes([number]) * 32, level=POOLS))
        for one in self.nodes:
            added = self.propose(c.AddPoolDevice(one.uuid, DEVICE_BYTES, SEGMENT_BYTES, BAYS, MIB, one.node, 1, "ssd", 1))
            assert added.number == one.number
        self.volume = self.propose(c.CreateVolume("v", node_of(800))).number
        self.propose(c.SetRedundancy(self.volume, Redundancy(count, count)))

    # --- the leader -------------------------------------------------------------------------------------------------------
    def lead(self) -> None:
        at = ("127.0.0.1", self.port)
        folder = self.folder / "leader"
        folder.mkdir(exist_ok=True)
        self.service = MetadataService(
            Node(CLUSTER, LEADER, 1), folder / "meta", folder / "meta.sock",
            Rules(partial(Machine, level=POOLS), answer),  # type: ignore[arg-type]
            voters=Voters(lambda: {LEADER: at}, at, self.tls(LEADER), frozenset([LEADER])),
            options=ReplicaOptions(journal_file_bytes=512 << 10),
        )  # fmt: skip
        self.service.start()
        until(lambda: not isinstance(self._query(m.GetVolumes()), m.NotLeader))

    def abdicate(self) -> None:
        """Nobody leads from now on."""
        assert self.service is not None
        self.service.stop()
        self.service = None

    def copy_state(self) -> Path:
        """Keeps the metadata as it is now; returns where."""
        self.abdicate()
        kept = Path(shutil.copytree(self.folder / "leader" / "meta", self.folder / f"kept-{time.monotonic_ns()}"))
        self.lead()
        return kept

    def put_state_back(self, kept: Path) -> None:
        """The leader goes on from a state that was kept."""
        self.abdicate()
        shutil.rmtree(self.folder / "leader" / "meta")
        shutil.copytree(kept, self.folder / "leader" / "meta")
        self.lead()

    def _query(self, body: Any) -> Any:
        assert self.service is not None
        return self.service.query(body)

    def ask(self, body: Any) -> Any:
        reply = self._query(body)
        assert not isinstance(reply, m.Failed), reply
        return reply

    def propose(self, command: Any) -> Any:
        assert self.service is not None
        reply = self.service.propose(command, WAIT_S)
        assert not isinstance(reply, m.Failed), (command, reply)
        return reply

    def tls(self, node: str) -> TlsFiles:
        """The identity of a node, as joining gives it."""
        if node not in self._tls:
            folder, key = self.folder / f"pki-{node}", ca.make_key()
            folder.mkdir()
            files = [folder / name for name in ("ca.pem", "cert.pem", "key.pem")]
            certificate = ca.sign(self._authority, ca.make_request(key, node), node, self.roles.get(node, "node"))
            for file, text in zip(files, (self._authority.certificate, certificate, key), strict=True):
                file.write_text(text)
            self._tls[node] = TlsFiles(*files)
        return self._tls[node]

    # --- a client ---------------------------------------------------------------------------------------------------------
    def client(self) -> PoolClient:
        made = PoolClient(self)
        self._ends.append(made.close)
        return made

    def close(self) -> None:
        for end in self._ends:
            end()
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(WAIT_S)
        if self.service is not None:
            self.service.stop()


class PoolClient:
    """A worker on the client's node, with a session: it leases, opens, appends and commits as a mount would."""

    MOUNT = 77

    def __init__(self, cluster: PoolCluster) -> None:
        self._cluster = cluster
        tls = cluster.tls(CLIENT)
        places = Endpoints(cluster.folder / "none.sock", node=CLIENT, fixed={LEADER: cluster.address}, tls=lambda: tls)
        self.meta = MetaClient(places, self.MOUNT)
        self.meta.start()
        self.meta.start_session(c.OpenSession(self.MOUNT, cluster.volume, CLIENT, "boot", 1), WAIT_S)
        self._servers: list[RemoteServer] = []
        self._uniques = 0

    def propose(self, command: Any) -> Any:
        self._uniques += 1
        return block_on(self.meta.propose(command, self._uniques), WAIT_S)

    def lease(self, count: int = 1) -> list[SegmentInBays]:
        """Segments on devices of the leader's choice; they are leased when all devices are attached."""
        leased: list[SegmentInBays] = self.propose(c.LeaseBays(count, 0)).segments
        return leased

    def device(self, node: PoolNode, address: str = "") -> RemoteDevice:
        """A node's device, through its server, where the leader's rows say that it is."""
        server = RemoteServer(
            endpoint_of(node.node, address or node.row().segments), CLIENT, self._cluster.tls(CLIENT), self.meta.session_token
        )  # fmt: skip
        self._servers.append(server)
        return RemoteDevice(server, node.number, SEGMENT_BYTES)

    def close(self) -> None:
        for server in self._servers:
            server.close()
        self.meta.close()


@contextmanager
def pool_cluster(folder: Path, count: int = 1) -> Iterator[PoolCluster]:
    before = set(threading.enumerate())
    made = PoolCluster(folder, count)
    try:
        yield made
    finally:
        made.close()
    end = time.monotonic() + WAIT_S
    while left := {thread.name for thread in threading.enumerate() if thread not in before and thread.is_alive()}:
        assert time.monotonic() < end, f"threads that do not end: {left}"
        time.sleep(0.01)
