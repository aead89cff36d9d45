"""Several rigs of mounts that share one volume, each on a node of its own over one service and one device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from tests.rigs.mount_without_kernel import Rig, finish, shared_memory

Kind = TypeVar("Kind", bound="Sharing")

FIRST = 100


class Sharing(Rig):
    """A rig whose mount shares the volume; with `other`, on another node over the same service and device."""

    def __init__(self, directory: Path, other: Rig | None = None, number: int = FIRST, **options: int) -> None:
        if other is None:
            super().__init__(directory, **options)
        else:
            self.directory, self.host, self.device = directory, other.host, other.device
            self.clock, self.lease_clock, self.client_options = other.clock, other.lease_clock, other.client_options
            self.fds, self.null = shared_memory(), os.open("/dev/null", os.O_RDWR)
            self.workers, self.unique, self.unanswered, self.alive = 0, 0, None, False
        self.mount_id, self.node, self.shared = number, f"node{number}", True
        self.other = other

    def close(self) -> None:
        if self.other is None:
            super().close()
            return
        if self.alive:
            self.kill()
        for fd in [*self.fds.values(), self.null]:
            os.close(fd)


def two_nodes(kind: type[Kind], directory: Path, *, held_clock: bool = False, **options: int) -> Iterator[list[Kind]]:
    """The body of a fixture: two started mounts of one volume.  With `held_clock` leases end only when the test says so."""
    first = kind(directory, **options)
    if held_clock:
        first.hold_lease_clock()
    second = kind(directory, first, FIRST + 1)
    try:
        first.start()
        second.start()
        yield [first, second]
    finally:
        second.close()
        first.close()


def sound(nodes: list[Sharing]) -> None:
    for node in reversed(nodes):
        node.unmount()
    nodes[0].check()


def append(node: Rig, ino: int, fh: int, data: bytes, unique: int | None = None) -> int:
    ctx = node.ctx(unique)
    ctx.open_flags = os.O_APPEND
    written: int = finish(node.vfs.write(ctx, ino, fh, 0, memoryview(data), 0))
    return written
