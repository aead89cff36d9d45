"""Aligned buffers, and the pool that lends them."""

from __future__ import annotations

import threading

from awsomefsd.io.device.buffers import BufferPool, aligned_buffer


def test_aligned_buffer_is_what_it_says() -> None:
    from awsomefsd.io.device.buffers import address_of, is_aligned

    buffer = aligned_buffer(10_000)
    assert len(buffer) == 10_000 and is_aligned(buffer, 4096) and not is_aligned(buffer[1:], 2)
    assert address_of(memoryview(b"constant")) is None


def test_pool_lends_no_more_than_it_has() -> None:
    pool = BufferPool(1, 4096)
    got = threading.Event()

    def borrow() -> None:
        with pool.borrow():
            got.set()

    with pool.borrow() as mine:
        other = threading.Thread(target=borrow)
        other.start()
        assert len(mine) == 4096 and not got.is_set()
    other.join()
    assert got.is_set()


def test_a_pool_that_is_tidied_lends_as_many_as_before() -> None:
    pool = BufferPool(2, 4_096)
    first, second = pool.take(), pool.take()
    pool.give_back(first)
    pool.tidy()
    assert pool._made == 1
    third = pool.take()
    assert third is not first and bytes(third) == bytes(4_096)
    for buffer in (second, third):
        pool.give_back(buffer)
    pool.tidy()
    assert pool._made == 0
