"""A metadata service with a metadata port, and clients of it that show whatever certificate a test wants."""

from __future__ import annotations

import socket
import ssl
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from awsomefsd.base.codec import encode
from awsomefsd.base.frames import FrameReader, frame
from awsomefsd.base.levels import LEVEL
from awsomefsd.base.tls import TlsNow
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.client import decode_answer
from awsomefsd.meta.client.endpoints import Endpoints
from awsomefsd.meta.net.peers import Voters
from tests.rigs.metadata_service import CLUSTER, DEVICE, MIB, NODE, Host
from tests.rigs.voter_certificates import Authority
from tests.rigs.voter_daemons import free_ports

WAIT_S = 60
MEMBER, READER, REMOVED, STRANGER = (str(uuid.UUID(int=number)) for number in (0x71, 0x72, 0x73, 0x74))


class TlsHost(Host):
    """One voter, NODE, of role node.  In the state: MEMBER (node), READER (client), REMOVED."""

    def __init__(self, directory: Path, authority: Authority, **options: Any) -> None:
        self.authority = authority
        self.address = ("127.0.0.1", free_ports(1)[0])
        voters = Voters(lambda: {NODE: self.address}, self.address, authority.tls(NODE), frozenset([NODE]))
        super().__init__(directory, voters=voters, **options)

    def start(self) -> Any:
        service = super().start()
        end = time.monotonic() + WAIT_S
        while isinstance(service.query(m.GetVolumes()), m.NotLeader):
            assert time.monotonic() < end, "it does not lead"
            time.sleep(0.01)
        return service

    def begin(self) -> Any:
        service = self.start()
        commands: list[c.AnyCommand] = [
            c.Init(CLUSTER, 7, LEVEL),
            c.AddDevice(DEVICE, 64 * MIB, MIB, 60, MIB),
            c.CreateVolume("vol", "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"),
            *(c.AddNode(node, node[-2:], role, bytes(31) + bytes([int(node[-2:], 16)]), level=LEVEL) for node, role in
              ((MEMBER, "node"), (READER, "client"), (REMOVED, "node"))),
            c.SetNodeState(REMOVED, "removed"),
        ]  # fmt: skip
        for command in commands:
            reply = service.propose(command, 60)
            assert not isinstance(reply, m.Failed), reply
        return service

    @property
    def endpoint(self) -> str:
        return f"{NODE}@{self.address[0]}:{self.address[1]}"

    def places(self, node: str, role: str = "node") -> Endpoints:
        """Of a client on that node, which has no service of its own."""
        tls = self.authority.tls(node, role)
        return Endpoints(self.directory / "none.sock", node=node, fixed={NODE: self.endpoint.partition("@")[2]}, tls=lambda: tls)

    def wire(self, tls: TlsNow | ssl.SSLContext) -> Wire:
        return Wire(self.address, tls if isinstance(tls, ssl.SSLContext) else tls().client)


class Wire:
    """A connection with a handshake and nothing else; blocking."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, node: str = NODE) -> None:
        raw = socket.create_connection(address, WAIT_S)
        try:
            self.sock = context.wrap_socket(raw, server_hostname=node)
        except BaseException:
            raw.close()
            raise
        self.reader = FrameReader()
        self.answers: list[m.Answer] = []
        self.calls = 0

    def send(self, body: m.Body) -> int:
        self.calls += 1
        self.sock.sendall(frame(encode(m.RequestEnvelope(self.calls, body))))
        return self.calls

    def ask(self, body: m.Body) -> m.Reply | None:
        """None if the connection ends without an answer."""
        try:
            call = self.send(body)
            while not self.answers:
                data = self.sock.recv(1 << 20)
                if not data:
                    return None
                self.answers += [decode_answer(raw) for raw in self.reader.feed(data)]
        except OSError:
            return None
        answer = self.answers.pop(0)
        assert answer.call == call
        return answer.reply

    def greet(self, mount: int = 0) -> m.Reply | None:
        return self.ask(m.Hello(m.PROTOCOL_VERSION, mount))

    def ended(self) -> bool:
        """Waits for its end."""
        try:
            return self.sock.recv(1) == b""
        except OSError:
            return True

    def close(self) -> None:
        self.sock.close()


@contextmanager
def tls_host(directory: Path, authority: Authority, **options: Any) -> Iterator[TlsHost]:
    made = TlsHost(directory, authority, **options)
    try:
        made.begin()
        yield made
    finally:
        if made.service is not None:
            made.service.stop()
