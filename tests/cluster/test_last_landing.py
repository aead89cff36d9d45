"""What the build before this one has written opens under this one: state, journal, device, and the shared memory of a mount that is served.

The names that this mount has decided last are in its op log alone when the builds are exchanged: nobody is there to ship them to.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from awsomefsd import __version__
from awsomefsd.base.levels import LEVEL
from awsomefsd.keeper.client import KeeperClient
from buildtools import procs
from buildtools.nodes import Node, await_true
from buildtools.say import CHECKOUT
from tests.rigs.other_build import copy_package, make_build_of

LAST_LANDING = "2dc904ed"  # the commit that was landed before the present work
LAST_LEVEL = 4  # that it knows
VERSION = "0.0.9"  # that it is made to say

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
BIG = os.urandom(3 << 20)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get("AWSOMEFSD_BINARY"):
        pytest.skip("the program under test is a compiled one: its builds are not told apart by PYTHONPATH")
    made = make_build_of(LAST_LANDING, tmp_path_factory.mktemp("last"), VERSION)
    if made is None:
        pytest.skip(f"the history of this checkout has no commit {LAST_LANDING}")
    return made


def worker_version(node: Node) -> str:
    (row,) = KeeperClient(node.run).list()
    return str(row["version"])


def read_all(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file() and not path.is_symlink()}


def end(node: Node, *roles: str) -> None:
    for role in roles:
        for pid in node.pids(role):
            os.kill(pid, signal.SIGKILL)
            await_true(f"the end of {role}", lambda pid=pid: not procs.alive(pid), 60)


def test_what_the_last_landed_build_has_written_is_served_by_this_one(make_node, build: Path) -> None:
    assert LEVEL >= LAST_LEVEL
    node: Node = make_node(up=False)
    node.settings["PYTHONPATH"] = str(build)
    node.up()
    node.umount()
    node.cli("volume", "set", node.volume, "--names", "delegated")
    node.mount()
    assert worker_version(node) == VERSION and node.ask("version")["version"] == VERSION
    assert node.ask("upgrade", "status")["known"] == LAST_LEVEL
    old = node.mountpoint / "old"
    old.mkdir()
    wanted: dict[str, bytes] = {"old/big": BIG, **{f"old/{number}": b"%d" % number * 100 for number in range(200)}}
    for name, content in wanted.items():
        (node.mountpoint / name).write_bytes(content)
    os.symlink("big", old / "link")
    os.setxattr(old / "big", "user.colour", b"blue")
    os.link(old / "1", old / "hard")
    os.rename(old / "2", old / "renamed")
    wanted["old/hard"], wanted["old/renamed"] = wanted["old/1"], wanted.pop("old/2")
    node.cli("flush", node.volume)

    end(node, "supervisor", "daemon")
    late = {f"late/{number}": b"%d" % number for number in range(100)}
    (node.mountpoint / "late").mkdir()
    for name, content in late.items():
        (node.mountpoint / name).write_bytes(content)
    os.unlink(old / "3")
    del wanted["old/3"]
    wanted |= late

    (build / "awsomefsd").rename(build / "before")
    copy_package(CHECKOUT / "awsomefsd", build / "awsomefsd")  # as a package manager: the files, under the same path
    node.cli("keeper", "--upgrade")
    worker = node.pid("worker")
    end(node, "worker")
    node.start()
    node.replaced("worker", worker)
    assert read_all(node.mountpoint) == wanted
    assert worker_version(node) == node.ask("version")["version"] == __version__
    assert os.readlink(old / "link") == "big" and os.getxattr(old / "big", "user.colour") == b"blue"
    assert os.stat(old / "1").st_nlink == 2
    (node.mountpoint / "of this build").write_bytes(BIG)
    wanted["of this build"] = BIG
    node.cli("flush", node.volume)
    node.kill_everything()
    node.up()
    assert read_all(node.mountpoint) == wanted
    assert not (node.state / "conflicts").exists() or not any((node.state / "conflicts").iterdir())
    if LEVEL > LAST_LEVEL:
        assert node.ask("upgrade", "finalize")["level"] == LEVEL
        assert read_all(node.mountpoint) == wanted
    node.umount()
