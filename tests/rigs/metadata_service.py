"""A metadata service on a temporary directory, and a bare connection to it, for tests that break either."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from awsomefsd.base import clock
from awsomefsd.base.codec import encode
from awsomefsd.base.frames import FrameReader, frame
from awsomefsd.base.identity import Node
from awsomefsd.base.levels import LEVEL
from awsomefsd.base.sockets import connect_unix
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.client import decode_answer
from awsomefsd.meta.log.disk import OsDisk
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.net.peers import Voters
from awsomefsd.meta.replica.checkpoint_progress import CheckpointProgress
from awsomefsd.meta.replica.replica import Replica, ReplicaOptions
from awsomefsd.meta.server.service import MetadataService, NoHost, Rules
from awsomefsd.meta.server.turns import Turns

CLUSTER = "11111111-2222-3333-4444-555555555555"
NODE = "99999999-8888-7777-6666-555555555555"
DEVICE = "dddddddd-dddd-dddd-dddd-dddddddddddd"
MIB = 1 << 20


class CountingDisk(OsDisk):
    """Counts syncs; a failed one is what a dying disk does, and the way to crash a service without its consent."""

    def __init__(self) -> None:
        self.syncs = 0
        self.fail = False

    def fdatasync(self, fd: int) -> None:
        if self.fail:
            raise OSError(5, "the disk died")
        self.syncs += 1
        super().fdatasync(fd)


class Clock:
    """CLOCK_BOOTTIME that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


class Devices(NoHost):
    """The paths of the devices that this node sees."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths

    def device_paths(self) -> dict[str, str]:
        return self._paths


class Host:
    """`start` and `crash` as often as a test likes; one volume, number 1.  `replica_options`: those that differ from the rig's."""

    def __init__(
        self,
        directory: Path,
        *,
        boot_ns: Callable[[], int] = clock.boot_ns,
        device_paths: dict[str, str] | None = None,
        voters: Voters | None = None,
        checkpoint_progress: CheckpointProgress | None = None,
        replica_options: dict[str, Any] | None = None,
        level: int = LEVEL,
    ) -> None:
        self.directory = directory
        self.level = level  # at which the cluster acts
        self.socket_path = directory / "meta.sock"
        self.clocks = clock.Clocks(boot_ns)
        self.devices = Devices(device_paths or {})
        self.voters = voters
        self.checkpoint_progress = checkpoint_progress
        self.replica_options = replica_options or {}
        self.disk = CountingDisk()
        self.service: MetadataService | None = None
        self._turns: Turns

    def start(self) -> MetadataService:
        self.disk.fail = False
        usual = {"disk": self.disk, "journal_file_bytes": 512 << 10, "commit_ms": 60_000, "checkpoint_progress": self.checkpoint_progress}
        self.service = MetadataService(
            Node(CLUSTER, NODE, 7),
            self.directory / "meta",
            self.socket_path,
            Rules(Machine, answer),  # type: ignore[arg-type]
            host=self.devices,
            clocks=self.clocks,
            voters=self.voters,
            options=ReplicaOptions(**{**usual, **self.replica_options}),
        )
        begin = self.service._begin
        self.service._begin = lambda undo: self._note(begin(undo))  # type: ignore[method-assign]
        self.service.start()
        return self.service

    def _note(self, turns: Turns) -> Turns:
        self._turns = turns
        return turns

    def end_session(self, session: int, epoch: int) -> m.Reply:
        """Ends a session as if its lease had run out: the leader would refuse that before."""
        assert self.service is not None
        self._turns.leader._renewals._live.pop(session, None)
        return self.service.propose(c.EndSession(session, epoch, False), 60)

    def begin(self) -> MetadataService:
        """The first start: a cluster with a device and a volume."""
        service = self.start()
        for command in (
            c.Init(CLUSTER, 7, self.level),
            c.AddDevice(DEVICE, 64 * MIB, MIB, 60, MIB),
            c.CreateVolume("vol", "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"),
        ):
            assert not isinstance(service.propose(command, 60), m.Failed)
        return service

    def crash(self) -> None:
        """Nothing is written any more, from the middle of a batch on."""
        assert self.service is not None
        self.disk.fail = True
        try:
            self.service.propose(c.AdvanceReader("nobody", 0), 60)
        except Exception:
            pass
        block_on(self.service.failed, 60)
        self.service.stop()
        self.service = None

    @property
    def replica(self) -> Replica:
        """The one in use; only for what a test cannot see otherwise."""
        assert self.service is not None and self.service._current.replica is not None
        return self.service._current.replica

    def figures(self) -> dict[str, Any]:
        assert self.service is not None
        reply = self.service.query(m.GetStatus())
        assert isinstance(reply, m.Status)
        return reply.figures

    def log(self, after: int = 0) -> list[c.Entry]:
        """All entries of the log behind a cursor."""
        assert self.service is not None
        found: list[c.Entry] = []
        while True:
            reply = self.service.query(m.Follow(after + len(found), 500, 0))
            assert isinstance(reply, m.Changes)
            if not reply.entries:
                return found
            found += [c.entry_decode(raw) for raw in reply.entries]


@contextmanager
def host(directory: Path, **options: Any) -> Iterator[Host]:
    made = Host(directory, **options)
    try:
        made.begin()
        yield made
    finally:
        if made.service is not None:
            made.service.stop()


class Wire:
    """A client made of a socket and nothing else."""

    def __init__(self, path: Path, mount: int = 5, greet: bool = True) -> None:
        self.sock: socket.socket = connect_unix(path)
        self.sock.settimeout(60)
        self.reader = FrameReader()
        self.answers: list[m.Answer] = []
        self.calls = 0
        if greet:
            assert isinstance(self.ask(m.Hello(m.PROTOCOL_VERSION, mount)), m.Welcome)

    def send(self, *bodies: m.Body) -> list[int]:
        calls = []
        out = []
        for body in bodies:
            self.calls += 1
            calls.append(self.calls)
            out.append(frame(encode(m.RequestEnvelope(self.calls, body))))
        self.sock.sendall(b"".join(out))
        return calls

    def receive(self, count: int = 1) -> list[m.Answer]:
        """The next answers; fewer if the service closes the connection."""
        while len(self.answers) < count:
            data = self.sock.recv(1 << 20)
            if not data:
                break
            self.answers += [decode_answer(raw) for raw in self.reader.feed(data)]
        taken, self.answers = self.answers[:count], self.answers[count:]
        return taken

    def ask(self, body: m.Body) -> m.Reply:
        (call,) = self.send(body)
        (answer_,) = self.receive()
        assert answer_.call == call
        return answer_.reply

    def open_session(self, mount: int = 5, unique: int = 1) -> m.SessionOpened:
        reply = self.ask(m.Propose(unique, 0, 0, [], c.OpenSession(mount, 1, "node", "boot", 1)))
        assert isinstance(reply, m.SessionOpened), reply
        return reply

    def closed(self) -> bool:
        """Whether the service has closed the connection (waits for it)."""
        try:
            return not self.receive()
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()


def create(opened: m.SessionOpened, unique: int, name: bytes, acks: list[int] | None = None) -> m.Propose:
    return m.Propose(unique, opened.session, opened.epoch, acks or [], c.Create(1, 1, name, 0o100644, 0, 0))
