"""Snapshots of volumes as this node's daemon makes, lists, finds and deletes them.

Before one is made all mounts of its volume, on whatever node, write what they hold back (meta/server/flushes.py).  Then it says `synced`:
every operation that had returned before is in it.  Of those that began meanwhile some may be in it and others not, though one began after
another had returned: mounts are not held.

Snapshots are not complete in this build.  No cluster acts at their level but those of tests, and everybody else is told so.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable
from typing import Any

from awsomefsd.base import levels
from awsomefsd.base.errors import AlreadyExists, ConfigError, FsError, NotFound, Refused
from awsomefsd.base.limits import SNAPSHOT_FLUSH_MS_MAX, SNAPSHOT_NAME_BYTES_MAX
from awsomefsd.base.rule_levels import SNAPSHOTS
from awsomefsd.base.types import SNAPSHOT_CRASH, SNAPSHOT_SYNCED, SnapshotInfo, VolumeInfo
from awsomefsd.meta.api.commands import CreateSnapshots, DeleteSnapshot, NewSnapshot
from awsomefsd.meta.api.messages.snapshots import FlushVolumes, ListSnapshots
from awsomefsd.node.catalog import Catalog

_FLUSH_S = SNAPSHOT_FLUSH_MS_MAX / 1_000 + 10  # the leader's own words arrive before


def check_snapshot_name(name: str) -> str:
    """Returns `name` if it may be the name of a snapshot.  Raises ConfigError."""
    if not 0 < len(name.encode()) <= SNAPSHOT_NAME_BYTES_MAX:
        raise ConfigError(f"the name of a snapshot has 1 to {SNAPSHOT_NAME_BYTES_MAX} bytes; choose another")
    if name in (".", "..") or not name.isprintable() or set("/@") & set(name):
        raise ConfigError(f"{name!r} is no name of a snapshot: it has no slash, no @ and no control character, and is not . or ..")
    return name


class SnapshotCatalog:
    """Every method blocks for the metadata service, and raises its Error.  `ask` takes for how many seconds an answer is waited for."""

    def __init__(self, catalog: Catalog, ask: Callable[[Any, float], Any]) -> None:
        self._catalog, self._ask = catalog, ask

    def require_level(self) -> None:
        """Raises Refused where this build, or the cluster, is at no level that knows snapshots."""
        if levels.highest() < SNAPSHOTS:
            raise Refused("snapshots are not complete in this build; copy the files, or back them up")
        if (level := self._catalog.level()) < SNAPSHOTS:
            raise Refused(levels.too_low(SNAPSHOTS, level))

    def all(self, volume: str) -> tuple[VolumeInfo, list[SnapshotInfo]]:
        """Returns a volume and its snapshots, in the order in which they were made.  Raises NotFound without such a volume."""
        self.require_level()
        found = self._catalog.volume(volume)
        return found, list(self._catalog.ask(ListSnapshots(found.volume)).snapshots)

    def find(self, volume: str, name: str) -> tuple[VolumeInfo, SnapshotInfo]:
        """Returns a volume and its snapshot of a name.  Raises NotFound, which lists those that there are."""
        found, known = self.all(volume)
        for info in known:
            if info.name == name:
                return found, info
        names = ", ".join(info.name for info in known[-20:]) or "none"
        raise NotFound(f"volume {volume!r} has no snapshot {name!r} (snapshots: {names}); look at `awsomefsd volume snapshot ls {volume}`")

    def create(self, volumes: list[str], name: str, *, crash_consistent: bool) -> list[SnapshotInfo]:
        """Makes snapshots of volumes, of one moment, and returns them in that order.

        Raises Refused, with the mount that did not write what it holds back; AlreadyExists, ConfigError, NotFound.
        """
        self.require_level()
        check_snapshot_name(name)
        if len(set(volumes)) < len(volumes) or not volumes:
            raise ConfigError("name each volume once")
        found = [self._catalog.volume(volume) for volume in volumes]
        if not crash_consistent:
            self._flush(name, found)
        word = SNAPSHOT_CRASH if crash_consistent else SNAPSHOT_SYNCED
        try:
            made = self._catalog.propose(CreateSnapshots(name, [NewSnapshot(one.volume, str(uuid.uuid4())) for one in found], word))
        except FsError as err:
            if err.errno == errno.EEXIST:
                raise AlreadyExists(f"{err}; choose another name") from err
            if err.errno == errno.ENOSPC:
                raise Refused(str(err)) from err
            raise FsError(err.errno, f"snapshot {name} cannot be made: {err}") from err
        return list(made.snapshots)

    def _flush(self, name: str, volumes: list[VolumeInfo]) -> None:
        try:
            self._ask(FlushVolumes([one.volume for one in volumes]), _FLUSH_S)
        except FsError as err:
            named = ", ".join(f"{one.name} is volume {one.volume}" for one in volumes)
            raise Refused(
                f"snapshot {name} was not made: {err} ({named}); with --crash-consistent it is made of what is stored already"
            ) from err

    def delete(self, volume: str, name: str) -> SnapshotInfo:
        """Deletes a snapshot, and returns what it was.  Raises NotFound, Refused while it is mounted."""
        found, info = self.find(volume, name)
        try:
            self._catalog.propose(DeleteSnapshot(found.volume, info.snapshot))
        except FsError as err:
            if err.errno == errno.EBUSY:
                raise Refused(f"{err}; `awsomefsd umount` it there") from err
            raise FsError(err.errno, f"snapshot {name} of volume {volume} cannot be deleted: {err}") from err
        return info
