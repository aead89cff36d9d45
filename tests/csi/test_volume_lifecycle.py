"""Whole lives of volumes: made, staged, published, written, expanded, moved, deleted, with the daemon killed in between."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.pb import registration_pb2, registration_pb2_grpc
from awsomefsd.csi.settings import DRIVER
from awsomefsd.meta.api.commands import ClaimVolume, EndClaims
from awsomefsd.meta.api.messages import Propose
from awsomefsd.meta.client.client import MetaClient
from tests.csi.rig import GIB, Mode, Player, capability

pytestmark = pytest.mark.root
SEVERAL = 8


def test_a_life_with_kills_between_all_steps(player: Player, figures: list[str]) -> None:
    began = time.monotonic()
    volume = player.create("pvc-life")
    player.stage(volume)
    (player.publish(volume, "pod-1") / "first").write_text("x")
    figures.append(f"CSI: CreateVolume to the first write in a mounted target {(time.monotonic() - began) * 1000:.0f} ms")
    target = Path(player.target("pod-1"))
    open_file = (target / "log").open("w")
    open_file.write("before\n")
    for rpc, request in (
        ("NodeGetVolumeHealth", pb.NodeGetVolumeHealthRequest(volume_id=volume)),
        ("ControllerGetVolumeHealth", pb.ControllerGetVolumeHealthRequest(volume_id=volume)),
    ):
        assert not player.call(rpc, request).volume_health.health_statuses, "well"
    player.kill_daemon()
    assert player.create("pvc-life") == volume, "found again by its name"
    player.stage(volume)
    player.publish(volume, "pod-1")
    open_file.write("after\n")
    open_file.close()
    assert (target / "log").read_text() == "before\nafter\n"
    second = player.publish(volume, "pod-2", readonly=True)
    assert (second / "first").read_text() == "x"
    with pytest.raises(OSError, match="Read-only"):
        (second / "no").write_text("x")
    status, _ = player.refused("NodePublishVolume", player.publication(volume, "pod-2"))
    assert status == "ALREADY_EXISTS"
    grown = player.call("ControllerExpandVolume", pb.ControllerExpandVolumeRequest(
        volume_id=volume, capacity_range=pb.CapacityRange(required_bytes=2 * GIB)))  # fmt: skip
    assert (grown.capacity_bytes, grown.node_expansion_required) == (2 * GIB, False)
    assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize == 2 * GIB
    stats = player.call("NodeGetVolumeStats", pb.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(target)))
    assert {usage.unit: usage.total for usage in stats.usage}[pb.VolumeUsage.BYTES] == 2 * GIB and len(stats.usage) == 2
    assert player.refused("DeleteVolume", pb.DeleteVolumeRequest(volume_id=volume))[0] == "FAILED_PRECONDITION"
    player.kill_daemon()
    for pod in ("pod-1", "pod-2"):
        player.unpublish(volume, pod)
    player.kill_daemon()
    player.unstage(volume)
    player.delete(volume)
    player.await_nothing_left()


def live(player: Player, number: int) -> float:
    """One volume from nothing to nothing; how long until its first write."""
    began = time.monotonic()
    volume, pod = player.create(f"pvc-{number}"), f"many-{number}"
    player.stage(volume)
    target = player.publish(volume, pod)
    (target / "file").write_text(volume)
    took = time.monotonic() - began
    player.stage(volume)
    assert (player.publish(volume, pod) / "file").read_text() == volume
    player.unpublish(volume, pod)
    player.unstage(volume)
    player.delete(volume)
    player.delete(volume)
    return took


def many(player: Player, count: int, threads: int) -> list[float]:
    with ThreadPoolExecutor(threads) as pool:
        going = [pool.submit(live, player, number) for number in range(count)]
        while sum(one.done() for one in going) < count // 4:
            time.sleep(0.05)
        player.kill_daemon()
        took = [one.result() for one in going]
    player.await_nothing_left()
    return took


def test_many_at_once_with_a_kill(player: Player) -> None:
    many(player, SEVERAL, SEVERAL)


def test_a_block_volume(player: Player) -> None:
    cap = capability(Mode.SINGLE_NODE_SINGLE_WRITER, block=True)
    volume = player.create("pvc-block", 64 << 20, cap)
    player.stage(volume, cap)
    target = player.publish(volume, "pod-b", cap)
    with target.open("r+b", buffering=0) as device:
        device.write(b"a" * 4096)
        os.fsync(device.fileno())
    assert player.refused("NodePublishVolume", player.publication(volume, "pod-c", cap))[0] == "FAILED_PRECONDITION"
    Path(player.target("pod-c")).parent.rmdir()
    asked = pb.CapacityRange(required_bytes=128 << 20)
    assert player.call(
        "ControllerExpandVolume", pb.ControllerExpandVolumeRequest(volume_id=volume, capacity_range=asked)
    ).node_expansion_required
    player.kill_daemon()
    player.call("NodeExpandVolume", pb.NodeExpandVolumeRequest(volume_id=volume, volume_path=str(target), capacity_range=asked))
    with target.open("rb") as device:
        assert device.seek(0, os.SEEK_END) == 128 << 20
    player.unpublish(volume, "pod-b")
    player.unstage(volume)
    player.stage(volume, cap)
    with player.publish(volume, "pod-b", cap).open("rb") as device:
        assert device.read(4096) == b"a" * 4096
    player.unpublish(volume, "pod-b")
    player.unstage(volume)
    player.delete(volume)
    player.await_nothing_left()


def test_directories_of_one_volume_and_static_handles(player: Player) -> None:
    player.node.cli("volume", "create", "shared")
    made = [player.create(f"pvc-dir-{n}", volume="shared", subdirectory="teams/${name}", mode="0770") for n in range(2)]
    for n, volume in enumerate(made):
        player.stage(volume)
        (player.publish(volume, f"dir-{n}") / "who").write_text(str(n))
    static = "shared/teams#all"
    player.stage(static)
    everything = player.publish(static, "static")
    assert sorted(path.name for path in everything.iterdir()) == ["pvc-dir-0", "pvc-dir-1"]
    assert (everything / "pvc-dir-0").stat().st_mode & 0o7777 == 0o770
    player.unpublish(made[0], "dir-0")
    player.unstage(made[0])
    (everything / "pvc-dir-0" / "link").symlink_to("../pvc-dir-1")
    player.delete(made[0])
    assert [path.name for path in everything.iterdir()] == ["pvc-dir-1"] and (everything / "pvc-dir-1" / "who").read_text() == "1"
    player.unpublish(made[1], "dir-1")
    player.unstage(made[1])
    player.unpublish(static, "static")
    player.unstage(static)
    player.delete(made[1])
    player.node.cli("volume", "delete", "shared", "--force", stdin="shared\n")
    player.await_nothing_left()


def test_a_directory_named_after_its_claim(player: Player) -> None:
    """The names come with CreateVolume alone; provisioner and kubelet ask other things of the same class without them."""
    player.node.cli("volume", "create", "claims")
    parameters = {"volume": "claims", "subdirectory": "${pvc.namespace}/${pvc.name}"}
    names = {"csi.storage.k8s.io/pvc/name": "data", "csi.storage.k8s.io/pvc/namespace": "team", "csi.storage.k8s.io/pv/name": "pvc-n"}
    assert player.call("GetCapacity", pb.GetCapacityRequest(parameters=parameters)).available_capacity > 0
    volume = player.create("pvc-n", **parameters, **names)
    asked = pb.ValidateVolumeCapabilitiesRequest(volume_id=volume, volume_capabilities=[capability()], parameters=parameters)
    assert player.call("ValidateVolumeCapabilities", asked).HasField("confirmed")
    modified = {"consistency": "close-to-open"}
    player.call("ControllerModifyVolume", pb.ControllerModifyVolumeRequest(volume_id=volume, mutable_parameters=modified))
    player.stage(volume)
    (player.publish(volume, "pod-n") / "file").write_text("x")
    player.stage("claims")
    assert (player.staged("claims") / "team" / "data" / "file").read_text() == "x"
    player.unpublish(volume, "pod-n")
    for one in (volume, "claims"):
        player.unstage(one)
    player.delete(volume)
    player.node.cli("volume", "delete", "claims", "--force", stdin="claims\n")
    player.await_nothing_left()


def test_where_another_handle_is_staged_is_no_target(player: Player) -> None:
    """Two PersistentVolumes of one volume, for one pod between them; staged where kubelet stages."""
    cap, places = capability(Mode.SINGLE_NODE_SINGLE_WRITER), {}
    player.node.cli("volume", "create", "twice")
    for handle in ("twice#a", "twice#b"):
        place = player.kubelet / "plugins" / "kubernetes.io" / handle[-1] / "globalmount"
        place.parent.mkdir(parents=True)
        places[handle] = {"volume_id": handle, "staging_target_path": str(place)}
        player.call("NodeStageVolume", pb.NodeStageVolumeRequest(**places[handle], volume_capability=cap))
    first, second = (
        pb.NodePublishVolumeRequest(**places[handle], target_path=player.target(f"pod-{handle[-1]}"), volume_capability=cap)
        for handle in places
    )
    player.call("NodePublishVolume", first)
    status, words = player.refused("NodePublishVolume", second)
    assert status == "FAILED_PRECONDITION" and first.target_path in words, words
    player.unpublish("twice#a", "pod-a")
    player.call("NodePublishVolume", second)
    player.unpublish("twice#b", "pod-b")
    for asked in places.values():
        player.call("NodeUnstageVolume", pb.NodeUnstageVolumeRequest(**asked))
        Path(asked["staging_target_path"]).parent.rmdir()
    player.node.cli("volume", "delete", "twice", "--force", stdin="twice\n")
    player.await_nothing_left()


def test_a_volume_of_one_node_is_not_another_ones(player: Player) -> None:
    volume = player.create("pvc-rwo")
    number = next(row["volume"] for row in player.node.ask("volume", "ls") if row["uuid"] == volume)
    client = MetaClient(player.node.run / "meta.sock", 0)
    client.start()
    try:
        client.call(Propose(0, 0, 0, [], ClaimVolume(number, "", "another-node", "boot", True)), 60)
        request = pb.NodeStageVolumeRequest(
            volume_id=volume, staging_target_path=player.staging(volume), volume_capability=capability(Mode.SINGLE_NODE_WRITER)
        )
        status, words = player.refused("NodeStageVolume", request)
        assert status == "FAILED_PRECONDITION" and "another-node" in words
        client.call(Propose(0, 0, 0, [], EndClaims("another-node", number, "", "fenced")), 60)
    finally:
        client.close()
    player.call("NodeStageVolume", request)
    player.unstage(volume)
    player.delete(volume)
    player.await_nothing_left()


def test_kubelet_finds_the_driver_and_its_sockets_come_back(player: Player) -> None:
    place = player.kubelet / "plugins_registry" / f"{DRIVER}-reg.sock"
    with grpc.insecure_channel(f"unix://{place}") as channel:
        stub = registration_pb2_grpc.RegistrationStub(channel)
        info = stub.GetInfo(registration_pb2.InfoRequest(), timeout=60)
        assert (info.type, info.name, info.endpoint, list(info.supported_versions)) == ("CSIPlugin", DRIVER, str(player.socket), ["1.0.0"])
        stub.NotifyRegistrationStatus(registration_pb2.RegistrationStatus(plugin_registered=True), timeout=60)
    assert player.socket.stat().st_mode & 0o777 == place.stat().st_mode & 0o777 == 0o600
    place.unlink()
    player.socket.unlink()
    deadline = time.monotonic() + 60
    while not (place.exists() and player.socket.exists()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert player.call("Probe", pb.ProbeRequest()).ready.value
    info = player.call("NodeGetInfo", pb.NodeGetInfoRequest())
    assert list(info.accessible_topology.segments) == ["topology.awsomefs.io/cluster"]
