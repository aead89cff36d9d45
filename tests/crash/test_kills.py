"""Kills under verified load: nothing that write(2) acknowledged is lost, no operation fails, whoever of us dies.

Two halves, with FUSE_NOTIFY_RESEND and with it pinned off (a 5.14 kernel has none); together at least 60 kills of the worker, 20 of the
daemon, 10 of the keeper and 5 of worker and daemon at once.  Between two kills every client does BETWEEN verified operations, however long
that takes: so each kill hits a system at work, and rates and stalls are figures, which depend on the machine.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from awsomefsd.base.failpoints import FailpointControl
from buildtools import chaos
from buildtools.nodes import await_true

BETWEEN = 25
HALF = {("worker",): 30, ("daemon",): 10, ("keeper",): 5, ("worker", "daemon"): 3}


def rounds(seed: int) -> list[tuple[str, ...]]:
    order = [roles for roles, count in HALF.items() for _ in range(count)]
    random.Random(seed).shuffle(order)
    return order


@pytest.mark.root
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("pins", ["", "resend=off"], ids=["resend", "no-resend"])
def test_kills_harm_nobody(make_node, figures, seed, pins):
    node = make_node(pins=pins)
    account = chaos.kill_under_load(node, node.mountpoint / "load", rounds(seed), clients=4, seed=seed, between=BETWEEN)
    figures.append(f"kills with {pins or 'resend as the kernel offers it'}:")
    figures += [f"  {row}" for row in account.lines()]

    assert account.errors == []
    for roles, count in HALF.items():
        assert account.count(*roles) == count
    assert account.operations >= len(account.kills) * BETWEEN * 4

    node.umount()
    node.mount()
    assert chaos.check_after_remount(account.finals) == []
    node.umount()
    node.stop()
    node.cli("fsck", timeout_s=120)


CHANGES: dict[str, Callable[[Path], None]] = {
    "link": lambda path: os.link(path, f"{path}-other"),
    "mode": lambda path: os.chmod(path, 0o640),
    "time": lambda path: os.utime(path, (1, 1)),
}


@pytest.mark.root
@pytest.mark.timeout(1_200)
def test_an_append_after_a_change_whose_worker_died_goes_to_the_end(make_node, tmp_path):
    """Daemon and worker die between the entry of the change and its answer, while what was written is dirty (decision 110)."""
    control = FailpointControl(tmp_path / "failpoints")
    node = make_node(up=False)
    node.names = "durable"  # others are decided by the worker, whose records survive it
    node.failpoints = control.path
    node.up()
    for kind, change in CHANGES.items():
        path = node.mountpoint / kind
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        try:
            os.write(fd, b"a" * 100)
            fired = control.fired("log.apply.after")
            control.arm("log.apply.after", 1)
            caller = threading.Thread(target=change, args=(path,))
            caller.start()
            await_true("the daemon's death", lambda fired=fired: control.fired("log.apply.after") > fired, 60, 0.001)
            node.kill("worker")
            caller.join(120)
            assert not caller.is_alive()
            os.write(fd, b"b" * 50)
        finally:
            os.close(fd)
        assert path.read_bytes() == b"a" * 100 + b"b" * 50, kind
    assert os.stat(node.mountpoint / "link").st_nlink == 2 and os.stat(node.mountpoint / "mode").st_mode & 0o777 == 0o640
