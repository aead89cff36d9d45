"""The RPCs of admin.proto: translate, call one collaborator, translate back.  Runs on gRPC's threads, which may block.

Domain errors become a status here, in one place (`_edge`); anything else is a bug of ours, logged with its trace and answered INTERNAL.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc
import msgspec

from awsomefsd.admin import admin_pb2 as pb
from awsomefsd.admin import admin_pb2_grpc
from awsomefsd.admin.cluster_service import ClusterRpcs
from awsomefsd.admin.device_service import DeviceRpcs, device_message
from awsomefsd.admin.edge import edge as _edge
from awsomefsd.admin.edge import fail as _fail
from awsomefsd.admin.server import FOLLOWERS_MAX
from awsomefsd.admin.streams import Streams
from awsomefsd.backup import Backups
from awsomefsd.catalog import Catalog
from awsomefsd.errors import Error, Overloaded, WouldLoseData
from awsomefsd.meta.commands import Entry
from awsomefsd.mounts import Mounts, MountView
from awsomefsd.scrub import Progress, Scrub
from awsomefsd.types import DeviceInfo, VolumeInfo
from awsomefsd.upgrade import Levels, Upgrade

logger = logging.getLogger(__name__)


class Devices(Protocol):
    """Devices as this node finds them (devices.py)."""

    def add(self, path: str, *, shared: bool, destroy: bool) -> tuple[DeviceInfo, str]: ...
    def all(self) -> list[tuple[DeviceInfo, str]]:
        """With each its state on this node: "ok", or why it cannot be used."""


class Collecting(Protocol):
    """Collection of sparse segments on this node (collection.py)."""

    def order(self, action: str) -> None: ...
    def told(self) -> tuple[str, dict[str, int], str]:
        """State, figures, the last error."""


class AdminService(ClusterRpcs, DeviceRpcs, admin_pb2_grpc.AdminServicer):
    """`status` makes the answer to GetStatus (status.py): it needs more of the daemon than the rest does."""

    def __init__(
        self,
        catalog: Catalog,
        devices: Devices,
        mounts: Mounts,
        streams: Streams,
        collection: Collecting,
        status: Callable[[], pb.Status],
        scrub: Scrub,
        backups: Backups,
    ) -> None:
        self._catalog = catalog
        self._streams = streams
        self._devices = devices
        self._mounts = mounts
        self._collection = collection
        self._status = status
        self._scrub = scrub
        self._backups = backups
        self._upgrade = Upgrade(catalog)
        self._followers = threading.BoundedSemaphore(FOLLOWERS_MAX)
        self.stopping = threading.Event()

    @_edge
    def GetStatus(self, request: pb.GetStatusRequest, context: grpc.ServicerContext) -> pb.Status:
        return self._status()

    # --- devices ------------------------------------------------------------------------------------------------------------

    @_edge
    def AddDevice(self, request: pb.AddDeviceRequest, context: grpc.ServicerContext) -> pb.Device:
        if request.destroy and request.destroy != request.path:
            raise WouldLoseData(f"the confirmation {request.destroy!r} is not the device {request.path!r}; nothing was done")
        info, state = self._devices.add(request.path, shared=request.shared, destroy=bool(request.destroy))
        logger.warning(
            "device added", extra={"path": request.path, "device": info.device, "uuid": info.uuid, "destroyed": bool(request.destroy)}
        )
        return device_message(info, state)

    @_edge
    def ListDevices(self, request: pb.ListDevicesRequest, context: grpc.ServicerContext) -> pb.ListDevicesReply:
        told = self.pool.seen()
        rows = [device_message(info, state, told.seen, told.alone_ms.get(info.uuid, 0)) for info, state in self._devices.all()]
        return pb.ListDevicesReply(devices=rows)

    @_edge
    def Collect(self, request: pb.CollectRequest, context: grpc.ServicerContext) -> pb.CollectReply:
        if request.action:
            self._collection.order(request.action)
            logger.info("collection ordered", extra={"action": request.action})
        state, figures, error = self._collection.told()
        return pb.CollectReply(state=state, figures=figures, last_error=error)

    # --- volumes ------------------------------------------------------------------------------------------------------------

    @_edge
    def CreateVolume(self, request: pb.CreateVolumeRequest, context: grpc.ServicerContext) -> pb.Volume:
        made = self._catalog.create_volume(
            request.name, request.quota_bytes, request.quota_inodes, request.mode or 0o755, request.uid, request.gid
        )
        logger.info("volume created", extra={"volume": made.name, "uuid": made.uuid})
        return volume_message(made, {})

    @_edge
    def ListVolumes(self, request: pb.ListVolumesRequest, context: grpc.ServicerContext) -> pb.ListVolumesReply:
        found = [self._catalog.volume(request.name)] if request.name else self._catalog.volumes()
        where = self._where()
        return pb.ListVolumesReply(volumes=[volume_message(info, where) for info in sorted(found, key=lambda info: info.name)])

    @_edge
    def SetVolume(self, request: pb.SetVolumeRequest, context: grpc.ServicerContext) -> pb.Volume:
        quota_bytes = request.quota_bytes if request.HasField("quota_bytes") else -1
        quota_inodes = request.quota_inodes if request.HasField("quota_inodes") else -1
        changed = self._catalog.set_volume(request.name, quota_bytes, quota_inodes, request.new_name)
        logger.info("volume changed", extra={"volume": request.name, "quota_bytes": changed.quota_bytes, "new_name": changed.name})
        return volume_message(changed, self._where())

    @_edge
    def DeleteVolume(self, request: pb.DeleteVolumeRequest, context: grpc.ServicerContext) -> pb.DeleteVolumeReply:
        if request.destroy and request.destroy != request.name:
            raise WouldLoseData(f"the confirmation {request.destroy!r} is not the volume {request.name!r}; nothing was done")
        self._catalog.delete_volume(request.name, destroy=bool(request.destroy))
        logger.warning("volume deleted", extra={"volume": request.name, "destroyed": bool(request.destroy)})
        return pb.DeleteVolumeReply()

    @_edge
    def ReleaseVolume(self, request: pb.ReleaseVolumeRequest, context: grpc.ServicerContext) -> pb.ReleaseVolumeReply:
        if request.confirm != request.node:
            raise WouldLoseData(f"the confirmation {request.confirm!r} is not the node {request.node!r}; nothing was done")
        paths = self._catalog.release_volume(request.name, request.node)
        logger.warning("claims of a node released", extra={"volume": request.name, "of": request.node, "paths": paths})
        return pb.ReleaseVolumeReply(paths=paths)

    # --- scrub --------------------------------------------------------------------------------------------------------------

    @_edge
    def ScrubStart(self, request: pb.ScrubStartRequest, context: grpc.ServicerContext) -> pb.Scrub:
        logger.info("scrub started", extra={"bytes_per_s": request.bytes_per_s})
        return scrub_message(self._scrub.start(request.bytes_per_s))

    @_edge
    def ScrubStatus(self, request: pb.ScrubStatusRequest, context: grpc.ServicerContext) -> pb.Scrub:
        return scrub_message(self._scrub.status())

    @_edge
    def ScrubStop(self, request: pb.ScrubStopRequest, context: grpc.ServicerContext) -> pb.Scrub:
        logger.info("scrub stopped")
        return scrub_message(self._scrub.stop())

    def _where(self) -> dict[str, str]:
        return {view.volume_name: view.directory for view in self._mounts.views()}

    # --- mounts -------------------------------------------------------------------------------------------------------------

    @_edge
    def Mount(self, request: pb.MountRequest, context: grpc.ServicerContext) -> pb.MountPoint:
        self.cluster.check_open()
        return mount_message(self._mounts.mount(request.volume, request.directory, list(request.options)))

    @_edge
    def Umount(self, request: pb.UmountRequest, context: grpc.ServicerContext) -> pb.UmountReply:
        done = self._mounts.umount(request.target, force=request.force)
        return pb.UmountReply(directory=done.directory, flushed=done.flushed, detached=done.detached)

    @_edge
    def ListMounts(self, request: pb.ListMountsRequest, context: grpc.ServicerContext) -> pb.ListMountsReply:
        return pb.ListMountsReply(mounts=[mount_message(view) for view in self._mounts.views()])

    @_edge
    def Flush(self, request: pb.FlushRequest, context: grpc.ServicerContext) -> pb.FlushReply:
        return pb.FlushReply(directory=self._mounts.flush(request.target))

    # --- the change stream ----------------------------------------------------------------------------------------------------

    def Follow(self, request: pb.FollowRequest, context: grpc.ServicerContext) -> Iterator[pb.Change]:
        if not self._followers.acquire(blocking=False):
            _fail(context, Overloaded(f"{FOLLOWERS_MAX} followers are connected already; end one first"))
            return
        try:
            going = lambda: context.is_active() and not self.stopping.is_set()  # noqa: E731
            for entry in self._streams.follow(request.after, request.reader, for_ever=request.follow, going=going):
                yield change_message(entry)
        except Error as err:
            _fail(context, err)
        finally:
            self._followers.release()

    @_edge
    def GetUpgrade(self, request: pb.GetUpgradeRequest, context: grpc.ServicerContext) -> pb.UpgradeStatus:
        return upgrade_message(self._upgrade.status())

    @_edge
    def FinalizeUpgrade(self, request: pb.FinalizeUpgradeRequest, context: grpc.ServicerContext) -> pb.UpgradeStatus:
        done = self._upgrade.finalize()
        logger.warning("the cluster's level was raised", extra={"level": done.level})
        return upgrade_message(done)

    def BackupMetadata(self, request: pb.BackupMetadataRequest, context: grpc.ServicerContext) -> Iterator[pb.BackupPiece]:
        try:
            for piece in self._backups.pieces():
                yield pb.BackupPiece(data=piece)
        except Error as err:
            _fail(context, err)

    @_edge
    def RemoveReader(self, request: pb.RemoveReaderRequest, context: grpc.ServicerContext) -> pb.RemoveReaderReply:
        self._streams.remove(request.name)
        return pb.RemoveReaderReply()


def upgrade_message(found: Levels) -> pb.UpgradeStatus:
    nodes = [pb.NodeLevel(node=node.node, name=node.name, version=node.version, level=node.level) for node in found.nodes]
    return pb.UpgradeStatus(level=found.level, known=found.known, nodes=nodes)


def volume_message(info: VolumeInfo, mounted: dict[str, str]) -> pb.Volume:
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
    )


def mount_message(view: MountView) -> pb.MountPoint:
    return pb.MountPoint(
        mount=f"{view.mount:x}",
        volume=view.volume_name,
        directory=view.directory,
        options=view.options,
        state=view.state,
        worker_pid=view.worker_pid,
        workers=view.workers,
        last_error=view.last_error,
        worker_version=view.version,
    )


def scrub_message(progress: Progress) -> pb.Scrub:
    shown = [field.name for field in pb.Scrub.DESCRIPTOR.fields if field.name != "findings"]
    findings = [pb.ScrubFinding(**msgspec.structs.asdict(finding)) for finding in progress.findings]
    return pb.Scrub(findings=findings, **{name: getattr(progress, name) for name in shown})


def change_message(entry: Entry) -> pb.Change:
    command = entry.command
    fields = {name: _plain(getattr(command, name)) for name in command.__struct_fields__}
    return pb.Change(
        index=entry.index,
        term=entry.term,
        time_ns=entry.time_ns,
        site=entry.site,
        stamp=entry.stamp,
        mount=entry.mount,
        unique=entry.unique,
        session=entry.session,
        epoch=entry.epoch,
        command=type(command).__name__,
        fields=json.dumps(fields),
    )


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; bytes (names) as text, with what is no UTF-8 escaped."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
