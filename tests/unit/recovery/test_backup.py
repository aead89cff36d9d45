"""Backup, restore, dump and load: whole or not at all, and the same state again."""

from __future__ import annotations

import json
import os
import random
import shutil
import uuid
from pathlib import Path

import pytest

from awsomefsd.base.errors import Corrupt, FormatTooNew, Unavailable
from awsomefsd.base.identity import Node as Identity
from awsomefsd.base.limits import KIB, MIB
from awsomefsd.base.rule_levels import SNAPSHOTS
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Changes, GetVolumes
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.store import Store
from awsomefsd.meta.state import keys, row_codecs, rows
from awsomefsd.recovery import backup, dump
from awsomefsd.recovery.backup import BackupHeader, Backups, pieces, read_backup
from awsomefsd.recovery.dump import lines, load
from buildtools.nodes import Node
from tests.rigs.machine_driver import Drive

pytestmark = pytest.mark.timeout(1_200)
HEADER = BackupHeader(1, "c" * 8, "n" * 8, 3, 77, 5, 12345, 0)


def write_backup(path: Path, content: bytes, header: BackupHeader = HEADER) -> Path:
    source = path.with_name("source")
    source.write_bytes(content)
    header.store_bytes = len(content)
    with source.open("rb") as store, path.open("wb") as out:
        out.writelines(pieces(header, store))
    return path


