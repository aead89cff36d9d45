"""Golden conversations: tests/golden/ensemble/*.txt, one a function here.  Read them; AWSOMEFSD_UPDATE_GOLDEN=1 writes them anew.

    time > what happens          | verdict, the end, whether the segment has ended | what a Commit may say | who is avoided

Mirrors a, b and c lie on devices 1, 2 and 3; lengths are in blocks.  Beside the text, each asserts what it is about.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from awsomefsd.base.limits import BLOCK_BYTES, ENSEMBLE_LOOK_MS, NS_PER_MS
from awsomefsd.base.types import Redundancy
from awsomefsd.io.pool.ensemble import AvoidedDevices, Ensemble, Verdict
from awsomefsd.io.pool.gate import Bay

GOLDEN = Path(__file__).parents[3] / "golden" / "ensemble"


class Talk:
    """An ensemble and what is said to it."""

    def __init__(self, want: Redundancy) -> None:
        self.avoided = AvoidedDevices()
        self.want = want
        self.lines: list[str] = []
        self.ms = 0
        self.next_segment()

    def next_segment(self) -> None:
        self.bays = {name: Bay(number, 10 * number) for number, name in enumerate("abc"[: self.want.copies], 1)}
        self.ensemble = Ensemble(list(self.bays.values()), self.want, self.avoided)

    def begin(self, end: int, *, footer: bool = False) -> None:
        bays = self.ensemble.begin(end * BLOCK_BYTES, self._now(), footer=footer)
        names = " ".join(name for name, bay in self.bays.items() if bay in bays) or "nobody"
        self._note(f"{'footer' if footer else 'batch'} to {end}, sent to {names}")

    def answered(self, names: str, end: int) -> None:
        for name in names:
            self.ensemble.answered(self.bays[name], end * BLOCK_BYTES, self._now())
            self._note(f"{name} answers for {end}")

    def failed(self, name: str, why: str) -> None:
        self.ensemble.failed(self.bays[name], why, self._now())
        self._note(f"{name} fails: {why}")

    def wait(self, ms: int) -> None:
        for _ in range(0, ms, ENSEMBLE_LOOK_MS):
            self.ms += ENSEMBLE_LOOK_MS
            self.ensemble.look(self._now())
            for bay in self.ensemble.take_given_up():
                name = next(name for name, one in self.bays.items() if one == bay)
                self._note(f"{name} is given up: {self.ensemble.failures()[bay]}")

    def stopped(self, ms: int) -> None:
        self.ms += ms
        self.ensemble.look(self._now())
        self._note("the client runs again, and looks")

    def _now(self) -> int:
        return (1_000 + self.ms) * NS_PER_MS

    def _note(self, what: str) -> None:
        one = self.ensemble
        state = f"{one.verdict.value}, end {one.end // BLOCK_BYTES}{', ended' if one.ended else ''}"
        said = {(device, index): length // BLOCK_BYTES for device, index, length in one.durable()}
        names = " ".join(f"{name}={said.get((bay.device, bay.index), 0)}" for name, bay in self.bays.items())
        avoided = ", ".join(map(str, self.avoided.devices(self._now()))) or "-"
        self.lines.append(f"{self.ms:6} > {what:38} | {state:24} | {names:11} | {avoided}")

    def text(self, title: str) -> str:
        return "\n".join([title, "", *self.lines, ""])


def conversation(talk: Callable[[], Talk]) -> Callable[[], None]:
    """A test that holds the conversation and compares what was said with the golden file."""

    @functools.wraps(talk)
    def run() -> None:
        text = talk().text((talk.__doc__ or "").strip())
        path = GOLDEN / f"{talk.__name__.removeprefix('test_')}.txt"
        if os.environ.get("AWSOMEFSD_UPDATE_GOLDEN") == "1":
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.read_text() == text, f"{path.name} differs: is this change of the conversation meant?"

    return run


@conversation
def test_seal_and_continue() -> Talk:
    """A mirror is reset in the middle of a batch: the others' batch counts, the footer follows, the next segment is another one"""
    talk = Talk(Redundancy(3, 2))
    talk.begin(4)
    talk.answered("abc", 4)
    talk.begin(8)
    talk.answered("a", 8)
    talk.failed("b", "reset")
    talk.answered("c", 8)
    talk.begin(12)
    assert talk.ensemble.verdict is Verdict.LOST
    talk.begin(9, footer=True)
    talk.answered("ac", 9)
    assert talk.ensemble.end == 9 * BLOCK_BYTES
    return talk


@conversation
def test_too_few() -> Talk:
    """Two of three fail: the batch is lost, and the segment ends where the batch before it did"""
    talk = Talk(Redundancy(3, 2))
    talk.begin(4)
    talk.answered("abc", 4)
    talk.begin(8)
    talk.answered("a", 8)
    talk.failed("b", "reset")
    talk.failed("c", "flush failed")
    talk.answered("c", 8)
    assert talk.ensemble.end == 4 * BLOCK_BYTES
    return talk


@conversation
def test_a_pair_goes_on_alone() -> Talk:
    """One of a pair falls silent: after 2 s the other one's batch counts"""
    talk = Talk(Redundancy(2, 1))
    talk.begin(4)
    talk.answered("a", 4)
    talk.wait(3_000)
    assert talk.ensemble.verdict is Verdict.REACHED
    return talk


@conversation
def test_quorum() -> Talk:
    """With a quorum the third follows, counts for what it has answered, and is given up when it is silent for 2 s"""
    talk = Talk(Redundancy(3, 2, quorum=True))
    talk.begin(4)
    talk.answered("ab", 4)
    talk.begin(8)
    talk.answered("c", 4)
    talk.answered("ab", 8)
    talk.wait(2_000)
    assert talk.ensemble.ended
    return talk


@conversation
def test_nobody_moves() -> Talk:
    """Nobody moves for 5 s: all are given up at once"""
    talk = Talk(Redundancy(3, 2))
    talk.begin(4)
    talk.wait(5_000)
    assert talk.ensemble.verdict is Verdict.LOST
    return talk


@conversation
def test_the_client_was_stopped() -> Talk:
    """A client that was stopped for a minute blames nobody: their answers are still to be read"""
    talk = Talk(Redundancy(3, 2))
    talk.begin(4)
    talk.answered("a", 4)
    talk.stopped(60_000)
    talk.answered("bc", 4)
    assert not talk.ensemble.ended
    return talk


def test_there_is_no_golden_file_without_a_conversation() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {
        "seal_and_continue", "too_few", "a_pair_goes_on_alone", "quorum", "nobody_moves", "the_client_was_stopped",
    }  # fmt: skip
