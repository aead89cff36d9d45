"""Small files are the old or the new one, whoever writes them at the same time."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from awsomefsd.base import durable


def test_threads_that_write_one_path_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both use one `.new` file: the second would remove it, and the first would rename a half of the second's."""
    path, sync = tmp_path / "f", os.fsync
    second = threading.Thread(target=durable.write_file, args=(path, b"second"))
    began = threading.Event()

    def fsync(fd: int) -> None:
        if threading.current_thread() is not second and not began.is_set():
            began.set()
            second.start()
            second.join(0.2)  # it would be done by then if nothing held it
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    durable.write_file(path, b"first")
    second.join()
    assert path.read_bytes() == b"second" and os.listdir(tmp_path) == ["f"]
