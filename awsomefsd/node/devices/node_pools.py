"""The devices that a node has in the pool, when the node is drained, used again, removed, or under maintenance.

As NodePools of cluster/pki/node_admin.py.  A drain of the node drains them all by one entry: mirrors find places that fail apart from all
of them, or it is refused before anything has begun.  A node that is used again takes data on all of them again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from awsomefsd.base.errors import ConfigError, Error, FsError, Refused
from awsomefsd.base.limits import MAINTENANCE_MS_MAX, NS_PER_MS
from awsomefsd.base.sizes import format_bytes
from awsomefsd.base.types import DeviceInfo
from awsomefsd.meta.api.commands import DrainDevice, RemoveDevice, SetMaintenance
from awsomefsd.meta.machine.devices import ROWS_REMOVED_MAX
from awsomefsd.node.catalog import Catalog
from awsomefsd.node.devices.pool_operations import PoolOperations

log = logging.getLogger(__name__)


class PoolsOfNodes:
    """Thread-safe as far as its parts are; every method blocks for the leader."""

    def __init__(
        self, catalog: Catalog, operations: PoolOperations, now_ms: Callable[[], int] = lambda: time.time_ns() // NS_PER_MS
    ) -> None:
        self._catalog, self._operations, self._now_ms = catalog, operations, now_ms

    def _of(self, node: str) -> list[DeviceInfo]:
        return [info for info in self._catalog.devices() if info.pool and info.home == node]

    def drain(self, node: str) -> None:
        """Begins to drain the devices of a node.  Raises Refused if that would never end: then none is drained that was not before."""
        own = self._of(node)
        if all(info.draining for info in own):
            return
        try:
            self._operations.drain(own[0].pool, [info.device for info in own])
        except Refused as err:
            raise Refused(f"its devices of the pool cannot be emptied: {err}") from err

    def use_again(self, node: str) -> None:
        """Ends the drains of a node's devices."""
        for info in self._of(node):
            if info.draining:
                self._catalog.propose(DrainDevice(info.device, False))

    def in_the_way(self, node: str) -> str:
        """Returns what of its devices keeps a node from being removed without a loss, in words; "" if nothing does."""
        own = self._of(node)
        used = sum(self._operations.used(info) for info in own)
        if not used:
            return ""
        leaving = self._operations.leaving(own[0].pool, [info.device for info in own])
        if not leaving.segments:
            return f"of its devices of the pool, {leaving.rest('run this again')}"
        what = f"{leaving.counted()} with {format_bytes(leaving.live_bytes)} of {leaving.names(leaving.segments)}"
        if loss := leaving.loss():
            what += f", of them {loss} nowhere else"
        if not all(info.draining for info in own):
            return f"its devices of the pool hold {what}, which have to be moved away (awsomefsd node drain)"
        why = leaving.stays()
        return f"its devices of the pool hold {what}, which {f'cannot all be moved away: {why}' if why else 'are being moved away'}"

    def remove(self, node: str) -> None:
        """Removes the devices of a node that is removed, as far as they are empty; others stay, and are lost in time.

        Nothing is raised: the node is removed already, and `device remove` does the rest.
        """
        try:
            for info in self._of(node):
                self._remove(info)
        except Error as err:  # nobody leads, or it was this node
            log.warning("devices of a node that was removed stay: %s", err, extra={"removed": node})

    def _remove(self, info: DeviceInfo) -> None:
        try:
            self._catalog.propose(DrainDevice(info.device, True))
            while self._catalog.propose(RemoveDevice(info.device, ROWS_REMOVED_MAX)).number:
                pass
        except FsError as err:
            log.warning("a device of a node that was removed stays: %s", err, extra={"device": info.device})

    def maintain(self, node: str, for_ms: int) -> int:
        """Has no device of a node count as lost for so long, 0: from now on they may; returns until when (wall clock).

        Raises Refused for a node without such devices, ConfigError for a time that is too long.
        """
        own = self._of(node)
        if not own:
            raise Refused("it has no device in a pool, so nothing is copied because it is away; just stop it")
        if not 0 <= for_ms <= MAINTENANCE_MS_MAX:
            raise ConfigError(f"a maintenance lasts {MAINTENANCE_MS_MAX // 86_400_000} days at most; begin another one then")
        until_ms = self._now_ms() + for_ms if for_ms else 0
        for pool, host in sorted({(info.pool, host) for info in own for host in self._operations.hosts(info)}):
            self._catalog.propose(SetMaintenance(pool, host, until_ms))
        return until_ms
