"""kubelet and the sidecars, played: they speak real gRPC to the driver's socket, and come again when they are told to, as those do."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from awsomefsd.csi import staging_paths
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.pb import csi_pb2_grpc
from awsomefsd.csi.settings import DRIVER
from awsomefsd.keeper import mount_syscalls
from buildtools import loops
from buildtools.nodes import Node, await_true
from tests.csi import kubelet_checks

Mode = pb.VolumeCapability.AccessMode
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED)
CALL_S = 120.0
GIB = 1 << 30


def capability(mode: int = Mode.MULTI_NODE_MULTI_WRITER, *flags: str, block: bool = False) -> pb.VolumeCapability:
    access = Mode(mode=mode)
    if block:
        return pb.VolumeCapability(block=pb.VolumeCapability.BlockVolume(), access_mode=access)
    return pb.VolumeCapability(mount=pb.VolumeCapability.MountVolume(mount_flags=flags), access_mode=access)


class Player:
    """One node with the driver on."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.patience_s = CALL_S  # kubelet's has no end
        self.kubelet = node.directory / "kubelet"
        (self.kubelet / "plugins_registry").mkdir(parents=True)
        (self.kubelet / "pods").mkdir()
        node.settings |= {
            "AWSOMEFSD_CSI_ENABLED": "true",
            "AWSOMEFSD_CSI_KUBELET_DIR": str(self.kubelet),
            "AWSOMEFSD_CSI_ATTACH": "true",  # what is not attached works as without it
        }
        self.socket = self.kubelet / "plugins" / DRIVER / "csi.sock"
        self.channel = grpc.insecure_channel(f"unix://{self.socket}", options=[("grpc.initial_reconnect_backoff_ms", 100)])

    def up(self) -> None:
        self.node.attach()
        self.node.start()
        self.node.provision()

    def close(self) -> None:
        self.channel.close()

    def once(self, rpc: str, request: Any) -> Any:
        service = next(one for one in pb.DESCRIPTOR.services_by_name.values() if rpc in one.methods_by_name)
        stub = getattr(csi_pb2_grpc, f"{service.name}Stub")(self.channel)
        return getattr(stub, rpc)(request, timeout=CALL_S)

    def call(self, rpc: str, request: Any) -> Any:
        """Until it is neither refused for now nor cut off."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return self.once(rpc, request)
            except grpc.RpcError as err:
                if err.code() not in AGAIN or time.monotonic() > deadline:  # type: ignore[attr-defined]
                    raise
                time.sleep(0.1)

    def insist(self, rpc: str, request: Any) -> Any:
        """As kubelet: again after every refusal, until it is done."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return self.call(rpc, request)
            except grpc.RpcError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def refused(self, rpc: str, request: Any) -> tuple[str, str]:
        """The status and the words of a call that must fail."""
        try:
            self.call(rpc, request)
        except grpc.RpcError as err:
            return err.code().name, err.details()  # type: ignore[attr-defined]
        raise AssertionError(f"{rpc} was not refused: {request}")

    # --- a volume's life ----------------------------------------------------------------------------------------------------
    def create(self, name: str, size: int = GIB, cap: pb.VolumeCapability | None = None, **parameters: str) -> str:
        request = pb.CreateVolumeRequest(
            name=name,
            capacity_range=pb.CapacityRange(required_bytes=size),
            volume_capabilities=[cap or capability()],
            parameters=parameters,
        )
        return str(self.call("CreateVolume", request).volume.volume_id)

    def staging(self, volume: str) -> str:
        """Where kubelet of 1.24 or later stages a volume; it makes the directory above (for its vol_data.json) and the path itself."""
        above = self.kubelet / "plugins" / "kubernetes.io" / "csi" / DRIVER / hashlib.sha256(volume.encode()).hexdigest()
        above.mkdir(parents=True, exist_ok=True)
        return str(above / "globalmount")

    def staged(self, volume: str) -> Path:
        """Where the driver binds what is staged."""
        return Path(self.staging(volume), staging_paths.NAME)

    def target(self, pod: str) -> str:
        (self.kubelet / "pods" / pod).mkdir(exist_ok=True)
        return str(self.kubelet / "pods" / pod / "mount")

    def stage(self, volume: str, cap: pb.VolumeCapability | None = None) -> pb.NodeStageVolumeRequest:
        request = pb.NodeStageVolumeRequest(
            volume_id=volume, staging_target_path=self.staging(volume), volume_capability=cap or capability()
        )
        self.call("NodeStageVolume", request)
        return request

    def publication(
        self, volume: str, pod: str, cap: pb.VolumeCapability | None = None, readonly: bool = False
    ) -> pb.NodePublishVolumeRequest:
        return pb.NodePublishVolumeRequest(
            volume_id=volume,
            staging_target_path=self.staging(volume),
            target_path=self.target(pod),
            volume_capability=cap or capability(),
            readonly=readonly,
        )

    def publish(self, volume: str, pod: str, cap: pb.VolumeCapability | None = None, readonly: bool = False) -> Path:
        request = self.publication(volume, pod, cap, readonly)
        self.call("NodePublishVolume", request)
        return Path(request.target_path)

    def unpublish(self, volume: str, pod: str) -> None:
        self.call("NodeUnpublishVolume", pb.NodeUnpublishVolumeRequest(volume_id=volume, target_path=self.target(pod)))
        (self.kubelet / "pods" / pod).rmdir()

    def unstage(self, volume: str) -> None:
        """As kubelet: not while another mount shows what is mounted at the staging path."""
        place = Path(self.staging(volume))
        others = kubelet_checks.device_mount_refs(place)
        assert not kubelet_checks.has_mount_refs(place, others), f"kubelet would not unstage {place}: {others}"
        self.call("NodeUnstageVolume", pb.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=str(place)))

    def delete(self, volume: str) -> None:
        self.call("DeleteVolume", pb.DeleteVolumeRequest(volume_id=volume))

    def kill_daemon(self) -> None:
        pid = self.node.kill("daemon")["daemon"]
        self.node.replaced("daemon", pid)

    # --- afterwards ---------------------------------------------------------------------------------------------------------
    def left(self) -> list[str]:
        """What of the driver is still there: mounts, loop devices, directories, volumes."""
        return self.left_here() + [row["name"] for row in self.node.ask("volume", "ls") if row["name"] != self.node.volume]

    def left_here(self) -> list[str]:
        """On this node alone."""
        found = [entry.dir for entry in mount_syscalls.mounts() if entry.dir.startswith(f"{self.kubelet}/")]
        for place in (f"plugins/kubernetes.io/csi/{DRIVER}/*", "pods", f"plugins/{DRIVER}/volumes"):
            found += map(str, self.kubelet.glob(f"{place}/*"))
        found += [str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file") if _backing(path).startswith(str(self.kubelet))]
        return found

    def await_nothing_left(self) -> None:
        self.node.await_daemon()  # it may have been killed a moment ago
        await_true("nothing left over", lambda: not self.left(), 60)
        free = lambda: self.node.ask("device", "ls")[0]  # noqa: E731
        await_true("free segments", lambda: free()["segments"] - free()["segments_free"] <= KEPT_SEGMENTS, 150, 0.5)


KEPT_SEGMENTS = 24  # of the metadata's own checkpoints


def _backing(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@contextmanager
def playing(node: Node) -> Iterator[Player]:
    player = Player(node)
    with cleared(player):
        player.up()
        yield player


@contextmanager
def cleared(player: Player) -> Iterator[None]:
    """What a test that failed leaves, goes."""
    try:
        yield
    finally:
        player.close()
        for entry in reversed(mount_syscalls.mounts()):
            if entry.dir.startswith(f"{player.kubelet}/"):
                with suppress(OSError):  # gone meanwhile
                    mount_syscalls.umount(entry.dir, mount_syscalls.MNT_DETACH | mount_syscalls.UMOUNT_NOFOLLOW)
        for path in Path("/sys/block").glob("loop*/loop/backing_file"):
            if str(player.kubelet) in _backing(path):
                loops.detach(f"/dev/{path.parts[3]}")
