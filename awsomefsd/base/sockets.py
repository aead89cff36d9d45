"""Unix sockets at any path, the credentials of their peers, poll(2) for descriptors, this host's addresses, and sd_notify(3).

A unix address holds 107 bytes; a deeper path is reached through /proc/self/fd/N of its directory, held open for as long as the socket.
"""

from __future__ import annotations

import array
import errno
import ipaddress
import math
import os
import select
import socket
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

ADDRESS_BYTES_MAX = 107
SO_PEERGROUPS = 59
GROUPS_MAX = 65_536  # of the kernel (NGROUPS_MAX)
_UCRED = struct.Struct("iII")
# Addresses that no host has (TEST-NET-1, documentation): the way there begins at the address of the default route's interface.
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
_umask = threading.Lock()  # held while it is not the process's own


class Peer(NamedTuple):
    """The process at the other end, as the kernel recorded it at connect(2)."""

    pid: int
    uid: int
    gids: frozenset[int]


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Yields an address for `path` that fits into sockaddr_un, valid inside the `with`.  Raises OSError."""
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
        yield str(path)
        return
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


@contextmanager
def owner_only() -> Iterator[None]:
    """What is made inside the `with` has no rights but its owner's to read and write.  It changes the umask of the whole process.

    One thread at a time is inside: of two that overlap, the later one would restore the umask of the earlier one for ever.
    """
    with _umask:
        before = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(before)


def listen_unix(path: Path, mode: int, group: int = -1) -> socket.socket:
    """Returns a listening stream socket at `path`, which has its group and mode before a peer can connect.  Raises OSError.

    It replaces a file that a dead process left there; the lock on the state directory keeps two live daemons apart.  For a moment it
    changes the umask of the whole process.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        with address(path) as place, owner_only():
            listener.bind(place)
        if group >= 0:
            os.chown(path, -1, group)
        os.chmod(path, mode)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def connect_unix(path: Path, timeout_s: float | None = None) -> socket.socket:
    """Returns a connected stream socket.  Blocks and raises OSError as connect(2) does.

    With `timeout_s`, which the socket keeps, it does not block: where so many wait already that the kernel takes no more it raises
    BlockingIOError.  connect(2) would wait there for as long as the listener is stopped.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout_s)
        with address(path) as place:
            sock.connect(place)
    except OSError:
        sock.close()
        raise
    return sock


def peer_of(sock: Any) -> Peer:
    """Returns SO_PEERCRED and SO_PEERGROUPS of a connected unix socket, the standard library's or trio's.  Raises OSError."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1_024)
    except OSError:
        raw = _many_groups(sock)
    return Peer(pid, uid, frozenset(struct.unpack(f"{len(raw) // 4}I", raw)) | {gid})


def _many_groups(sock: Any) -> bytes:
    """Returns SO_PEERGROUPS of a user in more than 256 groups; Python's getsockopt stops at 1,024 bytes."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    raw = ctypes.create_string_buffer(4 * GROUPS_MAX)
    size = ctypes.c_uint32(len(raw))
    if libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, raw, ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return raw.raw[: size.value]


def readable(fds: Iterable[int], timeout_s: float) -> list[int]:
    """Returns those of `fds` with something to read, or at their end; none after `timeout_s`.  Blocks until then.

    poll has no bound on the numbers of descriptors.
    """
    waiting = select.poll()
    for fd in fds:
        waiting.register(fd, select.POLLIN)
    return [fd for fd, _ in waiting.poll(math.ceil(timeout_s * 1_000))]


def connect_tcp(host: str, port: int, timeout_s: float) -> socket.socket:
    """Connects to a host by its address or name.  Blocks so long for each address, and for the name server.  Raises OSError.

    Python says by UnicodeError, which is no OSError, that no host can have a name: an empty label, or one of more than 63 characters.
    """
    try:
        return socket.create_connection((host, port), timeout_s)
    except UnicodeError as err:
        raise OSError(errno.EINVAL, f"{host!r} is not the name of a host: {err}") from None


def join_host(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_unspecified(host: str) -> bool:
    """Returns whether an address is that of all interfaces (0.0.0.0, ::)."""
    return ipaddress.ip_address(host).is_unspecified


def own_address(toward: str = "") -> str:
    """Returns the address of this machine on the way to `toward` (default: to anywhere), "" if there is no way.  Sends nothing."""
    family = socket.AF_INET6 if ":" in toward else socket.AF_INET
    for kind, host in ((family, toward),) if toward else _ELSEWHERE:
        with suppress(OSError), socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            found: str = probe.getsockname()[0]
            if not is_unspecified(found):
                return found
    return ""


def notify_systemd(state: str, fds: Sequence[int] = (), flags: int = 0) -> None:
    """Sends a state ("READY=1", "STOPPING=1") to the service manager as sd_notify(3) does; without a manager it does nothing.

    `fds` go with it, for its descriptor store.  Blocks while the manager's queue is full; with MSG_DONTWAIT in `flags` it raises
    BlockingIOError instead.
    """
    place = os.environ.get("NOTIFY_SOCKET")
    if not place:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            sock.sendmsg([state.encode()], rights, flags, "\0" + place[1:] if place.startswith("@") else place)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a manager that is away does not stop a node
