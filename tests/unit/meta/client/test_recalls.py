"""The thread of the recalls answers each look, whatever happens while it finds out what is shown."""

from __future__ import annotations

import queue

from awsomefsd.meta.client.leases import Shown
from awsomefsd.meta.client.recalls import RecallQueue, RecallThread

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
