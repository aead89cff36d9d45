"""Waits that an event loop waits for."""

from __future__ import annotations

import threading

import trio

from awsomefsd.base.wait import Signal
from awsomefsd.daemon.loop_waits import ended


def test_a_task_of_an_event_loop_sleeps_until_another_thread_ends_a_wait():
    signal, before = Signal(), Signal()
    before.fire(error=OSError(5))

    async def main() -> None:
        with trio.fail_after(60):
            await ended(before)
            assert not signal.done
            threading.Timer(0, signal.fire).start()
            await ended(signal)
            assert signal.done

    trio.run(main)


def test_a_wait_that_ends_after_its_event_loop_disturbs_nobody():
    signal = Signal()

    async def main() -> None:
        with trio.move_on_after(0):
            await ended(signal)

    trio.run(main)
    signal.fire()
    assert signal.done
