"""A node's metadata with very many inodes, written as rows below the state machine: creating them one by one takes hours.

The rows are the ones that commands would have left (the checker of invariants agrees; test_bench_inodes).
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from awsomefsd.base.limits import GIB
from awsomefsd.base.types import FIRST_COOKIE
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.replica import Replica, ReplicaOptions
from awsomefsd.meta.state import keys, rows

NAMES_PER_DIRECTORY = 10_000
_COMMIT_ROWS = 100_000
NOW = 1_700_000_000_000_000_000


def _apply(replica: Replica, command: Any) -> Any:
    stamp = NOW + replica.log.committed
    replica.propose([c.Entry(0, 0, command.since, 0, 1, stamp, NOW, 0, 0, 0, 0, [], command)])
    return replica.ready()[0][1]


def build(directory: Path, cluster: str, node: str, count: int) -> None:
    """Journal and store under `directory`: a volume "load" with `count` files in directories of NAMES_PER_DIRECTORY."""
    map_bytes = max(count * 1_200 // GIB + 1, 1) * GIB
    replica = Replica.open_single(directory, cluster, node, Machine, ReplicaOptions(map_bytes_min=map_bytes))
    try:
        _apply(replica, c.Init(cluster, 1))
        volume = _apply(replica, c.CreateVolume("load", "00000000-0000-0000-0000-000000000001")).number
        per = min(NAMES_PER_DIRECTORY, count)
        names = [b"d%06d" % number for number in range(count // per)]
        parents = [_apply(replica, c.Create(volume, 1, name, stat.S_IFDIR | 0o755, 0, 0)).attr.ino for name in names]
        replica.commit()
        _fill(replica, volume, parents, per)
        replica.commit()
    finally:
        replica.close()


def _fill(replica: Replica, number: int, parents: list[int], per: int) -> None:
    """Rows in key order, so that every page is written once."""
    state, put = replica.machine.state, replica.store.put  # type: ignore[attr-defined]
    volume = state.volume(number)
    first = volume.next_ino
    total = len(parents) * per
    file = rows.InodeRow(stat.S_IFREG | 0o644, 1, 0, 0, 0, 0, 0, NOW, NOW, NOW, NOW, NOW, 1)
    file.inline = True
    value = rows.INODE.dumps(file)
    written = 0

    def done() -> None:
        nonlocal written
        written += 1
        if written % _COMMIT_ROWS == 0:
            replica.store.commit()

    for ino in range(first, first + total):
        put(keys.inode(number, ino), value)
        done()
    for place, parent in enumerate(parents):
        for name in range(per):
            put(keys.dentry(number, parent, b"f%08d" % name), _dentry(first + place * per + name, name))
            done()
    for place, parent in enumerate(parents):
        for name in range(per):
            put(keys.cookie(number, parent, FIRST_COOKIE + name), _cookie(first + place * per + name, name))
            done()
        row = state.inode(number, parent)
        row.entries, row.next_cookie = per, FIRST_COOKIE + per
        state.save_inode(number, parent, row)
        state.evict()
    volume = state.volume(number)
    volume.next_ino, volume.used_inodes = first + total, volume.used_inodes + total
    state.save_volume(volume)


def _dentry(ino: int, name: int) -> bytes:
    return rows.DENTRY.dumps(rows.DentryRow(ino, stat.S_IFREG, FIRST_COOKIE + name, NOW, 1))


def _cookie(ino: int, name: int) -> bytes:
    return rows.COOKIE.dumps(rows.CookieRow(ino, stat.S_IFREG, b"f%08d" % name))
