"""Shared memory in a memfd: its size is sealed, and its pages can be given back."""

from __future__ import annotations

import os

import pytest

from awsomefsd.base import shm


def test_a_memfd_can_neither_shrink_nor_grow() -> None:
    fd = shm.create_memfd("test", 5000)
    try:
        assert os.fstat(fd).st_size == 8192
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 4096)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 12288)
        mem = shm.map_memfd(fd)
        mem[4095], mem[4096] = 6, 7
        shm.prefault(mem, 0, 8192)
        locked = shm.map_memfd(fd, lock=True)
        assert mem[4096] == 7 and locked[4096] == 7
        shm.release_pages(mem, 100, 8092)  # only the whole page inside
        assert mem[4095] == 6 and mem[4096] in (0, 7) and len(mem) == 8192  # 7 where the other mapping could lock it
        del locked
        shm.release_pages(mem, 0, 8192)
    finally:
        os.close(fd)