def test_what_goes_in_comes_out(tmp_path: Path, seed: int) -> None:
    content = random.Random(seed).randbytes(700_000) + bytes(300_000)
    path = write_backup(tmp_path / "backup", content)
    header = read_backup(path, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    assert (header.index, header.site, header.store_bytes) == (77, 3, len(content))


def test_every_cut_and_every_flipped_byte_is_found(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = write_backup(tmp_path / "backup", rng.randbytes(3_000))
    whole = path.read_bytes()
    for length in [*range(200), *(rng.randrange(len(whole)) for _ in range(200))]:
        path.write_bytes(whole[:length])
        with pytest.raises(Corrupt):
            read_backup(path)
    for _ in range(600):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        with pytest.raises((Corrupt, FormatTooNew)):
            read_backup(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(Corrupt, match="follows"):
        read_backup(path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = write_backup(tmp_path / "backup", b"x", BackupHeader(2, "c", "n", 0, 1, 1, 1, 0))
    with pytest.raises(FormatTooNew, match="newer awsomefsd"):
        read_backup(path)


# --- a real node ----------------------------------------------------------------------------------------------------------------
def digest(state: Path) -> dict[bytes, bytes]:
    store = Store.open(state, readonly=True)
    try:
        return dict(store.scan(b"", b"\xff" * 16))
    finally:
        store.close()


def with_files(node: Node) -> None:
    top = node.mountpoint / "top"
    (top / "deep").mkdir(parents=True)
    for number in range(40):
        (top / f"small-{number}").write_bytes(b"s" * number)
    (top / "deep" / "big").write_bytes(bytes(range(256)) * 4_096)
    (top / "deep" / os.fsdecode(b"n\xff\xfe")).symlink_to("big")
    os.link(top / "deep" / "big", top / "link")
    os.setxattr(top, "user.x", b"\x00\xff")
    node.cli("flush", str(node.mountpoint))  # a backup has what was committed


def check_files(node: Node) -> None:
    top = node.mountpoint / "top"
    assert all((top / f"small-{number}").read_bytes() == b"s" * number for number in range(40))
    assert (top / "deep" / os.fsdecode(b"n\xff\xfe")).read_bytes() == bytes(range(256)) * 4_096
    assert (top / "link").stat().st_nlink == 2 and os.getxattr(top, "user.x") == b"\x00\xff"


@pytest.mark.root
def test_a_lost_state_directory_comes_back_from_a_backup_and_from_a_dump(make_node, tmp_path: Path) -> None:
    node = make_node()
    with_files(node)
    file = tmp_path / "backup"
    made = node.ask("meta", "backup", str(file))
    assert file.stat().st_mode & 0o777 == 0o600 and made["index"] > 0
    assert "exists" in node.cli_error("meta", "backup", str(file))
    assert node.ask("meta", "restore", "--check", str(file))["index"] == made["index"]
    dumped = tmp_path / "dump"
    dumped.write_text(node.cli("meta", "dump", str(file)))
    online = [json.loads(line) for line in node.cli("meta", "dump").splitlines()]
    assert online[-1]["rows"] == len(online) - 2 and any(line.get("kind") == "DentryRow" for line in online)
    (node.mountpoint / "top" / "later").write_bytes(b"lost by the restore")
    for words in (("restore", str(file)), ("load", str(dumped))):
        assert node.kill_everything()
        node.detach_mount()
        assert "holds a node" in node.cli_error("meta", *words)
        shutil.rmtree(node.state)
        assert "give their paths" in node.cli_error("meta", *words)
        assert "--confirm-nobody-writes" in node.cli_error("meta", *words, str(node.disk))
        assert not (node.state / "node.json").exists()
        report = node.ask("meta", *words, str(node.disk), "--confirm-nobody-writes")
        assert report["faults"] == [] and report["missing_devices"] == [] and report["index"] > made["index"]
        node.cli("fsck", timeout_s=120)
        node.up()
        check_files(node)
        assert not (node.mountpoint / "top" / "later").exists()
        fresh = node.mountpoint / "top" / f"fresh-{words[0]}"
        fresh.write_bytes(bytes(100_000))
        node.cli("flush", str(node.mountpoint))
        check_files(node)


@pytest.mark.root
def test_dump_and_load_give_the_same_rows(make_node, tmp_path: Path) -> None:
    node = make_node()
    with_files(node)
    file = tmp_path / "backup"
    node.cli("meta", "backup", str(file))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    header = read_backup(file, tmp_path / "one" / "data.mdb")
    store = Store.open(tmp_path / "one", readonly=True)
    dumped = tmp_path / "dump"
    dumped.write_text("".join(lines(header, store)))
    store.close()
    again = load(dumped, tmp_path / "two")
    assert (again.cluster, again.index, again.term) == (header.cluster, header.index, header.term)
    kept = {key: raw for key, raw in digest(tmp_path / "one").items() if keys.kind_of(key)[2] not in row_codecs.SECRET_KINDS}
    assert digest(tmp_path / "two") == kept and len(kept) > 100
    loaded = Store.open(tmp_path / "two", readonly=True)
    assert Machine(loaded).applied_index == header.index and not list(check(loaded))
    loaded.close()


def test_a_dump_of_more_rows_than_a_new_map_has_room_for_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a cluster with more than about a million files."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    store = Store.open(tmp_path / "one")
    store.put(keys.cluster(), rows.CLUSTER.dumps(rows.ClusterRow(uuid="c", applied_index=9)))
    for number in range(10_000):
        store.put(keys.reader(f"{number:0100}"), rows.READER.dumps(rows.ReaderRow(number)))
    store.commit()
    (tmp_path / "dump").write_text("".join(lines(HEADER, store)))
    store.close()
    monkeypatch.setitem(Store.open.__func__.__kwdefaults__, "map_bytes_min", MIB)  # type: ignore[attr-defined]
    monkeypatch.setattr(dump, "COMMIT_BYTES", 64 * KIB, raising=False)
    assert load(tmp_path / "dump", tmp_path / "two").index == HEADER.index
    assert digest(tmp_path / "two") == digest(tmp_path / "one")


def test_a_dump_has_snapshots_and_what_they_keep(tmp_path: Path) -> None:
    drive = Drive(level=SNAPSHOTS)
    drive.make_volume()
    drive.open()
    info, ino, small = drive.lease()[0], drive.create(b"a"), drive.create(b"b")
    drive.write(info, ino, 0, 8_192)
    drive.sequence += 1
    drive.ok(drive.commit(None, c.InodeCommit(small, 1, drive.sequence, 4, drive.now, [], [(0, b"data")])))
    drive.ok(c.SetXattr(drive.volume, ino, b"user.a", b"1"))
    drive.ok(c.CreateSnapshots("first", [c.NewSnapshot(drive.volume, str(uuid.uuid4()))]))
    drive.write(info, ino, 0, 4_096)
    drive.ok(c.Unlink(drive.volume, 1, b"a"))
    drive.ok(c.Unlink(drive.volume, 1, b"b"))
    drive.machine.flush()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    store = Store.open(tmp_path / "one")
    for key, raw in drive.txn.rows.items():
        store.put(key, raw)
    store.commit()
    dumped = "".join(lines(HEADER, store))
    store.close()
    kinds = {json.loads(line).get("kind") for line in dumped.splitlines()}
    assert kinds >= {"SnapshotRow", "SnapshotNameRow", "ShelfRow", *(f"kept {row_codecs.CODEC_OF[kind].what}" for kind in keys.VERSIONED)}
    (tmp_path / "dump").write_text(dumped)
    load(tmp_path / "dump", tmp_path / "two")
    assert digest(tmp_path / "two") == digest(tmp_path / "one")


@pytest.mark.parametrize("harm", ["cut", "row", "count", "json", "field", "kind"])
def test_a_changed_dump_is_refused(tmp_path: Path, harm: str) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    store = Store.open(tmp_path / "one")
    store.put(keys.cluster(), rows.CLUSTER.dumps(rows.ClusterRow(uuid="c", applied_index=9)))
    store.put(keys.reader("r"), rows.READER.dumps(rows.ReaderRow(4)))
    dumped = list(lines(HEADER, store))
    store.close()
    if harm == "cut":
        del dumped[-1]
    elif harm == "row":
        dumped[2] = dumped[2].replace('"cursor": 4', '"cursor": 5')
    elif harm == "count":
        del dumped[2]
    elif harm == "json":
        dumped[1] = dumped[1][:-9] + "\n"
    elif harm == "field":
        dumped[2] = dumped[2].replace("cursor", "later")
    else:
        dumped[2] = dumped[2].replace('"key": "', '"key": "ff')
    path = tmp_path / "dump"
    path.write_text("".join(dumped))
    with pytest.raises((Corrupt, FormatTooNew)):
        load(path, tmp_path / "two")


def test_a_backup_of_format_1_can_still_be_read(tmp_path: Path) -> None:
    golden = Path(__file__).resolve().parents[2] / "golden" / "backup-1"
    if os.environ.get("AWSOMEFSD_UPDATE_GOLDEN"):
        write_backup(tmp_path / "backup", b"state" * 1_000).rename(golden)
    header = read_backup(golden, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"state" * 1_000
    assert (header.version, header.cluster, header.node, header.site, header.index, header.term) == (1, "c" * 8, "n" * 8, 3, 77, 5)


def test_a_node_that_follows_waits_until_it_has_what_was_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Path] = []

    def copy(path: Path) -> None:
        copies.append(path)
        path.write_bytes(b"state %d" % len(copies))

    asked: list[object] = []

    def ask(body: object) -> object:
        asked.append(body)
        return Changes([], 1, 43)

    monkeypatch.setattr(backup, "applied_of", lambda directory: (40 + len(copies), 3))
    monkeypatch.setattr(backup, "_POLL_S", 0)
    made = Backups(tmp_path / "b", Identity("c" * 8, "n" * 8, 3), lambda: {"applied": 5, "term": 9, "leading": 0}, ask, copy)
    (tmp_path / "file").write_bytes(b"".join(made.pieces()))
    header = read_backup(tmp_path / "file", tmp_path / "out")
    assert (header.index, header.term, len(copies)) == (43, 9, 3)
    assert (tmp_path / "out").read_bytes() == b"state 3"
    assert isinstance(asked[0], GetVolumes), "only one that a majority follows answers it"


def test_a_node_whose_state_stands_still_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "applied_of", lambda directory: (40, 3))
    monkeypatch.setattr(backup, "BACKUP_WAIT_S", 0)
    made = Backups(tmp_path / "b", Identity("c" * 8, "n" * 8, 3), dict, lambda body: Changes([], 1, 43), lambda path: None)
    with pytest.raises(Unavailable, match="stands at entry 40"):
        list(made.pieces())
