"""TCP ports for tests whose nodes stop and listen again: below the kernel's ephemeral range.

From inside that range another program's connection could take the port while its node is down, and a node that dials a port where nobody
listens could even be connected with itself.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

FIRST = 10_000


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody has now."""
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    held: list[socket.socket] = []
    choose = random.SystemRandom()  # not the run's seed: two runs at a time shall not choose the same
    try:
        while len(held) < count:
            try:
                held.append(socket.create_server(("127.0.0.1", choose.randrange(min(FIRST, end - 5_000), end))))
            except OSError:
                continue  # somebody has it
        return [sock.getsockname()[1] for sock in held]
    finally:
        for sock in held:
            sock.close()
