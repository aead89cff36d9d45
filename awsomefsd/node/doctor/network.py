"""Checks of the network: the addresses that this node listens at, names, the ports of the other nodes, and the size of packets to them.

Packets: an ICMP echo with the bit "do not fragment", as large as this host's interface allows.  If a small one is answered and a large one
never, something on the way has a smaller MTU and says nothing, so a TCP connection hangs as soon as it carries much.  Where no small one is
answered (a firewall), or without the right to raw sockets, nothing is known, and nothing is said.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from awsomefsd.base.sockets import connect_tcp
from awsomefsd.config import ports
from awsomefsd.config.settings import Settings
from awsomefsd.node.health.codes import HealthFinding

CONNECT_S = 3.0
RESOLVE_S = 5.0
ECHO_S, ECHOES = 0.5, 3
_IP_MTU, _IP_MTU_DISCOVER, _PMTUDISC_PROBE = 14, 10, 3
_HEADERS = 28  # of IP and ICMP
_SIZES = (1_492, 1_480, 1_450, 1_420, 1_400, 1_300, 1_280, 1_200, 1_000, 576)
_THREADS = 16


class PeerNode(NamedTuple):
    """Another node, with its addresses: "HOST:PORT", or "" where it has none."""

    name: str
    control: str
    metadata: str


def addresses(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yields (setting, "HOST:PORT") of each TCP address that this node listens at."""
    for key, value in (
        ("cluster.listen", settings.cluster.listen),
        ("metadata.listen", settings.metadata.listen),
        ("metrics.listen", settings.metrics.listen),
        ("ui.listen", settings.ui.listen),
    ):
        if value and not value.startswith("unix"):
            yield key, value


def listening(settings: Settings, own: Iterable[int] = ()) -> Iterator[HealthFinding]:
    """Yields the addresses that cannot be listened at; a port of one of the processes `own` is where it belongs."""
    mine = set(own)
    for key, address in addresses(settings):
        host, port = split(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            socket.create_server((host, port), family=family).close()
        except OSError as err:
            words = ports.taken(key, address, err)
            if err.errno != errno.EADDRINUSE:
                yield HealthFinding("ADDRESS_FOREIGN", words, f"correct {key}; `ip address` lists those of this host")
            elif not any(pid in mine for pid, _ in ports.users(port)):
                yield HealthFinding("PORT_IN_USE", words, f"end that process, or choose another address with {key}")


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


# --- names -------------------------------------------------------------------------------------------------------------------
def names(settings: Settings, peers: Iterable[PeerNode]) -> Iterator[HealthFinding]:
    """Yields the host names without an address: that which this node advertises, and those of the other nodes."""
    wanted = [("cluster.advertise", settings.cluster.advertise)]
    wanted += [(f"the address of node {peer.name}", split(peer.control)[0]) for peer in peers if peer.control]
    for whose, host in wanted:
        if host and not is_address(host) and (why := _unresolved(host)):
            yield HealthFinding("NAME_UNRESOLVED", f"{whose} is {host!r}: {why}")


def is_address(host: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def _unresolved(host: str) -> str:
    answer: list[str] = []

    def ask() -> None:
        try:
            socket.getaddrinfo(host, None)
            answer.append("")
        except OSError as err:
            answer.append(err.strerror or str(err))
        except UnicodeError:
            answer.append("no host can have this name")

    asking = threading.Thread(target=ask, daemon=True)  # the resolver's own patience is longer
    asking.start()
    asking.join(RESOLVE_S)
    return answer[0] if answer else f"no answer within {RESOLVE_S:.0f} s"


# --- other nodes -------------------------------------------------------------------------------------------------------------
def reachable(peers: Iterable[PeerNode]) -> Iterator[HealthFinding]:
    """Yields the ports of other nodes that do not take a connection, and paths that lose large packets."""
    peers = list(peers)
    jobs: list[Callable[[], HealthFinding | None]] = []
    for peer in peers:
        for kind, address in (("control", peer.control), ("metadata", peer.metadata)):
            if address:
                jobs.append(lambda peer=peer, kind=kind, address=address: _connects(peer, kind, address))  # type: ignore[misc]
        if peer.control or peer.metadata:
            jobs.append(lambda peer=peer: packets(peer.name, split(peer.control or peer.metadata)[0]))  # type: ignore[misc]
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from filter(None, pool.map(lambda job: job(), jobs))


def _connects(peer: PeerNode, kind: str, address: str) -> HealthFinding | None:
    try:
        connect_tcp(*split(address), CONNECT_S).close()
    except OSError as err:
        why = f"no answer within {CONNECT_S:.0f} s" if isinstance(err, TimeoutError) else err.strerror or str(err)
        return HealthFinding("PEER_UNREACHABLE", f"the {kind} port of node {peer.name} at {address}: {why}")
    return None


def packets(name: str, host: str) -> HealthFinding | None:
    """Returns the finding about the path to a node, None if large packets arrive or nothing can be known."""
    try:
        place = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
        mtu = _route_mtu(place)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            sock.connect(place)
            if not _echoes(sock, 64) or _echoes(sock, mtu):
                return None
            passed = next((size for size in _SIZES if size < mtu and _echoes(sock, size, 1)), 64)
            if _echoes(sock, mtu):
                return None  # it was lost by chance
    except OSError:
        return None
    return HealthFinding(
        "MTU_WRONG",
        f"packets of {mtu} bytes, the MTU here, to node {name} at {host} are lost; {passed} bytes arrive",
        f"`ip link` here and on {name} shows the MTU of each interface; give all on the way the same (`ip link set DEV mtu {mtu}`)",
    )


def _route_mtu(place: tuple[object, ...]) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((place[0], 9))
        return min(sock.getsockopt(socket.IPPROTO_IP, _IP_MTU), 65_535)


def _echoes(sock: socket.socket, size: int, tries: int = ECHOES) -> bool:
    """Whether one of `tries` requests of `size` bytes, IP header included, is answered.  Raises OSError."""
    mark = os.urandom(2)
    for number in range(tries):
        head = struct.pack("!BBH2sH", 8, 0, 0, mark, number)
        body = bytes(size - _HEADERS)
        check = _checksum(head + body)
        try:
            sock.send(head[:2] + struct.pack("!H", check) + head[4:] + body)
        except OSError as err:
            if err.errno != errno.EMSGSIZE:
                raise
            return False
        if _answered(sock, mark):
            return True
    return False


def _answered(sock: socket.socket, mark: bytes) -> bool:
    deadline = time.monotonic() + ECHO_S
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([sock], [], [], left)[0]:
            return False
        raw = sock.recv(65_535)
        start = (raw[0] & 15) * 4
        if raw[start] == 0 and raw[start + 4 : start + 6] == mark:
            return True
    return False


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
