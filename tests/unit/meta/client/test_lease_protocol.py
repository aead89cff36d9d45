"""What LeaseClient sends when: reports before questions, one question for recalls a term, none of a deposed leader."""

from __future__ import annotations

from typing import Any

from awsomefsd.base.types import LEASE_NONE, LEASE_READ
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.lease_protocol import LeaseClient

INO = 2


class Bench:
    def __init__(self) -> None:
        self.sent: list[tuple[Any, Any]] = []
        self.client = LeaseClient(
            lambda body, resume: self.sent.append((body, resume)), self._on_recall, lambda: 1, lambda: None, self._on_look
        )
        self.recalled: list[Any] = []

    def _on_recall(self, ino: int, mode: int, done: Any) -> None:
        self.recalled.append(done)

    def _on_look(self, ino: int, answer: Any) -> None:
        answer(None)

    def take(self, kind: type, reply: Any) -> None:
        """Answer the oldest of that kind."""
        place = next(place for place, (body, _) in enumerate(self.sent) if isinstance(body, kind))
        self.sent.pop(place)[1](reply, None)

    def kinds(self) -> list[str]:
        return [type(body).__name__ for body, _ in self.sent]


def test_the_report_goes_before_the_question_and_a_recall_is_answered_when_it_is_handled():
    bench = Bench()
    bench.client.begin(1, 1, {})
    bench.client.greeted(3)
    assert bench.kinds() == ["ReportLeases", "AwaitRecalls"]
    grants: list[Any] = []
    bench.client.ask(1, INO, LEASE_READ, 0, lambda reply, error: grants.append(reply))
    bench.take(m.GetLease, m.Leased(3, 1, LEASE_READ, 0, 1, False))
    assert grants[0].sequence == 1 and bench.client.holder.mode(INO) == LEASE_READ
    bench.take(m.AwaitRecalls, m.Recalls(3, [(2, INO, LEASE_NONE)]))
    assert bench.kinds() == ["ReportLeases", "AwaitRecalls"], "asked for more, not answered yet"
    bench.recalled.pop()()
    assert bench.sent[-1][0] == m.AnswerRecall(1, 1, 3, 2) and bench.client.holder.mode(INO) == LEASE_NONE


def test_a_leader_of_an_older_term_is_not_asked_again_and_again():
    bench = Bench()
    bench.client.begin(1, 1, {})
    bench.client.greeted(3)
    bench.client.greeted(2)
    bench.take(m.AwaitRecalls, m.Recalls(2, [(9, INO, LEASE_NONE)]))
    assert "AwaitRecalls" not in bench.kinds()
    bench.client.greeted(3)
    assert bench.kinds().count("AwaitRecalls") == 1


def test_the_answer_to_a_question_that_another_has_replaced_asks_nothing():
    bench = Bench()
    bench.client.begin(1, 1, {})
    bench.client.greeted(3)
    bench.client.greeted(4)
    assert bench.kinds() == ["ReportLeases", "AwaitRecalls"] * 2
    bench.take(m.AwaitRecalls, m.Recalls(4, []))
    assert bench.kinds().count("AwaitRecalls") == 1
