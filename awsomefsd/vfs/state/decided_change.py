"""A change of names that its mount may decide, as a Wait, and what came of an attempt."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from awsomefsd.base.wait import Prompt, Resume, Wait
from awsomefsd.vfs.state.started import Sending


class Until(NamedTuple):
    """Why something cannot be decided now: it is tried again when the wait is over."""

    wait: Wait


class Leaders(NamedTuple):
    """The leader changes these inodes, although the rule could be run here."""

    inodes: list[int]


class Durable:
    """The leader makes this change, when it has all records: it is durable when it is answered, and needs no number of ours."""


class NotHere:
    """Nothing is decided here."""


class Answered:
    """It is done, and its sender was resumed."""


Outcome = Until | Leaders | Durable | NotHere | Answered
NOT_HERE, ANSWERED = NotHere(), Answered()


class Deciding(Protocol):
    def try_to_decide(self, command: Any, unique: int, resume: Resume) -> Outcome: ...
    def decide(self, command: Any, unique: int, send: Sending, resume: Resume, outcome: Outcome | None = None) -> None: ...


class Change(Prompt):
    """The change; what an attempt found is kept for the start."""

    __slots__ = ("_command", "_names", "_outcome", "_send", "_unique")

    def __init__(self, names: Deciding, command: Any, unique: int, send: Sending) -> None:
        """`send`: to the leader, where it is not decided."""
        self._names = names
        self._command = command
        self._unique = unique
        self._send = send
        self._outcome: Outcome | None = None  # of an attempt

    def attempt(self, resume: Resume) -> bool:
        self._outcome = self._names.try_to_decide(self._command, self._unique, resume)
        return self._outcome is ANSWERED

    @property
    def repeated(self) -> bool:
        return self._send.repeated

    def start(self, resume: Resume) -> None:
        self._names.decide(self._command, self._unique, self._send, resume, self._outcome)
