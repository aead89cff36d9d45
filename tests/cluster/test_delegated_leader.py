"""A mount that decides names by itself while leaders die, and in the end its own machine.

Nothing fsynced is missing, and what is left is a prefix of what was done.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from buildtools.nodes import await_true
from tests.rigs.network_namespaces import found_static

WAIT_S = 90
SYNC_EVERY = 25  # changes
pytestmark = [pytest.mark.root, pytest.mark.soak, pytest.mark.timeout(1_200)]


class Changes(threading.Thread):
    """Makes files, and renames and removes older ones; syncs the directory now and then.  The n-th change is always the same."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.directory = directory
        self.done = self.synced = 0
        self.error: OSError | None = None

    @staticmethod
    def change(number: int) -> tuple[str, int]:
        """Two files are made for each that is renamed or removed."""
        return ("make", number) if number % 3 < 2 else ("rename" if number % 2 else "remove", number - 2)

    @classmethod
    def names(cls, count: int) -> set[str]:
        """What is there after so many changes."""
        there: set[str] = set()
        for number in range(count):
            kind, of = cls.change(number)
            if kind == "make":
                there.add(f"f{of}")
            else:
                there.discard(f"f{of}")
                there |= {f"g{of}"} if kind == "rename" else set()
        return there

    def run(self) -> None:
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            while True:
                self.one(*self.change(self.done))
                self.done += 1
                if self.done % SYNC_EVERY == 0:
                    os.fsync(folder)
                    self.synced = self.done
        except OSError as err:
            self.error = err
        finally:
            os.close(folder)

    def one(self, kind: str, of: int) -> None:
        path = self.directory / f"f{of}"
        if kind == "make":
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        elif kind == "rename":
            os.rename(path, self.directory / f"g{of}")
        else:
            os.unlink(path)

    def more(self, count: int) -> None:
        before = self.synced
        await_true(f"{count} more changes synced", lambda: self.error is not None or self.synced >= before + count, WAIT_S)
        assert self.error is None, self.error


def test_leaders_die_and_then_the_machine(make_cluster, figures) -> None:
    cluster = make_cluster(3)
    found_static(cluster)
    cluster.launch()
    leader = cluster.await_leader()
    node = next(node for node in cluster.nodes if node is not leader)
    node.await_daemon(WAIT_S)
    node.provision()
    assert node.ask("volume", "set", node.volume, "--names", "delegated")["names"] == "delegated"
    node.mount()
    folder = node.mountpoint / "d"
    folder.mkdir()
    changes = Changes(folder)
    changes.start()
    changes.more(100)
    killed = 0
    while killed < 2:
        leader = cluster.await_leader()
        leader.kill("daemon")
        killed += leader is not node
        changes.more(100)

    node.kill_everything()
    changes.join(WAIT_S)
    assert changes.error is not None and not changes.is_alive()
    node.detach_mount()
    node.launch()
    node.await_daemon(WAIT_S)
    cluster.await_leader(timeout_s=WAIT_S)
    node.mount()
    left = {path.name for path in folder.iterdir()}
    ends = [count for count in range(changes.synced, changes.done + 2) if Changes.names(count) == left]
    assert ends, f"synced {changes.synced}, done {changes.done}, there are {len(left)}: {sorted(left ^ Changes.names(changes.done))[:20]}"
    figures.append(f"delegated names, leaders killed: {changes.done} changes, {changes.synced} synced, {ends[0]} there after the end")
    node.umount()
