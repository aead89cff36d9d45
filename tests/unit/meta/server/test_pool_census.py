"""The leader keeps what its own daemon has counted of a pool, and shows it to everybody as long as it leads."""

from __future__ import annotations

from pathlib import Path

import pytest

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import NODE_REPORT_TEXT_BYTES_MAX
from awsomefsd.meta.api import bounds
from awsomefsd.meta.api.messages import Done
from awsomefsd.meta.api.messages.pools import GetPool, PoolCensus, ReportCensus, StandingDrain
from tests.rigs.pool_cluster import LEADER, PoolCluster
from tests.rigs.segment_servers import node_of

CENSUS = PoolCensus([1, 2, 0, 0, 0], 1, 5, 3, "no room", 2, 1 << 20, 7, [4], [StandingDrain(3, 2, 5, "no room")])


def test_a_census_is_shown_while_its_leader_leads(tmp_path: Path) -> None:
    cluster = PoolCluster(tmp_path, 1)
    try:
        assert cluster.ask(GetPool(1)).census is None
        assert cluster.ask(ReportCensus(LEADER, CENSUS)) == Done()
        found = cluster.ask(GetPool(1))
        assert found.census == CENSUS and 0 <= found.census_ms_ago < 600_000
        assert cluster.ask(ReportCensus(node_of(1), PoolCensus([9] * 5))) == Done()
        assert cluster.ask(GetPool(1)).census == CENSUS, "another node has led before, and does not know it"
        cluster.abdicate()
        cluster.lead()
        assert cluster.ask(GetPool(1)).census is None, "a new leadership has counted nothing yet"
    finally:
        cluster.close()


def test_a_census_has_bounds() -> None:
    bounds.check(ReportCensus(LEADER, CENSUS))
    long = "x" * (NODE_REPORT_TEXT_BYTES_MAX + 1)
    standing = [[StandingDrain(3, 2, 5, "")] * 10_000, [StandingDrain(-1, 2, 5, "")], [StandingDrain(3, 2, 5, long)]]
    drains = [PoolCensus([], standing=one) for one in standing]
    for wrong in (PoolCensus([1] * 10_000), PoolCensus([], left_alone=[1] * 10_000), PoolCensus([-1]), PoolCensus([], why=long), *drains):
        with pytest.raises(ProtocolError):
            bounds.check(ReportCensus(LEADER, wrong))
