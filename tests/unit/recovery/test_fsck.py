"""awsomefsd fsck on real stores, journals and devices: what it finds, repairs, prints and returns."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base import identity
from awsomefsd.base.types import FIRST_COOKIE
from awsomefsd.cli import main as command_line
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.signature import format_device
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Failed
from awsomefsd.meta.check.check import check
from awsomefsd.meta.check.repair import Plan
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.replica.store import MapFull, Store
from awsomefsd.meta.state import keys
from awsomefsd.recovery.fsck import write_below

MIB = 1 << 20
NOW_NS = 1_700_000_000_000_000_000


class Stopped:
    """The state directory of a node whose daemon does not run."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.identity = identity.init(self.state)
        self.disk = directory / "disk"
        with self.disk.open("wb") as file:
            file.truncate(64 * MIB)
        superblock = format_device(str(self.disk), self.identity.cluster)
        DeviceTable(self.state).add(superblock.device_uuid, str(self.disk))
        replica = self.open()
        s = superblock
        add = c.AddDevice(s.device_uuid, s.device_bytes, s.segment_bytes, s.segments, s.first_segment_offset)
        self.propose(replica, c.Init(self.identity.cluster, 0), add, c.CreateVolume("vol", "uuid"))
        self.propose(replica, *(c.Create(1, 1, b"f%d" % at, 0o100644, 1, 1) for at in range(50)))
        replica.commit()
        replica.close()

    def open(self) -> Replica:
        (self.state / "meta").mkdir(mode=0o700, exist_ok=True)
        return Replica.open_single(self.state / "meta", self.identity.cluster, self.identity.node, Machine)

    def propose(self, replica: Replica, *commands: c.AnyCommand) -> None:
        stamp = replica.machine.last_stamp
        replica.propose([c.Entry(0, 0, 1, 0, 0, stamp + at, NOW_NS, 0, 0, 0, 0, [], command) for at, command in enumerate(commands, 1)])
        assert not [reply for _, reply in replica.ready() if isinstance(reply, Failed)]

    def store(self) -> Store:
        return Store.open(self.state / "meta" / "store")

    def rot(self, key: bytes) -> None:
        store = self.store()
        raw = store.get(key)
        assert raw is not None
        store.put(key, raw[:-1] + bytes([raw[-1] ^ 4]))
        store.commit()
        store.close()

    def remove(self, key: bytes) -> None:
        store = self.store()
        assert store.delete(key)
        store.commit()
        store.close()

    def rows(self) -> dict[bytes, bytes]:
        store = Store.open(self.state / "meta" / "store", readonly=True)
        try:
            return dict(store.scan(b"", b"\xff" * 8))
        finally:
            store.close()


@pytest.fixture
def stopped(tmp_path: Path) -> Stopped:
    return Stopped(tmp_path)


