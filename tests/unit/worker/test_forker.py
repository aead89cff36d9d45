"""Workers that the keeper's forker forks: children of the keeper like any other; whatever ails the forker, mounts go on."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from awsomefsd import __version__
from awsomefsd.base.errors import FsError
from awsomefsd.base.program import ROOT
from awsomefsd.keeper.client import KeeperClient
from buildtools import procs
from buildtools.nodes import Node, await_true
from tests.rigs.other_build import copy_package

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def node(make_node: Callable[..., Node]) -> Iterator[Node]:
    made = make_node()
    yield made
    made.umount()


def cmdline(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    return []


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def forkers(node: Node) -> list[int]:
    return [pid for pid in procs.owned(str(node.directory)) if "forker" in cmdline(pid)]


def the_forker(node: Node) -> int:
    """The only one: that of a keeper that has died ends by itself, and a worker has its forker's words for a moment."""
    return int(await_true("one forker", lambda: len(found := forkers(node)) == 1 and found, 60)[0])


def await_no_zombie(node: Node) -> None:
    await_true("children that are waited for", lambda: "Z" not in children(node.pid("keeper")).values(), 60)


def warm(node: Node) -> bool:
    """As the daemon asks for it."""
    client = KeeperClient(node.run)
    return client.warm(**client.list()[0]["starts"])


def children(pid: int) -> dict[int, str]:
    return {int(one): procs.state(int(one)) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def successor(node: Node) -> int:
    """Kill the worker; the one that takes its place serves."""
    old = node.kill("worker")["worker"]
    (node.mountpoint / "file").write_text(str(old))
    assert (node.mountpoint / "file").read_text() == str(old)
    return node.replaced("worker", old)


def forked_successor(node: Node, forker: int) -> int:
    """A successor that the forker made: as a copy of it, it has its command line, with the connection's number in it.

    The keeper goes round a forker that is late, and a machine with much to do makes it late: it is asked again then.
    """
    as_forked = ["worker" if word == "forker" else word for word in cmdline(forker)]
    for _ in range(20):
        await_true("a forker that has loaded", lambda: warm(node), 60)
        worker = successor(node)
        if cmdline(worker) == as_forked:
            return worker
        assert " is late" in (node.log / "keeper.log").read_text(), "a worker that was not forked"
    raise AssertionError("the forker is always late")


def test_workers_are_forked_and_the_keepers_own(node: Node) -> None:
    await_true("a forker that has loaded", lambda: warm(node), 60)
    forker = the_forker(node)
    before = procs.pids(str(node.directory), "worker")
    for _ in range(3):
        worker = forked_successor(node, forker)
        assert worker not in before and parent(worker) == node.pid("keeper")
        assert os.getsid(worker) == worker and os.readlink(f"/proc/{worker}/fd/2").endswith(".log")
    assert the_forker(node) == forker
    await_no_zombie(node)


def test_a_forked_worker_that_cannot_begin_fails_its_mount_at_once(node: Node) -> None:
    await_true("a forker that has loaded", lambda: warm(node), 60)
    place, row = node.directory / "elsewhere", KeeperClient(node.run).list()[0]["starts"]
    place.mkdir()
    with pytest.raises(FsError, match="exited with code 1"):
        KeeperClient(node.run).mount("abc", str(place), "none", options=[], fuse_options="", readahead_kib=0, memfds={}, config={}, **row)
    place.rmdir()
    await_no_zombie(node)


def test_a_forker_that_hangs_is_gone_round_and_one_that_is_back_leaves_no_process(node: Node) -> None:
    await_true("a forker that has loaded", lambda: warm(node), 60)
    forker = the_forker(node)
    os.kill(forker, signal.SIGSTOP)
    await_true("a stopped forker", lambda: procs.state(forker) == "T", 60)
    worker = successor(node)
    os.kill(forker, signal.SIGCONT)
    await_true("an answer that comes late", lambda: warm(node), 60)
    await_true("nothing but the worker and the forker", lambda: set(children(node.pid("keeper"))) == {worker, forker}, 60)
    assert node.pids("worker") == [worker]


def test_a_forker_that_is_killed_is_not_needed(node: Node) -> None:
    forker = the_forker(node)
    os.kill(forker, signal.SIGKILL)
    await_true("the end of the forker", lambda: not procs.alive(forker), 60)
    worker = successor(node)

    def others() -> set[int]:
        """Children of the keeper but for the forker that it begins when the one before was begun long ago."""
        return set(children(node.pid("keeper"))) - set(forkers(node))

    await_true("nothing but the worker", lambda: others() == {worker}, 60)


def test_the_next_keeper_has_a_forker_of_its_own(node: Node) -> None:
    node.strike(["keeper"])
    await_true("a forker that has loaded", lambda: warm(node), 60)
    first = the_forker(node)
    KeeperClient(node.run).upgrade()
    await_true("the end of the forker of before", lambda: first not in forkers(node), 60)
    await_no_zombie(node)
    await_true("a forker that has loaded", lambda: warm(node), 60)
    worker = successor(node)
    assert parent(worker) == node.pid("keeper")


def test_a_forker_of_a_build_that_was_replaced_in_place_forks_no_more(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """The program of the mount's workers is a copy of the package, which another build then takes the place of."""
    if os.environ.get("AWSOMEFSD_BINARY"):
        pytest.skip("the copy is one of the interpreted program")
    package = tmp_path / "copy" / "awsomefsd"
    copy_package(ROOT / "awsomefsd", package)
    argv, env = [sys.executable, "-m", "awsomefsd", "worker"], {"PYTHONPATH": str(package.parent)}
    node = make_node()
    client = KeeperClient(node.run)
    client.replace(client.list()[0]["mount"], argv, env)
    await_true("a forker that has loaded", lambda: warm(node), 60)
    forker = the_forker(node)
    forked_successor(node, forker)
    await_true("what the successor says it is", lambda: KeeperClient(node.run).list()[0]["version"] == __version__, 60)
    text = (package / "__init__.py").read_text()
    (package / "__init__.py").write_text(text.replace(__version__, "9.9.9"))
    successor(node)
    await_true("the other build", lambda: KeeperClient(node.run).list()[0]["version"] == "9.9.9", 60)
    await_true("the end of the forker", lambda: forker not in forkers(node), 60)
    node.umount()
