"""The keeper's loop: sequences, timeouts, and callbacks that fail."""

from __future__ import annotations

import os
import time

from awsomefsd.keeper import wire as wire
from awsomefsd.keeper.loop import Loop, Promise, Sequence_


def test_sequences_and_timeouts() -> None:
    loop = Loop()
    never = Promise()
    seen: list[object] = []

    def inner() -> Sequence_:
        yield loop.sleep(1)
        return 7

    def outer() -> Sequence_:
        seen.append((yield loop.start(inner())))
        try:
            yield loop.within(never, 5, "nothing")
        except TimeoutError as error:
            seen.append(error.strerror)
        seen.append((yield loop.chore(os.getpid, 5_000, "a child")) != os.getpid())
        try:
            yield loop.chore(lambda: os.stat("/no/such/path"), 5_000, "a stat")
        except OSError as error:
            seen.append(error.errno)
        began = time.monotonic()
        try:
            yield loop.chore(lambda: time.sleep(60), 20, "a child that hangs")
        except TimeoutError:
            seen.append(time.monotonic() - began < 55)
        loop.later(0, loop.stop)

    done = loop.start(outer())
    loop.run()
    assert done.error is None and seen == [7, "nothing took more than 5 ms", True, 2, True]


def test_a_callback_that_fails_does_not_end_the_loop() -> None:
    loop = Loop()

    def broken() -> None:
        raise ValueError("a bug")

    loop.later(0, broken)
    loop.later(5, loop.stop)
    loop.run()
