"""The RPCs about pools, over the rows of a machine."""

from __future__ import annotations

from typing import Any
from unittest import mock

import grpc
import pytest

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.pool_service import PoolRpcs
from awsomefsd.base import levels
from awsomefsd.base.errors import FsError
from awsomefsd.base.rule_levels import POOLS
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.pools import Pool, PoolCensus, StandingDrain
from awsomefsd.meta.machine.queries import answer
from awsomefsd.node.catalog import Catalog
from awsomefsd.node.pools import PoolCatalog
from tests.rigs.machine_driver import SEGMENT_BYTES, Drive
from tests.rigs.pool_driver import HOST, PoolDrive
from tests.unit.meta.machine.test_pools import sealed_segments


class Rig:
    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        self.census: PoolCensus | None = None
        self.rpcs = PoolRpcs(PoolCatalog(Catalog(self._call)), lambda: 0)
        self.context = mock.Mock(spec=grpc.ServicerContext)

    def refusal(self) -> str:
        """What the last call was refused with."""
        assert self.context.set_code.call_args.args[0] is not grpc.StatusCode.INTERNAL
        return str(self.context.set_details.call_args.args[0])

    def _call(self, body: Any) -> Any:
        if isinstance(body, m.GetStatus):
            return m.Status({"level": self.drive.machine.level})
        self.drive.machine.flush()
        reply = self.drive.apply(body.command, **HOST) if isinstance(body, m.Propose) else answer(self.drive.machine, body)
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        if isinstance(reply, Pool):
            reply.census, reply.census_ms_ago = self.census, 300
        return reply


@pytest.fixture(autouse=True)
def unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "highest", lambda: POOLS)


def test_a_pool_is_shown() -> None:
    rig = Rig(PoolDrive(4, bays=16))
    sealed_segments(rig.drive, 2)
    rig.drive.ok(c.DrainDevice(3, True), **HOST)
    said = rig.rpcs.GetPoolStatus(pb.GetPoolStatusRequest(), rig.context)
    assert (said.raw_bytes, said.raw_free_bytes, said.counted_ms_ago) == (64 * SEGMENT_BYTES, 58 * SEGMENT_BYTES, -1)
    assert [(one.redundancy, list(one.volumes), one.domains) for one in said.policies] == [("replicas=3", ["vol"], 3)]
    assert [[one.state for one in host.devices] for host in said.hosts] == [["ok"], ["ok"], ["draining"], ["ok"]]
    assert said.healing.seconds_left == -1 and not said.lacks
    rig.census = PoolCensus([0, 0, 2, 0, 0], since_ms=5, copies=1, bytes_per_s=SEGMENT_BYTES, left_alone=[4])
    said = rig.rpcs.GetPoolStatus(pb.GetPoolStatusRequest(), rig.context)
    assert [(one.priority, one.segments, one.bytes_at_most) for one in said.lacks] == [(2, 2, 2 * SEGMENT_BYTES)]
    assert (said.healing.seconds_left, said.counted_ms_ago, said.hosts[3].devices[0].left_alone) == (2, 300, True)


def test_drains_that_do_not_go_on_are_shown_until_they_are_taken_back() -> None:
    rig = Rig(PoolDrive(4, bays=16))
    rig.drive.ok(c.DrainDevice(3, True), **HOST)
    rig.census = PoolCensus([0, 0, 2, 0, 0], standing=[StandingDrain(3, 2, 5, "no room")])
    [one] = rig.rpcs.GetPoolStatus(pb.GetPoolStatusRequest(), rig.context).standing
    assert one == pb.PoolStandingDrain(device=3, node="n3", segments=2, bytes=2 * SEGMENT_BYTES, since_ms=5, why="no room")
    rig.drive.ok(c.DrainDevice(3, False), **HOST)
    assert not rig.rpcs.GetPoolStatus(pb.GetPoolStatusRequest(), rig.context).standing


def test_what_is_set_is_set_and_the_rest_stays() -> None:
    rig = Rig(PoolDrive())
    said = rig.rpcs.SetPool(pb.SetPoolRequest(reserve_percent=0, lost_after_ms=5_000), rig.context)
    assert (said.heal_bytes_per_s, said.lost_after_ms, said.reserve_percent) == (64 << 20, 5_000, 0)
    said = rig.rpcs.SetPool(pb.SetPoolRequest(heal_bytes_per_s=1 << 20), rig.context)
    assert (said.heal_bytes_per_s, said.lost_after_ms, said.reserve_percent) == (1 << 20, 5_000, 0)
    assert not rig.context.set_code.called
    for wrong in (pb.SetPoolRequest(heal_bytes_per_s=0), pb.SetPoolRequest(reserve_percent=51)):
        assert rig.rpcs.SetPool(wrong, rig.context) == pb.PoolStatus()
        assert "0 to 50 percent" in rig.refusal()


def test_without_a_pool_and_without_the_level_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(Drive(level=POOLS))
    rig.rpcs.GetPoolStatus(pb.GetPoolStatusRequest(), rig.context)
    assert "no device is in a pool" in rig.refusal()
    rig.context.reset_mock()
    rig.rpcs.SetPool(pb.SetPoolRequest(reserve_percent=5), rig.context)
    assert "no device is in a pool" in rig.refusal()
    rig = Rig(PoolDrive())
    monkeypatch.setattr(levels, "highest", lambda: POOLS - 1)
    rig.rpcs.GetPoolStatus(pb.GetPoolStatusRequest(), rig.context)
    assert "not complete in this build" in rig.refusal()
