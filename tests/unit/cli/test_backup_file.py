"""`meta backup` writes a secret: into a file of its own making, whatever lies at its place."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base import durable
from awsomefsd.cli import meta
from awsomefsd.recovery import backup


class Daemon:
    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def backup(self) -> list[bytes]:
        return [b"the authority's key"]


INVOCATION: Any = SimpleNamespace(client=Daemon)


@pytest.mark.parametrize("trap", ["a file of somebody", "a link to a file", "a link to nothing"])
def test_a_backup_goes_into_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    monkeypatch.setattr(backup, "read_backup", lambda path: path.read_bytes())
    file, new, elsewhere = tmp_path / "backup", tmp_path / "backup.new", tmp_path / "elsewhere"
    if trap == "a file of somebody":
        new.touch(0o666)
    else:
        new.symlink_to(elsewhere)
    if trap == "a link to a file":
        elsewhere.write_text("theirs")
    spy = os.open(new, os.O_RDWR) if new.exists() else -1
    meta._take(INVOCATION, file, force=False)
    assert file.read_bytes() == b"the authority's key" and file.stat().st_mode & 0o777 == 0o600
    assert not file.is_symlink() and not new.exists()
    if trap == "a link to nothing":
        assert not elsewhere.exists()
    else:
        assert b"key" not in os.pread(spy, 100, 0), "whoever had the file open before reads it"
        os.close(spy)


def test_a_name_that_comes_back_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "unlink", lambda path, **_words: path.symlink_to(tmp_path / "elsewhere"))
    with pytest.raises(FileExistsError):
        durable.create(tmp_path / "secret")
    assert not (tmp_path / "elsewhere").exists()
