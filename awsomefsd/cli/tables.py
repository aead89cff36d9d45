"""The tables of devices, volumes and mounts, which several commands print."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from awsomefsd.base.log import printable
from awsomefsd.base.sizes import format_bytes
from awsomefsd.cli.output import print_table, quota, say


def print_devices(devices: Iterable[Any]) -> None:
    print_table(
        ["DEVICE", "PATH", "SIZE", "USED", "SEGMENTS", "FREE", "STATE"],
        [
            [
                device.device,
                device.path or "-",
                format_bytes(device.bytes),
                format_bytes((device.segments - device.segments_free) * device.segment_bytes),
                f"{device.segments} x {format_bytes(device.segment_bytes)}",
                device.segments_free,
                f"{device.state}, draining" if device.draining else device.state,
            ]
            for device in devices
        ],
        right=("SIZE", "USED", "SEGMENTS", "FREE"),
        empty="no devices; add one with `awsomefsd device add PATH`",
    )


def print_volumes(volumes: Iterable[Any]) -> None:
    print_table(
        ["VOLUME", "USED", "QUOTA", "FILES", "FILE QUOTA", "NAMES", "MOUNTED"],
        [
            [
                volume.name,
                format_bytes(volume.used_bytes),
                quota(volume.quota_bytes),
                volume.used_inodes,
                volume.quota_inodes or "none",
                volume.names,
                volume.mounted or "-",
            ]
            for volume in volumes
        ],
        right=("USED", "QUOTA", "FILES", "FILE QUOTA"),
        empty="no volumes; create one with `awsomefsd volume create NAME`",
    )


def print_mounts(mounts: Iterable[Any]) -> None:
    print_table(
        ["MOUNT", "VOLUME", "STATE", "WORKER", "VERSION", "RESTARTS", "OPTIONS"],
        [
            [
                mount.directory,
                mount.volume,
                mount.state,
                f"pid {mount.worker_pid}" if mount.worker_pid else "-",
                mount.worker_version or "-",
                max(mount.workers - 1, 0),
                ",".join(mount.options) or "-",
            ]
            for mount in mounts
        ],
        right=("RESTARTS",),
        empty="no mounts; mount a volume with `awsomefsd mount VOLUME DIR`",
    )


def print_power_cuts(mounts: Iterable[Any]) -> None:
    """Prints what a power cut may take from each mount; a daemon of an older build does not say it."""
    for mount in mounts:
        if mount.power_cut:
            say(f"{printable(mount.directory)}: {mount.power_cut}")
