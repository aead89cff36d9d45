"""The opening of a device of the cluster: nobody uses what is at a path before its superblock has said what it is.

A path is a guess.  A reboot or a replugged cable may put another device there, of this cluster or of somebody else, and segments,
checkpoints and repairs would be written over its data.  So every opener of a device that is known by its UUID comes through here, each
time it opens.  An open descriptor stays with its device, whatever becomes of the path.

A device has an era: `device recover` and `meta restore` raise it, in the superblock and in the state that they build.  A node of before
the recovery, with its old state, knows a smaller era, and must neither read nor write: what it takes for free may hold data since, and
the other way round.  So every opener compares, and those that keep a device open look again every DEVICE_ERA_LOOK_MS.
"""

from __future__ import annotations

import logging
import time

from awsomefsd.base.errors import NotFound, Refused
from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.io.device.device import BlockDevice, Device
from awsomefsd.io.device.superblock import UNWRITABLE, Superblock, read_superblock, repair_copies

log = logging.getLogger("awsomefsd.devices")

RECOVERED = "recovered: "  # begins the message of a RecoveredDevice; a health code goes by it
LEFT_OUT = "not recovered: "  # begins the message about a device that was not given to a recovery
WRONG = "wrong device: "  # begins the message of WrongDevice; a health code goes by it


class WrongDevice(Refused):
    """Something else is where a device was known to be: another device, or none of this cluster.  Nothing was written to it."""


class RecoveredDevice(Refused):
    """The device and the state of this node are of different eras.  Nothing was written to the device."""


def open_identified(path: str, cluster: str, uuid: str, era: int | None, *, read_only: bool = False) -> Device:
    """Opens device `uuid`; with `cluster` "" and `era` None these are not compared.  Blocks for the device.

    `era`: as the state of the cluster has it.

    A device that a newer build has marked as not to be written by this one is opened all the same; each write to it raises OSError(EROFS).
    Raises WrongDevice if `path` leads to something else, RecoveredDevice for one of another era,
    NotFound if it leads nowhere, Corrupt, FormatTooNew, Refused, and OSError.
    """
    device = Device.open(path, read_only=read_only)
    try:
        if not require_identity(device, cluster, uuid, era).writable:
            device.forbid_writes(UNWRITABLE)
    except BaseException:
        device.close()
        raise
    return device


def mend_identified(device: Device, cluster: str, uuid: str, device_bytes: int, era: int) -> bool:
    """Repairs the damaged one of the two superblocks of a device that `open_identified` has opened for writing; True if it did.

    Only where the good one names this cluster and this device, with the size and era that its row has: anything else may be
    another device's, or one that is growing.  A device that must not be written stays as it is.  Logged.  Blocks; raises as
    `open_identified`.
    """
    found = require_identity(device, cluster, uuid, era)
    if not cluster or not found.writable or found.device_bytes != device_bytes:
        return False
    repaired = repair_copies(device, found)
    for offset in repaired:
        log.warning("a damaged superblock was rewritten from the other one", extra={"device": uuid, "path": device.path, "offset": offset})
    return bool(repaired)


def require_identity(device: BlockDevice, cluster: str, uuid: str, era: int | None) -> Superblock:
    """Returns the superblock of an open device, which must be `uuid`.  Raises as `open_identified`."""
    try:
        found = read_superblock(device)
    except NotFound as err:
        raise WrongDevice(f"{WRONG}{device.path} has no superblock of awsomefs; device {uuid} was there") from err
    if cluster and found.cluster_uuid != cluster:
        raise WrongDevice(f"{WRONG}{device.path} belongs to another cluster, {found.cluster_uuid}; device {uuid} was there")
    if found.device_uuid != uuid:
        raise WrongDevice(f"{WRONG}{device.path} is device {found.device_uuid} now; device {uuid} was there")
    if era is not None and (trouble := other_era(device.path, found.era, era)):
        raise RecoveredDevice(trouble)
    return found


def other_era(path: str, found: int, known: int) -> str:
    """Returns why a device of era `found` must not be used by a node whose state says `known`; "" if they are the same."""
    if found > known:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found // (1_000 * NS_PER_MS)))
        return (
            f"{RECOVERED}the cluster was rebuilt from {path} elsewhere ({when}), and this node's state is from before; stop this node, "
            f"move its state directory away, and join the rebuilt cluster with a token (docs/DISASTER-RECOVERY.md)"
        )
    if found < known:
        return f"{LEFT_OUT}{path} was not given when the cluster was rebuilt from its devices; `awsomefsd device add {path}` takes it in"
    return ""
