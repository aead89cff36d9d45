"""How many entries go into one commit of the store follows what commits take."""

from __future__ import annotations

from awsomefsd.base.limits import STORE_COMMIT_ENTRIES_MIN
from awsomefsd.meta.replica.commit_pace import COMMIT_SHARE, NEVER, CommitPace

MS = 1_000_000


def test_slow_commits_get_fewer_entries_and_fast_ones_more() -> None:
    pace = CommitPace(2_000)
    for _ in range(3):
        pace.took(pace.entries, 2 * MS, 0)
    assert pace.entries == 2_000
    pace.took(2_000, 80 * MS, 0)
    assert pace.entries == 1_000
    pace.took(600, 80 * MS, 0)  # by age: what took too long were these
    assert pace.entries == 300
    pace.took(300, 15 * MS, 0)
    assert pace.entries == 300, "neither too slow nor fast"
    pace.took(100, 1 * MS, 0)
    assert pace.entries == 300, "a small one says nothing of a large one"
    for _ in range(9):
        pace.took(pace.entries, 2 * MS, 0)
    assert pace.entries == 2_000


def test_a_disk_that_is_slow_to_sync_is_not_kept_busy_with_commits() -> None:
    pace = CommitPace(2_000)
    for _ in range(20):
        pace.took(pace.entries, 100 * MS, 1_000 * MS)
    assert pace.entries == STORE_COMMIT_ENTRIES_MIN
    assert pace.due_ns(pace.entries - 1) == NEVER
    assert pace.due_ns(pace.entries) == 1_000 * MS + (COMMIT_SHARE - 1) * 100 * MS
    assert pace.due_ns(2_000) == 0


def test_a_bound_below_the_smallest() -> None:
    pace = CommitPace(4)
    pace.took(4, 100 * MS, 0)
    assert pace.entries == 4 and pace.due_ns(4) == 0
