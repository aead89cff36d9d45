"""Every format that outlives a process, made by a build that is not there yet: what this build must not read it does not read, and what it
must not write beside it does not write.  A row for each format of docs/FORMAT.md, "Versions and feature bits".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from awsomefsd.base import durable, shm
from awsomefsd.base.codec import seal
from awsomefsd.base.errors import ConfigError, FormatTooNew, Refused
from awsomefsd.base.identity import FORMAT_VERSION
from awsomefsd.base.identity import load as load_identity
from awsomefsd.io.collect import checkpoint_format
from awsomefsd.io.collect.checkpoint_format import AreaHeader, CheckpointRecord
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.identified import open_identified
from awsomefsd.io.device.signature import format_device
from awsomefsd.io.device.superblock import copies_agree, pack, read_superblock, second_copy_offset, unpack, write_superblock
from awsomefsd.io.segment import footer, frame
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.log import format as journal_format
from awsomefsd.meta.log import verify
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.replica.store import Store
from awsomefsd.meta.state import rows
from awsomefsd.node.mounts import _load as load_mounts
from awsomefsd.worker.config import WorkerConfig
from tests.rigs.machine_driver import Drive

CLUSTER = "115109b7-70e3-407b-ad77-56fbd188106d"
NEWER, NODE = 1 << 7, b"n" * 16
MIB = 1 << 20


# --- devices ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    format_device(str(path), CLUSTER)
    return path


def stamp(path: Path, **bits: int) -> str:
    """Writes both superblocks again with these bits, as a newer build would; returns the device's UUID."""
    with path.open("r+b") as file:
        made = replace(unpack(file.read(4096)), **bits)
        for offset in (0, second_copy_offset(made.device_bytes)):
            file.seek(offset)
            file.write(pack(made))
    return made.device_uuid


def test_superblock(disk: Path) -> None:
    uuid = stamp(disk, compat=NEWER)
    open_identified(str(disk), CLUSTER, uuid, 0).close()
    stamp(disk, compat=0, ro_compat=NEWER)
    with open_identified(str(disk), CLUSTER, uuid, 0) as device:
        with pytest.raises(OSError, match="upgrade this node"):
            device.pwritev([memoryview(bytes(4096))], MIB)
        assert not read_superblock(device).writable
        with pytest.raises(Refused, match="upgrade this node"):
            write_superblock(device, read_superblock(device))
    stamp(disk, ro_compat=0, incompat=NEWER)
    with pytest.raises(FormatTooNew, match="upgrade this node"):
        open_identified(str(disk), CLUSTER, uuid, 0)


def test_no_repair_of_a_superblock_that_must_not_be_written(disk: Path) -> None:
    stamp(disk, ro_compat=NEWER)
    with disk.open("r+b") as file:
        file.seek(200)
        file.write(b"x")
    with Device.open(str(disk)) as device:
        assert read_superblock(device, CLUSTER, repair=True).ro_compat == NEWER
        assert not copies_agree(device)


def test_frame_and_footer() -> None:
    raw = bytearray(footer.pack_footer(1, 1, 4096, []))
    raw[4] = footer.VERSION + 1
    struct.pack_into("<I", raw, 60, footer._checksum(memoryview(raw), 0, 0))
    with pytest.raises(FormatTooNew):
        footer.unpack_footer(raw, 1, 1)
    head = bytearray(Path("tests/golden/frame_small.bin").read_bytes())
    head[4] = frame.VERSION + 1
    length = struct.unpack_from("<I", head, 8)[0]
    struct.pack_into("<I", head, frame._CRC_AT, frame._header_checksum(memoryview(head)[:length]))
    with pytest.raises(FormatTooNew):
        frame.unpack_header(head)


AREA = AreaHeader(NODE, NODE, NODE, b"a" * 16, 1, 1, 0, 1, 1, 1, 1)
RECORD = CheckpointRecord(checkpoint_format.SNAPSHOT, 0, 5, 0, 0, 1, 1, b"payload")


@pytest.mark.parametrize("bits", [{"version": checkpoint_format.VERSION + 1}, {"flags": NEWER}], ids=str)
def test_checkpoint_area(bits: dict[str, int]) -> None:
    assert checkpoint_format.unpack_area(checkpoint_format.pack_area(replace(AREA, flags=checkpoint_format.SEVERAL)))
    with pytest.raises(FormatTooNew):
        checkpoint_format.unpack_area(checkpoint_format.pack_area(replace(AREA, **bits)))


