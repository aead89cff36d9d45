"""The RPCs of admin.proto: translate, call one collaborator, translate back.  Runs on gRPC's threads, which may block.

Domain errors become a status here, in one place (`_edge`); anything else is a bug of ours, logged with its trace and answered INTERNAL.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc
import msgspec

from awsomefsd.admin import admin_pb2 as pb
from awsomefsd.admin import admin_pb2_grpc, trailers
from awsomefsd.admin.server import FOLLOWERS_MAX
from awsomefsd.catalog import Catalog
from awsomefsd.errors import Error, Overloaded, WouldLoseData
from awsomefsd.meta import stream
from awsomefsd.mounts import Mounts, MountView
from awsomefsd.types import DeviceInfo, VolumeInfo

logger = logging.getLogger(__name__)
FOLLOW_ENTRIES = 256
FOLLOW_WAIT_MS = 1_000  # how late a follower notices that its client went away


class Devices(Protocol):
    """Devices as this node finds them (devices.py)."""

    def add(self, path: str, *, shared: bool, destroy: bool) -> tuple[DeviceInfo, str]: ...
    def all(self) -> list[tuple[DeviceInfo, str]]:
        """With each its state on this node: "ok", or why it cannot be used."""


def _edge(rpc: Callable[..., Any]) -> Callable[..., Any]:
    """Domain errors become what gRPC sends."""

    @functools.wraps(rpc)
    def call(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return rpc(self, request, context)
        except Error as err:
            logger.info("admin call refused", extra={"rpc": rpc.__name__, "reason": str(err)})
            _fail(context, err)
        except Exception:
            logger.exception("admin call failed", extra={"rpc": rpc.__name__})
            context.set_code(grpc.StatusCode.INTERNAL)
            context.set_details("a bug in the daemon; its log has the details")
        return getattr(pb, _REPLIES[rpc.__name__])()

    return call


def _fail(context: grpc.ServicerContext, err: Error) -> None:
    context.set_trailing_metadata(trailers.trailing(err))
    context.set_code(trailers.status_of(err))
    context.set_details(str(err))


_REPLIES = {method.name: method.output_type.name for method in pb.DESCRIPTOR.services_by_name["Admin"].methods}


class AdminService(admin_pb2_grpc.AdminServicer):
    """`status` makes the answer to GetStatus (status.py): it needs more of the daemon than the rest does."""

    def __init__(self, catalog: Catalog, devices: Devices, mounts: Mounts, status: Callable[[], pb.Status]) -> None:
        self._catalog = catalog
        self._devices = devices
        self._mounts = mounts
        self._status = status
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
        return pb.ListDevicesReply(devices=[device_message(info, state) for info, state in self._devices.all()])

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

    def _where(self) -> dict[str, str]:
        return {view.volume_name: view.directory for view in self._mounts.views()}

    # --- mounts -------------------------------------------------------------------------------------------------------------

    @_edge
    def Mount(self, request: pb.MountRequest, context: grpc.ServicerContext) -> pb.MountPoint:
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
            yield from self._changes(request, context)
        except Error as err:
            _fail(context, err)
        finally:
            self._followers.release()

    def _changes(self, request: pb.FollowRequest, context: grpc.ServicerContext) -> Iterator[pb.Change]:
        """A page at a time.  The cursor of a named reader moves only when its client has asked for more than the page: gRPC pulls the next
        message when the last one is on its way, so a client that dies may see a page again and never misses one."""
        cursor = request.after
        if request.reader:
            self._catalog.register_reader(request.reader, cursor)
        last = self._catalog.follow(cursor, 1, 0).last
        while context.is_active() and not self.stopping.is_set():
            reply = self._catalog.follow(cursor, FOLLOW_ENTRIES, FOLLOW_WAIT_MS if request.follow else 0)
            entries = stream.changes(reply, cursor)
            for entry in entries:
                if not request.follow and entry.index > last:
                    break
                yield change_message(entry, reply.first_kept, reply.last)
                cursor = entry.index
            if request.reader and entries:
                self._catalog.advance_reader(request.reader, cursor)
            if not request.follow and (cursor >= last or not entries):
                return

    @_edge
    def RemoveReader(self, request: pb.RemoveReaderRequest, context: grpc.ServicerContext) -> pb.RemoveReaderReply:
        self._catalog.remove_reader(request.name)
        return pb.RemoveReaderReply()


def device_message(info: DeviceInfo, state: str) -> pb.Device:
    return pb.Device(
        device=info.device,
        uuid=info.uuid,
        path=info.path,
        bytes=info.bytes,
        segment_bytes=info.segment_bytes,
        segments=info.segments,
        segments_free=info.segments_free,
        shared=info.shared,
        state=state,
    )


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
    )


def change_message(entry: Any, first_kept: int, last: int) -> pb.Change:
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
        first_kept=first_kept,
        last=last,
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
