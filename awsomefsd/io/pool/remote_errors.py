"""Errors of requests to a segment server; each type says what whoever asked may do next.  Pure.

All are OSErrors, as those of a device of this node are.
"""

from __future__ import annotations

import errno

from awsomefsd.io.transport.messages import reason_of


class ServerAway(OSError):
    """The server cannot be reached, has ended the connection, or is silent.

    Nothing is known of what it did with the request.  Another mirror may answer; this one may do so after a while.
    """


class BayLost(OSError):
    """The bay is not, or is no longer, what the request says (ESTALE): where the segment lies has to be asked for again.

    For a writer: nothing can be appended there any more.
    """


class MediumFailed(OSError):
    """The device could not do it (EIO); another mirror may have the bytes."""


class NobodyLeads(OSError):
    """The server could not ask the leader (EAGAIN); nothing has happened, the same request may be sent again."""


class NotServed(OSError):
    """The server does not do that: it has no such device or bay (ENODEV, EINVAL), or not for this node (EACCES)."""


_KINDS: dict[int, type[OSError]] = {errno.ESTALE: BayLost, errno.EIO: MediumFailed, errno.EAGAIN: NobodyLeads}


def error_of(number: int, body: bytes, server: str) -> OSError:
    """Returns the error that an answer with an errno means.  `body`: the reason in words, `server`: who says so."""
    kind = _KINDS.get(number, NotServed)
    return kind(number, f"segment server of {server}: {reason_of(body) or 'no reason given'}")


def again(error: OSError) -> OSError:
    """Returns an error of the same kind and words, to be raised by one more thread."""
    return type(error)(error.errno, error.strerror)
