"""The driver knows a volume by the handle that the orchestrator keeps.

A handle is the UUID of a record (made by CreateVolume); or, for volumes that people made, NAME or UUID of a volume, with /PATH for a
directory in it, and with #WORDS where two PersistentVolumes of one thing need different handles.  Nothing is kept here: every question
goes to the metadata service.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from awsomefsd.base.errors import Error
from awsomefsd.base.types import ClaimInfo, CsiVolumeInfo, DeviceInfo, StatFs, VolumeInfo
from awsomefsd.csi import rules
from awsomefsd.csi.errors import CsiError, not_found, precondition
from awsomefsd.meta.api import messages
from awsomefsd.meta.api.commands import UNDECIDED, AnyCommand
from awsomefsd.meta.api.messages import csi
from awsomefsd.meta.api.messages import nodes as node_messages
from awsomefsd.node.catalog import Call, Catalog

BLOCK_FILE = "block.img"
INLINE_NODE, INLINE_TARGET = "inline-node", "inline-target"  # settings of a record that no request can have
_INLINE = uuid.UUID("6c1b7b0e-2f2d-4c39-9d5e-0b6a4c1f7a11")


@dataclass(frozen=True, slots=True)
class FoundVolume:
    """The volume, or directory of one, that a handle stands for.  `path` is "" for a whole volume."""

    handle: str
    volume: VolumeInfo
    path: str
    record: CsiVolumeInfo | None

    @property
    def block(self) -> bool | None:
        """True for a block volume; None if that is not known, because people made the volume."""
        return None if self.record is None else self.record.block

    @property
    def lock(self) -> str:
        """The name of its lock (volume_locks.py)."""
        return f"volume {self.volume.uuid}"

    @property
    def settings(self) -> dict[str, str]:
        return {} if self.record is None else dict(self.record.settings)

    @property
    def inline_node(self) -> str:
        """The node of an inline volume (inline_volumes.py), "" for any other volume."""
        return self.settings.get(INLINE_NODE, "")


class DriverVolumes:
    """The volumes, records and claims in the metadata.  Every method blocks for the answer, and raises FsError or Unavailable."""

    def __init__(self, call: Call, catalog: Catalog) -> None:
        self._call = call
        self._catalog = catalog

    def propose(self, command: AnyCommand) -> Any:
        """Commits one command, and returns its result.  Raises FsError with the rule's errno, Unavailable without a leader."""
        return self._catalog.propose(command)

    def every(self) -> list[VolumeInfo]:
        return self._catalog.volumes()

    def record(self, *, id: str = "", name: str = "") -> CsiVolumeInfo | None:
        """Returns the record with an id or a name, None if there is none."""
        rows = self._call(csi.GetCsiVolumes("", 1, id, name)).volumes
        return rows[0] if rows else None

    def page(self, after: str, count: int) -> list[CsiVolumeInfo]:
        """Returns up to `count` records with ids after `after`, in order of their ids."""
        return list(self._call(csi.GetCsiVolumes(after, count)).volumes)

    def names(self, volume: int) -> int:
        """Returns when changes of names in a volume are durable, as an index of NAMES_WORDS."""
        return int(volume in self._catalog.delegated())

    def new_names(self) -> int:
        """Returns the same of a volume that is made without a word about it."""
        return self._catalog.new_names()

    def claims(self, volume: int = 0) -> list[ClaimInfo]:
        """Returns the claims on a volume; 0: on all volumes."""
        return list(self._call(csi.GetClaims(volume)).claims)

    def statfs(self, volume: int) -> StatFs:
        """Returns the figures of a volume; what its mounts have reserved is free."""
        stat: StatFs = self._call(messages.GetStatFs(volume, 0, 0)).stat
        return stat

    def nodes(self) -> set[str]:
        """Returns the UUIDs of the cluster's nodes, without removed ones."""
        return {row.node for row in self._call(node_messages.ListNodes()).nodes if row.state != "removed"}

    def with_names(self, words: str) -> str:
        """Returns words for an event of Kubernetes: the UUIDs of nodes in them get the names of these nodes, which people know."""
        with contextlib.suppress(Error):  # the words come first: whoever waits for them is not told that the names are missing
            for row in self._call(node_messages.ListNodes()).nodes:
                if row.name:
                    words = words.replace(row.node, f"{row.name} ({row.node})")
        return words

    def figures(self) -> dict[str, int | float | str]:
        return self._catalog.figures()

    def devices(self) -> list[DeviceInfo]:
        return self._catalog.devices()

    def free_bytes(self) -> int:
        """Returns the bytes that a new volume can have: free segments of devices that take data.

        Its data goes to the shared devices if there are any, and to those of one node otherwise: then to those of the node that has most.
        """
        free: dict[str, int] = {}
        for one in self._catalog.devices():
            home = "" if one.shared else one.home
            taken = one.draining or one.absent
            free[home] = free.get(home, 0) + (0 if taken else one.segments_free * one.segment_bytes)
        return free[""] if "" in free else max(free.values(), default=0)

    def sharable(self, volume: VolumeInfo) -> bool:
        """Returns True if the data of the volume is, or will be, on devices that other nodes see."""
        return volume.home in ("", UNDECIDED) and any(device.shared for device in self._catalog.devices())

    def find(self, handle: str) -> FoundVolume:
        """Returns the volume or directory of a handle.  Raises CsiError: NOT_FOUND, INVALID_ARGUMENT for a text that is no handle."""
        rules.check_name(handle, "volume_id")
        volumes = self.every()
        if is_uuid(handle) and (record := self.record(id=handle)) is not None:
            self._refuse_inline(record)
            return FoundVolume(handle, self.of_record(record, volumes), record.path, record)
        name, slash, path = handle.partition("#")[0].partition("/")
        found = next((volume for volume in volumes if name in (volume.name, volume.uuid)), None)
        if found is None or (slash and not path):
            raise not_found(f"there is no volume {handle!r}")
        self._refuse_inline(self.record(id=found.uuid))
        return FoundVolume(handle, found, rules.check_path(path) if path else "", None)

    def find_inline(self, handle: str) -> FoundVolume | None:
        """Returns the inline volume with a handle of kubelet; None if there is none."""
        record = self.record(id=inline_id(rules.check_name(handle, "volume_id")))
        if record is None or record.name != handle or not dict(record.settings).get(INLINE_NODE):
            return None
        return FoundVolume(handle, self.of_record(record, self.every()), "", record)

    def find_any(self, handle: str) -> FoundVolume:
        """Returns the inline volume with a handle, or what `find` returns, which raises."""
        return (None if is_uuid(handle) else self.find_inline(handle)) or self.find(handle)

    def _refuse_inline(self, record: CsiVolumeInfo | None) -> None:
        node = "" if record is None else dict(record.settings).get(INLINE_NODE, "")
        if node:
            raise precondition(self.with_names(f"this is an inline volume of a pod on node {node}; nobody else can use it"))

    def of_record(self, record: CsiVolumeInfo, volumes: Iterable[VolumeInfo]) -> VolumeInfo:
        """Returns the volume of a record, out of `volumes`.  Raises CsiError NOT_FOUND if it was deleted."""
        found = next((volume for volume in volumes if volume.volume == record.volume), None)
        if found is None:
            raise not_found(f"the volume of {record.id} was deleted")
        return found

    def named(self, name: str) -> VolumeInfo:
        """Returns the volume with a name or UUID.  Raises CsiError INVALID_ARGUMENT, which speaks of the parameter `volume`.

        FAILED_PRECONDITION for an inline volume: what lies in that goes with its pod.
        """
        found = next((volume for volume in self.every() if name in (volume.name, volume.uuid)), None)
        if found is None:
            raise CsiError(
                "INVALID_ARGUMENT", f"parameter volume: there is no volume {name!r}; create it with `awsomefsd volume create {name}`"
            )
        self._refuse_inline(self.record(id=found.uuid))
        return found


def inline_id(handle: str) -> str:
    """Returns the id of the record of an inline volume: the same for the same handle, on any node and after any restart."""
    return str(uuid.uuid5(_INLINE, handle))


def is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
