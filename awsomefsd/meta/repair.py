"""What fsck would do about the faults of a state: a plan, made on an overlay of the rows and checked before anything is written.

The steps go from what is believed to what follows from it: rows that do not decode, names, bytes, and what the cluster counts.  They run
until the checks find nothing or nothing changes any more; a fault that stays is reported, not hidden.  A plan of a sound state is empty.
The rows of the plan then become entries (RepairRows) of bounded size.  Between two of them a state is half repaired, so fsck must be run
again after a crash; it finds what is left.  Rejected: one entry for all, which has no bound.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from awsomefsd.limits import REPAIR_ENTRY_BYTES, REPAIR_ENTRY_ROWS
from awsomefsd.meta import keys, rows
from awsomefsd.meta.check import check
from awsomefsd.meta.commands import RepairRows
from awsomefsd.meta.faults import Fault
from awsomefsd.meta.mend_bytes import Places, VolumeBytes
from awsomefsd.meta.mend_holders import Holders
from awsomefsd.meta.mend_names import Names
from awsomefsd.meta.mend_rows import mend_rows
from awsomefsd.meta.mender import Action, Hints, Mender
from awsomefsd.meta.txn import Txn

ROUNDS_MAX = 4


class Plan(Struct):
    """`found`: faults of the state as it is; `remaining`: of the state as it would be."""

    found: list[Fault]
    remaining: list[Fault]
    actions: list[Action]
    deletes: list[bytes]
    puts: list[tuple[bytes, bytes]]


def plan(txn: Txn, hints: Hints) -> Plan:
    """Changes nothing."""
    found = check(txn)
    mender = Mender(txn, hints)
    remaining = found
    for _ in range(ROUNDS_MAX):
        if not remaining:
            break
        before = dict(mender.txn.edits)
        _mend(mender)
        remaining = check(mender.txn)
        if mender.txn.edits == before:
            break
    edits = sorted(mender.txn.edits.items())
    deletes = [key for key, value in edits if value is None]
    return Plan(found, remaining, mender.actions, deletes, [(key, value) for key, value in edits if value is not None])


def _mend(mender: Mender) -> None:
    mend_rows(mender)
    if mender.get(keys.cluster(), rows.CLUSTER) is None:
        return  # without it nothing can be said of what is newer than what
    for volume in mender.volumes():
        if not volume.deleted:
            Names(mender, volume).mend()
    places = Places(mender)
    for volume in mender.volumes():
        VolumeBytes(mender, volume, places).mend()
    Holders(mender, places).mend()
    mender.damaged_inodes.clear()


def commands(planned: Plan) -> Iterator[RepairRows]:
    """The plan as entries.  Puts first: what is wanted is there before what stood in its place goes."""
    puts: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in planned.puts:
        if puts and (len(puts) == REPAIR_ENTRY_ROWS or size + len(key) + len(value) > REPAIR_ENTRY_BYTES):
            yield RepairRows([], puts)
            puts, size = [], 0
        puts.append((key, value))
        size += len(key) + len(value)
    if puts:
        yield RepairRows([], puts)
    for at in range(0, len(planned.deletes), REPAIR_ENTRY_ROWS):
        yield RepairRows(planned.deletes[at : at + REPAIR_ENTRY_ROWS], [])
