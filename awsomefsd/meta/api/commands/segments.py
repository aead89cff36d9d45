"""Commands about segments and the space that writers reserve."""

from __future__ import annotations

from awsomefsd.meta.api.commands.base import Command


class ClearQuarantine(Command, tag=12):
    """Proof that no write of this session's workers can still land (process exited and I/O drained, new boot id, operator)."""

    session: int
    proof: str


class LeaseSegments(Command, tag=13):
    """Up to `count` free segments for the entry's session, freed no later than `safe_index` (every session has passed it).

    `like`: for the session that collects, on devices of the same kind as this one (meta/machine/locality.py); 0 for the session of a
    volume.

    `begun`: for the session of a volume, one segment that another session has begun and sealed, if there is one.  Below level MENDED_RULES
    there is none.

    `avoid`: devices that the node of the session does not see; none is leased there.  Below level DELEGATION it is ignored.
    """

    count: int
    safe_index: int
    like: int = 0
    begun: bool = False
    avoid: list[int] = []


class Reserve(Command, tag=14):
    """Promise `bytes` of device space and quota to the entry's session: ENOSPC or EDQUOT if less than `least` can be had.

    Grants between `least` and `bytes`.  Negative `bytes` gives back.
    """

    volume: int
    bytes: int
    least: int
