"""Locks of one node as another one meets them when the file is closed."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.types import LOCK_POSIX, Lock
from awsomefsd.vfs.ops.locks import F_WRLCK
from tests.rigs.mount_without_kernel import error_of
from tests.rigs.sharing_nodes import Sharing, two_nodes

PROCESS, DESCRIPTION, OTHER = 77, 88, 99  # owners, as the kernel names them


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Sharing]]:
    yield from two_nodes(Sharing, tmp_path)


def lock(owner: int, start: int) -> Lock:
    return Lock(LOCK_POSIX, owner, 1, F_WRLCK, start, start + 9)


def test_a_close_ends_classic_locks_at_once_and_others_with_their_handle(nodes: list[Sharing]) -> None:
    one, two = nodes
    ino = one.file(b"f", b"x")
    first, again, there = one.open(ino), one.open(ino), two.open(two.lookup(b"f").ino)

    def refused(start: int) -> bool:
        return error_of(two.call, "setlk", ino, there, lock(OTHER, start), False) == errno.EAGAIN

    one.call("setlk", ino, first, lock(PROCESS, 0), False)
    one.call("setlk", ino, first, lock(DESCRIPTION, 20), False)
    one.call("flush", ino, again, OTHER)  # a process with copies of the descriptors, and so another owner
    assert refused(0) and refused(20)
    one.call("flush", ino, again, PROCESS)
    one.call("release", ino, again, 0, 0, 0)
    two.call("setlk", ino, there, lock(OTHER, 0), False)
    assert refused(20)
    one.call("flush", ino, first, PROCESS)
    assert refused(20), "a copy of the descriptor is open"
    one.call("release", ino, first, 0, 0, 0)
    two.call("setlk", ino, there, lock(OTHER, 20), False)
