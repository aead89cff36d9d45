"""Deliberately broken variants of production code, one at a time: the simulator must find each, or it would not find the real ones.

A variant changes methods of production classes for the length of a run; nothing else differs from a normal run.  `FOUND` says with which
seed each is found (from 1 on); the normal run proves those, `build.py soak` searches anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from awsomefsd.limits import SESSION_TTL_MS
from awsomefsd.meta.journal import Journal
from awsomefsd.meta.leader_desk import Desk
from awsomefsd.meta.lease_core import LeaseCore
from awsomefsd.meta.renewals import Renewals
from awsomefsd.meta.results import Results

_MS = 1_000_000
Patch = tuple[Any, str, Any]


def _answer_before_sync() -> list[Patch]:
    def sync(self: Any) -> None:
        self._synced = self._end

    return [(Journal, "sync", sync)]


def _dedupe_forgets_at_a_flush() -> list[Patch]:
    flush = Results.flush

    def forgetting(self: Any) -> None:
        flush(self)
        self._held.clear()

    return [(Results, "flush", forgetting)]


def _lease_counts_from_the_answer() -> list[Patch]:
    """The worker trusts its session as long as the leader does, from when it heard so."""
    answered, begin = LeaseCore.answered, LeaseCore.begin

    def late(self: Any, sent_ns: int, error: Any, same_session: bool, now_ns: int) -> Any:
        self._fence_ns = SESSION_TTL_MS * _MS
        return answered(self, now_ns, error, same_session, now_ns)

    def begun(self: Any, since_ns: int) -> None:
        self._fence_ns = SESSION_TTL_MS * _MS
        begin(self, since_ns)

    return [(LeaseCore, "answered", late), (LeaseCore, "begin", begun)]


def _no_full_ttl_at_the_beginning() -> list[Patch]:
    begin = Renewals.begin

    def hasty(self: Any, sessions: dict[int, int], now_ns: int) -> None:
        begin(self, sessions, now_ns)
        for live in self._live.values():
            live.deadline_ns = now_ns + 1_000 * _MS

    return [(Renewals, "begin", hasty)]


def _old_connections_are_read() -> list[Patch]:
    """A copy of a request that was left behind is executed after its result was acknowledged."""
    return [(Desk, "_end", lambda self, origin: None)]


def _damage_is_a_torn_write() -> list[Patch]:
    from awsomefsd.meta import journal_format

    return [(journal_format, "proof_of_damage", lambda raw, bad, seed: None)]


VARIANTS: dict[str, Callable[[], list[Patch]]] = {
    "answer before sync": _answer_before_sync,
    "dedupe that forgets": _dedupe_forgets_at_a_flush,
    "lease without margin": _lease_counts_from_the_answer,
    "a new leader grants no full TTL": _no_full_ttl_at_the_beginning,
    "old connections are read": _old_connections_are_read,
    "damage taken for a torn write": _damage_is_a_torn_write,
}


@contextlib.contextmanager
def broken(name: str) -> Iterator[None]:
    patches = VARIANTS[name]()
    saved = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in patches]
    try:
        for owner, attribute, stand_in in patches:
            setattr(owner, attribute, stand_in)
        yield
    finally:
        for owner, attribute, original in saved:
            setattr(owner, attribute, original)
