"""Collection on a running node: kills of the daemon and the worker while it copies, programs that read and write beside it."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.limits import MIB
from buildtools.nodes import Node, await_true


def free_segments(node: Node) -> int:
    return int(node.ask("device", "ls")[0]["segments_free"])


def state(node: Node) -> Any:
    return node.ask("device", "collect", "status")


def settled(node: Node) -> None:
    """Collection was told to go on, and found nothing more to do."""
    node.cli("device", "collect", "start")
    await_true("the end of collection", lambda: state(node)["state"] == "idle", 60, 0.05)


def write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())


class Readers:
    """Threads that read files of known content all the time, past the kernel's pages."""

    def __init__(self, files: dict[Path, str]) -> None:
        self._files = list(files.items())
        self._stop = threading.Event()
        self.errors: list[BaseException] = []
        self.reads = 0
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(2)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        try:
            while not self._stop.is_set():
                path, wanted = chance.choice(self._files)
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    assert hashlib.sha256(file.read()).hexdigest() == wanted, path
                self.reads += 1
        except BaseException as err:
            self.errors.append(err)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self.errors, self.errors


@pytest.mark.root
@pytest.mark.timeout(1_200)
def test_kills_during_collection(make_node, figures, seed) -> None:
    chance = random.Random(seed)
    node = make_node(size_bytes=256 * MIB)
    kept: dict[Path, str] = {}
    for turn in range(4):
        made = []
        for number in range(180):
            path = node.mountpoint / f"{turn}-{number}"
            data = chance.randbytes(chance.choice([2_000, 60_000, 300_000, 700_000]))
            path.write_bytes(data)
            made.append((path, data))
        node.cli("flush", str(node.mountpoint))
        for number, (path, data) in enumerate(made):
            if number % 5:
                path.unlink()
            else:
                kept[path] = hashlib.sha256(data).hexdigest()
        readers = Readers(kept)
        node.cli("device", "collect", "start")
        if turn:
            roles = [("daemon",), ("worker",), ("daemon", "worker")][turn - 1]
            await_true("copying", lambda: state(node)["state"] == "collecting" or int(state(node)["figures"].get("rounds", 0)), 60)
            for role, pid in node.kill(*roles).items():
                node.replaced(role, pid)
            node.await_daemon()
            settled(node)
        readers.end()
        assert readers.reads > 0
    settled(node)
    used = 255 - free_segments(node)
    live = sum(path.stat().st_size for path in kept)
    figures.append(f"collection with kills: {live >> 20} MiB live in {used} segments of 1 MiB")
    assert used <= live / MIB * 1.15 + 8
    for path, wanted in kept.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted
    status = node.ask("status", accept=(0, 3))
    assert status["figures"]["collect_corrupt_pieces"] == "0"
    node.umount()
    node.stop()
    node.cli("fsck", timeout_s=120)
