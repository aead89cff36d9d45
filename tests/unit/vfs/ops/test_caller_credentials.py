"""What /proc says about a caller."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from awsomefsd.vfs.ops.caller_credentials import groups_of, loses_set_ids

NOBODY_TID = 0  # a caller in another pid namespace


def test_groups() -> None:
    assert groups_of(os.getpid()) == frozenset(os.getgroups())
    assert groups_of(NOBODY_TID) == groups_of(2**22 + 1) == frozenset()


def test_set_ids_stay_only_for_root_with_the_capability() -> None:
    assert loses_set_ids(1, os.getpid()) and loses_set_ids(1, NOBODY_TID)
    assert not loses_set_ids(0, NOBODY_TID), "what cannot be read has it"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities")
def test_root_without_the_capability_loses_set_ids() -> None:
    assert not loses_set_ids(0, os.getpid())
    program = "import os,sys; os.setresuid(1, 1, 1); print(flush=True); sys.stdin.read()"  # setuid takes all capabilities away
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None and child.stdout.readline()
        assert loses_set_ids(0, child.pid)
        child.stdin.close()
