"""The opening of a device of the cluster: nobody uses what is at a path before its superblock has said what it is.

A path is a guess.  A reboot or a replugged cable may put another device there, of this cluster or of somebody else, and segments,
checkpoints and repairs would be written over its data.  So every opener of a device that is known by its UUID comes through here, each
time it opens.  An open descriptor needs no second look: it stays with its device, whatever becomes of the path.
"""

from __future__ import annotations

from awsomefsd.base.errors import NotFound, Refused
from awsomefsd.io.device.device import BlockDevice, Device
from awsomefsd.io.device.superblock import Superblock, read_superblock

UNWRITABLE = "a newer build uses this device, and this build could damage it; upgrade this node"
WRONG = "wrong device: "  # begins the message of WrongDevice; a health code goes by it


class WrongDevice(Refused):
    """Something else is where a device was known to be: another device, or none of this cluster.  Nothing was written to it."""


def open_identified(path: str, cluster: str, uuid: str, *, read_only: bool = False) -> Device:
    """Opens device `uuid`; with `cluster` "" only the UUID is compared.  Blocks for the device.

    A device that a newer build has marked as not to be written by this one is opened all the same; each write to it raises OSError(EROFS).
    Raises WrongDevice if `path` leads to something else, NotFound if it leads nowhere, Corrupt, FormatTooNew, Refused, and OSError.
    """
    device = Device.open(path, read_only=read_only)
    try:
        if not require_identity(device, cluster, uuid).writable:
            device.forbid_writes(UNWRITABLE)
    except BaseException:
        device.close()
        raise
    return device


def require_identity(device: BlockDevice, cluster: str, uuid: str) -> Superblock:
    """Returns the superblock of an open device, which must be `uuid`.  Raises as `open_identified`."""
    try:
        found = read_superblock(device)
    except NotFound as err:
        raise WrongDevice(f"{WRONG}{device.path} has no superblock of awsomefs; device {uuid} was there") from err
    if cluster and found.cluster_uuid != cluster:
        raise WrongDevice(f"{WRONG}{device.path} belongs to another cluster, {found.cluster_uuid}; device {uuid} was there")
    if found.device_uuid != uuid:
        raise WrongDevice(f"{WRONG}{device.path} is device {found.device_uuid} now; device {uuid} was there")
    return found
