"""The protocol between the keeper, its workers and its clients: JSON messages over SOCK_SEQPACKET, descriptors beside them by SCM_RIGHTS.

SEQPACKET because a message and its descriptors then arrive together or not at all: a peer that is killed in the middle of a
send can never leave half a message, and an end of file can never be taken for one.  JSON because the keeper imports nothing
but the standard library.  Rejected: a stream with length prefixes (SCM_RIGHTS attach to a byte, not to a message, so a
descriptor could be read apart from the message that names it).
"""

from __future__ import annotations

import array
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import KIB
from awsomefsd.base.sockets import address

MESSAGE_BYTES_MAX = 128 * KIB  # fits the smallest send buffer that Linux gives us
DESCRIPTORS_MAX = 32  # in one message (the kernel allows 253)
SOCKET_NAME = "keeper.sock"

Message = dict[str, Any]


def pair() -> tuple[socket.socket, socket.socket]:
    """Returns a connected pair of sockets, for the keeper and a worker that it starts.  Raises OSError."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        _widen(end)
    return ends


def connect(path: Path, timeout_s: float | None = None) -> socket.socket:
    """Returns a socket that is connected to the keeper; each call of it blocks up to `timeout_s`.  Raises OSError (also TimeoutError)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(timeout_s)
        with address(path) as name:
            sock.connect(name)
        _widen(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def listen(path: Path) -> socket.socket:
    """Returns a listening, non-blocking socket at `path`, mode 0600.  Raises OSError.

    It replaces a socket that is there, so the caller has to hold the lock of the keeper.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        umask = os.umask(0o177)
        try:
            with address(path) as name:
                sock.bind(name)
        finally:
            os.umask(umask)
        sock.listen(64)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def peer(sock: socket.socket) -> tuple[int, int]:
    """Returns (pid, uid) of the process that connected, as the kernel recorded them then."""
    pid, uid, _gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Sends one message.  Raises OSError when the peer is gone or (on a non-blocking socket) does not read, ProtocolError above a limit."""
    payload = json.dumps(message, separators=(",", ":")).encode()
    if len(payload) > MESSAGE_BYTES_MAX or len(fds) > DESCRIPTORS_MAX:
        raise ProtocolError(f"message of {len(payload)} bytes and {len(fds)} descriptors is over the limit of {MESSAGE_BYTES_MAX} bytes")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([payload], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """Returns one message and its descriptors (close-on-exec, the caller owns them); None at the end of the connection.

    Blocks as the socket does (BlockingIOError, TimeoutError).  Raises ProtocolError for bytes that are no message, and closes their
    descriptors.
    """
    space = socket.CMSG_SPACE(DESCRIPTORS_MAX * 4)
    try:
        payload, ancillary, flags, _ = sock.recvmsg(MESSAGE_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC)
    except (ConnectionResetError, BrokenPipeError):
        return None
    fds = _descriptors(ancillary)
    try:
        if not payload and not fds:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError("message longer than the limit")
        return decode(payload), fds
    except BaseException:
        close_all(fds)
        raise


def decode(payload: bytes) -> Message:
    """Returns the message in `payload`.  Raises ProtocolError if it is none."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("op", ""), str):
        raise ProtocolError("a message is an object, and its op a string")
    return message


def close_all(fds: Sequence[int]) -> None:
    """Closes descriptors; errors are ignored."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return fds.tolist()


def _widen(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_BYTES_MAX)


def say(log: logging.Logger, level: int, event: str, **fields: object) -> None:
    """Logs one line of the structured log: the event, then the fields that are not None."""
    if log.isEnabledFor(level):
        log.log(level, event, extra={key: value for key, value in fields.items() if value is not None})
