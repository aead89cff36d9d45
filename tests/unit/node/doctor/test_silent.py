"""Whatever hangs on this host, the doctor ends: a mount that answers nothing is what it is called for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import missing_for_mounts
from tests.rigs.silent_mount import run_beside

pytestmark = pytest.mark.skipif(bool(missing_for_mounts()), reason=missing_for_mounts())

DOCTOR = """
import sys
from awsomefsd.cli import main
sys.exit(main.run(["--state-dir", {state!r}, "--run-dir", {run!r}, "doctor", "-o", "json", *{words!r}]))
"""


def doctor(state: Path, run: Path, *words: str) -> str:
    return DOCTOR.format(state=str(state), run=str(run), words=words)


def test_a_mount_of_ours_that_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    status, said = run_beside(tmp_path / "m", "fuse.awsomefs", doctor(tmp_path / "s", tmp_path / "r"))
    assert status == 3 and "DAEMON_GONE" in said and f"{tmp_path}/m" not in said, (status, said)


@pytest.mark.parametrize("through_link", [False, True])
def test_a_state_directory_on_a_network_that_is_gone(tmp_path: Path, through_link: bool) -> None:
    (tmp_path / "nfs").mkdir()
    (tmp_path / "link").symlink_to("nfs/below")
    state = tmp_path / "link" / "state" if through_link else tmp_path / "nfs" / "state"
    words = doctor(state, tmp_path / "r", "--bundle", str(tmp_path / "b.tar.gz"))
    status, said = run_beside(tmp_path / "nfs", "fuse.sshfs", words)
    assert status == 3 and "STATE_ON_NETWORK" in said, (status, said)
    assert (tmp_path / "b.tar.gz").exists()


@pytest.mark.parametrize("command", ["info", "summary", "bench"])
def test_commands_about_a_path_end_if_it_does_not_answer(command: str, tmp_path: Path) -> None:
    """The mount has taken the request, so who asks it himself does not end at SIGKILL either."""
    (tmp_path / "m").mkdir()
    code = f"""
import sys
from contextlib import nullcontext
from awsomefsd.cli import main
from awsomefsd.cli.looking import info
info.ANSWER_S = 0.5
main.Invocation.client = lambda invocation: nullcontext()
sys.exit(main.run([{command!r}, {str(tmp_path / "m")!r}]))
"""
    status, said = run_beside(tmp_path / "m", "fuse.awsomefs", code)
    assert status == 1 and f"{tmp_path}/m does not answer" in said, (status, said)


def test_a_mount_of_this_node_that_does_not_answer(tmp_path: Path) -> None:
    """With a leader it is a finding, which names the worker and what ends it; without one, or of a mount that is not served, it is none."""
    (tmp_path / "m").mkdir()
    code = f"""
import os
from awsomefsd.node.doctor import running
running.LOOK_S = 0.5
mount = {{"directory": {str(tmp_path / "m")!r}, "worker_pid": os.getpid(), "state": "serving"}}
def status(leader="a", **fields):
    return {{"metadata": {{"leader": leader}}, "mounts": [mount | fields]}}
[found] = running.hung(status())
assert found.code == "MOUNT_HUNG" and mount["directory"] in found.what and f"kill -9 {{os.getpid()}}" in found.fix, found
assert not list(running.hung(status(leader=""))) and not list(running.hung(status(state="mounting"))) and not list(running.hung(None))
gone = list(running.hung(status(worker_pid=2**22 + 1)))
assert "is gone" in gone[0].what and "kill" not in gone[0].fix, gone
"""
    status, said = run_beside(tmp_path / "m", "fuse.awsomefs", code)
    assert status == 0, (status, said)
