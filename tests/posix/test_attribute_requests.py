"""What programs without extended attributes pay for them: requests of the kernel to the worker, and none of the worker to the daemon."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from awsomefsd.fuse.control_area import ControlArea
from buildtools.nodes import Node

pytestmark = pytest.mark.root
WRITES = 20
ASLEEP_S = 3.0  # less than what is left of a lease that was just renewed


@pytest.fixture(scope="module")
def node(make_node) -> Node:
    return make_node()


def target_of(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:  # it is closed meanwhile
        return ""


def counters(node: Node) -> dict[str, int]:
    """The worker's own, out of the memory it shares with its successors."""
    folder = Path(f"/proc/{node.pid('worker')}/fd")
    control = next(path for path in folder.iterdir() if "memfd:awsomefs-control" in target_of(path))
    return ControlArea(bytearray(control.read_bytes())).counters()  # type: ignore[arg-type]


@contextmanager
def daemon_stopped(node: Node) -> Iterator[threading.Event]:
    """SIGSTOP until the block ends; the event is set if somebody had to wait for it, and it had to be woken."""
    pid, woken = node.pid("daemon"), threading.Event()

    def wake() -> None:
        woken.set()
        os.kill(pid, signal.SIGCONT)

    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(ASLEEP_S, wake)
    timer.start()
    try:
        yield woken
    finally:
        timer.cancel()
        os.kill(pid, signal.SIGCONT)


def use(path: Path, folder: Path) -> None:
    for _ in range(WRITES):
        with path.open("r+b", buffering=0) as file:
            file.write(b"x")
    for name in ("security.capability", "system.posix_acl_access", "user.none"):
        with pytest.raises(OSError) as refused:
            os.getxattr(path, name)
        assert refused.value.errno == errno.ENODATA
    assert os.listxattr(path) == os.listxattr(folder) == []


def test_files_without_attributes_cost_no_request_to_the_daemon(node: Node, figures: list[str]) -> None:
    folder = node.mountpoint / "plain"
    folder.mkdir()
    path = folder / "f"
    path.write_bytes(b"first")  # takes space for more
    use(path, folder)
    before = counters(node)
    with daemon_stopped(node) as woken:
        use(path, folder)
        assert not woken.is_set(), "something waited for the daemon"
    made = told(before, counters(node))
    assert made["write"] == WRITES
    figures.append(f"{WRITES} times open, write, close: {made}")


def test_writes_to_an_open_file_ask_for_attributes_once(node: Node, figures: list[str]) -> None:
    with (node.mountpoint / "open").open("w+b", buffering=0) as file:
        before = counters(node)
        for _ in range(WRITES):
            file.write(b"x")
        made = told(before, counters(node))
    assert made["write"] == WRITES and made.get("getxattr", 0) <= 2
    figures.append(f"{WRITES} writes to an open file: {made}")


def told(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    made = {name: count - before.get(name, 0) for name, count in after.items() if name.startswith("fuse_")}
    return {name.removeprefix("fuse_"): count for name, count in made.items() if count}
