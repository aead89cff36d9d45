"""The configuration of a worker: the golden object on the wire, and configurations of other builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from awsomefsd.base.consistency import CLOSE_TO_OPEN, STRICT
from awsomefsd.base.errors import ConfigError
from awsomefsd.base.limits import WORKER_MEMORY_BYTES
from awsomefsd.vfs.ops.id_mapping import MappedIds
from awsomefsd.vfs.state.atimes import Policy
from awsomefsd.worker.config import VERSION, WorkerConfig, asked_options, endpoints_of, identity_of

GOLDEN = Path(__file__).parents[2] / "golden" / "worker_config.json"
LEAST = {"volume": 3, "node": "n", "boot_id": "b", "meta_sock": "/run/meta.sock", "state_dir": "/s", "read_only": False}

FULL = WorkerConfig(
    volume=3, volume_name="demo", mount=0x1234567890ABCDEF, node="0b5b4e0e-0000-4000-8000-000000000001", boot_id="boot",
    meta_sock="/run/awsomefs/meta.sock", state_dir="/var/lib/awsomefs", cluster="0b5b4e0e-0000-4000-8000-00000000000c",
    tls=("/s/ca.pem", "/s/node.pem", "/s/node.key"), endpoints="/s/endpoints.json",
    places={"0b5b4e0e-0000-4000-8000-000000000002": "[::1]:7000"}, options=("ro", "shared"), read_only=True,
    shared=True, on_lease_loss="error", caches=True, snapshot=4,
    snapshot_uuid="0190c1a2-0000-4000-8000-000000000001", leased_names=True, consistency=CLOSE_TO_OPEN, containers=True,
    map_uid=((0, 100_000, 65_536),), map_gid=((0, 200_000, 65_536), (70_000, 1, 1)), root_squash=True, check_all=True,
    atime=("noatime", False), log_level="debug", log_format="json", memory_bytes=1 << 28,
    overrides={"minor": 34, "resend": False, "without": 64},
)  # fmt: skip


def test_the_wire_is_the_golden_one() -> None:
    assert json.dumps(FULL.to_wire(), indent=1) + "\n" == GOLDEN.read_text()
    assert WorkerConfig.from_wire(json.loads(GOLDEN.read_text())) == FULL


def test_a_key_that_is_missing_has_its_default() -> None:
    config = WorkerConfig.from_wire(LEAST)
    assert (config.version, config.consistency, config.memory_bytes) == (1, STRICT, WORKER_MEMORY_BYTES)
    assert not (config.read_only or config.shared or config.caches or config.containers)
    assert (config.on_lease_loss, config.log_level, config.log_format, config.overrides) == ("block", "info", "text", {})
    assert Policy(*config.atime) == Policy() and identity_of(config) == MappedIds()
    assert endpoints_of(config).now() == ["/run/meta.sock"]


def test_a_key_that_is_not_known_is_ignored() -> None:
    assert WorkerConfig.from_wire({**LEAST, "of_a_newer_build": [1]}) == WorkerConfig.from_wire(LEAST)


def test_every_key_is_on_the_wire() -> None:
    """A worker of an older build reads some keys without a default."""
    assert set(WorkerConfig.from_wire(LEAST).to_wire()) == {field.encode_name for field in msgspec.structs.fields(WorkerConfig)}


@pytest.mark.parametrize("wrong", [{"volume": "three"}, {"map_uid": [[1, 2]]}, {"version": VERSION + 1}, {"\ud800": 1, "volume": ""}])
def test_a_config_that_cannot_be_read_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="configuration of this mount"):
        WorkerConfig.from_wire({**LEAST, **wrong})


def test_a_config_without_its_volume_is_refused() -> None:
    with pytest.raises(ConfigError, match="volume"):
        WorkerConfig.from_wire({"node": "n"})


def test_ids_are_mapped_as_the_config_says() -> None:
    identity = identity_of(FULL)
    assert identity.users.inside(7) == 100_007 and identity.groups.inside(70_000) == 1
    assert identity.root_squash and identity.check_all


def test_the_options_of_a_mount_are_read_from_a_config_of_any_build() -> None:
    assert asked_options(FULL.to_wire()) == ("ro", "shared") and asked_options({"options": []}) == ()
    assert asked_options({}) is None and asked_options(None) is None


@pytest.mark.parametrize("wire", [None, 5, "x", []])
def test_what_is_no_object_is_refused(wire: Any) -> None:
    with pytest.raises(ConfigError, match="not an object"):
        WorkerConfig.from_wire(wire)


def test_a_later_version_is_said_before_what_it_changed() -> None:
    with pytest.raises(ConfigError, match="install the newer build"):
        WorkerConfig.from_wire({**LEAST, "version": VERSION + 1, "map_uid": "of another type by then"})


def test_a_mount_does_not_become_writable_because_a_key_is_missing() -> None:
    with pytest.raises(ConfigError, match="read_only"):
        WorkerConfig.from_wire({key: value for key, value in LEAST.items() if key != "read_only"})
