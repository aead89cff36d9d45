"""Short workloads in the style of ACE (Mohan et al., OSDI '18): one to three operations on a few
files, each with or without a persistence point behind it.

The files: foo (in extents), bar (inline), sl (a symbolic link), A/foo, A/bar, the empty directory B; new names are new, A/new, B/new.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random
from typing import Any

Step = tuple[Any, ...]
Workload = list[Step]
K = 1024

# operation -> its steps; the first path is the one that persistence points are about
OPERATIONS: list[Workload] = [
    *([("creat", path)] for path in ("new", "A/new", "B/new")),
    *([("mkdir", path)] for path in ("C", "A/C")),
    [("mknod", "new")],
    *([("link", *paths)] for paths in (("foo", "new"), ("foo", "A/new"), ("bar", "B/new"), ("A/foo", "new"))),
    *([("symlink", target, path)] for target, path in (("foo", "new"), ("x" * 900, "A/new"))),
    *([("unlink", path)] for path in ("foo", "bar", "A/foo", "sl")),
    [("hold", "foo"), ("unlink", "foo")],
    [("hold", "foo"), ("unlink", "foo"), ("closeall",)],
    *([("rmdir", path)] for path in ("B", "A")),
    *([("rename", old, new, 0)] for old, new in (("foo", "new"), ("foo", "A/new"), ("A/foo", "B/new"), ("A", "C"), ("A", "B"))),
    *([("rename", old, new, 0)] for old, new in (("foo", "bar"), ("bar", "foo"), ("A/foo", "foo"), ("bar", "A/foo"), ("sl", "foo"))),
    *([("rename", old, new, 1)] for old, new in (("foo", "new"), ("foo", "bar"))),
    *([("rename", old, new, 2)] for old, new in (("foo", "bar"), ("foo", "A/bar"), ("A", "B"), ("A", "bar"))),
    *([("rename", old, new, 4)] for old, new in (("foo", "new"), ("foo", "bar"), ("A/foo", "B/new"))),
    *([("append", path, length)] for path, length in (("foo", 5_000), ("foo", 100), ("bar", 100), ("bar", 9_000), ("A/foo", 60_000))),
    *([("write", "foo", offset, length)] for offset, length in ((0, 4096), (1_000, 3_000), (0, 30_000), (40_000, 500))),
    *([("write", "bar", offset, length)] for offset, length in ((10, 50), (0, 300), (3_000, 500), (20_000, 5_000))),
    [("write", "foo", 0, 2_000), ("write", "foo", 1_000, 2_000), ("append", "foo", 700)],
    *([("syncwrite", "foo", *rest, os.O_DSYNC)] for rest in ((0, 4_096), (12_000, 9_000))),
    *([("syncwrite", "bar", *rest, os.O_SYNC)] for rest in ((10, 50), (300, 6_000))),
    [("append", "foo", 5_000), ("syncwrite", "foo", 1_000, 100, os.O_DSYNC)],
    *([("truncate", "foo", size)] for size in (0, 5_000, 4_096, 30_000)),
    *([("truncate", "bar", size)] for size in (0, 100, 3_000, 9_000)),
    [("opentrunc", "foo", "k"), ("tmpwrite", "k", 6_000), ("closeall",)],
    [("opentrunc", "bar", "k"), ("tmpwrite", "k", 200), ("closeall",)],
    [("opentrunc", "foo", "k"), ("forget",), ("tmpwrite", "k", 6_000), ("closeall",)],
    *([("fallocate", "foo", 0, offset, length)] for offset, length in ((0, 10_000), (8_000, 20_000), (50_000, 4_096))),
    *([("fallocate", "bar", 0, offset, length)] for offset, length in ((0, 1_000), (100, 50_000))),
    *([("fallocate", "foo", 1, offset, length)] for offset, length in ((0, 4_096), (8_000, 20_000))),
    [("fallocate", "bar", 1, 0, 9_000)],
    *([("fallocate", "foo", 3, offset, length)] for offset, length in ((0, 4_096), (1_000, 3_000), (0, 50_000), (9_000, 9_000))),
    [("fallocate", "bar", 3, 50, 100)],
    *([("fallocate", "foo", mode, 2_000, 5_000)] for mode in (0x10, 0x11)),
    *([("fallocate", "foo", mode, 8_000, 9_000)] for mode in (0x10, 0x11)),
    [("fallocate", "bar", 0x10, 100, 9_000)],
    *([("copy", "foo", *rest)] for rest in ((0, "A/foo", 0, 10_000), (1_000, "A/foo", 30_000, 5_000), (0, "foo", 20_000, 4_096))),
    *([("copy", path, 0, other, 0, 9_000)] for path, other in (("bar", "foo"), ("foo", "bar"))),
    *([("setxattr", path, "user.a", length)] for path, length in (("foo", 10), ("bar", 3_000), ("A", 60))),
    [("setxattr", "foo", "user.old", 20)],
    [("removexattr", "foo", "user.old")],
    *([("acl", *rest)] for rest in (("foo", False), ("A", True), ("A", False))),
    *([("chmod", path, 0o4711)] for path in ("foo", "A")),
    [("chown", "foo", 1_000)],
    *([("utimens", path, 1_234_567_890_123_456_789)] for path in ("foo", "B")),
    [("tmpfile", "k"), ("tmplink", "k", "new")],
    [("tmpfile", "k"), ("tmpwrite", "k", 7_000), ("tmplink", "k", "new")],
    [("tmpfile", "k"), ("tmpwrite", "k", 100), ("tmplink", "k", "A/new"), ("closeall",)],
    [("tmpfile", "k"), ("tmpwrite", "k", 7_000)],
]
WITH_A_TAKEOVER: list[Workload] = [
    [("opentrunc", "foo", "k"), ("takeover",), ("tmpwrite", "k", 6_000), ("closeall",)],
    [("append", "foo", 5_000), ("takeover",), ("syncwrite", "foo", 1_000, 100, os.O_DSYNC)],
    [("append", "bar", 100), ("takeover",), ("truncate", "bar", 0), ("append", "bar", 50)],
]
BESIDE_A_TRUNCATION: list[Workload] = [
    [("append", "foo", 5_000), ("cutbeside", "foo", *rest, killed)]
    for rest in ((0, 3, 10), (0, 9_000, 5_000), (4_000, 3, 10))
    for killed in (False, True)
]
_PATHS = ("foo", "bar", "A/foo", "A/bar", "new", "A/new", "B/new")


def persistence(operation: Workload) -> list[Workload]:
    """Nothing, fsync or fdatasync of what the operation was about, fsync of its directory, everything."""
    path = next((str(part) for part in reversed(operation[-1]) if part in _PATHS), "foo")
    folder = path.rpartition("/")[0] or "."
    return [[], [("fsync", path, len(operation) % 2 == 0)], [("fsyncdir", folder)], [("flush",)]]


def singles() -> Iterator[Workload]:
    for operation in [*OPERATIONS, *WITH_A_TAKEOVER]:
        for point in persistence(operation):
            yield [*operation, *point]


def on_data(dice: Random, count: int) -> Iterator[Workload]:
    """Some of `singles` and `sample` that write, truncate, allocate or copy."""
    kinds = {"append", "write", "syncwrite", "opentrunc", "truncate", "fallocate", "copy", "tmpwrite"}
    chosen = [workload for workload in singles() if any(step[0] in kinds for step in workload)]
    for _ in range(count // 2):
        yield dice.choice(chosen)
    yield from sample(dice, count - count // 2)


def sample(dice: Random, count: int) -> Iterator[Workload]:
    """Two operations or three.  The first makes data dirty in half of them: that is what the others have to meet."""
    dirtying = [operation for operation in OPERATIONS if operation[0][0] in ("append", "write", "opentrunc")]
    for _ in range(count):
        chosen = [dice.choice(OPERATIONS) for _ in range(dice.choice((2, 3)))]
        if dice.random() < 0.5:
            chosen[0] = dice.choice(dirtying)
        workload: Workload = []
        for operation in chosen:
            workload += operation
            workload += dice.choice(persistence(operation)) if dice.random() < 0.6 else []
        yield workload
