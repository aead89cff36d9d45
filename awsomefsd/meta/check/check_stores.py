"""fsck checks the stores of objects: names and URLs are one store's each, and a secret belongs to a store."""

from __future__ import annotations

from awsomefsd.base.types import STORE_ACTIVE, STORE_RECOVERED, STORE_STATES
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.findings import Examination


def check_stores(exam: Examination, applied_index: int) -> None:
    """Adds the faults of stores and their secrets to `exam`.  A store without a secret is none: it may have gone in a recovery."""
    taken: dict[object, int] = {}
    numbers = set()
    for _, row in exam.rows(keys.kind_range(0, keys.STORE), rows.STORE):
        numbers.add(row.store)
        where = f"store {row.name}"
        for said in (row.name, (row.url, row.options.endpoint)):
            if taken.setdefault(said, row.store) != row.store:
                exam.fault("store-name", where, f"store {taken[said]} has {said}, too")
        if row.state not in range(len(STORE_STATES)) or (row.state == STORE_ACTIVE) != bool(row.era_number):
            exam.fault("store", where, f"state {row.state}, number of its era {row.era_number}")
        if (row.state == STORE_RECOVERED and not row.recovered) or (not row.era and row.state != STORE_RECOVERED):
            exam.fault("store", where, f"state {row.state}, era {row.era or 'none'}, recovered by entry {row.recovered}")
        if row.recovered and not row.store < row.recovered <= row.changed:
            exam.fault("store", where, f"recovered by entry {row.recovered}, added by {row.store}, changed by {row.changed}")
        if not row.store <= row.changed <= applied_index:
            exam.fault("store", where, f"added by entry {row.store}, changed by {row.changed}, applied are {applied_index}")
    for _, secret in exam.rows(keys.kind_range(0, keys.STORE_SECRET), rows.STORE_SECRET):
        if secret.store not in numbers:
            exam.fault("store-secret", f"store {secret.store}", "a secret without a store")
