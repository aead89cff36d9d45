"""The RPCs about volumes."""

from __future__ import annotations

import logging
from collections.abc import Container

import grpc

from awsomefsd.admin.grpc_errors import edge
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.errors import WouldLoseData
from awsomefsd.base.types import NAMES_WORDS, VolumeInfo
from awsomefsd.node.catalog import Catalog
from awsomefsd.node.mounts import REFUSED, Mounts
from awsomefsd.node.pools import PoolCatalog

logger = logging.getLogger(__name__)


class VolumeRpcs:
    """The RPCs about volumes.  `mounts` says where a volume is mounted on this node."""

    def __init__(self, catalog: Catalog, mounts: Mounts) -> None:
        self._catalog = catalog
        self._mounts = mounts

    @edge
    def CreateVolume(self, request: pb.CreateVolumeRequest, context: grpc.ServicerContext) -> pb.Volume:
        pools = PoolCatalog(self._catalog)
        want = pools.want(request.redundancy) if request.redundancy else None
        made = self._catalog.create_volume(
            request.name, request.quota_bytes, request.quota_inodes, request.mode or 0o755, request.uid, request.gid, request.names
        )
        if want is not None:
            pools.put(made, want)
            made = self._catalog.volume(made.name)
        logger.info("volume created", extra={"volume": made.name, "uuid": made.uuid})
        return volume_message(made, {}, self._catalog.delegated())

    @edge
    def ListVolumes(self, request: pb.ListVolumesRequest, context: grpc.ServicerContext) -> pb.ListVolumesReply:
        found = [self._catalog.volume(request.name)] if request.name else self._catalog.volumes()
        where, delegated = self._where(), self._catalog.delegated()
        return pb.ListVolumesReply(volumes=[volume_message(info, where, delegated) for info in sorted(found, key=lambda info: info.name)])

    @edge
    def SetVolume(self, request: pb.SetVolumeRequest, context: grpc.ServicerContext) -> pb.Volume:
        quota_bytes = request.quota_bytes if request.HasField("quota_bytes") else -1
        quota_inodes = request.quota_inodes if request.HasField("quota_inodes") else -1
        changed = self._catalog.set_volume(request.name, quota_bytes, quota_inodes, request.new_name, request.names)
        logger.info("volume changed", extra={"volume": request.name, "quota_bytes": changed.quota_bytes, "new_name": changed.name})
        return volume_message(changed, self._where(), self._catalog.delegated())

    @edge
    def DeleteVolume(self, request: pb.DeleteVolumeRequest, context: grpc.ServicerContext) -> pb.DeleteVolumeReply:
        if request.destroy and request.destroy != request.name:
            raise WouldLoseData(f"the confirmation {request.destroy!r} is not the volume {request.name!r}; nothing was done")
        self._catalog.delete_volume(request.name, destroy=bool(request.destroy), here=self._where().get(request.name, ""))
        logger.warning("volume deleted", extra={"volume": request.name, "destroyed": bool(request.destroy)})
        return pb.DeleteVolumeReply()

    @edge
    def ReleaseVolume(self, request: pb.ReleaseVolumeRequest, context: grpc.ServicerContext) -> pb.ReleaseVolumeReply:
        if request.confirm != request.node:
            raise WouldLoseData(f"the confirmation {request.confirm!r} is not the node {request.node!r}; nothing was done")
        paths = self._catalog.release_volume(request.name, request.node)
        logger.warning("claims of a node released", extra={"volume": request.name, "of": request.node, "paths": paths})
        return pb.ReleaseVolumeReply(paths=paths)

    def _where(self) -> dict[str, str]:
        where: dict[str, list[str]] = {}
        for view in self._mounts.shown():
            if view.state == REFUSED:
                continue  # it may be of another cluster's volume with this name
            where.setdefault(view.volume_name, []).append(view.directory)
        return {name: ", ".join(sorted(directories)) for name, directories in where.items()}


def volume_message(info: VolumeInfo, mounted: dict[str, str], delegated: Container[int]) -> pb.Volume:
    """Returns a volume as the API shows it; `mounted` is volume name → its directories on this node.

    `delegated`: the numbers of the volumes with delegated names.
    """
    return pb.Volume(
        volume=info.volume,
        uuid=info.uuid,
        name=info.name,
        quota_bytes=info.quota_bytes,
        quota_inodes=info.quota_inodes,
        used_bytes=info.used_bytes,
        used_inodes=info.used_inodes,
        reserved_bytes=info.reserved_bytes,
        home=info.home,
        mounted=mounted.get(info.name, ""),
        names=NAMES_WORDS[info.volume in delegated],
    )
