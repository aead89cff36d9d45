"""Answers of the node that change nothing: figures of a volume, and health.

Figures come from the metadata service, not from statfs(2) on the mount: a mount whose worker is being replaced would let kubelet's question
wait, and every figure of the node with it.
"""

from __future__ import annotations

import stat

from awsomefsd.csi import blocks, rules
from awsomefsd.csi.errors import CsiError, invalid, not_found
from awsomefsd.csi.homes import Homes
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.places import Place, Root
from awsomefsd.csi.settings import Driver
from awsomefsd.csi.volumes import BLOCK_FILE, Found, Volumes
from awsomefsd.fuse import mount_syscall
from awsomefsd.fuse.mount_syscall import MountEntry

_BYTES, _INODES = pb.VolumeUsage.BYTES, pb.VolumeUsage.INODES


class Questions:
    def __init__(self, driver: Driver, volumes: Volumes, homes: Homes, root: Root) -> None:
        self._driver = driver
        self._volumes = volumes
        self._homes = homes
        self._root = root

    def published(self, found: Found, path: str, staging: str = "") -> MountEntry:
        """The home of a volume that is mounted at a path; NOT_FOUND."""
        home = self._homes.entry(found.volume)
        try:
            with self._root.place(path, "volume_path") as place:
                if home is not None and self._is_there(place, home, found):
                    return home
        except CsiError as err:  # a path where no volume can be: nothing is mounted there
            if err.status not in ("INVALID_ARGUMENT", "NOT_FOUND"):
                raise
        raise not_found(f"{found.handle} is not mounted at {path}")

    def _is_there(self, place: Place, home: MountEntry, found: Found) -> bool:
        entry = place.mounted()
        file = f"{home.dir}/{BLOCK_FILE if found.record is not None else found.path or BLOCK_FILE}"
        if entry is None:  # the staging path of a block volume is no mount
            return place.kind() == stat.S_IFDIR and found.block is not False and bool(blocks.of_file(file))
        if entry.fstype == mount_syscall.FSTYPE:
            return (entry.device, entry.root) == (home.device, "/" + found.path)
        return any(entry.root == f"/{name}" for name in blocks.of_file(file))

    def stats(self, request: pb.NodeGetVolumeStatsRequest) -> pb.NodeGetVolumeStatsResponse:
        rules.check_name(request.volume_id, "volume_id")
        if not request.volume_path:
            raise invalid("volume_path is missing")
        found = self._volumes.find(request.volume_id)
        self.published(found, request.volume_path, request.staging_target_path)
        response = pb.NodeGetVolumeStatsResponse()
        if found.block and found.record is not None:
            response.usage.add(total=found.record.capacity, unit=_BYTES)
        else:
            stat_of = self._volumes.statfs(found.volume.volume)
            used, inodes = found.volume.used_bytes, found.volume.used_inodes
            response.usage.add(available=max(stat_of.bytes_free, 0), total=stat_of.bytes_total, used=used, unit=_BYTES)
            response.usage.add(available=max(stat_of.inodes_free, 0), total=stat_of.inodes_total, used=inodes, unit=_INODES)
        if self._driver.health_api == "1.12":
            response.volume_condition.CopyFrom(pb.VolumeCondition(abnormal=False, message="the volume is mounted"))
        return response

    def volume_health(self, request: pb.NodeGetVolumeHealthRequest) -> pb.NodeGetVolumeHealthResponse:
        rules.check_name(request.volume_id, "volume_id")
        found = self._volumes.find(request.volume_id)
        health = pb.VolumeHealth(volume_id=request.volume_id)
        if self._homes.entry(found.volume) is None:
            health.health_statuses.add(status=pb.INACCESSIBLE, reason="NotServed", message="the volume's mount on this node is not served")
        return pb.NodeGetVolumeHealthResponse(volume_health=health)

    def storage_health(self) -> pb.NodeGetStorageHealthResponse:
        """Reached if the metadata answers (otherwise the question fails with UNAVAILABLE, which says the same)."""
        damaged = int(self._volumes.figures().get("collect_corrupt_pieces", 0))
        response = pb.NodeGetStorageHealthResponse()
        if damaged:
            words = f"{damaged} extents with wrong bytes were found on a device"
            response.backend_health.add(status=pb.STORAGE_DEGRADED, reason="Damage", message=words)
        return response
