"""What the differential tests stand on: ext4, a mount without atimes, the processes in both, and what this build lacks.

The tables of docs/CAPABILITIES.md are the judge of what may be left out: a probe that fails although its row says "available" is an error.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from buildtools.nodes import Node
from tests.differential import machine, strategies
from tests.differential.sides import ROOT, Directory, again, ext4


def available(words: str) -> bool:
    """True if a row of docs/CAPABILITIES.md whose name has these words says so."""
    rows = [row.split("|") for row in (ROOT / "docs" / "CAPABILITIES.md").read_text().splitlines() if row.startswith("| ")]
    return any(words in row[1] and row[2].strip() == "available" for row in rows if len(row) > 3)


def missing(side: Directory) -> dict[str, tuple[str, ...]]:
    """What cannot be compared yet: its name and operations."""
    found = {}
    side.begin("probes", 0o755)
    try:
        for name, (words, kinds, probe) in strategies.PROBES.items():
            there = probe(lambda *step: side.call("root", *step))
            assert there or not available(words), f"docs/CAPABILITIES.md says that {words} is available; the mount says otherwise"
            if not there:
                found[name] = kinds
    finally:
        side.finish()
    return found


class Pair:
    """ext4 and a mount, with an actor for each user in both."""

    def __init__(self, node: Node, reference: Path) -> None:
        self.node = node
        self.killed: list[int] = []  # workers
        self.sides = [Directory("ext4", reference), Directory("mount", node.mountpoint)]
        self.missing = missing(self.sides[1])

    def bench(self, kills: bool = False) -> machine.Bench:
        left_out = {kind for kinds in self.missing.values() for kind in kinds}
        kinds = tuple(kind for kind in strategies.ARGUMENTS if kind not in left_out)
        return machine.Bench(self.sides, kinds, self.kill if kills else None, mount_again=self.mount_again)

    def mount_again(self) -> None:
        """Both, as they were."""
        ext4, ours = self.sides
        told = ext4.mount_again(lambda: again(ext4.base))
        assert ours.mount_again(self._mount_ours_again) == told

    def _mount_ours_again(self) -> None:
        self.node.cli("umount", str(self.node.mountpoint))
        mount(self.node)

    def kill(self, milliseconds: int) -> None:
        time.sleep(milliseconds / 1000)  # into an operation, not until an event
        self.killed.append(self.node.kill("worker")["worker"])

    def left_out(self) -> str:
        return f"; left out, not supported by the mount: {', '.join(self.missing)}" if self.missing else ""

    def close(self) -> None:
        for side in self.sides:
            side.close()


def mount(node: Node) -> None:
    node.cli("mount", node.volume, str(node.mountpoint), "-O", "noatime")


@contextlib.contextmanager
def pair(make_node: Callable[..., Node], folder: Path, names: str = "") -> Iterator[Pair]:
    """`names`: of the volume, if it is not as new ones are."""
    node = make_node(up=False)
    node.attach()
    node.start()
    node.provision()
    if names:
        node.cli("volume", "set", node.volume, "--names", names)
    mount(node)
    with ext4(folder) as reference:
        both = Pair(node, reference)
        try:
            yield both
        finally:
            both.close()
