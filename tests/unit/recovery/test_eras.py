"""An era is later than all before it, or there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.errors import Refused
from awsomefsd.base.limits import MIB
from awsomefsd.base.rule_levels import ERAS
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.device.superblock import ERA_MAX, read_superblock, with_era, write_superblock
from awsomefsd.meta.api.commands import AddDevice, Init, SetDeviceEra
from awsomefsd.meta.api.messages import GetDevices
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.recovery.eras import begin_era, next_era
from awsomefsd.recovery.first_entries import propose_one
from tests.unit.io.test_formats import CLUSTER, a_superblock

SIZE = 64 * MIB
NODE = "00000000-0000-4000-8000-00000000000a"


def test_an_era_is_later_than_every_other_and_never_wraps() -> None:
    assert next_era([], 7) == 7 and next_era([3, 9], 7) == 10 and next_era([ERA_MAX - 1], 7) == ERA_MAX
    with pytest.raises(Refused, match="last era"):
        next_era([1, ERA_MAX], 7)


class Rig:
    """A state of one device, and the device; `era`: of its superblock."""

    def __init__(self, replica: Replica, level: int, era: int) -> None:
        self.replica = replica
        self.device = MemoryDevice(SIZE)
        self.device.write_once = False
        self.made = with_era(a_superblock(SIZE), era)
        write_superblock(self.device, self.made)
        made = self.made
        propose_one(replica, Init(CLUSTER, 0, level))
        propose_one(replica, AddDevice(made.device_uuid, SIZE, made.segment_bytes, made.segments, made.first_segment_offset))

    def recover(self, *, raises_level: bool, only_found: bool = False) -> None:
        found = {self.made.device_uuid: (self.device, self.made)}
        begin_era(self.replica, found, raises_level=raises_level, only_found=only_found)  # type: ignore[arg-type]

    def eras(self) -> tuple[int, int]:
        """In the state, and in the superblock."""
        self.replica.machine.flush()
        [info] = answer(self.replica.machine, GetDevices()).devices  # type: ignore[arg-type, union-attr]
        return info.era, read_superblock(self.device).era


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    made = Replica.open_single(tmp_path, CLUSTER, NODE, Machine)
    yield made
    made.close()


@pytest.mark.parametrize("raises_level", [False, True])
@pytest.mark.parametrize("only_found", [False, True])
def test_no_recovery_goes_past_the_last_era(replica: Replica, raises_level: bool, only_found: bool) -> None:
    """`device recover` of a level 3 cluster and `meta recover --force-single` do not raise the level; both need a later era."""
    rig = Rig(replica, ERAS, ERA_MAX)
    with pytest.raises(Refused, match="last era"):
        rig.recover(raises_level=raises_level, only_found=only_found)
    assert rig.eras() == (0, ERA_MAX), "state and device are as they were"


def test_the_last_era_of_the_state_counts_too(replica: Replica) -> None:
    rig = Rig(replica, ERAS, 1)
    propose_one(replica, SetDeviceEra(rig.made.device_uuid, ERA_MAX))
    with pytest.raises(Refused, match="last era"):
        rig.recover(raises_level=False)
    assert rig.eras() == (ERA_MAX, 1)


def test_the_era_before_the_last_one_can_be_followed(replica: Replica) -> None:
    rig = Rig(replica, ERAS, ERA_MAX - 1)
    rig.recover(raises_level=False)
    assert rig.eras() == (ERA_MAX, ERA_MAX)


def test_below_their_level_devices_keep_their_eras(replica: Replica) -> None:
    """Without `raises_level` the era is not even looked at: nodes of builds before could not use the devices any more."""
    rig = Rig(replica, ERAS - 1, ERA_MAX)
    rig.recover(raises_level=False)
    assert rig.eras() == (0, ERA_MAX)
    with pytest.raises(Refused, match="last era"):
        rig.recover(raises_level=True)
