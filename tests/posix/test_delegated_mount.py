"""Random operations on ext4 and on a mount that decides names by itself, while its worker, the daemon or both are killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from buildtools.nodes import Node, await_true
from tests.differential import machine
from tests.differential.rig import Pair, pair

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def both(make_node, tmp_path_factory) -> Iterator[Pair]:
    with pair(make_node, tmp_path_factory.mktemp("differential"), "delegated") as made:
        yield made


def test_it_is_as_ext4_while_its_worker_is_killed(both, seed, figures):
    bench = both.bench(kills=True)
    machine.explore(bench, seed, 12, 40)
    assert bench.kills > 3
    figures.append(f"delegated names beside ext4: {bench.examples} examples, {bench.steps} steps, {bench.kills} kills, seed {seed}")


def test_names_survive_worker_and_daemon_at_once(both):
    """What was answered is in shared memory only; the keeper has it."""
    folder = both.node.mountpoint / "killed"
    folder.mkdir()
    made = []
    for number in range(200):
        (folder / f"{number}").write_bytes(b"%d" % number)
        made.append(f"{number}")
        if number % 50 == 40:
            both.node.kill("worker", "daemon")
    assert sorted(path.name for path in folder.iterdir()) == sorted(made)
    assert all((folder / name).read_text() == name for name in made)


def test_a_remount_that_adds_sync_counts_at_once(make_node):
    node = make_node()
    node.umount()
    node.cli("volume", "set", node.volume, "--names", "delegated")
    node.mount()
    (node.mountpoint / "decided").mkdir()
    node.cli("mount", node.volume, str(node.mountpoint), "-O", "remount,sync")
    for number in range(100):
        (node.mountpoint / f"{number}").mkdir()
    node.kill_everything()  # as a machine's death: no memory of the mount is left
    node.up()
    assert {path.name for path in node.mountpoint.iterdir()} == {"decided", *map(str, range(100))}
    node.umount()


def said(node: Node) -> str:
    """What `status -v` says of the mount; `mount` says the same, unless the worker has reported in between."""
    while True:
        before, listed, after = (node.cli(*words).splitlines() for words in (("status", "-v"), ("mount",), ("status", "-v")))
        (words,) = (row for row in before if row.startswith(f"{node.mountpoint}: "))
        if words in after:
            assert words in listed
            return words.partition(": ")[2]


def test_a_power_cut_may_take_what_the_mount_says(make_node):
    node = make_node()
    node.umount()
    node.cli("volume", "set", node.volume, "--names", "delegated")
    assert "newest changes of names" in node.cli("volume", "show", node.volume)
    for options, promise, why in (
        ("", "newest changes of names", "(names=delegated)"),
        ("dirsync", "no change of a name", "option sync or dirsync"),
        ("sync", "takes nothing that was answered", "option sync or dirsync"),
    ):
        told = node.cli("mount", node.volume, str(node.mountpoint), *(["-O", options] if options else []))
        assert promise in told and why in told
        await_true("the worker's report", lambda said_then=told: said(node) in said_then, 60)
        node.umount()
    node.cli("mount", node.volume, str(node.mountpoint))
    node.cli("volume", "set", node.volume, "--names", "durable")
    await_true("the worker's report", lambda: "began when the volume had names=delegated" in said(node), 60)
    told = node.cli("mount", node.volume, str(node.mountpoint), "-O", "remount,sync")
    assert "takes nothing that was answered" in told
    await_true("the worker's next report", lambda: said(node) in told, 60)
    node.umount()
    assert "no change of a name" in node.cli("mount", node.volume, str(node.mountpoint))
