"""The rules of an orchestrator's volumes and of the claims of nodes: what may be, what is refused, what fsck says and mends."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from awsomefsd.catalog import Catalog
from awsomefsd.errors import NotFound, Refused
from awsomefsd.meta import check as check_module
from awsomefsd.meta import commands as c
from awsomefsd.meta import csi_messages as cm
from awsomefsd.meta import keys, rows
from awsomefsd.meta import messages as m
from awsomefsd.meta.check import check
from awsomefsd.meta.check_csi import mend_csi
from awsomefsd.meta.faults import KINDS
from awsomefsd.meta.mender import Hints, Mender
from tests.metadrive import Drive

IDS = [f"0190c1a2-0000-4000-8000-00000000000{n}" for n in "abcdef"]
BAD = [{"id": "no-uuid"}, {"id": IDS[0].upper()}, {"name": ""}, {"name": "é" * 65}, {"capacity": -1}, {"path": "a"}]


def make(drive: Drive, n: int = 0, **fields: object) -> int:
    given = {"name": f"pvc-{n}", "capacity": 1 << 30, "block": False, "settings": [("quota", "hard")]} | fields
    return int(drive.ok(c.MakeCsiVolume(IDS[n], **given)).number)  # type: ignore[arg-type]


def ids(drive: Drive, **fields: object) -> list[str]:
    asked = {"after": "", "count": 10} | fields
    return [row.id for row in drive.ask(cm.GetCsiVolumes(**asked)).volumes]  # type: ignore[arg-type]


def claim(volume: int, node: str = "a", path: str = "", exclusive: bool = True, boot: str = "b1", **more: bool) -> c.ClaimVolume:
    return c.ClaimVolume(volume, path, node, boot, exclusive, **more)


def claims(drive: Drive) -> list[tuple[str, str]]:
    return [(row.node, row.path) for row in drive.ask(cm.GetClaims()).claims]


def sound(drive: Drive) -> None:
    drive.machine.flush()
    assert check(drive.txn) == []


def test_one_entry_makes_volume_and_record_and_one_ends_both() -> None:
    drive = Drive()
    number = make(drive, quota_bytes=1 << 30)
    (info,) = drive.ask(m.GetVolumes(f"csi-{IDS[0]}")).volumes
    assert (info.volume, info.uuid, info.quota_bytes) == (number, IDS[0], 1 << 30)
    assert ids(drive, id=IDS[0]) == ids(drive, name="pvc-0") == [IDS[0]] and ids(drive, name="pvc-1") == []
    assert drive.errno(c.MakeCsiVolume(IDS[1], "pvc-0", 1, False, [])) == errno.EEXIST
    assert drive.errno(c.MakeCsiVolume(IDS[0], "other", 1, False, [])) == errno.EEXIST
    sound(drive)
    drive.ok(c.DropCsiVolume(IDS[0], True))
    assert ids(drive) == [] and drive.ask(m.GetVolumes()).volumes == []
    assert drive.errno(c.DropCsiVolume(IDS[0], True)) == errno.ENOENT
    drive.ok(c.Reap(1024))
    sound(drive)


def test_a_kept_volume_stays_without_its_record() -> None:
    drive = Drive()
    make(drive)
    drive.ok(c.DropCsiVolume(IDS[0], False))
    assert ids(drive) == [] and len(drive.ask(m.GetVolumes()).volumes) == 1
    sound(drive)


@pytest.mark.parametrize("path", ["/a", "a/", "a//b", "..", "a/../b", ".", "a\0b", "x" * 256])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    drive = Drive()
    volume = drive.make_volume()
    assert drive.errno(c.MakeCsiVolume(IDS[0], "pvc", 1, False, [], volume, path)) == errno.EINVAL
    assert drive.errno(claim(volume, path=path)) == errno.EINVAL


@pytest.mark.parametrize("bad", BAD)
def test_bad_records_are_refused(bad: dict[str, object]) -> None:
    given: dict[str, object] = {"id": IDS[0], "name": "n", "capacity": 0, "block": False, "settings": []} | bad
    assert Drive().errno(c.MakeCsiVolume(**given)) == errno.EINVAL  # type: ignore[arg-type]


def test_directories_of_a_volume_share_it_and_go_with_it_only_by_force() -> None:
    drive = Drive()
    volume = drive.make_volume()
    make(drive, 0, volume=volume, path="a")
    make(drive, 1, volume=volume, path="b")
    assert drive.errno(c.SetCsiVolume(IDS[0], quota_bytes=5)) == errno.EINVAL
    assert drive.errno(c.DeleteVolume(volume)) == errno.ENOTEMPTY
    drive.ok(c.DropCsiVolume(IDS[0], True))
    assert ids(drive) == [IDS[1]]
    drive.ok(c.DeleteVolume(volume, True))
    assert ids(drive) == []
    drive.ok(c.Reap(1024))
    sound(drive)


def test_changes_and_pages() -> None:
    drive = Drive()
    for n in (3, 1, 2):
        make(drive, n)
    drive.ok(c.SetCsiVolume(IDS[1], 2 << 30, 2 << 30, 100, [("quota", "none")]))
    (row,) = drive.ask(cm.GetCsiVolumes("", 1, id=IDS[1])).volumes
    assert (row.capacity, row.settings) == (2 << 30, [("quota", "none")])
    assert next(v for v in drive.ask(m.GetVolumes()).volumes if v.volume == row.volume).quota_inodes == 100
    assert ids(drive, count=2) == IDS[1:3] and ids(drive, after=IDS[2]) == [IDS[3]] and ids(drive, after=IDS[3]) == []
    assert drive.ask_errno(cm.GetCsiVolumes("é" * 300, 1)) == errno.EINVAL


def test_an_exclusive_claim_stands_alone() -> None:
    drive = Drive()
    volume = make(drive)
    first = drive.ok(claim(volume)).epoch
    assert drive.ok(claim(volume)).epoch == first, "claiming again changes nothing"
    assert drive.errno(claim(volume, "b")) == drive.errno(claim(volume, "b", exclusive=False)) == errno.EBUSY
    drive.ok(claim(volume, "b", path="dir"))  # another place
    assert drive.errno(c.DropCsiVolume(IDS[0], True)) == drive.errno(c.DeleteVolume(volume, True)) == errno.EBUSY
    drive.ok(c.EndClaims("a", volume, "", "unstaged", epoch=first + 100))
    assert len(claims(drive)) == 2, "another epoch"
    drive.ok(c.EndClaims("a", volume, "", "unstaged", epoch=first))
    assert drive.ok(claim(volume, "b", exclusive=False)).epoch > first
    assert drive.errno(claim(volume, "a")) == errno.EBUSY
    drive.ok(claim(volume, "c", exclusive=False))
    sound(drive)


def test_claims_end_with_their_boot_and_with_their_node() -> None:
    drive = Drive()
    one, two = make(drive, 0), make(drive, 1)
    for volume, boot, attached in ((one, "b1", False), (two, "b2", True)):
        drive.ok(claim(volume, boot=boot, attached=attached))
    drive.ok(c.EndClaims("a", 0, "", "restarted", keep_boot_id="b2"))
    assert [row.volume for row in drive.ask(cm.GetClaims()).claims] == [two]
    drive.ok(c.EndClaims("a", two, "", "unstaged"))
    assert claims(drive) == [("a", "")], "attached: only the orchestrator ends it"
    drive.ok(c.EndClaims("a", 0, "", "fenced", attached=True))
    assert claims(drive) == []
    sound(drive)


def test_every_kind_of_fault_that_is_told_is_known() -> None:
    for path in (Path(check_module.__file__).parent).glob("check*.py"):
        told = set(re.findall(r'\.fault\(\s*"([a-z-]+)"', path.read_text()))
        assert told <= KINDS, path


def test_fsck_sees_and_mends_what_cannot_be() -> None:
    drive = Drive()
    number = make(drive)
    drive.ok(claim(number))
    drive.machine.flush()
    txn = drive.txn
    txn.put(keys.claim(number, "b", ""), rows.CLAIM.dumps(rows.ClaimRow(number, "", "b", "boot", 1, True)))
    txn.put(keys.claim(99, "b", ""), rows.CLAIM.dumps(rows.ClaimRow(99, "", "b", "boot", 1)))
    txn.put(keys.csi_volume(IDS[5]), rows.CSI_VOLUME.dumps(rows.CsiVolumeRow(IDS[5], "lost", 98, "", True, 1, False)))
    txn.delete(keys.csi_name("pvc-0"))
    assert {fault.kind for fault in check(txn)} == {"claim", "csi-volume", "csi-name"}
    mender = Mender(txn, Hints(time_ns=1))
    mend_csi(mender)
    for key, value in mender.txn.edits.items():
        txn.delete(key) if value is None else txn.put(key, value)
    assert check(txn) == []


def test_an_operator_ends_what_a_dead_node_claims() -> None:
    drive = Drive()
    volume = make(drive)
    name = next(one.name for one in drive.ask(m.GetVolumes()).volumes if one.volume == volume)
    for one in (claim(volume, "a", "", attached=True), claim(volume, "a", "sub"), claim(volume, "b", "other")):
        drive.ok(one)
    catalog = Catalog(lambda body: drive.ok(body.command) if isinstance(body, m.Propose) else drive.ask(body))
    with pytest.raises(NotFound, match="nodes that do: a, b"):
        catalog.release_volume(name, "c")
    opened = drive.ok(c.OpenSession(7, volume, "a", "b1", 1, True), mount=7)
    with pytest.raises(Refused, match="unmount it there"):
        catalog.release_volume(name, "a")
    assert catalog.release_volume(name, "b") == ["other"]
    drive.ok(c.EndSession(opened.session, opened.epoch, True), mount=7, session=opened.session, epoch=opened.epoch)
    assert sorted(catalog.release_volume(name, "a")) == ["", "sub"] and claims(drive) == []


@pytest.mark.parametrize("path", ["", "dir"])
def test_a_session_that_expires_fences_the_claim_of_a_whole_volume(path: str) -> None:
    drive = Drive()
    volume = make(drive)
    first = drive.ok(claim(volume, path=path)).epoch
    opening = c.OpenSession(7, volume, "a", "b1", 1, True)
    opened = drive.ok(opening, mount=7)
    assert drive.errno(claim(volume, "b", path)) == errno.EBUSY
    drive.ok(c.EndSession(opened.session, opened.epoch, False))
    assert drive.errno(claim(volume, "b", path)) == errno.EBUSY, "the node itself has ended it, and mounts again"
    opened = drive.ok(opening, mount=7)
    drive.ok(c.EndSession(opened.session, opened.epoch, False, expired=True))
    back = drive.ok(opening, mount=7)
    assert drive.errno(claim(volume, "b", path)) == errno.EBUSY, "it is back"
    drive.ok(c.EndSession(back.session, back.epoch, False, expired=True))
    if path:
        assert drive.errno(claim(volume, "b", path)) == errno.EBUSY, "who comes back would be let in"
        return
    assert drive.ok(claim(volume, "b")).epoch > first and claims(drive) == [("b", "")]
    drive.ok(c.OpenSession(8, volume, "b", "b1", 1, True), mount=8)
    assert drive.errno(opening, mount=7) == errno.EBUSY, "the fenced one stays out"
    sound(drive)


def test_an_attached_claim_is_not_fenced() -> None:
    drive = Drive()
    volume = make(drive)
    drive.ok(claim(volume, attached=True))
    opened = drive.ok(c.OpenSession(7, volume, "a", "b1", 1, True), mount=7)
    drive.ok(c.EndSession(opened.session, opened.epoch, False, expired=True))
    assert drive.errno(claim(volume, "b")) == errno.EBUSY, "the orchestrator ends it"
