"""Every check of fsck over a copy of the state store.  `awsomefsd check-copy` runs it for scrub, in a process of its own."""

from __future__ import annotations

from pathlib import Path

from awsomefsd.meta.check.check import check
from awsomefsd.meta.replica.store import Store


def check_copy(directory: Path) -> list[dict[str, str]]:
    """Returns the faults of the rows in `directory`: kind, where and what of each finding.  Blocks while it reads all of them.

    Raises Corrupt or FormatTooNew for a store that cannot be opened.
    """
    store = Store.open(directory, readonly=True)
    try:
        return [{"kind": fault.kind, "where": fault.where, "what": fault.detail} for fault in check(store)]
    finally:
        store.close()
