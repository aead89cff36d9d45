"""The devices that nodes have in a pool, as the node is drained, used again, removed and maintained: a machine stands behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from awsomefsd.base.errors import ConfigError, FsError, Refused, Unavailable
from awsomefsd.base.limits import MAINTENANCE_MS_MAX
from awsomefsd.base.types import Redundancy
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.pools import GetPool
from awsomefsd.node.catalog import Catalog
from awsomefsd.node.devices.node_pools import PoolsOfNodes
from awsomefsd.node.devices.pool_operations import PoolOperations
from tests.rigs.machine_driver import START_NS, sound
from tests.rigs.pool_driver import HOST, PoolDrive
from tests.unit.meta.machine.test_pools import sealed_segments

NOW_MS = START_NS // 1_000_000 + 1_000


class Rig:
    def __init__(self, hosts: int = 4, want: Redundancy | None = None) -> None:
        self.drive = PoolDrive(hosts, want=want)
        self.meanwhile: dict[type, Callable[[], object]] = {}  # what others do just before such a request is answered, once
        catalog = Catalog(self._call)
        self.pools = PoolsOfNodes(catalog, PoolOperations("cluster", self._call, catalog), lambda: NOW_MS)

    def _call(self, body: Any) -> Any:
        if isinstance(body, m.GetStatus):
            return m.Status({"level": self.drive.machine.level})
        if meanwhile := self.meanwhile.pop(type(body), None):
            meanwhile()
        self.drive.machine.flush()
        reply = self.drive.apply(body.command, **HOST) if isinstance(body, m.Propose) else self.drive.ask(body)
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        return reply

    def draining(self) -> list[int]:
        return [one.device for one in self.drive.ask(GetPool(1)).devices if one.draining]

    def maintenance(self) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = self.drive.ask(GetPool(1)).maintenance
        return found


def test_a_node_is_drained_used_again_drained_and_removed() -> None:
    rig = Rig()
    rig.drive.add(5, "n3")
    numbers = [*sealed_segments(rig.drive, 2), *sealed_segments(rig.drive, 1, 1, 2, 5)]
    assert rig.pools.in_the_way("n1").startswith("its devices of the pool hold 3 segments with ")
    assert "have to be moved away (awsomefsd node drain)" in rig.pools.in_the_way("n3")
    rig.pools.drain("n3")
    assert rig.draining() == [3, 5] and "which are being moved away" in rig.pools.in_the_way("n3")
    rig.pools.use_again("n3")
    assert rig.draining() == []
    rig.pools.drain("n3")
    rig.drive.walk()
    for number in numbers:
        [old] = [bay for bay in rig.drive.row(number).bays if bay.device in (3, 5)]
        rig.drive.heal(number, 4, (old.device, old.index))
    assert "being trimmed" in rig.pools.in_the_way("n3")
    assert rig.drive.trim(3) + rig.drive.trim(5) == 3
    assert rig.pools.in_the_way("n3") == ""
    rig.pools.remove("n3")
    assert [one.device for one in rig.drive.ask(GetPool(1)).devices] == [1, 2, 4]
    sound(rig.drive)


def test_a_node_without_devices_of_pools_has_nothing_to_do() -> None:
    rig = Rig()
    rig.pools.drain("n9")
    rig.pools.use_again("n9")
    rig.pools.remove("n9")
    assert rig.pools.in_the_way("n9") == "" and rig.draining() == []
    with pytest.raises(Refused, match="no device in a pool"):
        rig.pools.maintain("n9", 1_000)


def test_a_drain_that_would_never_end_begins_on_none_of_the_devices() -> None:
    rig = Rig(hosts=3)
    rig.drive.add(4, "n3")
    sealed_segments(rig.drive, 1)
    with pytest.raises(Refused, match="cannot move: every other host"):
        rig.pools.drain("n3")
    assert rig.draining() == []
    rig.drive.ok(c.DrainDevice(3, True), **HOST)
    assert rig.draining() == [3], "one of its devices may go, the other takes what lies there"


def test_of_two_nodes_that_are_drained_at_once_one_is_refused_where_there_is_no_room_for_both() -> None:
    rig = Rig(hosts=4)
    sealed_segments(rig.drive, 2)
    rig.meanwhile[m.Propose] = lambda: rig.pools.drain("n3")
    with pytest.raises(Refused, match="cannot move: every other host"):
        rig.pools.drain("n2")
    assert rig.draining() == [3]


def test_a_drain_is_looked_at_again_where_the_devices_have_changed_and_goes_on() -> None:
    rig = Rig(hosts=5)
    sealed_segments(rig.drive, 2)
    rig.meanwhile[m.Propose] = lambda: rig.drive.ok(c.SetDeviceState(4, 1), **HOST)
    rig.pools.drain("n3")
    assert rig.draining() == [3]


def test_devices_that_change_all_the_time_end_a_drain() -> None:
    rig = Rig(hosts=5)

    def away() -> None:
        rig.meanwhile[GetPool] = lambda: rig.drive.attach(4)
        rig.drive.ok(c.SetDeviceState(4, 1), **HOST)
        rig.meanwhile[m.Propose] = away

    rig.meanwhile[m.Propose] = away
    with pytest.raises(Refused, match=r"change all the time \(device 4 takes no new data"):
        rig.pools.drain("n3")
    assert rig.draining() == []


def test_a_node_that_is_away_trims_nothing_in_seconds() -> None:
    rig = Rig()
    [number] = sealed_segments(rig.drive, 1)
    rig.pools.drain("n3")
    rig.drive.walk()
    assert rig.pools.in_the_way("n3").endswith("which are being moved away")
    rig.drive.ok(c.SetDeviceState(4, 1), **HOST)
    assert "which cannot all be moved away: 1 segment (4.0 MiB) cannot move" in rig.pools.in_the_way("n3")
    rig.drive.attach(4)
    rig.drive.heal(number, 4, (3, 0))
    assert "takes seconds" in rig.pools.in_the_way("n3")
    rig.drive.ok(c.SetDeviceState(3, 1), **HOST)
    said = rig.pools.in_the_way("n3")
    assert "seconds" not in said and said.endswith("which is away; start it, or wait until the device counts as lost (600 s after it went)")
    rig.pools.maintain("n3", 60_000)
    assert rig.pools.in_the_way("n3").endswith("counts as lost (600 s after its maintenance has ended)")


def test_a_node_whose_devices_cannot_all_be_drained_keeps_them_all() -> None:
    rig = Rig(hosts=2, want=Redundancy(1, 1))
    rig.drive.add(3, "n1")
    rig.drive.open()
    assert rig.drive.ok(c.Reserve(rig.drive.volume, 100 << 20, 100 << 20)).bytes == 100 << 20
    with pytest.raises(Refused, match="promised"):
        rig.pools.drain("n1")
    assert rig.draining() == []


def test_what_only_a_lost_device_has_is_said() -> None:
    rig = Rig(want=Redundancy(2, 1))
    sealed_segments(rig.drive, 1, 3)
    rig.drive.ok(c.SetDeviceState(3, 2), **HOST)
    rig.pools.drain("n3")
    assert "of them 1 segment with 1000 B of volume vol is nowhere else" in rig.pools.in_the_way("n3")
    rig.pools.remove("n3")
    assert 3 in [one.device for one in rig.drive.ask(GetPool(1)).devices], "what lies there may come back"


def test_a_maintenance_is_of_what_fails_together_and_ends() -> None:
    rig = Rig()
    until = rig.pools.maintain("n2", 3_600_000)
    assert until == NOW_MS + 3_600_000 and rig.maintenance() == [("n2", until)]
    rig.pools.maintain("n1", 60_000)
    assert [host for host, _ in rig.maintenance()] == ["n1", "n2"]
    assert rig.pools.maintain("n2", 0) == 0 and [host for host, _ in rig.maintenance()] == ["n1"]
    for wrong in (-1, MAINTENANCE_MS_MAX + 1):
        with pytest.raises(ConfigError, match="7 days at most"):
            rig.pools.maintain("n2", wrong)


def test_a_node_that_is_removed_stays_so_though_nobody_can_be_asked_about_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()

    def nobody(body: Any) -> Any:
        raise Unavailable("nobody leads")

    monkeypatch.setattr(rig.pools._catalog, "_call", nobody)
    rig.pools.remove("n3")
    monkeypatch.undo()
    assert len(rig.drive.ask(GetPool(1)).devices) == 4
