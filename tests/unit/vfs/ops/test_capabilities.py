"""security.capability goes with the bytes to which it was given, on every kind of mount and by every call that changes them.

The kernel removes it by itself before a cached write only.  After direct I/O, as on every shared mount, and where a file is opened with
O_TRUNC, nobody else does it.
"""

from __future__ import annotations

import errno
import os

import pytest

from tests.rigs.mount_without_kernel import BIG, Rig, error_of
from tests.rigs.sharing_nodes import sound
from tests.unit.vfs.ops.test_buffered_writes import Leased, nodes
from tests.unit.vfs.ops.test_synchronous_writes import r

__all__ = ["nodes", "r"]
NAME = b"security.capability"


def privileged(r: Rig, data: bytes = b"x" * BIG) -> tuple[int, int]:
    ino, fh = r.create(b"bin")
    r.write(ino, fh, 0, data)
    r.fsync(ino, fh)
    r.call("setxattr", ino, NAME, b"\1" * 20, 0)
    assert bytes(r.call("getxattr", ino, NAME)) == b"\1" * 20
    return ino, fh


def gone(r: Rig, ino: int) -> bool:
    return error_of(r.call, "getxattr", ino, NAME) == errno.ENODATA and r.call("listxattr", ino) == []


def test_a_write_on_a_shared_mount_removes_it_before_it_is_answered(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = privileged(one)
    one.write(ino, fh, 0, b"evil")
    assert one.mount.buffered.dirty.dirty_bytes == 4 and gone(one, ino) and gone(two, ino)
    one.write(ino, fh, 0, b"more")
    one.call("setxattr", ino, NAME, b"\2" * 20, 0)
    one.write(ino, fh, 0, b"evil")
    assert gone(one, ino), "given again under the lease"
    there = two.open(ino)
    two.call("setxattr", ino, NAME, b"\3" * 20, 0)
    one.write(ino, fh, 0, b"evil")
    assert gone(one, ino), "given by another node"
    two.write(ino, there, 0, b"good")
    sound(nodes)


def test_a_write_of_a_file_with_other_attributes_keeps_those(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = privileged(one)
    one.call("setxattr", ino, b"user.a", b"kept", 0)
    one.write(ino, fh, 0, b"evil")
    assert one.call("listxattr", ino) == [b"user.a"] == two.call("listxattr", ino)


@pytest.mark.parametrize("how", ["O_TRUNC", "fallocate", "punch", "zero", "copy_file_range"])
def test_other_calls_that_change_bytes_remove_it(r: Rig, how: str) -> None:
    ino, fh = privileged(r)
    if how == "O_TRUNC":
        r.open(ino, os.O_RDWR | os.O_TRUNC)
    elif how == "copy_file_range":
        source, source_fh = r.create(b"source")
        r.write(source, source_fh, 0, b"s" * BIG)
        r.fsync(source, source_fh)
        assert r.call("copy_file_range", source, 0, ino, fh, 0, 4096, 0) == 4096
    else:
        r.call("fallocate", ino, fh, {"fallocate": 0, "punch": 3, "zero": 0x10}[how], 0, 4096 if how != "fallocate" else 2 * BIG)
    assert gone(r, ino)
