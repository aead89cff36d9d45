"""Snapshots on a real node, at the unfinished level: what a mount holds back is in them, mounted for itself or shared."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.levels import UNFINISHED_VARIABLE
from awsomefsd.base.types import ROOT_INO
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.snapshots import ListSnapshots
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.meta.client.endpoints import Endpoints
from buildtools.nodes import Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def node(make_node: Any) -> Node:
    made: Node = make_node(up=False)
    made.shared = True
    made.settings[UNFINISHED_VARIABLE] = "1"
    made.up()
    return made


def write(directory: Path, text: str) -> dict[str, bytes]:
    """Small files and a large one, held back: nothing is synced."""
    files = {f"{text}-{number}": f"{text} {number}".encode() for number in range(40)} | {f"{text}-large": text.encode() * 40_000}
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return files


class Reader:
    """Reads a volume as of a snapshot by the metadata service."""

    def __init__(self, node: Node) -> None:
        self.client = MetaClient(Endpoints(str(node.run / "meta.sock")), 0)
        self.client.start()

    def ask(self, body: Any) -> Any:
        return block_on(self.client.ask(body), 30)

    def sizes(self, volume: str, name: str) -> dict[str, int]:
        [info] = self.ask(m.GetVolumes(volume)).volumes
        [found] = self.ask(ListSnapshots(info.volume, name)).snapshots
        listed = self.ask(m.ReadDir(info.volume, ROOT_INO, 0, 1_000, True, found.snapshot)).entries
        return {os.fsdecode(entry.name): entry.attr.size for entry in listed}


def sizes(*files: dict[str, bytes]) -> dict[str, int]:
    return {name: len(data) for one in files for name, data in one.items()}


def look_at(node: Node, volume: str, first: dict[str, bytes], second: dict[str, bytes]) -> None:
    """Mounts a snapshot beside the volume: it shows what was there, whatever happens to the volume, and takes no change."""
    old = node.directory / "old"
    old.mkdir(exist_ok=True)
    node.cli("mount", f"{volume}@one", str(old))
    try:
        assert {name: (old / name).read_bytes() for name in os.listdir(old)} == first
        assert not any((old / name).exists() for name in second)
        (node.mountpoint / "second-large").write_bytes(b"third" * 40_000)
        node.cli("flush", str(node.mountpoint))
        assert (old / "first-large").read_bytes() == first["first-large"]
        for change in (lambda: (old / "new").write_bytes(b""), (old / "first-1").unlink, lambda: os.setxattr(old, "user.a", b"")):
            with pytest.raises(OSError) as refused:
                change()
            assert refused.value.errno == errno.EROFS
        assert "is mounted on node" in node.cli_error("volume", "snapshot", "delete", f"{volume}@one")
        killed = node.kill("worker")
        assert killed and (old / "first-large").read_bytes() == first["first-large"], "its successor goes on with the snapshot"
        assert (node.mountpoint / "second-large").read_bytes() == b"third" * 40_000
    finally:
        node.cli("umount", str(old))


@pytest.mark.parametrize("options", ["", "shared"])
def test_what_a_mount_holds_back_is_in_a_snapshot(node: Node, options: str) -> None:
    node.umount()
    volume = f"held-{options or 'alone'}"
    node.cli("volume", "create", volume)
    node.cli("mount", volume, str(node.mountpoint), *(["-O", options] if options else []))
    reader = Reader(node)
    try:
        first = write(node.mountpoint, "first")
        assert "synced" in node.cli("volume", "snapshot", "create", f"{volume}@one")
        second = write(node.mountpoint, "second")
        for name in first:
            (node.mountpoint / name).unlink()
        [made] = node.ask("volume", "snapshot", "create", f"{volume}@two")
        assert (made["volume"], made["name"], made["word"], made["used_inodes"]) == (volume, "two", "synced", 42)
        assert reader.sizes(volume, "one") == sizes(first) and reader.sizes(volume, "two") == sizes(second)
        assert sorted(os.listdir(node.mountpoint)) == sorted(second)
        assert [one["name"] for one in node.ask("volume", "snapshot", "ls", volume)] == ["one", "two"]
        assert "has a snapshot one" in node.cli_error("volume", "snapshot", "create", f"{volume}@one")
        look_at(node, volume, first, second)
        node.cli("volume", "snapshot", "delete", f"{volume}@one")
        assert "no snapshot 'one' (snapshots: two)" in node.cli_error("volume", "snapshot", "delete", f"{volume}@one")
        node.cli("umount", str(node.mountpoint))
        assert "has snapshots" in node.cli_error("volume", "delete", volume, "--yes-destroy", volume)
    finally:
        reader.client.close()
