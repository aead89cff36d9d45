"""Questions about volumes and devices, and their answers."""

from __future__ import annotations

from awsomefsd.base.types import DeviceInfo, VolumeInfo
from awsomefsd.meta.api.messages.base import Message


class GetDevices(Message, tag=19):
    pass


class GetVolumes(Message, tag=20):
    """All volumes, or the one of that name (Failed(ENOENT))."""

    name: str = ""


class Devices(Message, tag=17):
    devices: list[DeviceInfo]


class Volumes(Message, tag=18):
    """`delegated`: the numbers of those with delegated names.  No field of VolumeInfo: it is part of kept replies, which voters compare."""

    volumes: list[VolumeInfo]
    delegated: list[int] = []


class Made(Message, tag=23):
    """The small id of a new volume or device."""

    number: int
