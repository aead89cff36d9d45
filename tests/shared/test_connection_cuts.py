"""Operations on random nodes beside ext4 while the workers' connections to the leader are ended by the kernel, again and again.

`ss -K` ends a connection as its peer's death does: what is on its way is lost, answers of executed requests among it.  The worker on the
leader's own node asks over a socket of the host, which is left alone.  tests/unit/vfs/test_connection_cuts.py cuts at every point.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from buildtools.nodes import Node
from tests.shared.rig import SharedVolume
from tests.shared.test_random import Spread, run, sides

__all__ = ["sides"]
pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
EXAMPLES, STEPS = 16, 50
PAUSE_S = 0.1  # at most, between two cuts


def ports(pid: int) -> list[int]:
    """Local ports of a process' TCP connections."""
    held = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            held.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    with open(f"/proc/{pid}/net/tcp") as table:
        rows = [line.split() for line in list(table)[1:]]
    return [int(row[1].partition(":")[2], 16) for row in rows if row[3] == "01" and f"socket:[{row[9]}]" in held]


def possible() -> bool:
    """Whether this kernel ends connections at ss's word: one of our own."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        subprocess.run(["ss", "-HtnK", "sport", "=", f":{client.getsockname()[1]}"], capture_output=True, check=False, timeout=60)
        client.settimeout(1)
        try:
            client.recv(1)
        except ConnectionAbortedError:
            return True
        except TimeoutError:
            pass
    return False


class Cutter(threading.Thread):
    def __init__(self, nodes: list[Node], seed: int) -> None:
        super().__init__()
        self.nodes, self.dice = nodes, random.Random(seed)
        self.over = threading.Event()
        self.cut = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over.wait(self.dice.random() * PAUSE_S):
                node = self.dice.choice(self.nodes)
                for pid in node.pids("worker"):
                    for port in ports(pid):
                        command = [*node.entering, "ss", "-HtnK", "sport", "=", f":{port}"]
                        self.cut += bool(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        except BaseException as err:
            self.error = err


@pytest.fixture
def cutter(shared_volume: SharedVolume, seed: int) -> Iterator[Cutter]:
    if not possible():
        pytest.skip("this kernel does not end connections for `ss -K`")
    made = Cutter(shared_volume.machines.nodes, seed)
    yield made
    made.over.set()
    if made.is_alive():
        made.join()


def test_operations_are_as_on_ext4_while_connections_are_cut(sides: list[Spread], cutter: Cutter, seed: int, figures: list[str]) -> None:
    cutter.start()
    run(sides, seed, figures, EXAMPLES, STEPS)
    cutter.over.set()
    cutter.join()
    assert cutter.error is None and cutter.cut > 0
    figures.append(f"meanwhile {cutter.cut} connections of workers were cut")
