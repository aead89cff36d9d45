"""Clients of the metadata that write down what they saw: the same MetaClient as a worker's, many of them, on few objects.

Each operation's call, result and moments go into one history, for tests/rigs/linearizability.py to judge.  A request is repeated under its
id by the client itself, over any number of leaders, so every operation ends with a result; what is still open when a run ends is open for
ever.
Inodes are named by the uid they are made with (whoever makes one chooses a new one), because numbers given by the server would be unknown
where the answer is.  Clients speak to the sockets of all nodes, also of those that are cut off: a leader that nobody follows any more is
asked too, and must not answer from what it knows.
"""

from __future__ import annotations

import errno
import itertools
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.base.identity import boot_id
from awsomefsd.base.types import NODE_MOUNT_BIT
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.meta.client.endpoints import OnThisHost, split
from buildtools.cluster import Cluster
from tests.rigs.linearizability import DIRECTORY, LOCK, OPEN, REGISTER, Model, Operation

REGISTERS, DIRECTORIES, LOCKS = 6, 8, 3
NAMES = [b"a", b"b", b"c"]
FILE, FOLDER = 0o100644, 0o040755
KEY = b"user.register"
THINK_S = 0.04  # at most, between two operations of a client
MOUNT_FIRST = NODE_MOUNT_BIT | 1 << 40  # as daemons have: they change names without a session, and results are kept for them
NOT_WRITTEN_DOWN = {("lock", "ESTALE"), ("register", "ENODATA")}  # their callers do
HOW = {"": 0, "noreplace": c.RENAME_NOREPLACE, "exchange": c.RENAME_EXCHANGE}
_mounts = itertools.count(MOUNT_FIRST)
_uids = itertools.count(1_000)


class Sockets(OnThisHost):
    """The sockets of all nodes, also for the addresses that they name."""

    def __init__(self, cluster: Cluster) -> None:
        self._by_address = {cluster.address(node): str(node.run / "meta.sock") for node in cluster.nodes}
        super().__init__(list(self._by_address.values()))

    def resolve(self, endpoint: str) -> str:
        return endpoint if endpoint.startswith("/") else self._by_address[split(endpoint)[1]]


def new_client(cluster: Cluster) -> MetaClient:
    client = MetaClient(Sockets(cluster), next(_mounts))
    client.start()
    return client


class Objects:
    """What the clients of one run work on: registers and directories in one volume, locks in another, which sessions share; all new."""

    def __init__(self, cluster: Cluster) -> None:
        leader = cluster.await_leader()
        self.home: str = json.loads((cluster.nodes[0].state / "node.json").read_text())["node"]  # a node with a device, if any has one
        number = next(_uids)
        names = f"chaos-{number}", f"locks-{number}"
        for name in names:
            leader.cli("volume", "create", name)
        client = new_client(cluster)
        try:
            self.volume, self.lock_volume = (self._volume(client, name) for name in names)
            self.registers = [self._make(client, self.volume, b"r%d" % number, FILE) for number in range(REGISTERS)]
            self.directories = [self._make(client, self.volume, b"d%d" % number, FOLDER) for number in range(DIRECTORIES)]
            self.locks = [self._make(client, self.lock_volume, b"l%d" % number, FILE) for number in range(LOCKS)]
        finally:
            client.close()

    @staticmethod
    def _volume(client: MetaClient, name: str) -> int:
        reply = client.call(m.GetVolumes(name), 60)
        assert isinstance(reply, m.Volumes)
        return reply.volumes[0].volume

    @staticmethod
    def _make(client: MetaClient, volume: int, name: bytes, mode: int) -> int:
        reply = client.call(m.Propose(next(_uids), 0, 0, [], c.Create(volume, 1, name, mode, 0, 0)), 60)
        assert isinstance(reply, m.Found), reply
        return reply.attr.ino


def model_of(which: Any) -> Model:
    return {"register": REGISTER, "directory": DIRECTORY, "lock": LOCK}[which[0]]


