"""The search for data of others on a device, before the device becomes ours.

There are three questions, and a yes to any of them refuses the device.  Does the kernel use it (mounted, swap, held by RAID or LVM, below a
loop device)?  Does it hold our superblock?  Does it hold another signature (filesystem, partition table, LVM, swap, RAID), as blkid(8) sees
it?  Without blkid only a device whose first and last MiB are zero is taken.  Force overrides signatures and other clusters, never a use: a
mounted filesystem that is overwritten takes the machine with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid

from awsomefsd.base.errors import AlreadyExists, Corrupt, Error, FormatTooNew, NotFound, Refused, WouldLoseData
from awsomefsd.base.limits import MIB, PHYSICAL_BLOCK_BYTES_MAX
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.device import Device, usage_of
from awsomefsd.io.device.superblock import Superblock, geometry, read_superblock, write_superblock

BLKID_SECONDS_MAX = 30
_BLKID_NOTHING = 2
_NAMED = ("TYPE", "PTTYPE", "LABEL", "UUID")


class AlreadyFormatted(AlreadyExists):
    """The device is one of this cluster already; `superblock` is what it holds."""

    def __init__(self, message: str, superblock: Superblock) -> None:
        super().__init__(message)
        self.superblock = superblock


def foreign_signature(path: str) -> str:
    """Returns what the device at `path` holds, in words; "" if nothing is recognised.  Our own superblock is not looked for.

    Blocks for blkid, at most BLKID_SECONDS_MAX.
    """
    blkid = shutil.which("blkid", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if blkid is None:
        return "" if _edges_are_zero(path) else "data of an unknown kind (blkid of util-linux is not installed)"
    try:
        found = subprocess.run([blkid, "-p", "-o", "export", path], capture_output=True, text=True, timeout=BLKID_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        return f"data of an unknown kind (blkid failed: {err})"
    if found.returncode == _BLKID_NOTHING and not found.stdout.strip():
        return ""
    tags = dict(line.partition("=")[::2] for line in found.stdout.splitlines() if "=" in line)
    if found.returncode:
        return f"several signatures, or data that blkid cannot read (exit status {found.returncode})"
    return describe_tags(tags)


def describe_tags(tags: dict[str, str]) -> str:
    """Returns words for the tags of `blkid -p -o export`."""
    words = []
    if "TYPE" in tags:
        words.append(f"{tags.get('USAGE', 'filesystem')} signature {tags['TYPE']}")
    if "PTTYPE" in tags:
        words.append(f"partition table {tags['PTTYPE']}")
    if not words:
        words.append("a signature (" + ", ".join(sorted(set(tags) - {"DEVNAME"})) + ")")
    words += [f"{key.lower()} {tags[key]}" for key in _NAMED if key in ("LABEL", "UUID") and key in tags]
    return ", ".join(words)


def format_device(path: str, cluster_uuid: str, *, force: bool = False, segment_bytes: int = 0) -> Superblock:
    """Writes a superblock durably and returns it; `segment_bytes`: of each segment, 0 as it fits the device.  Blocks.

    Raises AlreadyFormatted (of this cluster), WouldLoseData with what was found and what to do, Refused, NotFound, OSError.
    """
    in_use = usage_of(path) if os.path.exists(path) else ""
    if in_use:
        raise Refused(f"{path} is in use: {in_use}; unmount or release it first")
    with Device.open(path, exclusive=True) as device:
        if device.is_block_device and device.physical_block_bytes > PHYSICAL_BLOCK_BYTES_MAX:
            raise Refused(
                f"{path} has physical blocks of {device.physical_block_bytes} bytes; a power cut would damage durable data beside what is "
                f"written; at most {PHYSICAL_BLOCK_BYTES_MAX} bytes can be used"
            )
        segment_bytes, segments = geometry(device.bytes, segment_bytes)
        _refuse_ours(device, cluster_uuid, force=force)
        found = "" if force else foreign_signature(path)
        if found:
            raise WouldLoseData(f"{path} holds {found}; clear it with `wipefs --all {path}`, or use --force: both lose all data on it")
        _wipe_edges(device)
        superblock = Superblock(cluster_uuid, str(uuid.uuid4()), device.bytes, segment_bytes, segments, time.time_ns())
        write_superblock(device, superblock)
        return superblock


def _refuse_ours(device: Device, cluster_uuid: str, *, force: bool) -> None:
    try:
        existing = read_superblock(device)
    except NotFound:
        return
    except (Corrupt, FormatTooNew, Refused) as err:
        _unless(force, f"{device.path} holds a superblock of awsomefs that cannot be used ({err})", err)
        return
    if existing.cluster_uuid == cluster_uuid:
        raise AlreadyFormatted(f"{device.path} is device {existing.device_uuid} of this cluster already", existing)
    _unless(force, f"{device.path} belongs to another cluster, {existing.cluster_uuid}", None)


def _unless(force: bool, message: str, cause: Error | None) -> None:
    if not force:
        raise WouldLoseData(message + "; if that cluster is gone, add the device with --force, which destroys all data on it") from cause


def _edges_are_zero(path: str) -> bool:
    with Device.open(path, read_only=True) as device:
        buffer = aligned_buffer(MIB)
        for offset in (0, max(0, device.bytes // MIB - 1) * MIB):
            length = device.pread_into(buffer, offset)
            if any(buffer[:length]):
                return False
    return True


def _wipe_edges(device: Device) -> None:
    """Zeroes the first MiB and what lies behind the last segment, so that no old signature (a backup GPT) is found beside ours."""
    zeros = aligned_buffer(MIB)
    last = (device.bytes // MIB - 1) * MIB
    for offset in (0, last, last + MIB):
        length = min(MIB, device.bytes - offset) // device.logical_block_bytes * device.logical_block_bytes
        if length:
            device.pwritev([zeros[:length]], offset)
    device.flush()
