"""The RPCs about the mounts of this node."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import grpc

from awsomefsd.admin.grpc_errors import edge
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base import power_cut
from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.config import mount_options
from awsomefsd.node.catalog import Catalog
from awsomefsd.node.mounts import Mounts, MountView


class MountRpcs:
    """The RPCs about the mounts of this node.  `check_open` raises Refused while this node takes no new mounts."""

    def __init__(self, mounts: Mounts, catalog: Catalog, check_open: Callable[[], None]) -> None:
        self._mounts = mounts
        self._catalog = catalog
        self._check_open = check_open

    @edge
    def Mount(self, request: pb.MountRequest, context: grpc.ServicerContext) -> pb.MountPoint:
        options = list(request.options)
        if mount_options.REMOUNT in options:
            view = self._mounts.remount(request.volume, request.directory, options)
            return mount_message(view, self._names(), {})  # what its worker has reported is of before
        self._check_open()
        view = self._mounts.mount(request.volume, request.directory, options)
        return mount_message(view, *self._promised())

    @edge
    def Umount(self, request: pb.UmountRequest, context: grpc.ServicerContext) -> pb.UmountReply:
        done = self._mounts.umount(request.target, force=request.force)
        return pb.UmountReply(directory=done.directory, flushed=done.flushed, detached=done.detached)

    @edge
    def ListMounts(self, request: pb.ListMountsRequest, context: grpc.ServicerContext) -> pb.ListMountsReply:
        views = self._mounts.shown()
        promised = self._promised() if request.power_cut else None
        return pb.ListMountsReply(mounts=[mount_message(view, *promised) if promised else mount_message(view) for view in views])

    @edge
    def Flush(self, request: pb.FlushRequest, context: grpc.ServicerContext) -> pb.FlushReply:
        return pb.FlushReply(directory=self._mounts.flush(request.target))

    def _promised(self) -> tuple[Mapping[str, str], Mapping[int, Mapping[str, int]]]:
        names = self._names()
        try:
            return names, self._catalog.reports() if names else {}
        except (Unavailable, FsError):
            return names, {}

    def _names(self) -> Mapping[str, str]:
        try:
            return self._catalog.names()
        except (Unavailable, FsError):
            return {}


def mount_message(
    view: MountView, names: Mapping[str, str] | None = None, reports: Mapping[int, Mapping[str, int]] | None = None
) -> pb.MountPoint:
    """Returns a mount as the API shows it.

    `names` are those of the volumes, by name, empty if no leader answers, None if nobody wants to know; `reports` the workers' figures.
    """
    figures = (reports or {}).get(view.served_as, {})
    said = "" if names is None else power_cut.of_mount(names.get(view.volume_name, ""), view.options, figures)
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
        power_cut=said,
    )