class Recorder(threading.Thread):
    """One client: operations one after the other until `ending`; its part of the history is `history`."""

    def __init__(self, cluster: Cluster, objects: Objects, seed: int, think_s: float = THINK_S) -> None:
        super().__init__(daemon=True)
        self.cluster, self.objects = cluster, objects
        self.dice = random.Random(seed)
        self.client = new_client(cluster)
        self.identity = self.client.mount
        self.history: list[Operation] = []
        self.wrong: list[str] = []
        self.ending = threading.Event()
        self._think_s = think_s
        self._uniques = itertools.count(1)

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                self.one()
                self.ending.wait(self.dice.random() * self._think_s)
        except Unavailable:
            pass  # closed: what was under way stays open
        except Exception as err:  # an answer that no model knows
            self.wrong.append(f"{type(err).__name__} {err}")

    def one(self) -> None:
        raise NotImplementedError

    def finish(self, patience_s: float) -> None:
        self.ending.set()
        self.join(patience_s)
        self.client.close()
        self.join(patience_s)

    def seen(self, which: Any, call: tuple[Any, ...], body: m.Body | c.Command, result_of: Callable[[m.Reply], Any]) -> Any:
        """Do it, write it down; the result, an errno's name for a refusal."""
        called = time.monotonic()
        result, returned = None, OPEN
        try:
            if isinstance(body, c.Command):
                unique = next(self._uniques)
                reply = block(self.client.propose(body, unique))
                self.client.ack(unique)
            else:
                reply = block(self.client.ask(body))
            result = result_of(reply)
            returned = time.monotonic()
        except FsError as err:
            if isinstance(err, Unavailable):
                raise
            result, returned = errno.errorcode[err.errno], time.monotonic()
        finally:
            if (which[0], result) not in NOT_WRITTEN_DOWN:
                self.history.append(Operation(which, self.identity, call, result, called, returned))
        return result


def block(wait: Any) -> Any:
    from awsomefsd.base.wait import block_on

    return block_on(wait, None)


