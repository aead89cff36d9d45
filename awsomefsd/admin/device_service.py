"""The RPCs about devices of the pool and quarantine; part of service.py."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import grpc

from awsomefsd.admin import admin_pb2 as pb
from awsomefsd.admin.edge import edge
from awsomefsd.device_pool import DevicePool, Progress
from awsomefsd.device_watch import DeviceWatch
from awsomefsd.devices import NodeDevices
from awsomefsd.meta.device_messages import SeenDevice
from awsomefsd.quarantine import QuarantineDesk
from awsomefsd.types import DeviceInfo

logger = logging.getLogger(__name__)


class DeviceRpcs:
    """`pool`, `watch`, `node_devices`, `quarantine` are set by who makes the service, before it serves."""

    pool: DevicePool
    watch: DeviceWatch
    node_devices: NodeDevices
    quarantine: QuarantineDesk

    @edge
    def ScanDevices(self, request: pb.ScanDevicesRequest, context: grpc.ServicerContext) -> pb.ScanDevicesReply:
        found = self.watch.refresh()
        rows = [pb.ScannedDevice(path=one.path, uuid=one.uuid, bytes=one.bytes, verdict=one.verdict, serial=one.serial) for one in found]
        return pb.ScanDevicesReply(devices=rows)

    @edge
    def GrowDevice(self, request: pb.GrowDeviceRequest, context: grpc.ServicerContext) -> pb.Device:
        info = self.pool.grow(request.device)
        logger.warning("device grown", extra={"device": info.device, "bytes": info.bytes, "segments": info.segments})
        return self._device(info)

    @edge
    def DrainDevice(self, request: pb.DrainDeviceRequest, context: grpc.ServicerContext) -> pb.DrainDeviceReply:
        if request.look:
            return self._progress(self.pool.progress(request.device))
        done = self.pool.drain(request.device, undo=request.undo)
        logger.warning("device drain ordered", extra={"device": done.device.device, "undo": request.undo})
        return self._progress(done)

    @edge
    def RemoveDevice(self, request: pb.RemoveDeviceRequest, context: grpc.ServicerContext) -> pb.RemoveDeviceReply:
        done = self.pool.remove(request.device)
        logger.warning("device removed", extra={"what": done})
        return pb.RemoveDeviceReply(done=done)

    @edge
    def IdentifyDevice(self, request: pb.IdentifyDeviceRequest, context: grpc.ServicerContext) -> pb.IdentifyDeviceReply:
        return pb.IdentifyDeviceReply(facts=[pb.DeviceFact(name=name, value=value) for name, value in self.pool.identify(request.device)])

    @edge
    def ListQuarantine(self, request: pb.ListQuarantineRequest, context: grpc.ServicerContext) -> pb.ListQuarantineReply:
        told, names = self.quarantine.told()
        rows = [
            pb.Quarantined(
                session=one.session, mount=f"{one.mount:x}" if one.mount else "", volume=names.get(str(one.volume), ""),
                node=one.node, node_name=names.get(one.node, ""), ended_ms=one.ended_ms, segments=one.segments, bytes=one.bytes,
                live_bytes=one.live_bytes,
            )
            for one in told.sessions
        ]  # fmt: skip
        return pb.ListQuarantineReply(sessions=rows, segments=told.segments)

    @edge
    def ReleaseQuarantine(self, request: pb.ReleaseQuarantineRequest, context: grpc.ServicerContext) -> pb.ReleaseQuarantineReply:
        segments = self.quarantine.release(request.session, request.reason, request.confirm)
        logger.warning(
            "quarantine released by an operator",
            extra={"ended_session": request.session, "segments": segments, "reason": request.reason},
        )
        return pb.ReleaseQuarantineReply(segments=segments)

    def _device(self, info: DeviceInfo) -> pb.Device:
        return device_message(info, self.node_devices.state(info))

    def _progress(self, done: Progress) -> pb.DrainDeviceReply:
        return pb.DrainDeviceReply(device=self._device(done.device), segments_used=done.used, live_bytes=done.live_bytes)


def device_message(info: DeviceInfo, state: str, seen: Iterable[SeenDevice] = (), alone_ms: int = 0) -> pb.Device:
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
        seen=[
            pb.DeviceSeen(
                node=one.node, name=one.name, path=one.path, bytes=one.bytes, state=one.state, heard_ms_ago=one.heard_ms_ago
            )
            for one in seen
            if one.uuid == info.uuid
        ],
        alone_ms=alone_ms,
    )  # fmt: skip
