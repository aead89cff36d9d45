"""Whole lives of volumes on three nodes that share a disk: kubelets and sidecars are played over each node's socket, daemons die meanwhile.

Each node is in a network namespace, with a kubelet directory of its own; all see one loop device.  A sidecar talks to the node that it
runs on, whichever that is, so every call of the controller goes to a node by chance.  Calls are repeated as kubelet repeats them.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.csi.pb import csi_pb2 as pb
from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from tests.bench.csi import pss_mib
from tests.bench.csi_idle import counts
from tests.csi.rig import GIB, Mode, Player, capability, cleared
from tests.rigs.network_namespaces import found_static, start_on_one_disk

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
ALONE, TOGETHER = capability(Mode.SINGLE_NODE_WRITER), capability(Mode.MULTI_NODE_MULTI_WRITER)
MANY, THREADS = 12, 6
END_S = 120.0
IDLE_SETTLE_S, IDLE_S = 12.0, 10.0  # a connection of voters is called stuck after 5 s, and mounts are looked at for 10 s
IDLE_WAKE_UPS_MAX, IDLE_MIB_MAX = 250, 80  # 55 to 100 were seen, and 870 of a voter that did not sleep


class NodePlayer(Player):
    """Counts the calls that are on their way."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._counting = threading.Lock()
        self.flying = 0

    def once(self, rpc: str, request: Any) -> Any:
        with self._counting:
            self.flying += 1
        try:
            return super().once(rpc, request)
        finally:
            with self._counting:
                self.flying -= 1


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    made = make_cluster(3, size_bytes=32 << 30)
    found_static(made)
    return made


@pytest.fixture(scope="module")
def players(cluster: Cluster) -> Iterator[list[NodePlayer]]:
    made = [NodePlayer(node) for node in cluster.nodes]
    with ExitStack() as stack:
        for player in made:
            stack.enter_context(cleared(player))
        start_on_one_disk(cluster)
        yield made


def nothing_left(players: list[NodePlayer]) -> None:
    """On any node; volumes, and the segments they had, are the same wherever one asks."""
    for player in players:
        await_true("nothing left over", lambda player=player: not player.left_here(), END_S)
    players[0].await_nothing_left()
    assert not players[0].call("ListVolumes", pb.ListVolumesRequest()).entries


def expand(player: Player, volume: str, size: int) -> None:
    request = pb.ControllerExpandVolumeRequest(volume_id=volume, capacity_range=pb.CapacityRange(required_bytes=size))
    assert player.call("ControllerExpandVolume", request).capacity_bytes == size


