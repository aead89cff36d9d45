"""A load on one metadata service: connections of mounts, each with one request out at a time, from one process of its own.

Run as a program, so that the code of any checkout can be loaded: SOCKET KIND CLIENTS COUNT → one line of JSON.  Kinds:

    put      sets an extended attribute of 256 bytes under a name of 16 bytes on one of 1,000 files
    wide     the same on any inode of the volume, by chance
    fill     the same with 60,000 bytes under one of four names: makes a large state
    create   makes files in one directory
    query    asks for the attributes of one of the 1,000 files;   look: of any inode

Changes carry request ids and acknowledgements as a mount sends them.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import socket
import sys
import time
from typing import Any

import msgspec

from awsomefsd.base.codec import encode
from awsomefsd.base.frames import FrameReader, frame
from awsomefsd.base.types import NODE_MOUNT_BIT
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m

FILES = 1_000
KEY, VALUE_BYTES, FILL_BYTES = b"user.key-of-16-b", 256, 60_000
MOUNT_FIRST = NODE_MOUNT_BIT | 1_000  # as daemons have: results are kept for them although they have no session
_decode = msgspec.msgpack.Decoder(m.Answer).decode


class Client:
    def __init__(self, path: str, mount: int, number: int = 0, timeout_s: float | None = None) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout_s)
        self.reader = FrameReader()
        self.unique = time.time_ns()  # never one of an earlier run
        self.sent_ns = 0
        try:
            self.sock.connect(path)
            self.greeting = self.ask(m.Hello(m.PROTOCOL_VERSION, mount, *((0, number) if number else ())))
        except BaseException:
            self.sock.close()
            raise

    def send(self, body: Any) -> None:
        self.sent_ns = time.perf_counter_ns()
        self.sock.sendall(frame(encode(m.RequestEnvelope(1, body))))

    def propose(self, command: Any) -> m.Propose:
        acks, self.unique = [self.unique], self.unique + 1
        return m.Propose(self.unique, 0, 0, acks, command)

    def receive(self) -> m.Reply:
        while not (frames := self.reader.feed(self._some())):
            pass
        reply: m.Reply = _decode(frames[0]).reply
        return reply

    def _some(self) -> bytes:
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the service closed the connection")
        return data

    def ask(self, body: Any) -> m.Reply:
        self.send(body)
        return self.receive()


def prepare(client: Client) -> tuple[int, list[int], int]:
    """The volume, and its files, made if they are not there; how many inodes there are."""
    volumes = client.ask(m.GetVolumes("load"))
    if isinstance(volumes, m.Failed):
        assert not isinstance(client.ask(client.propose(c.CreateVolume("load", "00000000-0000-0000-0000-000000000001"))), m.Failed)
        volumes = client.ask(m.GetVolumes("load"))
    assert isinstance(volumes, m.Volumes)
    volume = volumes.volumes[0].volume
    inos = []
    for number in range(FILES):
        found = client.ask(client.propose(c.Create(volume, 1, b"f%d" % number, 0o100644, 0, 0, open_existing=True)))
        assert isinstance(found, m.Found), found
        inos.append(found.attr.ino)
    return volume, inos, max(volumes.volumes[0].used_inodes, FILES)


def load(path: str, kind: str, clients: list[Client], count: int) -> dict[str, float]:
    volume, inos, used = prepare(clients[0])
    dice = random.Random(1)
    random_bytes = os.urandom(1 << 20)
    numbers = itertools.count()
    prefix = b"%x-" % time.time_ns()

    def body(client: Client) -> Any:
        number = next(numbers)
        if kind in ("query", "look"):
            return m.GetAttr(volume, inos[number % FILES] if kind == "query" else dice.randrange(2, used))
        if kind == "create":
            return client.propose(c.Create(volume, 1, prefix + b"%d" % number, 0o100644, 0, 0))
        if kind == "fill":
            value = random_bytes[number % 1000 : number % 1000 + FILL_BYTES]
            return client.propose(c.SetXattr(volume, inos[number // 4 % FILES], b"user.%d" % (number % 4), value, 0))
        start = number * 257 % (len(random_bytes) - VALUE_BYTES)
        ino = dice.randrange(2, used) if kind == "wide" else inos[number % FILES]
        return client.propose(c.SetXattr(volume, ino, KEY, random_bytes[start : start + VALUE_BYTES], 0))

    epoll = select.epoll()
    by_fd = {client.sock.fileno(): client for client in clients}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)
    taken: list[int] = []
    began = time.perf_counter()
    for client in clients:
        client.send(body(client))
    while len(taken) < count:
        for fd, _ in epoll.poll():
            client = by_fd[fd]
            reply = client.receive()
            assert isinstance(reply, m.Found), reply
            taken.append(time.perf_counter_ns() - client.sent_ns)
            client.send(body(client))
    took = time.perf_counter() - began
    taken.sort()
    return {"rate": len(taken) / took, "p50_ms": taken[len(taken) // 2] / 1e6, "p99_ms": taken[len(taken) * 99 // 100] / 1e6}


def main() -> None:
    path, kind, clients, count = sys.argv[1:]
    made = [Client(path, MOUNT_FIRST + number) for number in range(int(clients))]
    print(json.dumps(load(path, kind, made, int(count))))


if __name__ == "__main__":
    main()