@pytest.mark.parametrize("newer", ["version", "flags", "kind"])
def test_a_record_of_a_newer_build_is_no_end_of_a_checkpoint(newer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = RECORD
    with monkeypatch.context() as patch:
        if newer == "version":
            patch.setattr(checkpoint_format, "_RECORD_VERSION", 2)
        else:
            made = replace(RECORD, **{newer: 16})
        raw = checkpoint_format.pack_record(AREA.area, made)
    with pytest.raises(FormatTooNew):
        checkpoint_format.unpack_record(AREA.area, raw, 5)
    assert checkpoint_format.unpack_record(AREA.area, raw, 4) is None, "what is not the next record is the end"
    assert checkpoint_format.unpack_record(b"b" * 16, raw, 5) is None


# --- the state directory -----------------------------------------------------------------------------------------------------------
def journal_with(directory: Path, **bits: int) -> Path:
    Journal.open(directory, NODE, NODE, create=True, file_bytes=MIB).close()
    (path,) = directory.glob("*.journal")
    raw = bytearray(path.read_bytes())
    header, _ = journal_format.unpack_header(raw, "")
    block, _ = journal_format.pack_header(header._replace(**bits))
    path.write_bytes(block)  # the records are of another seed now: none
    return path


def test_journal(tmp_path: Path) -> None:
    path = journal_with(tmp_path, compat=NEWER)
    Journal.open(tmp_path, NODE, NODE, create=False, file_bytes=MIB).close()
    for bits in ({"incompat": NEWER}, {"ro_compat": NEWER}):
        path.unlink()
        before = journal_with(tmp_path, **bits).read_bytes()
        with pytest.raises(FormatTooNew, match="upgrade this node"):
            Journal.open(tmp_path, NODE, NODE, create=False, file_bytes=MIB)
        assert path.read_bytes() == before, "it was not written"
    assert [why for _, _, why in verify.faults_of([path])] == [""], "it can be read"
    path.unlink()
    journal_with(tmp_path, incompat=NEWER)
    with pytest.raises(FormatTooNew):
        list(verify.faults_of([path]))


@pytest.mark.parametrize("bits", [{"incompat": NEWER}, {"ro_compat": NEWER}, {"format_version": 9}], ids=str)
def test_store(tmp_path: Path, bits: dict[str, int]) -> None:
    store = Store.open(tmp_path)
    store.claim(CLUSTER, "node", b"i" * 16)
    assert store.identity is not None
    store._write_identity(replace(store.identity, **bits))
    store.close()
    with pytest.raises(FormatTooNew, match="upgrade this node"):
        Store.open(tmp_path)
    if "ro_compat" in bits:
        Store.open(tmp_path, readonly=True).close()
        return
    with pytest.raises(FormatTooNew, match="upgrade this node"):
        Store.open(tmp_path, readonly=True)


def test_rows() -> None:
    """The state as a whole: an entry is not applied to rows that this build may only read."""
    drive = Drive()
    volume = drive.make_volume()
    drive.machine.state.cluster.compat = NEWER
    drive.open()
    drive.machine.state.cluster.ro_compat = NEWER
    drive.machine.flush()
    drive.reload()
    assert drive.machine.cluster_uuid, "it can be read"
    with pytest.raises(FormatTooNew, match="upgrade this node"):
        drive.apply(c.Create(volume, 1, b"x", 0o100644, 1, 1))
    drive.machine.state.cluster.incompat = NEWER
    drive.machine.flush()
    with pytest.raises(FormatTooNew, match="upgrade this node"):
        drive.reload()


def test_values() -> None:
    raw = rows.CLUSTER.dumps(rows.ClusterRow())
    newer = seal(rows.CLUSTER.schema + 1, raw[5:])
    with pytest.raises(FormatTooNew):
        rows.CLUSTER.loads(newer)


def node_json(path: Path) -> object:
    durable.write_json(path / "node.json", {"cluster": CLUSTER, "node": CLUSTER, "site": 0, "format": FORMAT_VERSION + 1})
    return load_identity(path)


def mounts_json(path: Path) -> object:
    durable.write_json(path / "mounts.json", {"version": 2, "boot_id": "b", "mounts": {}})
    return load_mounts(path / "mounts.json", "b")


def worker_config(path: Path) -> object:
    return WorkerConfig.from_wire({"version": 2})


@pytest.mark.parametrize("opened", [node_json, mounts_json, worker_config])
def test_files(opened: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises((FormatTooNew, ConfigError)):
        opened(tmp_path)


# --- shared memory -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("at", "value", "opens"), [(8, 2, False), (12, 1, False), (16, 1, True)], ids=["version", "incompat", "compat"])
def test_shared_memory(at: int, value: int, opens: bool) -> None:
    view = memoryview(bytearray(4096))
    shm.write_header(view, b"awsmtest", 1, (1, 2, 3))
    struct.pack_into("<I", view, at, value)
    shm.words(view[: shm.HEADER_BYTES])[7] = shm._header_seal(view)
    if opens:
        assert shm.read_header(view, b"awsmtest", 1, "area") == (1, 2, 3)
        return
    with pytest.raises(FormatTooNew, match="upgrade this node"):
        shm.read_header(view, b"awsmtest", 1, "area")
