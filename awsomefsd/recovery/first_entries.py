"""The entries that a recovery proposes itself, before any service runs."""

from __future__ import annotations

from awsomefsd.base.clock import HybridClock, wall_ns
from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import NUMBERS_JUMP
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.meta.api.commands import AnyCommand, Entry, Recover
from awsomefsd.meta.api.messages import Failed
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.replica import Replica

RECOVERIES_MAX = 1_000  # that are taken to have begun with one copy: each costs an entry


def propose_one(replica: Replica, command: AnyCommand) -> object:
    """Proposes and applies one entry; returns its reply.  Raises FsError if it was refused."""
    machine = replica.machine
    stamp = HybridClock(machine.last_stamp, wall_ns).now()
    site = machine.site if isinstance(machine, Machine) else 0
    replica.propose([Entry(0, 0, command.since, 0, site, stamp, wall_ns(), 0, HOST_UNIQUE, 0, 0, [], command)])
    ((_, reply),) = replica.ready()
    if isinstance(reply, Failed):
        raise FsError(reply.errno, reply.detail)
    return reply


def recover_from_copy(replica: Replica, incarnation_seen: int, proof: str, node: str) -> None:
    """Begins a cluster again from a copy of its state.  `incarnation_seen`: the newest found on the devices.  Raises FsError.

    Each Recover makes the numbers of sessions and inodes jump once.  They have to end up behind those of all that began with this copy: a
    mount that lives through two recoveries from one copy would take the second for a change of the leader, and its session for its own
    (decision 456).  What such a cluster has written says how many there were; one that has written no segment is not known.
    """
    machine = replica.machine
    assert isinstance(machine, Machine)
    begun = incarnation_seen // NUMBERS_JUMP
    for _ in range(min(begun - machine.state.cluster.next_session // NUMBERS_JUMP, RECOVERIES_MAX)):
        propose_one(replica, Recover(0, proof, node))
    propose_one(replica, Recover(incarnation_seen, proof, node))
