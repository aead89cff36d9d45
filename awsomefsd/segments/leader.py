"""A segment server asks the leader: what a bay is, and once every LOOK_MS who is a member and which devices are this node's.

It asks as its node, by a client of its own without a number (LeaderAccess): the number of the node is its daemon's, whose unacknowledged
results would go if somebody else asked under it.  So a command whose answer is lost may be executed twice.  All that this process
proposes bears that: an address that is the same, and an attach, which is refused the second time, and begins anew with the next generation.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from awsomefsd.base.errors import WAS_REMOVED, FsError
from awsomefsd.base.limits import SEGMENT_ASK_MS_MAX
from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.pool.server import KnownNode
from awsomefsd.meta.api.commands import SetSegmentServer
from awsomefsd.meta.api.messages import GetDevices
from awsomefsd.meta.api.messages.devices import BayInfo, GetBays
from awsomefsd.meta.api.messages.nodes import ListNodes
from awsomefsd.node.metadata_access import MetadataAccess

_ASK_S = SEGMENT_ASK_MS_MAX / 1_000


class LeaderRows:
    """BayRows by questions to the leader.  Any thread."""

    def __init__(self, access: MetadataAccess) -> None:
        self._access = access

    def bay(self, device: int, index: int) -> BayInfo | None:
        """Returns what the log says now; None for a bay that is free, and for one of a device that is in no pool any more.

        Blocks for SEGMENT_ASK_MS_MAX at most.  Raises Error when nobody can say.
        """
        try:
            told = self._access.ask(GetBays(device, index, 1), _ASK_S).bays
        except FsError as err:
            if err.errno == errno.ENOENT:
                return None
            raise
        return told[0] if told else None


class PoolsOfNode(NamedTuple):
    """The cluster as the leader has it: its members, and the devices of pools whose home is this node."""

    members: dict[str, KnownNode]
    devices: dict[int, DeviceInfo]


def look(access: MetadataAccess, node: str) -> PoolsOfNode | None:
    """Returns the cluster as the leader has it now; None where this node is no member any more.  Blocks; raises Error."""
    try:
        nodes = access.ask(ListNodes(), _ASK_S).nodes
        devices = access.ask(GetDevices(), _ASK_S).devices
    except FsError as err:
        if WAS_REMOVED in str(err):
            return None
        raise
    members = {row.node: KnownNode(row.role, row.segments) for row in nodes}
    return PoolsOfNode(members, {info.device: info for info in devices if info.pool and info.home == node})


def tell_address(access: MetadataAccess, node: str, address: str) -> None:
    """Has the node's row say where its segment server is.  Blocks; raises Error."""
    access.propose(SetSegmentServer(node, address), _ASK_S)
