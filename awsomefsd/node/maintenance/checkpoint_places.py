"""The segments that this node may write its checkpoints to, and which of them hold one that still counts.

From level 3 of the cluster on, the rows say it (meta/machine/checkpoint_segments.py): each node has segments of its own, and the newest
complete checkpoint, whichever node wrote it, is an entry of the log.  So the leader of several voters writes, whichever that is, and a new
leader knows at once what the device holds.

Below level 3 no row says which checkpoint counts.  Only one voter alone makes them, and it reads the device before it writes there.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.limits import CHECKPOINT_SEGMENTS_MIN
from awsomefsd.base.rule_levels import CHECKPOINTS_OF_NODES
from awsomefsd.base.types import HOST_UNIQUE, DeviceInfo, SegmentInfo
from awsomefsd.io.collect.checkpoint_area import Area, checkpoints_of, scan_segments
from awsomefsd.io.collect.checkpoint_format import VERSION, WITHOUT_EARLY_TAIL
from awsomefsd.io.device.device import Device
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.commands import (
    AdoptSegments,
    AnyCommand,
    CheckpointDone,
    DropSegments,
    KeepForCheckpoint,
    KeepSegments,
    ReturnSegments,
)
from awsomefsd.meta.api.messages.nodes import GetNode
from awsomefsd.meta.machine.checkpoint_segments import KEPT_SHARE
from awsomefsd.meta.replica.checkpoint_progress import OFF, UNKNOWN

Call = Callable[[Any], Any]


class PlacesAlone:
    """Below level 3: all segments that the metadata keeps are this node's.  One thread uses it; every method may block and raise Error."""

    version = WITHOUT_EARLY_TAIL

    def __init__(self, call: Call, cluster: str) -> None:
        self._call = call
        self._cluster = uuid.UUID(cluster).bytes
        self._protected: set[int] = set()  # segments of the newest valid area, and what could not be read
        self.number = 0
        self.without_room: set[int] = set()  # devices that had no room for a checkpoint of this node since its last one

    def propose(self, command: AnyCommand) -> Any:
        return self._call(m.Propose(HOST_UNIQUE, 0, 0, [], command))

    def kept(self) -> list[SegmentInfo]:
        """Returns the segments that this node may write to."""
        return list(self._call(m.GetOwnSegments()).segments)

    def any_kept(self) -> bool:
        """Returns True if there is a device that has checkpoints, or room that was kept for them."""
        return bool(self.kept())

    def choose(self, paths: dict[str, str]) -> tuple[DeviceInfo, str] | None:
        """Returns the device that has the checkpoints, unless it is being drained and another one can take them."""
        own = {info.device for info in self.kept()}
        here = self._usable(paths)
        having = [info for info in here if info.device in own]
        fitting = [info for info in here if info.segments >= CHECKPOINT_SEGMENTS_MIN and not info.draining]
        stays = [info for info in having if not info.draining]
        chosen = stays or (fitting if having or not own else []) or having
        return (chosen[0], paths[chosen[0].uuid]) if chosen else None

    def _usable(self, paths: dict[str, str]) -> list[DeviceInfo]:
        """Returns the devices of this node that its daemon may lock and write to: those of pools are their segment server's."""
        return [info for info in self._call(m.GetDevices()).devices if info.uuid in paths and not info.pool]

    def take_up(self, device: Device, info: DeviceInfo) -> int:
        """Finds what is on the device before anything is written there; returns up to which entry it holds the log, or OFF.

        The newest area is not overwritten, nor what cannot be read now.
        """
        return _reach(self._scan(device, info))

    def _scan(self, device: Device, info: DeviceInfo) -> Area | None:
        segments = {own.byte_offset: own.segment for own in self.kept() if own.device == info.device}
        found = scan_segments(device, segments, self._cluster)
        areas = checkpoints_of(device, found)
        self.number = max((header.number for headers in found.areas.values() for header, _ in headers), default=self.number)
        if areas or found.unreadable:
            self._protected = {*(areas[0].segments if areas else ()), *(segments[offset] for offset in found.unreadable)}
        return areas[0] if areas else None

    def free(self, info: DeviceInfo) -> list[SegmentInfo]:
        """Returns what is kept on a device and holds nothing that counts."""
        return [own for own in self.kept() if own.device == info.device and own.segment not in self._protected]

    def keep(self, info: DeviceInfo, count: int, *, needed: bool) -> list[SegmentInfo]:
        """Keeps more segments of a device; returns [] if there is no room and they are not `needed`."""
        try:
            return list(self.propose(self._keeping(info, count)).segments)
        except Error:
            if needed:
                self.without_room.add(info.device)
                raise
            return []

    def _keeping(self, info: DeviceInfo, count: int) -> AnyCommand:
        return KeepSegments(info.device, count)

    def done(self, info: DeviceInfo, segments: list[int], term: int, index: int) -> None:
        """A checkpoint in these segments is complete, durable, and reaches entry `index`: from now on it is the one that counts."""
        self._protected = set(segments)
        self.without_room.clear()

    def protected(self) -> int:
        """Returns how many segments hold what counts."""
        return len(self._protected)

    def drop(self, segments: list[int]) -> None:
        if segments:
            self.propose(DropSegments(segments))

    def clear_others(self, info: DeviceInfo) -> None:
        """Gives back what other devices have kept: there is a checkpoint on this one, so it is not needed any more."""
        self.drop([own.segment for own in self.kept() if own.device != info.device])


