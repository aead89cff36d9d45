"""Domain errors carry what the edges need: an errno for the kernel, a gRPC status name, and whether a retry helps.

Our own bugs assert; the world raises one of these.  They are translated once, at the edge (fuse/handlers, cli, the admin API).
"""

from __future__ import annotations

import errno as _errno
import os

WAS_REMOVED = "was removed from"  # of a removed node: in a reply that voters keep (meta/machine/nodes.py), in meta/server/permissions.py


class Error(Exception):
    """The base of all domain errors; `errno`, `status` and `retry_helps` are set by class, or by the instance that knows better."""

    errno: int = _errno.EIO
    status: str = "INTERNAL"
    retry_helps: bool = False


class FsError(Error):
    """A POSIX result that is not success: what the system call of the application returns."""

    status = "FAILED_PRECONDITION"

    def __init__(self, errno: int, detail: str = "") -> None:
        super().__init__(detail)  # the text is made when it is read: ENOENT is the most frequent answer of all
        self.errno = errno
        self.detail = detail

    def __str__(self) -> str:
        return self.detail or os.strerror(self.errno)

    def __repr__(self) -> str:
        return f"FsError({_errno.errorcode.get(self.errno, self.errno)}, {str(self)!r})"


class Corrupt(Error):
    """Bytes that fail their checksum or their identity, or that no encoder of ours can have written."""

    status = "DATA_LOSS"


class FormatTooNew(Error):
    """A format version or an incompatible feature bit this build does not know; upgrade this node."""

    status = "FAILED_PRECONDITION"


class ConfigError(Error):
    """A bad or unknown setting; the message names the key.  `lines`: what is wrong, one line each."""

    errno = _errno.EINVAL
    status = "INVALID_ARGUMENT"

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Refused(Error):
    """A request that is understood and not carried out; the message says what to do."""

    errno = _errno.EPERM
    status = "FAILED_PRECONDITION"


class WouldLoseData(Refused):
    """Refused because data would be lost (CLI exit code 4)."""


class NotFound(Error):
    """A named object (volume, device, mount) that does not exist."""

    errno = _errno.ENOENT
    status = "NOT_FOUND"


class AlreadyExists(Error):
    """A named object that exists already."""

    errno = _errno.EEXIST
    status = "ALREADY_EXISTS"


class Unavailable(Error):
    """No process can answer now (daemon down, no quorum); the same request may be sent again."""

    errno = _errno.EAGAIN
    status = "UNAVAILABLE"
    retry_helps = True


class NotLeading(Unavailable):
    """This node does not lead the metadata; `leader` is the node that does, "" if this one knows none."""

    def __init__(self, leader: str = "") -> None:
        super().__init__(f"this node does not lead the metadata, {leader or 'and knows no node that'} does")
        self.leader = leader


class Overloaded(Unavailable):
    """A named bound in limits.py is reached; wait and send again."""

    status = "RESOURCE_EXHAUSTED"


class RejoinRequired(Error):
    """This node's journal or metadata state must not be used any more; the node keeps it elsewhere and joins again as a new member."""

    status = "DATA_LOSS"


class MembershipSuperseded(Refused):
    """The membership was made again by force, without this node; an operator has to look at its journal and state."""

    status = "DATA_LOSS"


class Fenced(Error):
    """The epoch of this session has ended; nothing it held may be used any more."""

    errno = _errno.EIO
    status = "ABORTED"


class ProtocolError(Error):
    """A peer broke the wire protocol; its connection is dropped and counted."""

    status = "INVALID_ARGUMENT"
