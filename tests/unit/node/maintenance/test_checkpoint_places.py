"""What a voter that stands by keeps for checkpoints where it does not see the device with the newest one."""

from __future__ import annotations

from typing import Any

import pytest

from awsomefsd.base.limits import MIB
from awsomefsd.base.types import SEGMENT_METADATA, DeviceInfo, SegmentInfo
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.commands import ReturnSegments
from awsomefsd.meta.api.messages.nodes import GetNode
from awsomefsd.node.maintenance.checkpoint_places import PlacesAlone, PlacesOfNode

CLUSTER, HERE, THERE = (f"{number:08x}-0000-0000-0000-000000000000" for number in range(1, 4))
OWN, SPARE, FOREIGN = 1, 2, 3  # devices; the last is in the other node, which leads


class State:
    """Segments 11 and 12 of OWN and 21 of SPARE are this node's, 31 of FOREIGN has the newest checkpoint."""

    def __init__(self, *, draining: int = 0, state: str = "active") -> None:
        self.draining = draining
        self.pooled: list[int] = []
        self.state = state
        self.returned: list[int] = []

    def call(self, body: Any) -> Any:
        if isinstance(body, m.GetCheckpoints):
            kept = [SegmentInfo(number, 1, number // 10, 0, MIB, SEGMENT_METADATA, 0) for number in (11, 12, 21, 31)]
            mine = m.NodeCheckpoint(HERE, [11, 12, 21], [11], OWN, 1, 1, 10)
            return m.Checkpoints(kept, [mine, m.NodeCheckpoint(THERE, [31], [31], FOREIGN, 1, 2, 20)])
        if isinstance(body, m.GetDevices):
            return m.Devices(
                [
                    DeviceInfo(one, f"uuid-{one}", 0, MIB, 800, 400, 0, draining=one == self.draining, pool=int(one in self.pooled))
                    for one in (OWN, SPARE, FOREIGN)
                ]
            )
        if isinstance(body, GetNode):
            return type("Nodes", (), {"nodes": [type("Node", (), {"state": self.state})]})
        assert isinstance(body, m.Propose) and isinstance(body.command, ReturnSegments)
        self.returned += body.command.segments
        return None


@pytest.mark.parametrize(
    ("state", "returned"),
    [(State(), []), (State(draining=OWN), [11, 12]), (State(draining=SPARE), [21]), (State(state="draining"), [11, 12, 21])],
    ids=["keeps", "drained", "other-drained", "goes"],
)
def test_a_device_that_is_drained_and_a_node_that_goes_get_back_what_is_kept(state: State, returned: list[int]) -> None:
    """Or the drain would never end: nobody else may give back what is this node's."""
    places = PlacesOfNode(state.call, CLUSTER, HERE)
    assert places.stand_by({f"uuid-{OWN}": "/dev/a", f"uuid-{SPARE}": "/dev/b"})
    assert state.returned == returned


@pytest.mark.parametrize("several", [False, True])
def test_no_checkpoint_is_written_to_a_device_of_a_pool(several: bool) -> None:
    """Its segment server has the lock on it, or could not get it."""
    state = State()

    def call(body: Any) -> Any:
        return type("Own", (), {"segments": []}) if isinstance(body, m.GetOwnSegments) else state.call(body)

    places = PlacesOfNode(call, CLUSTER, HERE) if several else PlacesAlone(call, CLUSTER)
    paths = {f"uuid-{OWN}": "/dev/a", f"uuid-{SPARE}": "/dev/b"}
    state.pooled = [OWN]
    found = places.choose(paths)
    assert found is not None and found[0].device == SPARE
    state.pooled = [OWN, SPARE]
    assert places.choose(paths) is None
