"""What is no proof against a request, and what becomes of a worker whose thread died."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.dictfs import DictFs
from tests.unit.test_fuse_session import Kernel, mkdir

UNKNOWN = {"signal": None, "code": None, "exited": True}  # as the keeper says it of a worker that another keeper had started


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


def executing_at_one_death(kernel: Kernel) -> None:
    dead = kernel.session(DictFs())
    kernel.die(dead, mkdir(b"a", 4))
    dead.slots[0].executing()
    dead.slots[0].add_death()


def test_a_death_of_unknown_cause_is_held_against_no_request(kernel: Kernel) -> None:
    """Worker, keeper and worker killed in turn, while the same request was executing."""
    executing_at_one_death(kernel)
    kernel.session(fs := DictFs(), previous=UNKNOWN).recover()
    assert kernel.answer()[:2] == (4, 0) and fs.executed == [("a", 4)]


def test_a_known_end_is_still_counted(kernel: Kernel) -> None:
    executing_at_one_death(kernel)
    kernel.session(DictFs(), previous={**UNKNOWN, "code": 70}).recover()
    assert kernel.answer()[:2] == (4, errno.EIO)


def test_a_worker_whose_thread_dies_ends() -> None:
    code = (
        "import threading, time\n"
        "from awsomefsd import worker\n"
        "threading.excepthook = worker._thread_died\n"
        "threading.Thread(target=lambda: 1 / 0, daemon=True).start()\n"
        "time.sleep(20)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert ended.returncode == 70 and "ZeroDivisionError" in ended.stderr
