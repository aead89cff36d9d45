"""A mount whose processes all died comes back, whatever dies while it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from awsomefsd.base.errors import FsError, Unavailable
from tests.unit.node.test_mounts import Rig


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


@pytest.mark.parametrize("same_daemon", [True, False])
@pytest.mark.parametrize("error", [FsError(5, "its worker ended"), Unavailable("the keeper was killed")])
def test_a_mount_that_did_not_come_back_at_once_is_tried_again(rig: Rig, error: Exception, same_daemon: bool) -> None:
    """The keeper has detached the dead mount before it gives up: an empty directory is no proof of an umount by others then."""
    rig.mounts.mount("alpha", rig.directories[0], [])
    rig.lose_all_processes()
    [wanted] = rig.mounts.reconcile()
    rig.keeper.fails = error
    rig.mounts.revive(wanted)
    rig.keeper.table.clear()
    rig.dead.clear()
    rig.keeper.fails = None
    daemon = rig.mounts if same_daemon else rig.daemon()
    [again] = daemon.reconcile()
    daemon.revive(again)
    assert [view.state for view in daemon.views()] == ["serving"] and daemon.reconcile() == []


def test_a_mount_that_came_back_may_be_unmounted_by_others(rig: Rig) -> None:
    rig.mounts.mount("alpha", rig.directories[0], [])
    rig.lose_all_processes()
    [wanted] = rig.mounts.reconcile()
    rig.keeper.inside = lambda: rig.dead.clear()
    rig.mounts.revive(wanted)
    rig.keeper.rows.clear()
    rig.keeper.table.clear()
    for daemon in (rig.daemon(), rig.mounts):
        assert daemon.reconcile() == [] and daemon.views() == []


@pytest.mark.parametrize("mounted_again", [True, False])
def test_what_was_unmounted_before_its_turn_to_come_back_stays_unmounted(rig: Rig, mounted_again: bool) -> None:
    """Whoever asks for that has the volume and the directory for himself, and the one who brings dead mounts back waits for them."""
    rig.mounts.mount("alpha", rig.directories[0], [])
    rig.lose_all_processes()
    [wanted] = rig.mounts.reconcile()
    rig.mounts.umount(rig.directories[0], force=False)
    rig.dead.clear()
    rig.keeper.table.clear()
    if mounted_again:
        rig.mounts.mount("alpha", rig.directories[1], [])
    before = list(rig.keeper.asked)
    rig.mounts.revive(wanted)
    assert rig.keeper.asked == before and len(rig.mounts.views()) == mounted_again
