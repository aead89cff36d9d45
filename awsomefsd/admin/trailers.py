"""The form of a domain error on gRPC: its status code, its words as the details, and its class and errno in the trailing metadata."""

from __future__ import annotations

import inspect

import grpc

from awsomefsd.base import errors

ERROR_KEY = "awsomefsd-error"
ERRNO_KEY = "awsomefsd-errno"
_CLASSES = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.Error)}
_BY_STATUS = {
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Refused,
}


def status_of(error: errors.Error) -> grpc.StatusCode:
    return grpc.StatusCode[error.status]


def trailing(error: errors.Error) -> tuple[tuple[str, str], ...]:
    """Returns the trailing metadata of an error: its class and its errno."""
    return ((ERROR_KEY, type(error).__name__), (ERRNO_KEY, str(error.errno)))


def to_error(failure: grpc.RpcError) -> errors.Error:
    """Returns the domain error that a failed call stands for: of its class if the daemon sent one, else by its status."""
    assert isinstance(failure, grpc.Call)
    trailers = {str(key): value for key, value in failure.trailing_metadata() or ()}
    words = failure.details() or failure.code().name
    kind = _CLASSES.get(str(trailers.get(ERROR_KEY)))
    if kind is errors.FsError:
        return errors.FsError(int(str(trailers.get(ERRNO_KEY, 5))), words)
    return (kind or _BY_STATUS.get(failure.code(), errors.Error))(words)
