"""TCP ports for tests whose nodes stop and listen again: below the kernel's ephemeral range.

From inside that range another program's connection could take the port while its node is down, and a node that dials a port where nobody
listens could even be connected with itself.

A node may listen long after it was given its port, so a port is given once, and nobody else gives it: ports come in blocks, and a run of
tests that uses a block keeps the block's first port bound for as long as it lives.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

FIRST, BLOCK = 10_000, 50
_blocks: list[socket.socket] = []  # their first ports


def _bound(port: int) -> socket.socket | None:
    """None if somebody has it."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


def _ports() -> Iterator[int]:
    """Ports of blocks that are ours alone.  By chance and not by the run's seed: two runs at a time shall not try the same blocks first."""
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    starts = list(range(min(FIRST, end - 5_000), end - BLOCK + 1, BLOCK))
    random.SystemRandom().shuffle(starts)
    for start in starts:
        first = _bound(start)
        if first is not None:
            _blocks.append(first)
            yield from range(start + 1, start + BLOCK)


_given = _ports()


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody has now, and that no other test is given."""
    found: list[int] = []
    while len(found) < count:
        port = next(_given)
        probe = _bound(port)
        if probe is not None:
            probe.close()
            found.append(port)
    return found
