"""`df` and the last of the space on three real nodes at once: what `df` shows can be had, and what is full is full for all of them.

The normal run does it within the quota of a volume, the soak on a small device of three nodes of its own.  The same in one process:
tests/unit/vfs/ops/test_three_nodes.py.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.rigs.network_namespaces import found_on_one_disk
from tests.shared.rig import WAIT_S, Machines

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
KIB, MIB = 1 << 10, 1 << 20
QUOTA = 48 * MIB
PIECE = 256 * KIB
LEFT_OUT = MIB // 2  # of what df shows
SLACK = 2 * MIB  # a write(2) and its record, of each node


def available(root: Path) -> int:
    found = os.statvfs(root)
    return found.f_bavail * found.f_frsize


def mounted(nodes: list[Node], *quota: str) -> Iterator[list[Path]]:
    nodes[0].cli("volume", "create", "space", *quota)
    roots = [node.directory / "mnt-space" for node in nodes]
    for node, root in zip(nodes, roots, strict=True):
        root.mkdir()
        node.cli("mount", "space", str(root), "-O", "shared", timeout_s=WAIT_S)
    yield roots
    for node, root in zip(nodes, roots, strict=True):
        node.cli("umount", str(root), timeout_s=WAIT_S)


@pytest.fixture(params=["quota", pytest.param("device", marks=pytest.mark.soak)])
def roots(request: pytest.FixtureRequest) -> Iterator[list[Path]]:
    """The volume on each of the nodes."""
    if request.param == "quota":
        machines: Machines = request.getfixturevalue("machines")
        yield from mounted(machines.nodes, "--quota", str(QUOTA))
        machines.nodes[0].cli("volume", "delete", "space", "--yes-destroy", "space")
        return
    make: Callable[..., Cluster] = request.getfixturevalue("make_cluster")
    cluster = make(3, size_bytes=256 * MIB)
    found_on_one_disk(cluster)
    yield from mounted(cluster.nodes)
    cluster.stop()
    for node in cluster.nodes:
        assert "clean" in node.cli("fsck", timeout_s=WAIT_S)


def content(number: int, at: int) -> bytes:
    return b"%d %12d " % (number, at) * (PIECE // 15 + 1)


def fill(path: Path, number: int) -> int:
    """Appends pieces until there is no room, and syncs them; returns how many bytes were acknowledged."""
    fd, at = os.open(path, os.O_WRONLY | os.O_CREAT), 0
    try:
        while True:
            try:
                at += os.write(fd, content(number, at)[:PIECE])
            except OSError as err:
                if err.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                os.fsync(fd)
                return at
    finally:
        os.close(fd)


def fill_at_once(roots: list[Path]) -> list[int]:
    """Each node a file of its own, `full-N`, all at the same time."""
    written: dict[int, int | BaseException] = {}

    def one(number: int) -> None:
        try:
            written[number] = fill(roots[number] / f"full-{number}", number)
        except BaseException as err:
            written[number] = err

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(roots))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in written.values():
        if isinstance(result, BaseException):
            raise result
    return [int(written[number]) for number in range(len(roots))]  # type: ignore[arg-type]


def allocate_all(root: Path, name: str) -> int:
    """What df shows but half a MiB; returns it."""
    shown = available(root) - LEFT_OUT
    with (root / name).open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, shown)
    return shown


def check_contents(roots: list[Path], written: list[int]) -> None:
    """Nothing that was acknowledged is missing on any node."""
    for number, size in enumerate(written):
        for root in roots:
            with (root / f"full-{number}").open("rb") as file:
                assert os.fstat(file.fileno()).st_size == size
                for at in range(0, size, PIECE):
                    assert file.read(PIECE) == content(number, at)[: min(PIECE, size - at)], (number, at)


def test_the_last_of_the_space_on_three_nodes_at_once(roots: list[Path], request: pytest.FixtureRequest, figures: list[str]) -> None:
    quota = "quota" in request.node.callspec.id
    for number, root in enumerate(roots):  # each has reserved more than it needs
        (root / f"small-{number}").write_bytes(b"x" * PIECE)
    for number, root in enumerate(roots):
        size = allocate_all(root, f"large-{number}")
        assert size > 8 * MIB
        assert [(other / f"large-{number}").stat().st_size for other in roots] == [size] * 3
        os.unlink(roots[number - 1] / f"large-{number}")
        await_true("the room of the removed file", lambda root=root, size=size: available(root) >= size, WAIT_S, 0.05)
    before = available(roots[0])
    written = fill_at_once(roots)
    figures.append(f"three nodes filled {before / MIB:.1f} MiB at once: {', '.join(f'{size / MIB:.1f}' for size in written)} MiB")
    assert sum(written) >= before - 3 * SLACK
    assert not quota or sum(written) <= QUOTA
    check_contents(roots, written)
    assert all(available(root) <= 3 * SLACK for root in roots), "refused although others held what they did not need"
    for number in range(len(roots)):
        os.unlink(roots[number - 1] / f"full-{number}")
    await_true("the room of all that was removed", lambda: all(available(root) >= before - 3 * SLACK for root in roots), WAIT_S, 0.1)
    allocate_all(roots[2], "again")
