"""The entries that a recovery proposes itself, before any service runs."""

from __future__ import annotations

from awsomefsd.base.clock import HybridClock, wall_ns
from awsomefsd.base.errors import FsError
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.meta.api.commands import AnyCommand, Entry
from awsomefsd.meta.api.messages import Failed
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.replica import Replica


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
