"""The health of a volume, as CSI says it: devices of its data that no node sees, files with wrong bytes, damage met by collection.

Devices are those of the volume's locality (meta/machine/locality.py), as the leader knows them.  Damaged files are those that this node has
met: a record is a file of the node that read it, so drivers of other nodes may know of others.  A volume without data has no device yet.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from awsomefsd.base.types import DeviceInfo, VolumeInfo
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.volumes import DriverVolumes
from awsomefsd.io.file.damaged_reads import DamagedRead

logger = logging.getLogger(__name__)
Entry = pb.VolumeHealth.VolumeHealthEntry
_SHOWN = 3  # files, in the message


class HealthFacts(NamedTuple):
    """What is known at one moment, for any number of volumes.  `damaged`: the paths of damaged files by volume number."""

    devices: Sequence[DeviceInfo]
    damaged: Mapping[int, Sequence[str]]
    corrupt_pieces: int

    def of(self, volume: VolumeInfo) -> list[Entry]:
        """Returns the findings about one volume, the worst first; [] if all is well."""
        found = [*self._of_devices(volume), *self._of_files(volume)]
        if words := self.of_storage():
            found.append(Entry(status=pb.DEGRADED, reason="Damage", message=words))
        return sorted(found, key=lambda one: _WORST_FIRST.index(one.status))

    def of_storage(self) -> str:
        """Returns what is wrong with the storage beneath all volumes; "" if nothing is."""
        return f"collection found {self.corrupt_pieces} extents with wrong bytes on a device" if self.corrupt_pieces else ""

    def _of_devices(self, volume: VolumeInfo) -> Iterable[Entry]:
        here = [one for one in self.devices if ("" if one.shared else one.home) == volume.home]
        absent = [one for one in here if one.absent]
        if absent:
            names = ", ".join(one.uuid for one in absent)
            words = f"no node sees device {names}; files that lie there answer EIO until it is connected again (`awsomefsd device ls`)"
            yield Entry(status=pb.INACCESSIBLE if absent == here else pb.DEGRADED, reason="DeviceAbsent", message=words)

    def _of_files(self, volume: VolumeInfo) -> Iterable[Entry]:
        if files := self.damaged.get(volume.volume):
            names = ", ".join(files[:_SHOWN]) + (f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else "")
            words = f"bytes on the device are wrong; reading them answers EIO: {names}"
            yield Entry(status=pb.DATA_LOSS, reason="DamagedFile", message=words)


_WORST_FIRST = (pb.DATA_LOSS, pb.INACCESSIBLE, pb.DEGRADED)


class VolumeHealth:
    """Looks at the health of volumes.  Every method blocks for the metadata service, and raises FsError or Unavailable."""

    def __init__(self, volumes: DriverVolumes, damaged: Callable[[], Iterable[DamagedRead]]) -> None:
        self._volumes = volumes
        self._damaged = damaged

    def facts(self) -> HealthFacts:
        files: dict[int, list[str]] = defaultdict(list)
        for one in self._records():
            path = one.path or f"inode {one.ino}"
            if path not in files[one.volume]:
                files[one.volume].append(path)
        return HealthFacts(self._volumes.devices(), files, int(self._volumes.figures().get("collect_corrupt_pieces", 0)))

    def _records(self) -> Iterable[DamagedRead]:
        try:
            return self._damaged()
        except OSError as err:  # there is more to tell
            logger.warning("the records of wrong bytes cannot be read", extra={"reason": str(err)})
            return ()

    def of(self, volume: VolumeInfo) -> list[Entry]:
        """Returns the findings about one volume, the worst first; [] if all is well."""
        return self.facts().of(volume)


def condition(found: Sequence[Entry], well: str) -> pb.VolumeCondition:
    """Returns findings as CSI 1.12 wants them; `well` says that there are none."""
    return pb.VolumeCondition(abnormal=bool(found), message="; ".join(one.message for one in found) or well)
