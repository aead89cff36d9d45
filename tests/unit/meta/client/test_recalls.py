"""The thread of the recalls answers each look, whatever happens while it finds out what is shown, and calls all handlers."""

from __future__ import annotations

import queue
import threading

from awsomefsd.base.types import LEASE_NONE
from awsomefsd.meta.client.leases import Shown
from awsomefsd.meta.client.recalls import Done, RecallQueue, RecallThread

SHOWN = Shown(1, 2, 3, 4)


def test_a_look_that_cannot_be_answered_says_that_it_is_not_known() -> None:
    """Unanswered it would cost the mount its session: the leader waits for it as for a recall."""
    recalls, answers = RecallQueue(), queue.SimpleQueue[Shown | None]()

    def shown(ino: int) -> Shown | None:
        if ino == 7:
            raise RuntimeError("dictionary changed size during iteration")
        return SHOWN

    thread = RecallThread(recalls, [], shown)
    recalls.look(7, answers.put)
    recalls.look(8, answers.put)
    thread.close()
    assert [answers.get_nowait(), answers.get_nowait()] == [None, SHOWN]


def test_each_handler_is_called_on_the_thread_of_the_recalls() -> None:
    """The one before may have finished on the thread that receives answers, which may not wait for the kernel."""
    recalls, threads, answered = RecallQueue(), list[str](), threading.Event()

    def flush(ino: int, mode: int, done: Done) -> None:
        threading.Thread(target=done, name="answers").start()

    def forget(ino: int, mode: int, done: Done) -> None:
        threads.append(threading.current_thread().name)
        done()

    thread = RecallThread(recalls, [flush, forget, forget], lambda ino: SHOWN)
    recalls.put(7, LEASE_NONE, answered.set)
    assert answered.wait(60)
    thread.close()
    assert threads == ["recalls", "recalls"]
