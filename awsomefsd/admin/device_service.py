"""The RPCs about devices of the cluster and quarantine."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

import grpc

from awsomefsd.admin.grpc_errors import edge
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.served import served_message
from awsomefsd.base.errors import Refused, WouldLoseData
from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.pool.server_state import OK, DeviceState
from awsomefsd.meta.api.messages.devices import SeenDevice
from awsomefsd.node.devices.device_watch import DeviceWatch
from awsomefsd.node.devices.operations import DeviceOperations, DrainProgress
from awsomefsd.node.devices.served_devices import ServedDevices
from awsomefsd.node.maintenance.quarantine_admin import QuarantineAdmin

logger = logging.getLogger(__name__)


class DeviceCatalog(Protocol):
    """Devices as this node finds them (node/devices/devices.py)."""

    def add(self, path: str, *, shared: bool, destroy: bool) -> tuple[DeviceInfo, str]:
        """Formats and adds a device; returns it with its state.  Raises WouldLoseData if it has content and not `destroy`, and Refused."""

    def add_to_pool(self, path: str, pool: int, device_class: str, segment_bytes: int, *, destroy: bool) -> tuple[DeviceInfo, str]:
        """Formats and adds a device of this node to a pool; as `add`."""

    def all(self) -> list[tuple[DeviceInfo, str]]:
        """Returns every device of the cluster with its state on this node."""

    def state(self, info: DeviceInfo) -> str:
        """Returns "ok", or why this node cannot use the device.  Blocks for reading it."""


class DeviceRpcs:
    """The RPCs about devices and quarantine: each translates, calls one collaborator, and translates back."""

    def __init__(
        self, devices: DeviceCatalog, operations: DeviceOperations, watch: DeviceWatch, quarantine: QuarantineAdmin,
        served: ServedDevices,
    ) -> None:  # fmt: skip
        self._devices = devices
        self._operations = operations
        self._watch = watch
        self._quarantine = quarantine
        self._served = served

    @edge
    def AddDevice(self, request: pb.AddDeviceRequest, context: grpc.ServicerContext) -> pb.Device:
        if request.destroy and request.destroy != request.path:
            raise WouldLoseData(f"the confirmation {request.destroy!r} is not the device {request.path!r}; nothing was done")
        destroy = bool(request.destroy)
        if request.pool:
            if request.shared:
                raise Refused("a device of a pool is one node's; leave --shared out, or --pool")
            info, state = self._devices.add_to_pool(
                request.path, request.pool, request.device_class, request.segment_bytes, destroy=destroy
            )  # fmt: skip
        else:
            info, state = self._devices.add(request.path, shared=request.shared, destroy=destroy)
        logger.warning(
            "device added", extra={"path": request.path, "device": info.device, "uuid": info.uuid, "destroyed": bool(request.destroy)}
        )
        return device_message(info, state)

    @edge
    def ListDevices(self, request: pb.ListDevicesRequest, context: grpc.ServicerContext) -> pb.ListDevicesReply:
        report = self._operations.seen()
        rows = [
            device_message(info, state, report.seen, report.alone_ms.get(info.uuid, 0), self._served.of(info.uuid))
            for info, state in self._devices.all()
        ]
        return pb.ListDevicesReply(devices=rows)

    @edge
    def ScanDevices(self, request: pb.ScanDevicesRequest, context: grpc.ServicerContext) -> pb.ScanDevicesReply:
        found = self._watch.refresh()
        rows = [pb.ScannedDevice(path=one.path, uuid=one.uuid, bytes=one.bytes, verdict=one.verdict, serial=one.serial) for one in found]
        return pb.ScanDevicesReply(devices=rows)

    @edge
    def GrowDevice(self, request: pb.GrowDeviceRequest, context: grpc.ServicerContext) -> pb.Device:
        info = self._operations.grow(request.device)
        logger.warning("device grown", extra={"device": info.device, "bytes": info.bytes, "segments": info.segments})
        return self._device(info)

    @edge
    def DrainDevice(self, request: pb.DrainDeviceRequest, context: grpc.ServicerContext) -> pb.DrainDeviceReply:
        if request.look:
            return self._progress(self._operations.progress(request.device))
        done = self._operations.drain(request.device, undo=request.undo)
        logger.warning("device drain ordered", extra={"device": done.device.device, "undo": request.undo})
        return self._progress(done)

    @edge
    def RemoveDevice(self, request: pb.RemoveDeviceRequest, context: grpc.ServicerContext) -> pb.RemoveDeviceReply:
        done = self._operations.remove(request.device)
        logger.warning("device removed", extra={"what": done})
        return pb.RemoveDeviceReply(done=done)

    @edge
    def IdentifyDevice(self, request: pb.IdentifyDeviceRequest, context: grpc.ServicerContext) -> pb.IdentifyDeviceReply:
        facts = self._operations.identify(request.device)
        return pb.IdentifyDeviceReply(facts=[pb.DeviceFact(name=name, value=value) for name, value in facts])

    @edge
    def ListQuarantine(self, request: pb.ListQuarantineRequest, context: grpc.ServicerContext) -> pb.ListQuarantineReply:
        listing, names = self._quarantine.report()
        rows = [
            pb.Quarantined(
                session=one.session, mount=f"{one.mount:x}" if one.mount else "", volume=names.get(str(one.volume), ""),
                node=one.node, node_name=names.get(one.node, ""), ended_ms=one.ended_ms, segments=one.segments, bytes=one.bytes,
                live_bytes=one.live_bytes,
            )
            for one in listing.sessions
        ]  # fmt: skip
        return pb.ListQuarantineReply(sessions=rows, segments=listing.segments)

    @edge
    def ReleaseQuarantine(self, request: pb.ReleaseQuarantineRequest, context: grpc.ServicerContext) -> pb.ReleaseQuarantineReply:
        segments = self._quarantine.release(request.session, request.reason, request.confirm)
        logger.warning(
            "quarantine released by an operator",
            extra={"ended_session": request.session, "segments": segments, "reason": request.reason},
        )
        return pb.ReleaseQuarantineReply(segments=segments)

    def _device(self, info: DeviceInfo) -> pb.Device:
        return device_message(info, self._devices.state(info))

    def _progress(self, done: DrainProgress) -> pb.DrainDeviceReply:
        return pb.DrainDeviceReply(
            device=self._device(done.device), segments_used=done.used, live_bytes=done.live_bytes, segments_standing=done.standing,
            why=done.why,
        )  # fmt: skip


def device_message(
    info: DeviceInfo, state: str, seen: Iterable[SeenDevice] = (), alone_ms: int = 0, served: DeviceState | None = None
) -> pb.Device:
    """Returns a device as the API shows it; of `seen` it takes the reports of this device.  `served`: what its segment server says."""
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
        draining=info.draining,
        home=info.home,
        pool=info.pool,
        seen=[
            pb.DeviceSeen(
                node=one.node, name=one.name, path=one.path, bytes=one.bytes, state=one.state, heard_ms_ago=one.heard_ms_ago
            )
            for one in seen
            if one.uuid == info.uuid
        ],
        alone_ms=alone_ms,
        served=[served_message(served)] if served is not None and served.state == OK else [],
    )  # fmt: skip
