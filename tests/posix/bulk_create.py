"""Names made through a node's metadata service while nothing is mounted, many at a time.

`Below` unmounts, takes the volume under a session of its own, and mounts again when its block ends.  So the mount begins with cold caches.
"""

from __future__ import annotations

import secrets
import stat
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from awsomefsd.base.types import ROOT_INO
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api.commands import AnyCommand, Create, EndSession, Link, OpenSession
from awsomefsd.meta.api.messages import Found, GetVolumes, Lookup, Volumes
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.vfs.session.mount_session import open_session
from buildtools.nodes import Node

OUTSTANDING_MAX = 512
ANSWER_S = 120


class Below:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._unique = 0
        self._room = threading.Semaphore(OUTSTANDING_MAX)
        self._failed: list[BaseException] = []

    def __enter__(self) -> Below:
        self._node.umount()
        mount = secrets.randbelow(1 << 62) + 1
        self._client = MetaClient(self._node.run / "meta.sock", mount)
        self._client.start()
        found = self._client.call(GetVolumes(self._node.volume), ANSWER_S)
        assert isinstance(found, Volumes)
        self.volume = found.volumes[0].volume
        open_session(self._client, OpenSession(mount, self.volume, self._node.uuid(), "tests", 1))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.one(EndSession(self._client.session, self._client.epoch, True))
        self._client.end_session()
        self._client.close()
        self._node.mount()

    def one(self, command: AnyCommand) -> Any:
        self._unique += 2
        answer = block_on(self._client.propose(command, self._unique), ANSWER_S)
        self._client.ack(self._unique)
        return answer

    def lookup(self, parent: int, name: str) -> int:
        found = self._client.call(Lookup(self.volume, parent, name.encode()), ANSWER_S)
        assert isinstance(found, Found)
        return found.attr.ino

    def mkdir(self, name: str, parent: int = ROOT_INO) -> int:
        return int(self.one(Create(self.volume, parent, name.encode(), stat.S_IFDIR | 0o755, 0, 0)).attr.ino)

    def files(self, parent: int, names: Iterable[str]) -> None:
        self._all(lambda name: Create(self.volume, parent, name, stat.S_IFREG | 0o644, 0, 0), names)

    def links(self, ino: int, parent: int, names: Iterable[str]) -> None:
        self._all(lambda name: Link(self.volume, ino, parent, name), names)

    def _all(self, command: Callable[[bytes], AnyCommand], names: Iterable[str]) -> None:
        """Many at a time, so that one sync of the journal serves many."""
        for name in names:
            self._room.acquire()
            if self._failed:
                break
            self._unique += 2
            self._client.propose(command(name.encode()), self._unique).start(self._taker(self._unique))
        for _ in range(OUTSTANDING_MAX):
            self._room.acquire()
        for _ in range(OUTSTANDING_MAX):
            self._room.release()
        if self._failed:
            raise self._failed[0]

    def _taker(self, unique: int) -> Callable[[Any, BaseException | None], None]:
        def take(_value: Any, error: BaseException | None) -> None:
            self._client.ack(unique)
            if error is not None:
                self._failed.append(error)
            self._room.release()

        return take