def fsck(stopped: Stopped, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = command_line.run(["--state-dir", str(stopped.state), "fsck", "-o", "json", *words])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else captured.err


def test_find_dry_run_repair_clean(stopped: Stopped, capsys: pytest.CaptureFixture[str]) -> None:
    assert fsck(stopped, capsys)[0] == 0
    stopped.rot(keys.dentry(1, 1, b"f7"))
    stopped.remove(keys.cookie(1, 1, FIRST_COOKIE))
    code, report = fsck(stopped, capsys)
    assert code == 4 and not report["clean"] and report["actions"] == [] and len(report["faults"]) >= 2
    before = stopped.rows()
    code, planned = fsck(stopped, capsys, "--repair", "--dry-run")
    assert code == 4 and planned["actions"] and planned["remaining"] == [] and stopped.rows() == before
    code, report = fsck(stopped, capsys, "--repair")
    assert code == 1 and report["clean"] and report["remaining"] == [] and report["actions"] == planned["actions"]
    code, report = fsck(stopped, capsys, "--repair")
    assert code == 0 and report["actions"] == []
    replica = stopped.open()
    commands = [entry.command for entry in replica.log.replay(0)]
    assert replica.machine.child(1, 1, b"f7") and isinstance(commands[-1], c.RepairRows), "a repair is in the log"
    replica.close()


def test_a_damaged_row_that_the_journal_stumbles_over(stopped: Stopped, capsys: pytest.CaptureFixture[str]) -> None:
    replica = stopped.open()
    stopped.propose(replica, c.SetAttr(1, 2, c.SET_MODE, 0o600))  # in the journal only
    replica.close()
    stopped.rot(keys.inode(1, 2))
    code, report = fsck(stopped, capsys)
    assert code == 4 and any(fault["kind"] == "undecodable" for fault in report["faults"])
    code, report = fsck(stopped, capsys, "--repair")
    assert code == 1 and report["remaining"] == [] and any("could not be replayed over" in action["what"] for action in report["actions"])
    replica = stopped.open()
    found = replica.machine.state.inode(1, 2)  # type: ignore[attr-defined]
    assert found is not None and found.mode == 0o100600
    replica.close()
    assert fsck(stopped, capsys)[0] == 0


def test_a_repair_below_the_journal_that_is_larger_than_the_map_is_one_transaction(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full map looked like a damaged store, which is set aside."""
    monkeypatch.setitem(Store.open.__func__.__kwdefaults__, "map_bytes_min", MIB)  # type: ignore[attr-defined]
    before = stopped.rows()
    gone = min(key for key in before if keys.kind_of(key)[2] == keys.INODE)
    puts = [(keys.inline(1, number), bytes(400)) for number in range(1_000, 6_000)]
    store = stopped.store()
    with pytest.raises(MapFull):
        list(itertools.starmap(store.put, puts))
    store.close()
    write_below(stopped.state / "meta" / "store", Plan([], [], [], [gone], puts))
    assert stopped.rows() == {key: value for key, value in before.items() if key != gone} | dict(puts)


def test_a_dry_run_promises_no_repair_of_a_damaged_journal(stopped: Stopped, capsys: pytest.CaptureFixture[str]) -> None:
    replica = stopped.open()
    stopped.propose(replica, c.SetAttr(1, 2, c.SET_MODE, 0o600))
    replica.close()
    journal = min((stopped.state / "meta" / "journal").glob("*.journal"))
    raw = bytearray(journal.read_bytes())
    raw[raw.index(b"f20")] ^= 255
    journal.write_bytes(raw)
    code, planned = fsck(stopped, capsys, "--dry-run")
    assert code == 4 and [fault["where"] for fault in planned["remaining"]] == ["journal"]
    code, report = fsck(stopped, capsys, "--repair")
    assert code == 4 and report["remaining"] == planned["remaining"] and report["actions"] == planned["actions"] == []


def test_the_cluster_row(stopped: Stopped, capsys: pytest.CaptureFixture[str]) -> None:
    stopped.rot(keys.cluster())
    code, report = fsck(stopped, capsys, "--repair")
    assert code == 1 and any("copy" in action["what"] for action in report["actions"]), report
    assert fsck(stopped, capsys)[0] == 0


@pytest.mark.parametrize("offset", [0, 63 * MIB])
def test_one_superblock(stopped: Stopped, capsys: pytest.CaptureFixture[str], offset: int) -> None:
    before = stopped.disk.read_bytes()[offset : offset + 4096]
    with stopped.disk.open("r+b") as file:
        file.seek(offset + 60)
        file.write(b"\xff")
    code, report = fsck(stopped, capsys)
    assert code == 4 and report["faults"][0]["kind"] == "superblock"
    assert fsck(stopped, capsys, "--repair")[0] == 1 and fsck(stopped, capsys)[0] == 0
    assert stopped.disk.read_bytes()[offset : offset + 4096] == before


def test_pages_that_lead_nowhere(stopped: Stopped, capsys: pytest.CaptureFixture[str]) -> None:
    """The structure of the store is damaged: said so, whatever LMDB does about it; made anew from the journal, the old one kept."""
    data = stopped.state / "meta" / "store" / "data.mdb"
    sound = stopped.rows()
    raw = bytearray(data.read_bytes())
    for page in range(2, len(raw) // 4096):
        raw[page * 4096 + 8 : page * 4096 + 16] = b"\xff\x7f\xfe\x01\xff\xff\xff\x7f"  # kind of page, and where its nodes lie
    data.write_bytes(raw)
    code, report = fsck(stopped, capsys)
    assert code == 4 and report["faults"][0]["kind"] == "store-structure", report
    assert data.read_bytes() == bytes(raw)
    code, report = fsck(stopped, capsys, "--repair")
    assert code == 1 and stopped.rows() == sound, report
    assert [path.name.startswith("store.damaged.") for path in (stopped.state / "meta").glob("store.*")] == [True]


def test_a_running_daemon_and_no_metadata(stopped: Stopped, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with identity.StateLock(stopped.state, "a daemon"):
        code, told = fsck(stopped, capsys)
    assert code == 8 and "in use" in told
    assert command_line.run(["--state-dir", str(tmp_path / "nothing"), "fsck"]) == 8
    assert command_line.run(["--state-dir", str(stopped.state), "fsck", "--repair", "--no-replay"]) == 2


def test_words(stopped: Stopped, capsys: pytest.CaptureFixture[str]) -> None:
    stopped.remove(keys.dentry(1, 1, b"f9"))
    stopped.remove(keys.cookie(1, 1, FIRST_COOKIE + 9))
    assert command_line.run(["--state-dir", str(stopped.state), "fsck", "--dry-run"]) == 4
    assert "would repair: volume 1 inode 11: had no name: it is lost+found/#11 of volume vol now" in capsys.readouterr().out
    assert command_line.run(["--state-dir", str(stopped.state), "fsck", "--repair"]) == 1
    assert "0 are left" in capsys.readouterr().out
    store = stopped.store()
    assert check(store) == []
    store.close()
