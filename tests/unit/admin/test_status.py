"""The status of a node: reasons, health codes, metrics and conflict files."""

from __future__ import annotations

from pathlib import Path

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.status import conflicts, damaged_places, memory_bytes, node_view, samples_of, tell
from awsomefsd.io.file.damaged_reads import SCRUB, DamagedRead
from awsomefsd.node.health.rules import of_node


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
