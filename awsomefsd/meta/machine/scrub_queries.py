"""Scrub asks for segments with live bytes and for the names of an inode.  Each answer reads a bounded number of rows."""

from __future__ import annotations

import stat
from typing import cast

from awsomefsd.base.types import ROOT_INO, SEGMENT_FREE, SegmentInBays
from awsomefsd.meta.api.messages import Reply
from awsomefsd.meta.api.messages.scrub import GetLiveSegments, GetNames, LiveSegments, NamePage
from awsomefsd.meta.machine.segments import describe
from awsomefsd.meta.state import history, keys
from awsomefsd.meta.state.rows_cache import State

ROWS_READ_MAX = 1_024


def live_segments(state: State, body: GetLiveSegments) -> Reply:
    """Answers GetLiveSegments."""
    count = min(max(body.count, 1), ROWS_READ_MAX)
    _, end = keys.kind_range(0, keys.SEGMENT)
    state.write_back()
    found_keys = state.keys_in((keys.segment(body.start), end), count + 1)
    after = keys.last_u64(found_keys[count]) if len(found_keys) > count else 0
    segments = [row for key in found_keys[:count] if (row := state.segment(keys.last_u64(key))) is not None]
    found = [describe(state, row) for row in segments if row.state != SEGMENT_FREE and row.live_bytes]
    return LiveSegments(cast(list[SegmentInBays], found), after)


def names(state: State, body: GetNames) -> Reply:
    """Answers GetNames.  For a directory, whose parent is known, only the parent's entries are read."""
    count = min(max(body.count, 1), ROWS_READ_MAX)
    row = state.inode(body.volume, body.ino)
    if row is None or body.ino == ROOT_INO:
        return NamePage([], b"")
    parent = row.parent if stat.S_ISDIR(row.mode) else 0
    found: list[tuple[int, bytes]] = []
    for number, (key, dentry) in enumerate(history.dentries(state, body.volume, parent, body.after), 1):
        if dentry.ino == body.ino:
            found.append((keys.first_u64(key), key[keys.NAME_AT :]))
        if number == count:
            return NamePage(found, key)
    return NamePage(found, b"")
