"""The rules of an orchestrator's volumes and of the claims of nodes: what may be, what is refused, what fsck reports and repairs."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from awsomefsd.base.errors import NotFound, Refused
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages import csi as cm
from awsomefsd.meta.check import check as check_module
from awsomefsd.meta.check.check import check
from awsomefsd.meta.check.check_csi import repair_csi
from awsomefsd.meta.check.repair_txn import Hints, RepairTxn
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.findings import KINDS
from awsomefsd.node.catalog import Catalog
from tests.rigs.machine_driver import Drive, sound

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


def test_a_volume_of_its_own_may_have_delegated_names_and_a_directory_may_not() -> None:
    drive = Drive()
    number = make(drive, names=1)
    assert drive.ask(m.GetVolumes()).delegated == [number]
    for fields in ({"names": 1, "volume": number, "path": "a"}, {"names": 2}):
        assert drive.errno(c.MakeCsiVolume(IDS[1], "pvc-1", 1, False, [], **fields)) == errno.EINVAL  # type: ignore[arg-type]
    assert ids(drive) == [IDS[0]] and len(drive.ask(m.GetVolumes()).volumes) == 1


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
        kinds = set(re.findall(r'\.fault\(\s*"([a-z-]+)"', path.read_text()))
        assert kinds <= KINDS, path


def test_fsck_finds_and_repairs_what_cannot_be() -> None:
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
    repairs = RepairTxn(txn, Hints(time_ns=1))
    repair_csi(repairs)
    for key, value in repairs.overlay.edits.items():
        txn.delete(key) if value is None else txn.put(key, value)
    assert check(txn) == []


def test_an_operator_ends_what_a_dead_node_claims() -> None:
    drive = Drive()
    volume = make(drive)
    name = next(one.name for one in drive.ask(m.GetVolumes()).volumes if one.volume == volume)
    for one in (claim(volume, "a", "", attached=True), claim(volume, "a", "sub"), claim(volume, "b", "other")):
        drive.ok(one)
    catalog = Catalog(lambda body: drive.ok(body.command) if isinstance(body, m.Propose) else drive.ask(body))
    with pytest.raises(NotFound, match="nodes with claims: a, b"):
        catalog.release_volume(name, "c")
    opened = drive.ok(c.OpenSession(7, volume, "a", "b1", 1, True), mount=7)
    with pytest.raises(Refused, match="unmount it there"):
        catalog.release_volume(name, "a")
    assert catalog.release_volume(name, "b") == ["other"]
    drive.ok(c.EndSession(opened.session, opened.epoch, True), mount=7, session=opened.session, epoch=opened.epoch)
    assert sorted(catalog.release_volume(name, "a")) == ["", "sub"] and claims(drive) == []


def opening(volume: int, node: str = "a", boot: str = "b1", mount: int = 7, worker: int = 1, shared: bool = True) -> c.OpenSession:
    made = c.OpenShared if shared else c.OpenSession
    return made(mount, volume, node, boot, worker, True, shared=shared)


def expire(drive: Drive, opened: m.SessionOpened) -> None:
    drive.ok(c.EndSession(opened.session, opened.epoch, False, expired=True))


@pytest.mark.parametrize("path", ["", "dir"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_session_that_expires_fences_the_claims_of_its_node(path: str, shared: bool) -> None:
    drive = Drive()
    volume = make(drive)
    first = drive.ok(claim(volume, path=path)).epoch
    mine = opening(volume, shared=shared)
    opened = drive.ok(mine, mount=7)
    assert drive.errno(claim(volume, "b", path)) == errno.EBUSY
    drive.ok(c.EndSession(opened.session, opened.epoch, False))
    assert drive.errno(claim(volume, "b", path)) == errno.EBUSY, "the node itself has ended it, and mounts again"
    expire(drive, drive.ok(mine, mount=7))
    back = drive.ok(mine, mount=7)
    assert drive.errno(claim(volume, "b", path)) == errno.EBUSY, "it is back"
    drive.ok(c.EndSession(back.session, back.epoch, False))
    assert drive.errno(claim(volume, "b", path)) == errno.EBUSY, "the mark went when it came back"
    expire(drive, drive.ok(mine, mount=7))
    assert drive.ok(claim(volume, "b", path)).epoch > first and claims(drive) == [("a", path), ("b", path)]
    assert drive.errno(mine, mount=7) == errno.EBUSY, "before the other one has mounted it, too"
    other = drive.ok(opening(volume, "b", mount=8, shared=shared), mount=8)
    assert drive.errno(mine, mount=7) == drive.errno(claim(volume, "a", path)) == errno.EBUSY, "the fenced one stays out"
    assert drive.errno(c.DropCsiVolume(IDS[0], True)) == errno.EBUSY
    sound(drive)
    drive.ok(c.EndSession(other.session, other.epoch, True))
    drive.ok(c.EndClaims("b", volume, path, "unstaged"))
    drive.ok(mine, mount=7)
    assert drive.errno(claim(volume, "b", path)) == errno.EBUSY, "it goes on where the other one is done"
    sound(drive)


def taken_over(drive: Drive, volume: int, path: str = "dir") -> None:
    """What node a claimed, while it is away."""
    drive.ok(claim(volume, path=path))
    expire(drive, drive.ok(opening(volume), mount=7))
    drive.ok(claim(volume, "b", path))


def test_a_fenced_node_comes_in_when_it_has_unstaged() -> None:
    drive = Drive()
    volume = make(drive)
    drive.ok(claim(volume, path="mine"))
    taken_over(drive, volume)
    drive.ok(opening(volume, "b", mount=8), mount=8)
    assert drive.errno(opening(volume), mount=7) == errno.EBUSY
    drive.ok(c.EndClaims("a", volume, "dir", "unstaged"))
    drive.ok(opening(volume), mount=7)
    assert claims(drive) == [("a", "mine"), ("b", "dir")] and not any(one.fenced for one in drive.ask(cm.GetClaims()).claims)
    sound(drive)


def test_a_fenced_node_comes_in_when_it_was_booted() -> None:
    drive = Drive()
    volume = make(drive)
    taken_over(drive, volume)
    drive.ok(opening(volume, boot="b2", mount=9), mount=9)
    drive.ok(claim(volume, "a", "other", boot="b2"))
    assert drive.errno(claim(volume, "a", "dir", boot="b2")) == errno.EBUSY
    drive.ok(c.EndClaims("a", 0, "", "booted", keep_boot_id="b2"))
    assert claims(drive) == [("a", "other"), ("b", "dir")]
    sound(drive)


def test_claims_that_stand_beside_each_other_keep_nobody_out() -> None:
    drive = Drive()
    volume = make(drive)
    drive.ok(claim(volume, exclusive=False))
    expire(drive, drive.ok(opening(volume), mount=7))
    drive.ok(claim(volume, "b", exclusive=False))
    drive.ok(opening(volume), mount=7)
    sound(drive)


def test_of_two_that_were_away_the_first_to_come_back_has_it() -> None:
    drive = Drive()
    volume = make(drive)
    taken_over(drive, volume)
    expire(drive, drive.ok(opening(volume, "b", mount=8), mount=8))
    drive.ok(opening(volume), mount=7)
    assert drive.errno(opening(volume, "b", mount=8), mount=8) == errno.EBUSY
    assert drive.errno(claim(volume, "c", "dir")) == errno.EBUSY
    sound(drive)


@pytest.mark.parametrize("path", ["", "dir"])
def test_what_a_dead_node_claims_can_be_deleted(path: str) -> None:
    drive = Drive()
    volume = make(drive)
    if path:
        make(drive, 1, volume=volume, path=path)
    drive.ok(claim(volume, path=path))
    expire(drive, drive.ok(opening(volume), mount=7))
    drive.ok(c.DropCsiVolume(IDS[1 if path else 0], True))
    assert claims(drive) == []
    sound(drive)


@pytest.mark.parametrize("unstaged", [True, False])
def test_what_was_detached_and_not_unstaged_keeps_its_node_out(unstaged: bool) -> None:
    """A force-detach: the orchestrator believes that the node is gone, or will not come back to it."""
    drive = Drive()
    volume = make(drive)
    drive.ok(claim(volume, path="dir", boot="", attached=True))
    drive.ok(claim(volume, path="dir"))
    opened = drive.ok(opening(volume), mount=7)
    if unstaged:
        drive.ok(c.EndClaims("a", volume, "dir", "unstaged"))
    drive.ok(c.EndClaims("a", volume, "dir", "detached", attached=True, keep_out=True))
    if unstaged:
        assert claims(drive) == []
        return
    assert drive.errno(claim(volume, "b", "dir")) == errno.EBUSY, "it has it mounted"
    expire(drive, opened)
    drive.ok(claim(volume, "b", "dir", boot="", attached=True))
    assert drive.errno(opening(volume), mount=7) == errno.EBUSY
    drive.ok(c.EndClaims("a", volume, "dir", "unstaged"))
    drive.ok(opening(volume), mount=7)
    sound(drive)


def test_an_attached_claim_is_not_fenced() -> None:
    drive = Drive()
    volume = make(drive)
    drive.ok(claim(volume, attached=True))
    opened = drive.ok(c.OpenSession(7, volume, "a", "b1", 1, True), mount=7)
    drive.ok(c.EndSession(opened.session, opened.epoch, False, expired=True))
    assert drive.errno(claim(volume, "b")) == errno.EBUSY, "the orchestrator ends it"
