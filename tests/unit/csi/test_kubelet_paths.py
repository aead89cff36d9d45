"""Paths of kubelet that change while the driver works on them: what it says has a reason, and is no bug of the driver."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import patch

import pytest

from awsomefsd.csi import kubelet_paths
from awsomefsd.csi.errors import CsiError
from awsomefsd.csi.kubelet_paths import KubeletDirectory


def test_a_mount_that_has_moved_here_meanwhile_is_not_removed(tmp_path: Path) -> None:
    """Somebody has renamed the parent: the mount table has the mount under another path, and rmdir(2) answers EBUSY."""
    with KubeletDirectory(tmp_path).place(f"{tmp_path}/mount", "target_path") as place:
        place.make_directory()
        with patch.object(os, "rmdir", side_effect=OSError(errno.EBUSY, "busy")), pytest.raises(CsiError, match="still mounted") as refused:
            place.remove()
    assert refused.value.status == "FAILED_PRECONDITION"


@pytest.mark.parametrize("what", ["make_directory", "make_file", "check_empty"])
def test_a_parent_that_is_removed_meanwhile_is_not_there(tmp_path: Path, what: str) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    with KubeletDirectory(tmp_path).place(f"{parent}/mount", "target_path") as place:
        parent.rmdir()
        with pytest.raises(CsiError, match="does not exist") as refused:
            getattr(place, what)()
    assert refused.value.status == "NOT_FOUND"


def test_a_path_that_is_changed_all_the_time_is_not_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def changed_meanwhile(*_arguments: object) -> int:
        nonlocal tries
        tries += 1
        assert tries < 100_000, "it is tried without end"
        raise OSError(errno.EAGAIN, "changed")

    monkeypatch.setattr(kubelet_paths, "_syscall", changed_meanwhile)
    place = KubeletDirectory(tmp_path).place(f"{tmp_path}/a/b", "target_path")
    with pytest.raises(CsiError, match="changed all the time") as refused, place:
        pass
    assert refused.value.status == "ABORTED"