def bytes_of(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_blocks * found.f_frsize


def live_alone(players: list[NodePlayer], number: int, seed: int) -> None:
    """A claim for one node: to a pod, to a pod on another node, larger, gone."""
    dice = random.Random(f"{seed}-{number}")
    first, second = dice.sample(players, 2)
    volume = dice.choice(players).create(f"pvc-{number}", GIB, ALONE)
    pod = f"pod-{number}"
    first.stage(volume, ALONE)
    with (first.publish(volume, pod, ALONE) / "file").open("w") as file:
        file.write(volume)
    first.unpublish(volume, pod)
    first.unstage(volume)
    second.stage(volume, ALONE)
    place = second.publish(volume, pod, ALONE)
    assert (place / "file").read_text() == volume
    expand(dice.choice(players), volume, 2 * GIB)
    assert bytes_of(place) == 2 * GIB
    second.unpublish(volume, pod)
    second.unstage(volume)
    for _ in range(2):
        dice.choice(players).delete(volume)


def live_together(players: list[NodePlayer], number: int, seed: int) -> None:
    """A claim for many nodes: on all three at once; what one writes, the others read."""
    dice = random.Random(f"{seed}-{number}")
    volume, pod = dice.choice(players).create(f"pvc-{number}", GIB, TOGETHER), f"pod-{number}"
    places = []
    for player in players:
        player.stage(volume, TOGETHER)
        places.append(player.publish(volume, pod, TOGETHER))
    for turn, place in enumerate(places):
        (place / f"of-{turn}").write_text(f"{volume} {turn}")
        assert [(other / f"of-{turn}").read_text() for other in places] == [f"{volume} {turn}"] * 3
    expand(dice.choice(players), volume, 2 * GIB)
    assert [bytes_of(place) for place in places] == [2 * GIB] * 3
    for player in dice.sample(players, 3):
        player.unpublish(volume, pod)
        player.unstage(volume)
    dice.choice(players).delete(volume)


def live(players: list[NodePlayer], number: int, seed: int) -> float:
    began = time.monotonic()
    (live_together if number % 3 == 0 else live_alone)(players, number, seed)
    return time.monotonic() - began


def many(players: list[NodePlayer], count: int, threads: int, seed: int) -> tuple[list[float], float]:
    """Each daemon is killed once, with calls on their way to it; how long each life took, and all of them."""
    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        going = [pool.submit(live, players, number, seed) for number in range(count)]
        for victim in random.Random(seed).sample(players, 3):
            await_true("calls on their way", lambda victim=victim: victim.flying >= 2 or all(one.done() for one in going), END_S, 0.002)
            assert not all(one.done() for one in going), "all was over before every daemon was killed"
            victim.kill_daemon()
        took = [one.result() for one in going]
    return took, time.monotonic() - began


def test_a_volume_for_one_node_moves_and_one_for_many_is_everywhere(players: list[NodePlayer], seed: int) -> None:
    live_alone(players, 1, seed)
    live_together(players, 3, seed)
    nothing_left(players)


def test_a_volume_of_one_node_is_refused_on_others_until_it_is_unstaged(players: list[NodePlayer]) -> None:
    first, second, third = players
    for mode in (Mode.SINGLE_NODE_SINGLE_WRITER, Mode.SINGLE_NODE_READER_ONLY):
        cap = capability(mode)
        volume = second.create("pvc-one-node", GIB, cap)
        first.stage(volume, cap)
        for other in (second, third):
            request = pb.NodeStageVolumeRequest(volume_id=volume, staging_target_path=other.staging(volume), volume_capability=cap)
            status, words = other.refused("NodeStageVolume", request)
            assert status == "FAILED_PRECONDITION" and first.node.uuid() in words, words
        assert third.refused("DeleteVolume", pb.DeleteVolumeRequest(volume_id=volume))[0] == "FAILED_PRECONDITION"
        first.unstage(volume)
        third.stage(volume, cap)
        third.unstage(volume)
        second.delete(volume)
    nothing_left(players)


def space_of(place: Path) -> tuple[int, int]:
    """Returns the bytes that are used, and those that are available."""
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_bavail * found.f_frsize


def write_durably(path: Path, size: int) -> None:
    with path.open("wb", buffering=0) as file:
        while size:  # the call in which the quota ends is cut short
            size -= file.write(b"a" * size)
        os.fsync(file.fileno())


@pytest.mark.parametrize("size", [1 << 20, 16 << 20, 100 << 20])
def test_a_small_volume_takes_the_first_bytes_of_each_node(players: list[NodePlayer], size: int) -> None:
    """Each mount reserves quota with its first byte, more than a small volume has; the others give it back, and df shows none of it."""
    volume = players[0].create("pvc-small", size, TOGETHER)
    places = []
    for player in players:
        player.stage(volume, TOGETHER)
        places.append(player.publish(volume, "small", TOGETHER))
    left = size // 4
    with ThreadPoolExecutor(3) as pool:  # all at once
        list(pool.map(lambda place: (place / f"of-{places.index(place)}").write_text("x\n"), places))
    stats = players[1].call("NodeGetVolumeStats", pb.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(places[1])))
    [shown] = [one for one in stats.usage if one.unit == pb.VolumeUsage.BYTES]
    assert shown.total == size and max(shown.used, shown.total - shown.available) < 1 << 17, "no reservation is shown as use"
    for place in places:  # df shows what other mounts have reserved as use, until they give it back
        await_true("it to be free", lambda at=place: space_of(at)[0] < 1 << 17 and space_of(at)[1] > size - (1 << 17), 60, 0.2)
    write_durably(places[0] / "fill", size - left)  # nearly full: there is less than a reservation for each of the others
    for place in places[1:]:
        write_durably(place / f"more-{places.index(place)}", left // 4)
    with pytest.raises(OSError, match="quota"):
        write_durably(places[2] / "too-much", left)
    for player in players:
        player.unpublish(volume, "small")
        player.unstage(volume)
    players[2].delete(volume)
    nothing_left(players)


def test_directories_of_one_volume_are_on_different_nodes(players: list[NodePlayer]) -> None:
    first, second, third = players
    first.node.cli("volume", "create", "teams")
    made = [player.create(f"pvc-team-{n}", GIB, ALONE, volume="teams") for n, player in enumerate((third, first))]
    for player, volume in zip((first, second), made, strict=True):
        player.stage(volume, ALONE)
        (player.publish(volume, "team", ALONE) / "who").write_text(volume)
    assert third.refused("NodeStageVolume", pb.NodeStageVolumeRequest(
        volume_id=made[0], staging_target_path=third.staging(made[0]), volume_capability=ALONE))[0] == "FAILED_PRECONDITION"  # fmt: skip
    third.stage("teams#all")
    everything = third.publish("teams#all", "admin")
    assert sorted(path.read_text() for path in everything.glob("*/who")) == sorted(made)
    for player, volume in zip((first, second), made, strict=True):
        player.unpublish(volume, "team")
        player.unstage(volume)
        third.delete(volume)
    assert not list(everything.iterdir())
    third.unpublish("teams#all", "admin")
    third.unstage("teams#all")
    first.node.cli("volume", "delete", "teams", "--force", stdin="teams\n")
    nothing_left(players)


def attachment(volume: str, to: Player, cap: pb.VolumeCapability = ALONE) -> pb.ControllerPublishVolumeRequest:
    return pb.ControllerPublishVolumeRequest(volume_id=volume, node_id=to.node.uuid(), volume_capability=cap)


def attached(player: Player, volume: str) -> list[str]:
    found = player.call("ListVolumes", pb.ListVolumesRequest()).entries
    return sorted(next(list(one.status.published_node_ids) for one in found if one.volume.volume_id == volume))


def test_what_is_attached_to_one_node_goes_to_no_other(players: list[NodePlayer]) -> None:
    """A force-detach is a ControllerUnpublish.  Voters by configuration have no node rows; any node knows them all the same."""
    first, second, third = players
    volume = third.create("pvc-attached", GIB, ALONE)
    for _ in range(2):
        third.call("ControllerPublishVolume", attachment(volume, first))
    assert attached(second, volume) == [first.node.uuid()]
    first.stage(volume, ALONE)
    status, words = second.refused("ControllerPublishVolume", attachment(volume, second))
    assert status == "FAILED_PRECONDITION" and first.node.uuid() in words
    other = attachment(volume, first, capability(Mode.MULTI_NODE_MULTI_WRITER))
    assert first.refused("ControllerPublishVolume", other)[0] == "ALREADY_EXISTS"
    stranger = pb.ControllerPublishVolumeRequest(volume_id=volume, node_id="nobody", volume_capability=ALONE)
    assert third.refused("ControllerPublishVolume", stranger)[0] == "NOT_FOUND"
    first.unstage(volume)
    assert attached(third, volume) == [first.node.uuid()], "only the orchestrator ends it"
    for _ in range(2):
        third.call("ControllerUnpublishVolume", pb.ControllerUnpublishVolumeRequest(volume_id=volume, node_id=first.node.uuid()))
    second.call("ControllerPublishVolume", attachment(volume, second))
    second.stage(volume, ALONE)
    second.unstage(volume)
    assert third.refused("DeleteVolume", pb.DeleteVolumeRequest(volume_id=volume))[0] == "FAILED_PRECONDITION"
    third.call("ControllerUnpublishVolume", pb.ControllerUnpublishVolumeRequest(volume_id=volume, node_id=""))
    assert attached(third, volume) == []
    third.delete(volume)
    nothing_left(players)


CONTAINER = """set -e; mount -t tmpfs none "$0/sub/on"; touch "$0/sub/on/mine"; while ls "$0" "$0/sub" "$0/none" > "$1" 2>&1 || :
echo "$(ls "$0/sub/on")"; read _; do :; done"""


def test_what_a_container_has_mounted_on_a_directory_stays(players: list[NodePlayer], tmp_path: Path) -> None:
    """In a mount namespace of its own, where the worker does not see it.  INC_EPOCH would make the kernel unmount it."""
    first, second, third = players
    volume = third.create("pvc-nested", GIB, TOGETHER)
    for player in (first, second):
        player.stage(volume, TOGETHER)
    here, there = (player.publish(volume, "nested", TOGETHER) for player in (first, second))
    (here / "sub" / "on").mkdir(parents=True)
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", CONTAINER, str(here), str(tmp_path / "looked")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as container:
        assert container.stdin is not None and container.stdout is not None
        try:
            for turn in range(4):
                assert container.stdout.readline() == "mine\n", f"unmounted in turn {turn}"
                for place in (there, there / "sub"):
                    (place / f"new{turn}").touch()
                container.stdin.write("\n")
                container.stdin.flush()
        finally:
            container.kill()
    for player in (first, second):
        player.unpublish(volume, "nested")
        player.unstage(volume)
    third.delete(volume)
    nothing_left(players)


def test_idle_daemons_sleep(players: list[NodePlayer], figures: list[str]) -> None:
    """Five volumes on each of three voters, which nobody uses.  A machine that is busy wakes them up less often, never more often."""
    made = [(player, player.create(f"pvc-idle-{number}-{turn}", GIB, ALONE)) for turn, player in enumerate(players) for number in range(5)]
    for player, volume in made:
        player.stage(volume, ALONE)
        (player.publish(volume, f"idle-{volume}", ALONE) / "file").write_text("x")
    time.sleep(IDLE_SETTLE_S)
    daemons = [player.node.pid("daemon") for player in players]
    before, began = [counts(pid)[0] for pid in daemons], time.monotonic()
    time.sleep(IDLE_S)
    took = time.monotonic() - began
    for player, pid, old in zip(players, daemons, before, strict=True):
        new, memory = counts(pid)[0], pss_mib(pid)
        woke, busy = (new["wake-ups"] - old["wake-ups"]) / took, (new["seconds"] - old["seconds"]) / took * 100
        name = player.node.directory.name
        figures.append(f"CSI, idle daemon of {name}, five volumes: {woke:.0f} wake-ups a second, {busy:.2f} % of a core, {memory:.0f} MiB")
        assert woke < IDLE_WAKE_UPS_MAX, counts(pid)[1].most_common(5)
        assert memory < IDLE_MIB_MAX
    for player, volume in made:
        player.unpublish(volume, f"idle-{volume}")
        player.unstage(volume)
        player.delete(volume)
    nothing_left(players)


def test_many_lives_at_once_with_kills(players: list[NodePlayer], seed: int, figures: list[str]) -> None:
    took, whole = many(players, MANY, THREADS, seed)
    nothing_left(players)
    figures.append(f"CSI on three nodes: {MANY} lives, {THREADS} at once, three daemons killed: {whole:.0f} s, longest {max(took):.1f} s")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_hundred_lives_at_once_with_kills(players: list[NodePlayer], seed: int, figures: list[str]) -> None:
    for player in players:
        player.patience_s = 1_800
    took, whole = many(players, 200, 200, seed)
    nothing_left(players)
    figures.append(f"CSI on three nodes: 200 lives at once, three daemons killed: {whole:.0f} s, median {sorted(took)[100]:.1f} s")


def test_a_directory_that_was_taken_over_is_unstaged_before_its_node_goes_on(players: list[NodePlayer], cluster: Cluster) -> None:
    """A node that was away, with two directories of one volume: one goes to another node meanwhile, the other one it keeps."""
    away, heir, _ = sorted(players, key=lambda player: cluster.leader() is player.node)
    heir.node.cli("volume", "create", "halls")
    moved, kept = (heir.create(f"pvc-hall-{n}", GIB, ALONE, volume="halls") for n in range(2))
    for volume, pod in ((moved, "moved"), (kept, "kept")):
        away.stage(volume, ALONE)
        with (away.publish(volume, pod, ALONE) / "file").open("w") as file:
            file.write(pod)
            file.flush()
            os.fsync(file.fileno())
    request = pb.NodeStageVolumeRequest(volume_id=moved, staging_target_path=heir.staging(moved), volume_capability=ALONE)
    status, words = heir.refused("NodeStageVolume", request)
    assert status == "FAILED_PRECONDITION" and away.node.uuid() in words, words
    stopped = cluster.pause(away.node)
    try:
        heir.insist("NodeStageVolume", request)
        assert (heir.publish(moved, "moved", ALONE) / "file").read_text() == "moved"
    finally:
        cluster.resume(away.node)
    assert stopped
    written = threading.Event()

    def write() -> None:
        Path(away.target("kept"), "more").write_text("of what it kept")
        written.set()

    threading.Thread(target=write, daemon=True).start()
    away.insist("NodeUnpublishVolume", pb.NodeUnpublishVolumeRequest(volume_id=moved, target_path=away.target("moved")))
    (away.kubelet / "pods" / "moved").rmdir()
    assert not written.is_set(), "it came in beside the node that has taken over"
    away.insist("NodeUnstageVolume", pb.NodeUnstageVolumeRequest(volume_id=moved, staging_target_path=away.staging(moved)))
    assert written.wait(END_S), "it goes on with the other one"
    assert (heir.publish(moved, "moved", ALONE) / "file").read_text() == "moved"
    assert Path(away.target("kept"), "file").read_text() == "kept"
    for player, volume, pod in ((heir, moved, "moved"), (away, kept, "kept")):
        player.unpublish(volume, pod)
        player.unstage(volume)
        heir.delete(volume)
    heir.node.cli("volume", "delete", "halls", "--force", stdin="halls\n")
    nothing_left(players)


def test_a_dead_node_loses_its_volumes_to_others(players: list[NodePlayer], cluster: Cluster) -> None:
    """Last: its session expires, which fences it; what was fsynced is there."""
    dead, heir, _ = sorted(players, key=lambda player: cluster.leader() is player.node)
    volume = heir.create("pvc-fenced", GIB, ALONE)
    dead.stage(volume, ALONE)
    with (dead.publish(volume, "pod", ALONE) / "file").open("w") as file:
        file.write("kept")
        file.flush()
        os.fsync(file.fileno())
    request = pb.NodeStageVolumeRequest(volume_id=volume, staging_target_path=heir.staging(volume), volume_capability=ALONE)
    status, words = heir.refused("NodeStageVolume", request)
    assert status == "FAILED_PRECONDITION" and dead.node.uuid() in words, words
    dead.node.kill_everything()
    heir.insist("NodeStageVolume", request)
    assert (heir.publish(volume, "pod", ALONE) / "file").read_text() == "kept"
    dead.node.start()
    dead.insist("NodeUnpublishVolume", pb.NodeUnpublishVolumeRequest(volume_id=volume, target_path=dead.target("pod")))
    (dead.kubelet / "pods" / "pod").rmdir()
    dead.insist("NodeUnstageVolume", pb.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=dead.staging(volume)))
    assert Path(heir.target("pod"), "file").read_text() == "kept", "the dead node's unstage ends its own claim only"
    status, _ = dead.refused("NodeStageVolume", pb.NodeStageVolumeRequest(
        volume_id=volume, staging_target_path=dead.staging(volume), volume_capability=ALONE))  # fmt: skip
    assert status == "FAILED_PRECONDITION"
    heir.unpublish(volume, "pod")
    heir.unstage(volume)
    heir.delete(volume)
    nothing_left(players)
