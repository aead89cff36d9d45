"""The plan of a repair: fsck makes it on an overlay of the rows, and checks its outcome before anything is written.

The steps go from what is believed to what follows from it: rows that do not decode, names, bytes, and what the cluster counts.  They run
until the checks find nothing or nothing changes any more; a fault that stays is reported, not hidden.  A plan of a sound state is empty.
The rows of the plan then become entries (RepairRows) of bounded size.  Between two of them a state is half repaired, so fsck must be run
again after a crash; it finds what is left.  Rejected: one entry for all, which has no bound.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from awsomefsd.base.limits import REPAIR_ENTRY_BYTES, REPAIR_ENTRY_ROWS
from awsomefsd.base.rule_levels import POOLS
from awsomefsd.meta.api.commands import RepairRows
from awsomefsd.meta.check.check import check
from awsomefsd.meta.check.repair_data import References, VolumeDataRepair
from awsomefsd.meta.check.repair_names import NameRepair
from awsomefsd.meta.check.repair_rows import repair_rows
from awsomefsd.meta.check.repair_totals import Totals
from awsomefsd.meta.check.repair_txn import Action, Hints, RepairTxn
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.findings import Examination, Fault
from awsomefsd.meta.state.rows_cache import INCOMPAT_SNAPSHOTS
from awsomefsd.meta.state.txn import Txn

ROUNDS_MAX = 4


class Plan(Struct):
    """A repair: `found` are the faults of the state as it is, `remaining` those of the state as it would be.

    `actions` says in words what is done; `deletes` (keys) and `puts` (key, value) are the rows to change.
    """

    found: list[Fault]
    remaining: list[Fault]
    actions: list[Action]
    deletes: list[bytes]
    puts: list[tuple[bytes, bytes]]


def plan(txn: Txn, hints: Hints) -> Plan:
    """Returns what is wrong with the state and what would repair it.  Changes nothing; `hints` is what is known beside the rows."""
    found = check(txn)
    if _may_have_pools(txn) or _may_have_history(txn):
        return Plan(found, found, [], [], [])
    repairs = RepairTxn(txn, hints)
    remaining = found
    for _ in range(ROUNDS_MAX):
        if not remaining:
            break
        before = dict(repairs.overlay.edits)
        _repair_all(repairs)
        remaining = check(repairs.overlay)
        if repairs.overlay.edits == before:
            break
    edits = sorted(repairs.overlay.edits.items())
    deletes = [key for key, value in edits if value is None]
    return Plan(found, remaining, repairs.actions, deletes, [(key, value) for key, value in edits if value is not None])


def _may_have_pools(txn: Txn) -> bool:
    """Returns True at the level of pools: no repair of their rows is built, and that of others takes segments in bays for strays."""
    row: rows.ClusterRow | None = Examination(txn).get(keys.cluster(), rows.CLUSTER)
    return row is not None and row.level >= POOLS


def _may_have_history(txn: Txn) -> bool:
    """Returns True if there may be snapshots: repairs do not know yet what those keep, and would take it for strays."""
    row: rows.ClusterRow | None = Examination(txn).get(keys.cluster(), rows.CLUSTER)
    if row is not None and row.incompat & INCOMPAT_SNAPSHOTS:
        return True
    return next(iter(txn.scan(keys.kind_range(0, keys.SNAPSHOT)[0], keys.kind_range(0, keys.SNAPNAME)[1])), None) is not None


def _repair_all(repairs: RepairTxn) -> None:
    repair_rows(repairs)
    if repairs.get(keys.cluster(), rows.CLUSTER) is None:
        return  # without it the rows have no order in time
    for volume in repairs.volumes():
        if not volume.deleted:
            NameRepair(repairs, volume).repair()
    references = References(repairs)
    for volume in repairs.volumes():
        VolumeDataRepair(repairs, volume, references).repair()
    Totals(repairs, references).repair()
    repairs.damaged_inodes.clear()


def commands(planned: Plan) -> Iterator[RepairRows]:
    """Yields the plan as commands of bounded size.  Puts come first: a wanted row is there before the row that it replaces goes."""
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
