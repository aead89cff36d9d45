"""The state that the benchmark writes below the machine is one that the checker of invariants finds sound."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from awsomefsd.meta.api.messages import GetVolumes, Volumes
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.replica.replica import Replica
from tests.bench import inodes


def test_the_rows_are_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes, "NAMES_PER_DIRECTORY", 100)
    cluster, node = str(uuid.uuid4()), str(uuid.uuid4())
    inodes.build(tmp_path, cluster, node, 400)
    replica = Replica.open_single(tmp_path, cluster, node, Machine)
    try:
        assert check(replica.store) == []
        found = answer(replica.machine, GetVolumes("load"))
        assert isinstance(found, Volumes) and found.volumes[0].used_inodes == 405
    finally:
        replica.close()
