"""Finds whether a wait for a lock closes a circle.  Pure.

The graph has an edge from each owner that waits to each owner that holds a lock in its way.  It is never stored: the waiters know who
waits, the rows of locks who holds, and a search from one waiter reads both as they are now.  A wait needs all of its blockers to let go,
so any way back to its owner is a circle that nobody of it can leave.

As in Linux, only fcntl's classic locks take part.  flock and open-file-description locks have no process as owner (a thread that
does not wait may release them): such a waiter neither gets EDEADLK nor leads the search on.  Unlike Linux, which looks ten owners far and
only at the first lock in the way, every lock in the way is followed, and the bound is limits.DEADLOCK_SEARCH_MAX waiters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from awsomefsd.base.limits import DEADLOCK_SEARCH_MAX

Owner = tuple[int, int]  # session, owner
W = TypeVar("W")


def closes_circle(
    start: W,
    owner_of: Callable[[W], Owner],
    blockers: Callable[[W], Iterable[Owner]],
    waits_of: Callable[[Owner], Iterable[W]],
    search_max: int = DEADLOCK_SEARCH_MAX,
) -> bool:
    """Returns whether the owner of `start` waits, through others, for itself."""
    goal = owner_of(start)
    seen: set[Owner] = set()
    ahead = [start]
    looked_at = 0
    while ahead and looked_at < search_max:
        looked_at += 1
        for owner in blockers(ahead.pop()):
            if owner == goal:
                return True
            if owner not in seen:
                seen.add(owner)
                ahead.extend(waits_of(owner))
    return False
