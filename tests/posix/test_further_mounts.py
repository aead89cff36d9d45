"""A volume on several directories of a node, and mounted again at once after an unmount, whoever holds a copy."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildtools.nodes import Node

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def node(make_node) -> Node:
    return make_node()


@pytest.fixture
def second(node: Node) -> Iterator[Path]:
    place = node.directory / "second"
    place.mkdir(exist_ok=True)
    yield place
    for row in node.ask("status")["mounts"]:
        if row["directory"] != str(node.mountpoint):
            node.cli("umount", row["directory"])
    if not node.mountpoint.is_mount():
        node.cli("mount", node.volume, str(node.mountpoint))


@contextlib.contextmanager
def container() -> Iterator[int]:
    """A mount namespace that holds a copy of each mount; yields the id of the only process in it."""
    copy = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; read x"]
    with subprocess.Popen(copy, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None and process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.stdin.close()


def test_a_further_directory_has_flags_of_its_own(node: Node, second: Path) -> None:
    (node.mountpoint / "f").write_text("one")
    node.cli("mount", node.volume, str(second), "-O", "ro,nosuid")
    assert (second / "f").read_text() == "one"
    with pytest.raises(OSError) as refused:
        (second / "g").touch()
    assert refused.value.errno == errno.EROFS
    (node.mountpoint / "f").write_text("two")
    assert (second / "f").read_text() == "two"
    node.cli("umount", str(node.mountpoint))
    assert (second / "f").read_text() == "two"
    node.cli("mount", node.volume, str(node.mountpoint))
    (node.mountpoint / "f").write_text("three")
    node.cli("umount", str(second))
    assert (node.mountpoint / "f").read_text() == "three"


def test_one_that_began_read_only_is_written_through_another_directory(node: Node, second: Path) -> None:
    node.cli("umount", str(node.mountpoint))
    node.cli("mount", node.volume, str(second), "-O", "ro")
    node.cli("mount", node.volume, str(node.mountpoint))
    (node.mountpoint / "written").write_text("x")
    assert (second / "written").read_text() == "x"
    with pytest.raises(OSError) as refused:
        (second / "g").touch()
    assert refused.value.errno == errno.EROFS
    subprocess.run(["mount", "-i", "-o", "remount,rw", second], check=True)
    (second / "g").touch()


def test_it_is_mounted_again_at_once_while_a_container_holds_it(node: Node, second: Path) -> None:
    (node.mountpoint / "kept").write_text("x")
    with container():
        for place in (node.mountpoint, second, node.mountpoint):
            old = node.ask("status")["mounts"][0]["directory"]
            node.cli("umount", old)
            node.cli("mount", node.volume, str(place))
            assert (place / "kept").read_text() == "x"
        subprocess.run(["umount", "-i", node.mountpoint], check=True)  # of which nobody tells us
        node.cli("mount", node.volume, str(node.mountpoint))
        (node.mountpoint / "kept").write_text("y")
    assert (node.mountpoint / "kept").read_text() == "y"


def test_other_options_of_the_directory_are_granted_and_others_are_refused_in_the_name_of_the_container(node: Node, second: Path) -> None:
    place = node.mountpoint
    with container() as pid:
        node.cli("umount", str(place))
        node.cli("mount", node.volume, str(place), "-O", "ro,nosuid,nodev,noexec")
        with pytest.raises(OSError) as refused:
            (place / "g").touch()
        assert refused.value.errno == errno.EROFS
        node.cli("umount", str(place))
        said = node.cli_error("mount", node.volume, str(place), "-O", "root_squash")
        assert "root_squash would differ" in said and f"held by sh (pid {pid}, at {place} in another mount namespace)" in said
    node.cli("mount", node.volume, str(place), "-O", "root_squash")  # nobody has the old one
    node.cli("umount", str(place))


def test_a_node_is_stopped_and_started_while_a_container_holds_its_mount(node: Node) -> None:
    """As `build.py up` does, run again beside containers: the unmount waits for nobody's copy, and the next mount is served at once."""
    (node.mountpoint / "kept").write_text("before")
    with container():
        node.umount()
        assert node.pids("worker"), "it serves the copy"
        node.stop()
        assert not node.pids("worker")
        node.start()
        node.mount()
        assert (node.mountpoint / "kept").read_text() == "before"
        (node.mountpoint / "kept").write_text("after")
    assert (node.mountpoint / "kept").read_text() == "after"


def test_a_mount_waits_for_the_unmount(node: Node, second: Path) -> None:
    """Both at once, in either order: the mount is never refused for the other's sake."""
    for number in range(2):
        (node.mountpoint / f"dirty-{number}").write_bytes(b"x" * (8 << 20))
        argv = [*node.command, "umount", str(node.mountpoint)]
        with subprocess.Popen(argv, env=node.environment(), stdout=subprocess.DEVNULL) as ending:
            node.cli("mount", node.volume, str(second))
            assert ending.wait(60) == 0
        node.cli("mount", node.volume, str(node.mountpoint))
        node.cli("umount", str(second))
        assert (node.mountpoint / f"dirty-{number}").stat().st_size == 8 << 20
