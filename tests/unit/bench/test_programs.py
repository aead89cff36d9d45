"""Programs that the benchmark runs, in a directory of this machine: each does what it is measured for, and leaves nothing that runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.bench import programs
from tests.bench.measures import Amounts

AMOUNTS = Amounts(files=40, syncs=40, stream_mib=4, randoms=50)


def test_git_clones_the_tree_and_looks_at_all_of_it(tmp_path: Path) -> None:
    cloned = programs.git_clone(tmp_path, AMOUNTS)
    looked = programs.git_status(tmp_path, AMOUNTS)
    assert cloned.count == looked.count == sum(1 for path in (tmp_path / "clone" / "tree").rglob("*") if path.is_file()) > 0
    assert cloned.rate > 0 and looked.rate > 0


def test_c_is_built_and_runs(tmp_path: Path) -> None:
    assert programs.c_build(tmp_path, AMOUNTS).count == 10
    assert len(list((tmp_path / "build").glob("*.o"))) == 11


def test_fio_does_the_four(tmp_path: Path) -> None:
    assert [programs.fio_write(tmp_path, AMOUNTS).count, programs.fio_read(tmp_path, AMOUNTS).count] == [4, 4]
    for measure in (programs.fio_random_read, programs.fio_random_write):
        assert measure(tmp_path, AMOUNTS).count == 4 * AMOUNTS.randoms
    assert (tmp_path / "fio").stat().st_size == 4 << 20


def test_postgres_commits_and_is_gone_afterwards(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: the server runs as its own user")
    try:
        programs.make_postgres(tmp_path, AMOUNTS)
        assert programs.postgres_transactions(tmp_path, AMOUNTS).count == 40
    except programs.NotInstalled as err:
        pytest.skip(str(err))
    seen = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"{tmp_path}/postgres" not in seen


def test_what_is_missing_or_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"git ended with 128: .*cannot change to"):
        programs.git_status(tmp_path, AMOUNTS)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(programs.NotInstalled, match="git is not installed"):
        programs.git_status(tmp_path, AMOUNTS)
