"""What scrub is told: segments that hold something, and the names of an inode.  Each answer looks at a bounded number of rows."""

from __future__ import annotations

import stat

from awsomefsd.meta import keys, rows
from awsomefsd.meta.messages import Reply
from awsomefsd.meta.scrub_messages import GetLiveSegments, GetNames, LiveSegments, NamePage
from awsomefsd.meta.segments import describe
from awsomefsd.meta.state import State
from awsomefsd.types import ROOT_INO, SEGMENT_FREE

LOOKED_AT_MAX = 1_024


def live_segments(state: State, body: GetLiveSegments) -> Reply:
    count = min(max(body.count, 1), LOOKED_AT_MAX)
    _, end = keys.kind_range(0, keys.SEGMENT)
    state.write_back()
    looked = state.keys_in((keys.segment(body.start), end), count + 1)
    after = keys.last_u64(looked[count]) if len(looked) > count else 0
    held = [row for key in looked[:count] if (row := state.segment(keys.last_u64(key))) is not None]
    return LiveSegments([describe(state, row) for row in held if row.state != SEGMENT_FREE and row.live_bytes], after)


def names(state: State, body: GetNames) -> Reply:
    """Of a directory, whose parent is known, only the parent's entries are looked at."""
    count = min(max(body.count, 1), LOOKED_AT_MAX)
    row = state.inode(body.volume, body.ino)
    if row is None or body.ino == ROOT_INO:
        return NamePage([], b"")
    start, end = keys.kind_range(body.volume, keys.DENTRY)
    if stat.S_ISDIR(row.mode):
        start, end = keys.dentry(body.volume, row.parent, b""), keys.dentry(body.volume, row.parent + 1, b"")
    if body.after:
        start = max(start, body.after + b"\0")
    found: list[tuple[int, bytes]] = []
    for number, (key, raw) in enumerate(state.txn.scan(start, end), 1):
        dentry: rows.DentryRow = rows.DENTRY.loads(raw)
        if dentry.ino == body.ino:
            found.append((keys.first_u64(key), key[keys.NAME_AT :]))
        if number == count:
            return NamePage(found, key)
    return NamePage(found, b"")
