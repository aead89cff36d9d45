"""A node whose device's name leads to another disk after a fault: no process of it writes there, it says so, and it goes on by itself."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest

from buildtools.nodes import Node, await_true
from tests.conftest import MakeNode, missing_for_mounts

pytestmark = pytest.mark.skipif(bool(missing_for_mounts()), reason=missing_for_mounts())
WAIT_S = 120
MIB = 1 << 20


def content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lead_to(link: Path, target: Path) -> None:
    new = link.with_name("link.new")
    new.symlink_to(target)
    new.rename(link)


def codes(node: Node) -> list[str]:
    return [row["code"] for row in node.ask("status", accept=(0, 3))["health"]]


def test_a_name_that_leads_to_another_disk_is_written_by_nobody(make_node: MakeNode, seed: int) -> None:
    node = make_node(size_bytes=512 * MIB, use_loop=False)
    node.up()
    chance = random.Random(seed)
    before, after = chance.randbytes(3 * MIB), chance.randbytes(3 * MIB)
    file, source = node.mountpoint / "file", node.directory / "source"
    file.write_bytes(before)
    node.cli("flush", str(node.mountpoint))
    stranger = node.directory / "stranger.img"
    stranger.write_bytes(chance.randbytes(MIB) * 512)  # a disk of somebody else, as large as ours
    untouched = content(stranger)
    lead_to(node.disk, stranger)
    node.strike(["worker", "daemon"])  # both open the device anew: the worker for segments, the daemon for checkpoints and collection
    node.await_daemon()
    await_true("the daemon to say so", lambda: "DEVICE_WRONG" in codes(node), WAIT_S, 0.5)
    source.write_bytes(after)
    copying = subprocess.Popen(["dd", f"if={source}", f"of={node.mountpoint / 'new'}", "bs=1M", "conv=fsync", "status=none"])
    try:
        await_true("a look of the worker at the device", lambda: "wrong device" in _log_of_worker(node), WAIT_S, 0.2)
        assert content(stranger) == untouched
        assert copying.poll() is None or copying.returncode, "fsync says that the bytes are durable"
        lead_to(node.disk, node.image)
        if copying.wait(WAIT_S):  # fsync reported the failure; the bytes are still the worker's
            subprocess.run(["dd", f"if={source}", f"of={node.mountpoint / 'new'}", "bs=1M", "conv=fsync", "status=none"], check=True)
    finally:
        copying.kill()
        copying.wait()
    assert content(stranger) == untouched
    await_true("the end of the finding", lambda: "DEVICE_WRONG" not in codes(node), WAIT_S, 0.5)
    os.posix_fadvise(fd := os.open(file, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert file.read_bytes() == before and (node.mountpoint / "new").read_bytes() == after


def _log_of_worker(node: Node) -> str:
    return "".join(path.read_text(errors="replace") for path in node.log.iterdir() if "worker" in path.name)
