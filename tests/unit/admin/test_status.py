"""The status of a node: reasons, health codes, metrics and conflict files."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.status import NodeStatus, conflicts, damaged_places, memory_bytes, node_view, samples_of, tell
from awsomefsd.base.errors import Unavailable
from awsomefsd.base.identity import Node
from awsomefsd.cluster.membership.view import ClusterView
from awsomefsd.config.settings import Settings
from awsomefsd.io.file.damaged_reads import SCRUB, DamagedRead
from awsomefsd.keeper.client import ANSWER_S_MAX
from awsomefsd.node.devices.served_devices import ServedDevices
from awsomefsd.node.health.rules import of_node
from awsomefsd.node.maintenance.scrub import ScrubProgress


def test_reasons_name_what_is_wrong() -> None:
    well = pb.Status(keeper=True, memory_bytes=1, memory_bytes_max=2)
    well.devices.add(path="/dev/a", state="ok", segments=100, segments_free=50)
    well.mounts.add(directory="/m", volume="v", state="serving")
    assert list(of_node(node_view(well))) == []
    ill = pb.Status(keeper=False, memory_bytes=3, memory_bytes_max=2, state_dir="/s")
    ill.devices.add(path="/dev/a", state="ok", segments=100, segments_free=5)
    ill.devices.add(uuid="u", state="not found on this node")
    ill.mounts.add(directory="/m", volume="v", state="dead", last_error="no device")
    ill.mounts.add(directory="/n", volume="w", state="unwatched")
    ill.conflicts.add(path="/s/conflicts/x", bytes=1)
    tell(ill, of_node(node_view(ill)))
    text = "\n".join(ill.reasons)
    for words in (
        "keeper",
        "/dev/a has 5 of 100",
        "device u: not found",
        "/m of volume v is dead: no device",
        "/s/conflicts",
        "memory.daemon",
    ):
        assert words in text, words
    assert len(text.splitlines()) == 6
    assert [one.code for one in ill.health] == [
        "KEEPER_GONE", "MOUNT_DEAD", "DEVICE_FULL", "DEVICE_MISSING", "CONFLICT_FILES", "DAEMON_MEMORY",
    ]  # fmt: skip
    names = {sample.name for sample in samples_of(ill)}
    assert {"awsomefsd_keeper_up", "awsomefsd_mount_up", "awsomefsd_device_segments_free"} <= names


def test_conflicts_are_listed(tmp_path: Path) -> None:
    assert list(conflicts(tmp_path / "none")) == []
    (tmp_path / "c" / "d").mkdir(parents=True)
    (tmp_path / "c" / "d" / "f").write_bytes(b"12345")
    assert [(found.path, found.bytes) for found in conflicts(tmp_path / "c")] == [(str(tmp_path / "c" / "d" / "f"), 5)]
    assert memory_bytes() > 1 << 20


def test_a_place_that_a_read_and_scrub_have_met_is_shown_once_with_the_name_of_its_volume() -> None:
    records = [
        DamagedRead(1, 7, 8_192, 4_096, "old name", "/f"),
        DamagedRead(1, 7, 8_192, 65_536, path="/f", by=SCRUB),
        DamagedRead(1, 7, 16_384, 4_096, "v", "/f"),
        DamagedRead(1, 7, 1 << 20, 4_096, path="/moved", by=SCRUB),
        DamagedRead(2, 7, 0, 1, path=""),
    ]
    assert damaged_places(records, {1: "v"}) == [("v", "/f", 8_192), ("v", "/f", 1 << 20), ("2", "inode 7", 0)]


class StoppedKeeper:
    """A keeper that is there and never answers; `waited_s`: what everybody who asked it has waited together."""

    def __init__(self) -> None:
        self.waited_s = 0.0

    def ping(self, timeout_s: float = ANSWER_S_MAX) -> dict[str, Any]:
        self.waited_s += timeout_s
        raise Unavailable("no answer")

    def views(self, *, watched: bool = True) -> list[Any]:
        """As Mounts.views, which asks the keeper once."""
        self.waited_s += ANSWER_S_MAX if watched else 0
        return []


def test_a_keeper_that_is_stopped_holds_up_a_status_for_a_moment_only(tmp_path: Path) -> None:
    """Clients wait 30 s for a status, Prometheus 10 s for the figures: they are wanted most when something hangs."""
    keeper: Any = StoppedKeeper()
    parts = Mock(**{"status.return_value": ("idle", {}, "")})  # nothing is asked without a leader
    status = NodeStatus(
        Settings(state_dir=tmp_path, run_dir=tmp_path), Node(cluster="c", node="n", site=1), parts, parts, keeper, keeper, parts,
        lambda _applied: {}, lambda: ClusterView("n"), ScrubProgress, str, list, ServedDevices(tmp_path, tmp_path),
    )()  # fmt: skip
    assert "KEEPER_GONE" in [one.code for one in status.health]
    assert keeper.waited_s < 5
