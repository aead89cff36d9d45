"""The RPCs about the mounts of this node."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from awsomefsd.admin.grpc_errors import edge
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.config import mount_options
from awsomefsd.node.mounts import Mounts, MountView


class MountRpcs:
    """The RPCs about the mounts of this node.  `check_open` raises Refused while this node takes no new mounts."""

    def __init__(self, mounts: Mounts, check_open: Callable[[], None]) -> None:
        self._mounts = mounts
        self._check_open = check_open

    @edge
    def Mount(self, request: pb.MountRequest, context: grpc.ServicerContext) -> pb.MountPoint:
        options = list(request.options)
        if mount_options.REMOUNT in options:
            return mount_message(self._mounts.remount(request.volume, request.directory, options))
        self._check_open()
        return mount_message(self._mounts.mount(request.volume, request.directory, options))

    @edge
    def Umount(self, request: pb.UmountRequest, context: grpc.ServicerContext) -> pb.UmountReply:
        done = self._mounts.umount(request.target, force=request.force)
        return pb.UmountReply(directory=done.directory, flushed=done.flushed, detached=done.detached)

    @edge
    def ListMounts(self, request: pb.ListMountsRequest, context: grpc.ServicerContext) -> pb.ListMountsReply:
        return pb.ListMountsReply(mounts=[mount_message(view) for view in self._mounts.views()])

    @edge
    def Flush(self, request: pb.FlushRequest, context: grpc.ServicerContext) -> pb.FlushReply:
        return pb.FlushReply(directory=self._mounts.flush(request.target))


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
