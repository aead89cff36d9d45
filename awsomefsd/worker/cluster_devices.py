"""The devices of the cluster, as the metadata service lists them and this node finds them."""

from __future__ import annotations

from awsomefsd.base.types import DeviceInfo, SegmentProgress
from awsomefsd.io.device.device_table import with_paths
from awsomefsd.meta.api.commands import Commit
from awsomefsd.meta.api.messages import Devices, GetDevices
from awsomefsd.worker.service_calls import ServiceCalls


class ClusterDevices:
    """Every method asks the metadata service and blocks for the answer; raises the Error that it answers."""

    def __init__(self, calls: ServiceCalls, state_dir: str, volume: int) -> None:
        self._calls = calls
        self._state_dir = state_dir
        self._volume = volume

    def find(self) -> list[DeviceInfo]:
        """All devices, with their paths on this node."""
        return with_paths(self._listed(), self._state_dir)

    def to_leave(self) -> tuple[set[int], set[int]]:
        """Numbers of the devices that are being drained, and of those that are absent."""
        devices = self._listed()
        return {info.device for info in devices if info.draining}, {info.device for info in devices if info.absent}

    def report_sealed(self, progress: list[SegmentProgress]) -> None:
        """Reports segments that were sealed without data of a commit."""
        self._calls.propose(Commit(self._volume, [], 0, progress))

    def _listed(self) -> list[DeviceInfo]:
        reply = self._calls.ask(GetDevices())
        assert isinstance(reply, Devices)
        return reply.devices
