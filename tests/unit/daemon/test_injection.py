"""Faults on purpose: what is held goes on when its rule is gone, and says so."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from awsomefsd.daemon.injection import Faults, JournalOs
from awsomefsd.meta.log.disk import SPARE_THREAD
from tests.rigs.mount_without_kernel import until


def test_a_held_transfer_goes_on_when_the_rule_is_gone(tmp_path: Path) -> None:
    rules, hits = tmp_path / "faults", tmp_path / "faults.hits"
    rules.write_text("device.write=hold:x1")
    faults = Faults(str(rules))
    passed: list[str] = []
    held = threading.Thread(target=lambda: passed.append(faults.at("device.write")))
    held.start()
    until(lambda: hits.exists() and hits.read_text().startswith("device.write hold "))
    assert faults.at("device.write") == "", "one was to be held"
    assert held.is_alive() and not passed
    (tmp_path / "new").write_text("device.read=EIO")
    (tmp_path / "new").rename(rules)
    held.join(60)
    assert passed == [""] and hits.read_text().splitlines()[1].startswith("device.write released ")


def test_a_fault_of_the_journal_is_not_dealt_out_to_its_next_file(tmp_path: Path) -> None:
    """It is prepared for seconds after each start: the one fault of a test was spent there, and nothing ended."""
    rules = tmp_path / "faults"
    rules.write_text("journal.write=EIO:x1")
    disk = JournalOs(Faults(str(rules)), SPARE_THREAD)
    with (tmp_path / "file").open("wb") as file:
        spare = threading.Thread(target=lambda: disk.pwrite(file.fileno(), b"zeros", 0), name=SPARE_THREAD)
        spare.start()
        spare.join()
        assert (tmp_path / "file").read_bytes() == b"zeros"
        with pytest.raises(OSError):
            disk.pwrite(file.fileno(), b"entry", 0)
