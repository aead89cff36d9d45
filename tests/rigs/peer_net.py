"""The connections of voters in one process, without the voters."""

from __future__ import annotations

import selectors
import socket
import time
import uuid
from collections.abc import Callable

from awsomefsd.base.tls import TlsNow
from awsomefsd.meta.net.listener import MetadataPort
from awsomefsd.meta.net.peers import Peers
from awsomefsd.meta.voter.peer_messages import Message
from tests.rigs.free_ports import free_ports

CLUSTER = "cccccccc-0000-0000-0000-000000000000"
A, B = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


class Net:
    """Nodes in one process, driven until something is so."""

    def __init__(self) -> None:
        self.addresses: dict[str, tuple[str, int]] = {}
        self.ports: dict[str, MetadataPort] = {}
        self.listeners: dict[str, socket.socket] = {}
        self.peers: dict[str, Peers] = {}
        self.got: dict[str, list[tuple[str, Message]]] = {}

    def listen(self, node: str) -> None:
        self.listeners[node] = listener = socket.create_server(self.addresses.get(node) or ("127.0.0.1", free_ports(1)[0]))
        self.addresses[node] = listener.getsockname()

    def start(self, node: str, tls: TlsNow | None = None, cluster: str = CLUSTER, addresses=None, refusal=None, address: str = "") -> Peers:
        made = Peers(
            tls, cluster=cluster, node=node, incarnation="i", addresses=lambda: addresses or self.addresses,
            refusal=refusal or (lambda identity: ""), address=address,
        )  # fmt: skip
        self.ports[node] = MetadataPort(self.listeners[node], tls)
        self.peers[node] = made
        self.got[node] = []
        return made

    def stop(self, node: str) -> None:
        self.peers.pop(node).close()
        self.ports.pop(node).close()

    def until(self, so: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        with selectors.DefaultSelector() as look:
            for one in (*self.peers.values(), *self.ports.values()):
                look.register(one.fd, selectors.EVENT_READ)
            while not so():
                assert time.monotonic() < end, "it never became so"
                look.select(0 if any(peers.waiting for peers in self.peers.values()) else 0.01)
                for node, peers in self.peers.items():
                    self.ports[node].tick()
                    for wire in self.ports[node].poll():
                        peers.adopt(wire)
                    peers.tick()
                    self.got[node] += peers.poll()

    def connected(self, node: str) -> bool:
        return self.peers[node].figures()["peers_connected"] > 0

    def close(self) -> None:
        for node in list(self.peers):
            self.stop(node)
        for listener in self.listeners.values():
            listener.close()
