"""What the simulator has found: seeds that failed in production code (they must pass now), and which seed finds which broken variant."""

from __future__ import annotations

from typing import NamedTuple

REGRESSIONS: dict[str, list[int]] = {
    "a follower never sleeps": [4],  # leader.idle_ms gave 0 for ever where nothing could be reaped
    "an old announcement takes a newer journal out": [40],  # kept by a follower, it was used when that one came to lead, much later
    "a program of a dead worker spins": [35],  # in the simulator itself: the seed did not end
    "a successor opens a session that is being ended": [244405035],  # it ended while the worker served by the lease it was promised
    "a journal that begins on a full disk": [145],  # in the simulator itself: the daemon ends and is started again
}


class Found(NamedTuple):
    """By which seed, with which of named.EPISODES played ("": all faults)."""

    seed: int
    focus: str = ""


FOUND: dict[str, Found] = {
    "answer before sync": Found(2),
    "vote not persisted": Found(3),
    "older terms committed by counting": Found(1, "figure 8"),
    "lease without margin": Found(1, "a lease is renewed late"),
    "a recall acknowledged too early": Found(1),
    "dedupe that forgets": Found(1),
    "snapshot installed halfway": Found(4),
    "a wiped voter that votes": Found(1, "a voter is wiped"),
    "read index without confirmation": Found(1, "a deposed leader is asked"),
    "learner counted as voter": Found(4),
    "a new leader grants no full TTL": Found(3),
    "half is a majority": Found(1),
    "vote for a shorter log": Found(1, "a laggard stands for election"),
    "acknowledged before it is stored": Found(1, "power cuts in a promise"),
    "commit ahead of the match": Found(1, "figure 8"),
    "a new leader does not wait for reports": Found(1),
    "questions pass a writer": Found(4),
    "quarantine is ended by time": Found(1),
    "an ended lease commits": Found(1),
    "an eviction takes write leases": Found(1),
    "a successor adopts nothing": Found(7),
    "a successor forgets what it knew": Found(4, "a session ends behind a takeover"),
    "renewals run out": Found(1, "a majority is lost"),
    "a new leader forgets the sessions": Found(8),
    "a recovery hands out again": Found(1, "a majority is lost"),
    "an administrator ends sessions at once": Found(1, "a session is ended by hand"),
}

FOUND_BY_TESTS = frozenset({"a stale grant is accepted", "old connections are read"})  # tests/unit/meta/test_mutants.py; by no seed so far
