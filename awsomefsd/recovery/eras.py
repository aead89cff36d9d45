"""The era of devices: after a recovery, nodes of before it are refused them (decision 169).

A node that was lost may come back, with its old state and its old idea of which segments are free.  Its operator may not even know of the
recovery.  So whoever rebuilds a cluster from its devices gives all of them a new era: first in the state that is built, then in the
superblocks.  Who knows an older era neither reads nor writes the device (io/device/identified.py).

An era is the wall time of the recovery in nanoseconds, and larger than every era that the devices and the state had.  So two recoveries of
one cluster on two machines, each from another device, do not agree by chance.

Devices that were not given keep their old superblock.  The rebuilt cluster does not use them either until `device add` has raised their
era; it is not known who writes to them.

Crash windows.  Superblocks are raised before anything else is written to the devices.  After a crash from then on, only a repetition of the
recovery makes the devices usable, and it takes a larger era.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from awsomefsd.base.clock import wall_ns
from awsomefsd.base.errors import Refused
from awsomefsd.base.rule_levels import ERAS
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.superblock import ERA_MAX, Superblock, with_era, write_superblock
from awsomefsd.meta.api.commands import RaiseLevel, SetDeviceEra
from awsomefsd.meta.api.messages import Devices, GetDevices
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.recovery.first_entries import propose_one

Found = Mapping[str, tuple[Device, Superblock]]  # UUID → device


def next_era(eras: Iterable[int], now_ns: int) -> int:
    """Returns an era later than all of `eras`.  Raises Refused if there is none."""
    last = max(eras, default=0)
    if last >= ERA_MAX:
        raise Refused(f"a device has the last era that there is ({last}), so none can follow; give another copy")
    return max(now_ns, last + 1)


def begin_era(replica: Replica, found: Found, *, raises_level: bool, only_found: bool = False) -> None:
    """Gives every device of the state a new era, and raises the superblocks of those that were found.  Blocks; durable when it returns.

    With `only_found` the others keep theirs: nodes of this cluster that live use them.  Eras are of level 3.  With `raises_level` a cluster
    below it is raised to it, which needs that no other node is in the state; without, its devices keep their eras.  Raises FsError and
    OSError, and Refused if no later era is left.
    """
    machine = replica.machine
    assert isinstance(machine, Machine)
    if raises_level:
        propose_one(replica, RaiseLevel(ERAS))
    if machine.level < ERAS:
        return
    known = answer(machine, GetDevices())
    assert isinstance(known, Devices)
    eras = [info.era for info in known.devices] + [superblock.era for _, superblock in found.values()]
    era = next_era(eras, wall_ns())
    raised = [info for info in known.devices if info.uuid in found or not only_found]
    for info in raised:
        propose_one(replica, SetDeviceEra(info.uuid, era))
    replica.commit()
    for info in raised:
        if info.uuid in found:
            device, superblock = found[info.uuid]
            write_superblock(device, with_era(superblock, era))
