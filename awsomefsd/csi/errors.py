"""The error of a driver's RPC: a status of gRPC by name, and a message that appears in the events of a pod."""

from __future__ import annotations

import errno

from awsomefsd.base.errors import Error, FsError

_OF_ERRNO = {
    errno.ENOENT: "NOT_FOUND",
    errno.EEXIST: "ALREADY_EXISTS",
    errno.EBUSY: "FAILED_PRECONDITION",
    errno.EINVAL: "INVALID_ARGUMENT",
    errno.ENOSPC: "RESOURCE_EXHAUSTED",
    errno.EDQUOT: "RESOURCE_EXHAUSTED",
    errno.ENFILE: "RESOURCE_EXHAUSTED",
    errno.EROFS: "FAILED_PRECONDITION",
    errno.EOPNOTSUPP: "FAILED_PRECONDITION",  # the level of the cluster is below it
}


class CsiError(Error):
    """An error with a status of gRPC by name; `words` are for the events of a pod."""

    def __init__(self, status: str, words: str) -> None:
        super().__init__(words)
        self.status = status


def invalid(words: str) -> CsiError:
    return CsiError("INVALID_ARGUMENT", words)


def precondition(words: str) -> CsiError:
    return CsiError("FAILED_PRECONDITION", words)


def not_found(words: str) -> CsiError:
    return CsiError("NOT_FOUND", words)


def status_of(error: Error) -> str:
    """Returns the name of the status that the specification wants for an error."""
    return _OF_ERRNO.get(error.errno, "INTERNAL") if isinstance(error, FsError) else error.status
