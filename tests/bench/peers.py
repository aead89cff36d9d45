"""MooseFS and GlusterFS as one client sees them, beside ours on one node: `build.py bench --peers`.

Server and client have a network namespace each and talk over a veth pair: MooseFS refuses loopback.  What compares and what does not is in
shared_targets.py; above all, neither asks its disk to sync when a client does.
"""

from __future__ import annotations

from pathlib import Path

from buildtools import procs
from tests.bench.shared_targets import Gluster, Moose
from tests.bench.targets import cpu_us_of, drop_caches

CLIENT = 2  # the number of the namespace; the servers are in the first


class _Peer:
    """A Target (targets.py) made of one of three mounts."""

    kind: type[Moose] | type[Gluster]
    name = ""

    def __init__(self) -> None:
        self._made = self.kind()
        self.folder: Path = self._made.folders[CLIENT - 1]

    def remount(self) -> None:
        """The kernel's caches are empty afterwards.  The mount stays: what its client keeps in memory counts for it."""
        drop_caches()

    def cpu_us(self) -> dict[str, float]:
        """Of servers and clients together."""
        return {"all processes": sum(cpu_us_of(pid) for pid in procs.owned(str(self._made.directory)))}

    def close(self) -> None:
        self._made.close()


class OneMoose(_Peer):
    kind = Moose
    name = Moose.name


class OneGluster(_Peer):
    kind = Gluster
    name = Gluster.name


PEERS = (OneMoose, OneGluster)
