"""What journal and store hold of each other at every moment."""

from __future__ import annotations

from pathlib import Path

from awsomefsd.base.levels import LEVEL
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.replica import Replica, ReplicaOptions
from tests.rigs.metadata_service import CLUSTER, NODE

BATCH, BATCHES = 600, 11


def opened(directory: Path) -> Replica:
    return Replica.open_single(directory, CLUSTER, NODE, Machine, ReplicaOptions(journal_file_bytes=64 << 10))


def test_the_journal_drops_only_what_the_store_holds(tmp_path: Path) -> None:
    replica = opened(tmp_path)
    try:
        for batch in range(BATCHES):
            stamps = range(batch * BATCH + 1, (batch + 1) * BATCH + 1)
            command = c.AdvanceReader("nobody", 1)  # refused: an entry like any other
            replica.propose([c.Entry(0, 0, LEVEL, 0, 1, stamp << 16, 0, 0, HOST_UNIQUE, 0, 0, [], command) for stamp in stamps])
            replica.ready()
            replica.commit()
            assert replica.log.first_index <= replica.checkpoint_progress.stored + 1
        applied = replica.machine.applied_index
        assert applied == BATCH * BATCHES
        assert replica.log.first_index > 1, "something was dropped"
    finally:
        replica.close()
    replica = opened(tmp_path)
    try:
        assert replica.machine.applied_index == applied
    finally:
        replica.close()
