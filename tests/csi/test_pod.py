"""Mounts outlive the pod: everything in the pod's control group is killed under verified writers, and another version takes over.

The other version is the same program that has another number and knows newer wire protocols (tests/rigs/other_build.py): what else differs
between two releases is tried where formats and levels are.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from awsomefsd.base.errors import Unavailable
from awsomefsd.keeper.client import KeeperClient
from buildtools import procs
from buildtools.nodes import await_true
from buildtools.say import CHECKOUT
from tests.conftest import making_nodes, missing_for_mounts
from tests.csi.pod import COMPILED, App, Pod, PodNode, group_root, pod_node
from tests.csi.rig import Mode, Player, capability

nodes = contextmanager(making_nodes)
FIRST, SECOND = "0.1.0", "0.1.1"
FIO = (
    "--bs=16k --size=4m --rw=randwrite --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=16 --unlink=1 --thinktime=2ms"
    " --verify_state_save=0"  # a file that it leaves in the working directory when it is told to end
)


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[PodNode, Player, Pod, Path]]:
    """A node with its daemon in a pod, and a volume that is published to an application."""
    if missing_for_mounts():
        pytest.skip(missing_for_mounts())
    root = group_root()
    if root is None or shutil.which("unshare") is None:
        pytest.skip("needs cgroup v2 where groups can be made, and unshare(1)")
    with nodes() as make:
        node = make(up=False)
        with pod_node(node, root) as made:
            player = Player(node)
            node.settings["AWSOMEFSD_KUBERNETES_HOST_KEEPER"] = "true"
            node.cli("init")
            node.attach()
            pod = made.pod(FIRST)
            pod.await_words("keeper started on the host")
            node.await_daemon()
            node.provision()
            volume = player.create("pvc-of-an-app")
            player.stage(volume)
            yield made, player, pod, player.publish(volume, "app")
            player.close()


def keeper_and_worker(made: PodNode) -> tuple[int, int]:
    return made.node.pid("keeper"), made.node.pid("worker")


def apps_on(made: PodNode, target: Path) -> list[App]:
    (target / "load").mkdir()
    load = [made.app("load", sys.executable, CHECKOUT / "buildtools" / "load.py", target / "load", "--seed", "1", "--think", "0.02")]
    load.append(made.app("sqlite", sys.executable, Path(__file__).with_name("sqlite_load.py"), target))
    if shutil.which("fio"):
        words = f"fio --name=v --directory={target} {FIO}"
        load.append(made.app("fio", "sh", "-c", f"trap 'end=1' TERM; while [ -z \"$end\" ]; do {words} || exit 1; done"))
    await_true("all of them at work", lambda: all(app.text() for app in load[:2]), 60)
    return load


def await_work(load: list[App]) -> None:
    """Until the first of them has done some more operations, each of them checked."""
    seen = len(load[0].text().splitlines())
    await_true("more work", lambda: len(load[0].text().splitlines()) >= seen + 3 or not load[0].runs(), 60)


def slowest(rows: list[list[float]], since: float, until: float) -> float:
    """Of the operations under way then."""
    return max((row[1] for row in rows if row[0] < until and row[0] + row[1] > since), default=0.0)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def groups_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


@pytest.mark.timeout(1_200)
def test_nothing_that_serves_a_mount_is_the_pods(place: tuple[PodNode, Player, Pod, Path]) -> None:
    made, _player, pod, _target = place
    for pid in keeper_and_worker(made):
        assert pod.group.name not in groups_of(pid) and "/awsomefs\n" in groups_of(pid)
        assert os.stat(f"/proc/{pid}/ns/mnt") == os.stat("/proc/self/ns/mnt")
        where = os.readlink(f"/proc/{pid}/exe") if COMPILED else Path(f"/proc/{pid}/environ").read_text()
        assert str(made.node.state / "bin") in where, "it runs from the copy"
        assert not procs.holds(pid, str(pod.log))
    assert os.stat(f"/proc/{pod.process.pid}/ns/mnt") != os.stat("/proc/self/ns/mnt") and pod.group.name in groups_of(pod.process.pid)
    assert "cgroup, mnt" in pod.log.read_text(), "what was entered"
    assert pod.process.pid not in [parent_of(pid) for pid in keeper_and_worker(made)]


@pytest.mark.timeout(1_200)
def test_the_pod_is_killed_and_another_version_takes_over(place: tuple[PodNode, Player, Pod, Path], figures: list[str]) -> None:
    made, _player, pod, target = place
    keeper, worker = keeper_and_worker(made)
    [copy] = (made.node.state / "bin").iterdir()
    load = apps_on(made, target)

    killed = pod.kill()
    again = made.pod(FIRST)
    served = again.await_words("daemon is ready")
    await_work(load)  # after it, to be checked
    assert keeper_and_worker(made) == (keeper, worker), "no process of a mount was touched"

    killed_again = again.kill()
    new = made.pod(SECOND)
    served_again = new.await_words("daemon is ready")
    new.await_words("unused copies of the program")
    replaced = time.monotonic()
    await_work(load)
    assert all(app.runs() for app in load), [app.text()[-2_000:] for app in load]
    status = made.node.ask("status")
    assert status["version"] == status["keeper_version"] == new.version
    assert [row["worker_version"] for row in status["mounts"]] == [new.version]
    assert made.node.pid("keeper") == keeper, "by exec"
    assert made.node.pid("worker") != worker and status["mounts"][0]["workers"] == 2
    [other] = (made.node.state / "bin").iterdir()
    assert other != copy and other.name.startswith(f"{new.version}-"), "the unused copy is gone"
    assert not status["degraded"], status["reasons"]
    made.node.cli("probe", "--ready")

    finals = [app.last() for app in load[:2]]
    for app in load[2:]:
        assert "err= 0" in app.end()
    assert finals[0]["errors"] == [] and finals[1]["committed"] > 0
    slow = [row for final in finals for row in final["slow"]]
    figures.append(f"pod killed: up again after {served - killed:.2f} s, longest stall {slowest(slow, killed, served):.2f} s")
    figures.append(
        f"pod of another version: up after {served_again - killed_again:.2f} s, longest stall until then "
        f"{slowest(slow, killed_again, served_again):.2f} s; then worker handed over in {new.logged('worker replaced', 'ms')} ms, "
        f"longest stall of it {max((row[1] for row in slow if served_again < row[0] < replaced), default=0.0):.2f} s"
    )


@pytest.mark.timeout(1_200)
def test_a_keeper_that_dies_is_started_again_outside(place: tuple[PodNode, Player, Pod, Path]) -> None:
    made, _player, _pod, target = place
    made.node.kill("keeper")
    client = KeeperClient(made.node.run)

    def adopted() -> int:
        with suppress(Unavailable):
            return int(client.ping()["pid"]) if client.list() else 0
        return 0

    again = await_true("a keeper that has the mount", adopted, 60)
    assert made.pods[-1].group.name not in groups_of(again)
    (target / "after").write_text("x")
    assert (target / "after").read_text() == "x"


@pytest.mark.timeout(1_200)
def test_a_block_volume_outlives_the_pod_that_attached_it(place: tuple[PodNode, Player, Pod, Path]) -> None:
    made, player, _pod, _target = place
    cap = capability(Mode.SINGLE_NODE_WRITER, block=True)
    volume = player.create("pvc-block-of-an-app", 1 << 24, cap)
    player.stage(volume, cap)
    device = player.publish(volume, "block-app", cap)
    before = made.pods[-1]
    with device.open("r+b", buffering=0) as file:
        before.kill()
        made.pod(before.version).await_words("daemon is ready")
        file.write(b"a" * 4096)
        os.fsync(file.fileno())
    shown = Path(f"/sys/dev/block/{os.major(device.stat().st_rdev)}:{os.minor(device.stat().st_rdev)}/loop/backing_file").read_text()
    assert shown.startswith(str(player.kubelet)), "opened through the host's mount"
    player.stage(volume, cap)
    assert player.publish(volume, "block-app", cap).stat().st_rdev == device.stat().st_rdev
    player.unpublish(volume, "block-app")
    player.unstage(volume)
    player.delete(volume)
