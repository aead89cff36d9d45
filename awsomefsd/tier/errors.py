"""The errors of a store, sorted by what has to be done about them.

    down      nobody answers, or the store says that it cannot now: wait, it is tried again
    slow      it answers, but not within the deadline, or it asks to be asked less often: wait, and ask less
    refused   credentials, rights, the clock, the room of the account: somebody has to change something
    foreign   what answers is not our store: another cluster's prefix, another bucket, a portal, a redirect, no S3 at all
    missing   the store says that there is no object of this name
    damaged   what came is not what was stored: too short, too long, another content
    unnamed   no object can have this name: it was not asked for, nothing was sent

`missing` is said only by a store that says it in its own words: a 404 of something else on the way is `foreign`.  A PUT that failed in any
way may have been done all the same; it is sent again with the same bytes, and never with others.
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import Error


class StoreError(Error):
    """The base of all; `kind` is the word above, and the message names store and object."""

    kind = ""
    errno = errno.EIO
    status = "UNAVAILABLE"


class StoreDown(StoreError):
    """Nobody answers, or the store says that it cannot now."""

    kind = "down"
    retry_helps = True


class StoreSlow(StoreError):
    """No answer within the deadline, or the store asks to be asked less often."""

    kind = "slow"
    retry_helps = True


class StoreRefused(StoreError):
    """The store answers, and does not do it for us; the message says what to change."""

    kind = "refused"
    status = "PERMISSION_DENIED"


class StoreForeign(StoreError):
    """What answers is not the store that it should be; nothing may be sent or deleted there."""

    kind = "foreign"
    status = "FAILED_PRECONDITION"


class ObjectMissing(StoreError):
    """The store says that it has no object of this name (it may not be visible yet)."""

    kind = "missing"
    status = "NOT_FOUND"


class ObjectDamaged(StoreError):
    """What the store gave is not what was stored under this name."""

    kind = "damaged"
    status = "DATA_LOSS"


class ObjectUnnamed(StoreError):
    """No object can have this name; nobody was asked."""

    kind = "unnamed"
    errno = errno.EINVAL
    status = "INVALID_ARGUMENT"
