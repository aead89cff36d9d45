"""A worker reports whether it decides names, and why if it does not: `mount` and `status` say what a power cut may take by that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from awsomefsd.base import levels
from awsomefsd.base.power_cut import DECIDES, WHY, Why
from awsomefsd.base.types import NAMES_DELEGATED, ROOT_INO
from awsomefsd.io.file.op_log import OpLog
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.worker import delegation
from tests.rigs.delegated_mount import Delegated, at_leader
from tests.rigs.mount_without_kernel import VOLUME, Link, Rig

Make = Callable[[type[Rig]], Rig]


class WithDirsync(Delegated):
    options = ("dirsync",)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Rig] = []

    def made_by(kind: type[Rig]) -> Rig:
        made.append(kind(tmp_path))
        made[0].start()
        return made[0]

    yield made_by
    made[0].close()


def reported(r: Rig) -> tuple[bool, Why]:
    figures = r.worker.mount.names_figures()
    return bool(figures[DECIDES]), Why(figures[WHY])


def test_of_a_mount_that_decides_and_of_one_that_was_remounted_with_sync(make: Make) -> None:
    r = make(Delegated)
    assert reported(r) == (True, Why.DECIDES)
    r.worker.names.synchronous = lambda: True  # type: ignore[union-attr]
    assert reported(r) == (True, Why.SYNC)


def test_of_a_volume_with_durable_names_until_the_next_worker(make: Make) -> None:
    r = make(Rig)
    assert reported(r) == (False, Why.VOLUME)
    assert not isinstance(r.host.service.propose(c.SetNames(VOLUME, NAMES_DELEGATED), 60), m.Failed)  # type: ignore[union-attr]
    assert reported(r) == (False, Why.VOLUME)
    r.restart()
    assert reported(r) == (True, Why.DECIDES)


def test_of_a_mount_with_a_sync_option(make: Make) -> None:
    r = make(WithDirsync)
    assert reported(r) == (False, Why.SYNC)
    r.mkdir(b"d")
    assert b"d" in at_leader(r)


def test_of_a_program_older_than_the_cluster(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegation, "highest", lambda: levels.LEVEL - 1)
    assert reported(make(Delegated)) == (False, Why.LEVEL)


def test_of_a_mount_whose_keeper_does_not_know_its_memory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Link, "needs", lambda self, memory_format: False)
    assert reported(make(Delegated)) == (False, Why.KEEPER)


def test_of_a_worker_whose_predecessor_left_data(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says so: records are stored beside no data of the older format."""
    monkeypatch.setattr(OpLog, "begin", lambda self: False)
    assert reported(make(Delegated)) == (False, Why.DIRTY)


def test_of_a_mount_whose_record_was_refused(make: Make) -> None:
    r = make(Delegated)
    r.worker.names.refused("a test")  # type: ignore[union-attr]
    assert reported(r) == (False, Why.REFUSED)
    r.call("fsyncdir", ROOT_INO, 0, False)
