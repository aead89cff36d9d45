"""The admin API as the CLI calls it: domain errors instead of gRPC's, and plain words when no daemon answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from awsomefsd.admin import trailers
from awsomefsd.admin.pb import admin_pb2, admin_pb2_grpc
from awsomefsd.base import sockets
from awsomefsd.base.errors import Refused, Unavailable

CALL_S = 30.0
PROBE_S = 10.0
CONNECT_S = 20.0  # a daemon of an overloaded machine takes its time
MOUNT_S = 120.0  # longer than the keeper waits for a worker, so that the daemon's own words arrive
UMOUNT_S = 330.0  # likewise: a flush before and one after umount(2)


class AdminClient:
    """A connection to one daemon; a context manager.  Calls block; any thread may call.

    The constructor raises Unavailable if no daemon answers at the socket, Refused if this user may not connect to it.
    """

    def __init__(self, path: Path, waiting: Callable[[str], AbstractContextManager[object]] = nullcontext) -> None:
        """`waiting` is given the name of an RPC, and entered while it lasts."""
        self._path = path
        self._waiting = waiting
        _check(path)
        self._address = sockets.address(path)
        place = self._address.__enter__()
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_http_proxy", 0), ("grpc.default_authority", "localhost")]
        options.append(("grpc.min_reconnect_backoff_ms", int(CONNECT_S * 1000)))  # gRPC's name for how long one try to connect may take
        self._channel = grpc.insecure_channel(f"unix:{place}", options=options)
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()
        self._address.__exit__(None, None, None)

    def call(self, rpc: str, /, timeout_s: float = CALL_S, **fields: Any) -> Any:
        """Returns the reply of an RPC of admin.proto; `fields` are those of its request.  Blocks up to `timeout_s`.

        Raises the domain error that the daemon raised, and Unavailable without an answer.
        """
        request = getattr(admin_pb2, f"{rpc}Request")(**fields)
        try:
            with self._waiting(rpc):
                return getattr(self._stub, rpc)(request, timeout=timeout_s)
        except grpc.RpcError as failure:
            raise self._explained(failure, timeout_s) from None

    def follow(self, timeout_s: float | None = None, **fields: Any) -> Iterator[Any]:
        """Yields the entries of the change stream (pb.Change) until the daemon ends it, `timeout_s` at most; blocks between them.

        Raises as `call`.
        """
        try:
            yield from self._stub.Follow(admin_pb2.FollowRequest(**fields), timeout=timeout_s)
        except grpc.RpcError as failure:
            raise self._explained(failure, timeout_s or 0) from None

    def summarize(self, **fields: Any) -> Iterator[Any]:
        """Yields the sizes and counts of a tree (pb.Summary) as far as they are known, the whole ones last.  Raises as `call`."""
        try:
            yield from self._stub.Summarize(admin_pb2.SummarizeRequest(**fields))
        except grpc.RpcError as failure:
            raise self._explained(failure, 0) from None

    def store_work(self, rpc: str, **fields: Any) -> Iterator[Any]:
        """Yields what AddStore or CheckStore tells (pb.StoreProgress); blocks as long as a slow store takes.  Raises as `call`."""
        try:
            yield from getattr(self._stub, rpc)(getattr(admin_pb2, f"{rpc}Request")(**fields))
        except grpc.RpcError as failure:
            raise self._explained(failure, 0) from None

    def probe(self) -> None:
        """Returns if the daemon serves; raises Unavailable if not, or if it does not answer within PROBE_S."""
        try:
            reply = health_pb2_grpc.HealthStub(self._channel).Check(health_pb2.HealthCheckRequest(), timeout=PROBE_S)
        except grpc.RpcError as failure:
            raise self._explained(failure, PROBE_S) from None
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise Unavailable("the daemon runs, but does not serve yet; try again")

    def backup(self) -> Iterator[bytes]:
        """Yields the pieces of a backup of the metadata, in order.  Raises as `call`."""
        try:
            for piece in self._stub.BackupMetadata(admin_pb2.BackupMetadataRequest()):
                yield piece.data
        except grpc.RpcError as failure:
            raise self._explained(failure, 0) from None

    def _explained(self, failure: grpc.RpcError, timeout_s: float) -> Exception:
        assert isinstance(failure, grpc.Call)
        ours = any(key == trailers.ERROR_KEY for key, _ in failure.trailing_metadata() or ())
        if not ours and failure.code() == grpc.StatusCode.UNAVAILABLE and "timed out" in (failure.details() or ""):
            return _silent(self._path)  # the kernel connects to a process that is stopped too
        if not ours and failure.code() == grpc.StatusCode.UNAVAILABLE:
            return Unavailable(
                f"the daemon behind {self._path} closed the connection ({failure.details()}); "
                "if it restarts, try again; else run as root or as a member of its admin group"
            )
        if not ours and failure.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unavailable(f"no answer within {timeout_s:.0f} s; the operation may still complete: check `awsomefsd status`")
        return trailers.to_error(failure)


def _silent(path: Path) -> Unavailable:
    return Unavailable(
        f"the daemon behind {path} lives, but does not answer: it is stopped (SIGSTOP), hung, or the machine is overloaded; "
        "look at its log, and restart it if that goes on"
    )


def _check(path: Path) -> None:
    """Tries to connect, and raises in words what gRPC would call UNAVAILABLE."""
    try:
        sockets.connect_unix(path, CONNECT_S).close()
    except BlockingIOError:  # so many have asked in vain that the kernel takes no more connections for it
        raise _silent(path) from None
    except PermissionError as err:
        raise Refused(f"{path}: permission denied; run as root or as a member of the admin group (configuration key admin_group)") from err
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as err:
        raise Unavailable(f"no daemon answers at {path}; start it with `awsomefsd run` (or check --run-dir)") from err
    except OSError as err:
        raise Unavailable(f"cannot connect to {path}: {os.strerror(err.errno or 0)}") from err
