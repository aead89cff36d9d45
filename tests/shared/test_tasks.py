"""The random load of tests/shared: what other programs may do meanwhile is an outcome, not an end of the load."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.shared import tasks


def test_a_file_that_is_cut_before_it_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its size and the mapping another program may cut it: Python then raises ValueError, where the kernel maps."""
    for name in range(5):
        (tmp_path / f"f{name}").write_bytes(b"x" * 9_000)
    real = os.fstat

    def cut_behind(fd: int) -> os.stat_result:
        found = real(fd)
        if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{tmp_path}/"):
            os.ftruncate(fd, 100)
        return found

    monkeypatch.setattr(tasks, "STRESS", dict.fromkeys(("create", "mkdir"), tasks.STRESS["map"]))
    monkeypatch.setattr(tasks.os, "fstat", cut_behind)
    told = tasks.do_stress(str(tmp_path), 1, 60)
    assert told["EINVAL"] >= 5 and sum(told.values()) == 60