class PlacesOfNode(PlacesAlone):
    """From level 3 on: the segments of this node.  Its daemon alone writes there and gives them back."""

    version = VERSION

    def __init__(self, call: Call, cluster: str, node: str) -> None:
        super().__init__(call, cluster)
        self._node = node

    def _look(self) -> tuple[m.Checkpoints, m.NodeCheckpoint | None, m.NodeCheckpoint | None]:
        """Returns all that is kept, this node's part, and that of the node with the newest checkpoint."""
        told: m.Checkpoints = self._call(m.GetCheckpoints())
        mine = next((one for one in told.nodes if one.node == self._node), None)
        newest = max((one for one in told.nodes if one.area), key=lambda one: (one.term, one.index, one.number), default=None)
        self.number = max([self.number, *(one.number for one in told.nodes)])
        return told, mine, newest

    def kept(self) -> list[SegmentInfo]:
        told, mine, _ = self._look()
        own = set(mine.segments) if mine is not None else set()
        return [info for info in told.kept if info.segment in own]

    def any_kept(self) -> bool:
        return bool(self._look()[0].kept)

    def choose(self, paths: dict[str, str]) -> tuple[DeviceInfo, str] | None:
        """Returns the device with the newest checkpoint if it is here, has room and is not being drained; else one that is large enough, a
        shared one first: it is there for another node when this one is gone."""
        told, _, newest = self._look()
        at = {info.device for info in told.kept} if newest is None else {newest.device}
        here = self._usable(paths)
        fitting = [info for info in here if info.segments >= CHECKPOINT_SEGMENTS_MIN or info.device in at]
        if not fitting:
            return None
        full = self.without_room
        chosen = min(
            fitting, key=lambda info: (info.absent, info.draining, info.device in full, info.device not in at, not info.shared, info.device)
        )
        return chosen, paths[chosen.uuid]

    def take_up(self, device: Device, info: DeviceInfo) -> int:
        """As in PlacesAlone.  The device is read only if no row says what it holds: after a recovery, or when level 3 was reached."""
        told, _, newest = self._look()
        owned = {number for one in told.nodes for number in one.segments}
        if any(one.segment not in owned for one in told.kept):
            self.propose(AdoptSegments(self._node))
        if newest is None:
            found = self._scan(device, info)
            # another node's may be of a log that did not become this one (a majority that was lost): it protects nothing here
            return UNKNOWN if found is not None and found.header.node != uuid.UUID(self._node).bytes else _reach(found)
        self._protected = set(newest.area) if newest.node == self._node else set()
        return newest.index

    def _keeping(self, info: DeviceInfo, count: int) -> AnyCommand:
        return KeepForCheckpoint(info.device, count, self._node)

    def done(self, info: DeviceInfo, segments: list[int], term: int, index: int) -> None:
        self.propose(CheckpointDone(self._node, info.device, segments, self.number, term, index))
        super().done(info, segments, term, index)

    def drop(self, segments: list[int]) -> None:
        if segments:
            self.propose(ReturnSegments(self._node, segments))

    def stand_by(self, paths: dict[str, str]) -> bool:
        """Another node leads: keeps room for a checkpoint of this node and the one after it, as large as the newest; gives the rest back.

        So this node has room when it begins to lead, also on a device that is full then.  A part of what the metadata may keep is left to
        the leader, whose state may grow.  Where this node does not see the newest one, it keeps what it has, but not on drained devices.
        Returns False while the newest checkpoint is this node's own: then nothing changes.
        Nothing may be written to these segments any more when this is called.
        """
        told, mine, newest = self._look()
        if newest is None or newest.node == self._node:
            return mine is None
        devices = {info.device: info for info in self._call(m.GetDevices()).devices}
        info = devices[newest.device]
        own = mine.segments if mine is not None else []
        if info.absent or info.uuid not in paths:
            goes = self._is_to_go()
            self.drop([one.segment for one in told.kept if one.segment in own and (goes or devices[one.device].draining)])
            return True
        kept = [one.segment for one in told.kept if one.device == info.device]
        here = [number for number in own if number in kept]
        share = info.segments // KEPT_SHARE
        fits = share * 3 // 4 - (len(kept) - len(here))
        if len(kept) <= share * 7 // 8:
            fits = max(fits, len(here))
        count = 0 if info.draining or self._is_to_go() else max(0, min(2 * len(newest.area), fits))
        self.drop([number for number in own if number not in here[:count]])
        if count > len(here):
            self.keep(info, count - len(here), needed=False)
        return True

    def _is_to_go(self) -> bool:
        """Returns True for a node that takes nothing new: it may be removed soon, and what it keeps then stays kept."""
        try:
            return any(row.state != "active" for row in self._call(GetNode(self._node)).nodes)
        except FsError:  # it has no row: a cluster without certificates, or by an older build
            return False


def _reach(area: Area | None) -> int:
    return area.last if area is not None else OFF


def places_of(call: Call, cluster: str, node: str, *, level: int, alone: bool) -> PlacesAlone | None:
    """Returns the places for a node that leads; None if no checkpoints are made there."""
    if level >= CHECKPOINTS_OF_NODES:
        return PlacesOfNode(call, cluster, node)
    return PlacesAlone(call, cluster) if alone else None
