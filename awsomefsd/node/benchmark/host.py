"""Rows of this host: its state directory, the devices that it has, and the way to the other nodes.

Nothing is left behind, and devices are only read.
"""

from __future__ import annotations

import mmap
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from awsomefsd.node.benchmark.rows import MIB, Measured, of_times, rate, times

PAGE = 4096
SYNCS, READS, STREAM_BYTES = 200, 200, 256 * MIB
CONNECTS, CONNECT_S = 5, 3.0
_JOURNAL_BYTES = 4 * MIB


def disk(state: Path, seconds: float) -> list[Measured]:
    """Measures in a file without a name.  Raises OSError."""
    block = os.urandom(PAGE)
    with tempfile.TemporaryFile(dir=state, buffering=0) as file:
        fd = file.fileno()
        os.pwrite(fd, bytes(_JOURNAL_BYTES), 0)  # written, as journals are: a sync of new blocks is another thing
        os.fsync(fd)

        def sync(number: int) -> None:
            os.pwrite(fd, block, number * PAGE % _JOURNAL_BYTES)
            os.fdatasync(fd)

        return [times("disk.sync", str(state), sync, SYNCS, seconds)]


def device(path: str, size: int, seconds: float) -> list[Measured]:
    """Reads `path` (`size` bytes) past the page cache.  Raises OSError, EINVAL where that cannot be done."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with closing(mmap.mmap(-1, MIB)) as buffer, memoryview(buffer) as view:  # aligned
            pages = max(size // PAGE, 1)
            few = view[:PAGE]
            small = times("device.read", path, lambda _: os.preadv(fd, [few], random.randrange(pages) * PAGE), READS, seconds)
            pieces, end = [], time.monotonic() + seconds
            for offset in range(0, min(size, STREAM_BYTES) // MIB * MIB, MIB):
                began = time.perf_counter()
                count = os.preadv(fd, [view], offset)
                pieces.append((count, time.perf_counter() - began))
                if time.monotonic() > end:
                    break
            few.release()
            return [small, rate("device.stream", path, pieces)] if pieces else [small]
    finally:
        os.close(fd)


def network(peers: Iterable[tuple[str, str]]) -> list[Measured]:
    """Connects to each (name, "HOST:PORT").  Raises OSError with the name of the node that does not answer."""
    found = []
    for name, address in peers:
        host, _, port = address.rpartition(":")
        spent = []
        try:
            place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
            for _ in range(CONNECTS):
                with socket.socket(place[0], place[1]) as sock:
                    sock.settimeout(CONNECT_S)
                    began = time.perf_counter()
                    sock.connect(place[4])
                    spent.append((time.perf_counter() - began) * 1_000)
        except OSError as err:
            raise OSError(err.errno, f"node {name} at {address}: {err.strerror or err}") from err
        found.append(of_times("network.connect", name, spent))
    return found
