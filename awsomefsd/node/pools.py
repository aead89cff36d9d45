"""Pools of node-local storage as this node's daemon changes them: volumes in a pool, and what its devices have in common.

Pools are not complete in this build.  No cluster acts at their level but those of tests, and everybody else is told so.
"""

from __future__ import annotations

import errno

from awsomefsd.base import levels
from awsomefsd.base.errors import ConfigError, Error, FsError, Refused
from awsomefsd.base.rule_levels import POOLS
from awsomefsd.base.types import SPREAD_HOST, Redundancy, VolumeInfo
from awsomefsd.config.redundancy import parse_redundancy
from awsomefsd.meta.api.commands import DeleteVolume, SetPool, SetRedundancy
from awsomefsd.meta.api.messages.nodes import ListNodes
from awsomefsd.meta.api.messages.pools import GetPool, GetPoolVolumes, Pool, PoolVolumes
from awsomefsd.node.catalog import Catalog

POOL = 1  # there is one
NO_DEVICE = "no device is in a pool; add one with `awsomefsd device add PATH --pool` on each node"


class PoolCatalog:
    """Every method blocks for the metadata service; raises its Error."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    @staticmethod
    def require_level() -> None:
        """Raises Refused where this build announces no level that knows pools.  Of the cluster's level the leader speaks."""
        if levels.highest() < POOLS:
            raise Refused("pools of node-local storage are not complete in this build; use devices of a node, or a shared one")

    def segment_bytes(self, pool: int) -> int:
        """Returns how large the segments of a pool are; 0 if it has no device yet."""
        return next((info.segment_bytes for info in self._catalog.devices() if info.pool == pool), 0)

    def hosts(self, pool: int) -> list[str]:
        """Returns the names of what fails apart from each other in a pool: the label `host` of nodes with devices there, or their name."""
        homes = {info.home for info in self._catalog.devices() if info.pool == pool and not info.draining}
        nodes = [node for node in self._catalog.ask(ListNodes()).nodes if node.node in homes]
        return sorted({node.labels.get("host", node.name or node.node) for node in nodes})

    def exists(self) -> bool:
        """Returns whether a device of the cluster is in the pool."""
        return any(info.pool == POOL for info in self._catalog.devices())

    def look(self) -> tuple[Pool, PoolVolumes, dict[str, str]]:
        """Returns the pool as the leader has it, its volumes, and the names of nodes.  Raises Refused where there is none."""
        self.require_level()
        try:
            pool: Pool = self._catalog.ask(GetPool(POOL))
            volumes: PoolVolumes = self._catalog.ask(GetPoolVolumes(POOL))
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            raise Refused(NO_DEVICE) from err
        return pool, volumes, {node.node: node.name for node in self._catalog.ask(ListNodes()).nodes}

    def set_pool(
        self, heal_bytes_per_s: int | None = None, lost_after_ms: int | None = None, reserve_percent: int | None = None
    ) -> None:
        """Says how the pool heals; what is None stays as it is.  Raises Refused, ConfigError."""
        self.require_level()
        try:
            self._catalog.propose(SetPool(POOL, heal_bytes_per_s, lost_after_ms, reserve_percent))
        except FsError as err:
            if err.errno == errno.EINVAL:
                raise ConfigError(str(err)) from err
            if err.errno == errno.ENOENT:
                raise Refused(NO_DEVICE) from err
            raise

    def want(self, text: str) -> Redundancy:
        """Returns what a volume is to survive, if it is possible now.  Raises ConfigError for what is no redundancy, and Refused."""
        want = parse_redundancy(text)
        self.require_level()
        hosts = self.hosts(POOL)
        if not hosts:
            raise Refused(NO_DEVICE)
        if want.spread == SPREAD_HOST and want.min_copies > len(hosts):
            raise Refused(
                f"{text}: {want.min_copies} mirrors at least have to be on different hosts, and the pool has {len(hosts)} "
                f"({', '.join(hosts)}); add devices on more nodes, or ask for fewer"
            )
        devices = sum(info.pool == POOL and not info.draining for info in self._catalog.devices())
        if want.min_copies > devices:
            raise Refused(f"{text}: {want.min_copies} mirrors at least have to be on different devices; the pool has {devices}, add more")
        return want

    def put(self, volume: VolumeInfo, want: Redundancy) -> None:
        """Puts a volume that was just created into the pool; it is deleted if that cannot be."""
        try:
            self._catalog.propose(SetRedundancy(volume.volume, want, POOL))
        except Error:
            self._catalog.propose(DeleteVolume(volume.volume))
            raise
