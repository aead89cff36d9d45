"""Programs on the mounts of the nodes while their metadata is led elsewhere: creates, renames, links, writes, locks, all verified.

Each node mounts a volume of its own device, so what a program acknowledged is known exactly (buildtools/load.py): anything lost, doubled or
stale is an error of that program at once, and at the end every file and every counter is compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from buildtools.chaos import Clients, check_after_remount, check_counters
from buildtools.cluster import Cluster
from buildtools.nodes import Node

THINK_S = 0.02


def mount_each(cluster: Cluster) -> None:
    """A device, a volume and a mount for every node."""
    for node in cluster.nodes:
        node.await_daemon()  # its metadata answers before commands are taken
        node.volume = f"of-{node.directory.name}"
        node.attach()
        node.provision()
        node.mount()


class MountLoad:
    def __init__(self, nodes: Sequence[Node], seed: int, programs: int = 2) -> None:
        self._folders = [node.mountpoint / f"load-{seed}" for node in nodes]
        self._clients = [Clients(folder, programs, seed + number, think_s=THINK_S) for number, folder in enumerate(self._folders)]

    def operations(self) -> list[int]:
        return [count for clients in self._clients for count in clients.each()]

    def wrong(self) -> list[str]:
        for clients in self._clients:
            clients.check_running()
        return [error for clients in self._clients for error in clients.errors()]

    def finish(self) -> tuple[list[tuple[float, float, str]], list[str]]:
        """The slow operations (began, took, name), and everything that is wrong."""
        slow, wrong = [], self.wrong()
        for folder, clients in zip(self._folders, self._clients, strict=True):
            finals = clients.finish()
            slow += [(float(began), float(took), str(name)) for final in finals for began, took, name in final["slow"]]
            wrong += [error for final in finals for error in final["errors"]]
            wrong += check_counters(folder, finals) + check_after_remount(finals)
        return slow, wrong

    def abandon(self) -> None:
        for clients in self._clients:
            clients.abandon()