class FileClient(Recorder):
    """Registers (an extended attribute) and directories: creates, links, unlinks, renames, look-ups, listings."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._inodes: dict[int, int] = {}  # uid → number, of inodes that it has seen

    def one(self) -> None:
        if self.dice.random() < 0.3:
            self.register()
        else:
            dice = self.dice
            number = dice.randrange(DIRECTORIES)
            operation = dice.choices([self.create, self.link, self.unlink, self.rename, self.lookup, self.list], [4, 2, 3, 4, 4, 2])[0]
            operation(("directory", number), self.objects.directories[number])

    def register(self) -> None:
        number = self.dice.randrange(REGISTERS)
        which, ino, volume = ("register", number), self.objects.registers[number], self.objects.volume
        if self.dice.random() < 0.5:
            value = b"%d-%d" % (self.identity, next(_uids))
            self.seen(which, ("write", value), c.SetXattr(volume, ino, KEY, value), lambda reply: None)
        else:
            self.read(which, ino)

    def read(self, which: Any, ino: int) -> None:
        called = time.monotonic()
        result = self.seen(which, ("read",), m.GetXattr(self.objects.volume, ino, KEY), lambda reply: reply.data)
        if result == "ENODATA":  # never written
            self.history.append(Operation(which, self.identity, ("read",), None, called, time.monotonic()))

    def _found(self, reply: Any) -> Any:
        self._inodes[reply.attr.uid] = reply.attr.ino
        return reply.attr

    def create(self, which: Any, parent: int) -> None:
        name, uid = self.dice.choice(NAMES), next(_uids)
        body = c.Create(self.objects.volume, parent, name, FILE, uid, 0)
        self.seen(which, ("create", name, uid), body, lambda reply: self._found(reply) and "ok")

    def link(self, which: Any, parent: int) -> None:
        """To an inode that it has lately seen in this directory."""
        found = self.list(which, parent)
        if not found:
            return
        _, uid = self.dice.choice(sorted(found))
        name = self.dice.choice(NAMES)
        body = c.Link(self.objects.volume, self._inodes[uid], parent, name)
        self.seen(which, ("link", uid, name), body, lambda reply: ("ok", reply.attr.nlink))

    def unlink(self, which: Any, parent: int) -> None:
        name = self.dice.choice(NAMES)
        self.seen(which, ("unlink", name), c.Unlink(self.objects.volume, parent, name), lambda reply: "ok")

    def rename(self, which: Any, parent: int) -> None:
        old, new = self.dice.sample(NAMES, 2)
        how = self.dice.choice(list(HOW))
        body = c.Rename(self.objects.volume, parent, old, parent, new, HOW[how])
        self.seen(which, ("rename", old, new, how), body, lambda reply: "ok")

    def lookup(self, which: Any, parent: int) -> None:
        name = self.dice.choice(NAMES)

        def result(reply: Any) -> Any:
            attr = self._found(reply)
            return attr.uid, attr.nlink

        self.seen(which, ("lookup", name), m.Lookup(self.objects.volume, parent, name), result)

    def list(self, which: Any, parent: int) -> Any:
        def result(reply: Any) -> Any:
            self._inodes.update({entry.attr.uid: entry.ino for entry in reply.entries})
            return frozenset((entry.name, entry.attr.uid) for entry in reply.entries)

        return self.seen(which, ("list",), m.ReadDir(self.objects.volume, parent, 0, 100, True), result)


class ReadingClient(FileClient):
    """Changes nothing, so nothing makes it wait for a quorum: where a leader that nobody follows any more answers, it sees old values."""

    def one(self) -> None:
        directory = self.dice.randrange(DIRECTORIES)
        number = self.dice.randrange(REGISTERS)
        choice = self.dice.randrange(3)
        if choice == 0:
            self.read(("register", number), self.objects.registers[number])
        elif choice == 1:
            self.lookup(("directory", directory), self.objects.directories[directory])
        else:
            self.list(("directory", directory), self.objects.directories[directory])


class LockClient(Recorder):
    """Takes and releases fcntl locks in a session of its own; a session that ended takes its locks with it, at some moment."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.sessions = 0
        self._held: dict[int, float] = {}  # lock → when it was taken
        self._begun = False

    def one(self) -> None:
        if not self._begun:
            self._begin()
        number = self.dice.choice(list(self._held)) if self._held and self.dice.random() < 0.5 else self.dice.randrange(LOCKS)
        which, releases = ("lock", number), number in self._held
        call = ("unlock" if releases else "lock", self.identity)
        command = c.SetLock(self.objects.lock_volume, self.objects.locks[number], 0, 1, 1, 2 if releases else 1, 0, (1 << 63) - 1)
        called = time.monotonic()
        result = self._lock(which, call, command)
        if result == "ESTALE":
            self._lost(called)
        elif releases:
            del self._held[number]
        elif result == "granted":
            self._held[number] = called

    def _lock(self, which: Any, call: tuple[Any, ...], command: c.SetLock) -> Any:
        granted = None if call[0] == "unlock" else "granted"
        result = self.seen(which, call, command, lambda reply: granted)
        if result == "EAGAIN":
            self.history[-1] = self.history[-1]._replace(result="refused")
        return result

    def _lost(self, called: float) -> None:
        """What the session held is released, at some moment since it was taken."""
        for number, since in self._held.items():
            self.history.append(Operation(("lock", number), self.identity, ("unlock", self.identity), None, since, OPEN))
        self._held.clear()
        self._begun = False
        self.client.end_session()
        self.client.close()
        self.client = new_client(self.cluster)
        self.identity = self.client.mount

    def _begin(self) -> None:
        command = c.OpenSession(self.identity, self.objects.lock_volume, self.objects.home, boot_id(), 1, shared=True)
        self.client.start_session(command)
        self.sessions += 1
        self._begun = True
