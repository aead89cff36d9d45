"""Wishes, keeper and kernel brought into line: with a keeper and a mount table that the test writes."""

from __future__ import annotations

import errno
import logging
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base import durable, log
from awsomefsd.base.errors import AlreadyExists, ConfigError, Corrupt, Error, FsError, NotFound, Refused, Unavailable
from awsomefsd.base.types import SNAPSHOT_SYNCED, SnapshotInfo, VolumeInfo
from awsomefsd.config.mount_options import MountOptions
from awsomefsd.keeper.client import ANSWER_S_MAX, LOOK_S_MAX
from awsomefsd.keeper.mount_syscalls import FSTYPE, MountEntry
from awsomefsd.node import mounts
from awsomefsd.node.mounts import DesiredMount, Mounts, MountView
from awsomefsd.worker.config import WorkerConfig

NODE = "n"
SNAPSHOTS = {
    name: SnapshotInfo(1, number, f"uuid-{name}", name, 0, SNAPSHOT_SYNCED, 0, 1, 0) for number, name in enumerate(("old", "new"), 4)
}
VOLUMES = {name: VolumeInfo(number, f"uuid-{name}", name, 0, 0, 0, 1) for number, name in enumerate(("alpha", "beta"), 1)}


class FakeKeeper:
    """Mounts are rows of a dictionary; `table` is what the kernel would show."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.table: dict[str, str] = {}
        self.away = False
        self.patience_s = 0.0  # of who asked last
        self.fails: Error | None = None
        self.asked: list[tuple[str, Any]] = []
        self.inside: Callable[[], None] = lambda: None
        self.places: dict[str, str] = {}  # directory → id of what is mounted there
        self.held = False  # a container has a copy of each mount

    def mount(self, mount: str, dir: str, source: str, **fields: Any) -> dict[str, Any]:
        self._answer("mount", (mount, dir, source, fields))
        self.inside()
        self.rows[mount] = {"mount": mount, "dir": dir, "source": source, "options": [], "state": "serving", "pid": 7, "workers": 1}
        self.rows[mount]["config"] = fields["config"]
        self.table[dir] = source
        self.places[dir] = mount
        return {"pid": 7, "dir": dir}

    def attach(self, mount: str, dir: str, *, options: Any) -> dict[str, Any]:
        self._answer("attach", (mount, dir, list(options)))
        self.table[dir] = self.rows[mount]["source"]
        self.places[dir] = mount
        if self.rows[mount]["state"] == "detached":
            self.rows[mount] |= {"state": "serving", "dir": dir}
        return {"pid": 7, "dir": dir}

    def remount(self, mount: str, dir: str, *, options: Any, config: dict[str, Any], readahead_kib: int) -> None:
        self._answer("remount", (mount, dir, list(options), readahead_kib))
        if self.rows[mount]["dir"] == dir:
            self.rows[mount]["config"] = config

    def umount(self, target: str, *, dir: str, force: bool) -> dict[str, Any]:
        self._answer("umount", (target, dir, force))
        assert self.places.pop(dir) == target
        del self.table[dir]
        lives = target in self.places.values() or self.held
        if not lives:
            del self.rows[target]
        elif self.rows[target]["dir"] == dir:
            self.rows[target]["state"] = "detached"
        return {"flushed": not force, "detached": lives, "ended": force}

    def flush(self, target: str) -> dict[str, Any]:
        self._answer("flush", target)
        return {}

    def list(self, timeout_s: float = ANSWER_S_MAX) -> list[dict[str, Any]]:
        self.patience_s = timeout_s
        if self.away:
            raise Unavailable("no keeper")
        return list(self.rows.values())

    def _answer(self, op: str, fields: Any) -> None:
        self.asked.append((op, fields))
        if self.away:
            raise Unavailable("no keeper")
        if self.fails is not None:
            raise self.fails

    def topmost(self, directory: str) -> MountEntry | None:
        return MountEntry("0:99", "/", directory, FSTYPE, self.table[directory]) if directory in self.table else None


def config_of(wanted: DesiredMount, options: MountOptions) -> WorkerConfig:
    return WorkerConfig(
        volume=wanted.volume, node=NODE, boot_id="b", meta_sock="/meta.sock", state_dir="/s", options=wanted.options,
        read_only=options.read_only, snapshot=wanted.snapshot, snapshot_uuid=wanted.snapshot_uuid,
    )  # fmt: skip


class Rig:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state_dir = tmp_path / "state"
        self.state_dir.mkdir()
        self.keeper = FakeKeeper()
        self.dead: set[str] = set()
        self.directories = [str(tmp_path / name) for name in ("one", "two")]
        for directory in self.directories:
            Path(directory).mkdir()
        monkeypatch.setattr(mounts.mount_syscalls, "topmost", self.keeper.topmost)
        monkeypatch.setattr(mounts, "is_dead", lambda directory: directory in self.dead)
        self.removed = ""
        self.ended: list[int] = []
        self.mounts = self.daemon()

    def daemon(self, boot_id: str = "boot", node: str = NODE) -> Mounts:
        """A daemon that has just been started."""
        ended, removed = self.ended.append, lambda: self.removed
        return Mounts(
            self.state_dir, boot_id, self.keeper, self.find, config_of, 128, ended, removed=removed, node=node,
            find_snapshot=self.find_snapshot,
        )  # fmt: skip

    def find(self, name: str) -> VolumeInfo:
        if name not in VOLUMES:
            raise NotFound(f"no volume {name}")
        return VOLUMES[name]

    def find_snapshot(self, volume: str, name: str) -> tuple[VolumeInfo, SnapshotInfo]:
        if name not in SNAPSHOTS:
            raise NotFound(f"no snapshot {name}")
        return self.find(volume), SNAPSHOTS[name]

    def lose_all_processes(self) -> None:
        """Keeper and worker are killed at once; the kernel keeps dead mounts."""
        self.dead |= set(self.keeper.table)
        self.keeper.rows.clear()

    def file(self) -> dict[str, Any]:
        return dict(durable.read_json(self.state_dir / "mounts.json")["mounts"])


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


def test_mount_asks_the_keeper_and_is_remembered(rig: Rig) -> None:
    view = rig.mounts.mount("alpha", rig.directories[0], ["ro", "noatime", "x-a=b"])
    op, (mount, directory, source, fields) = rig.keeper.asked[0]
    assert (op, directory, source) == ("mount", rig.directories[0], "alpha") and int(mount, 16) == view.mount and 0 < view.mount < 1 << 63
    assert list(fields["options"]) == ["ro", "noatime"] and fields["config"]["read_only"] and fields["readahead_kib"] == 128
    assert set(fields["memfds"]) == {"control", "slots", "park", "dirty", "opens", "ops"} and fields["argv"][-1] == "worker"
    assert list(rig.file()) == [mount]
    assert [found.state for found in rig.daemon().views()] == ["serving"]


def test_what_cannot_be_mounted_says_why(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    one, two = rig.directories
    rig.mounts.mount("alpha", one, [])
    cases: list[tuple[type[Error], str, tuple[str, str, list[str]]]] = [
        (NotFound, "no volume gamma", ("gamma", two, [])),
        (NotFound, "mkdir -p", ("beta", str(tmp_path / "none"), [])),
        (Refused, "/ is the root directory", ("beta", "/", [])),
        (FsError, "not a directory", ("beta", str(tmp_path / "file"), [])),
        (Refused, "absolute", ("beta", "relative", [])),
        (Refused, "shared, atime would differ; give the same", ("alpha", two, ["shared", "noatime"])),
        (AlreadyExists, "has alpha mounted already", ("beta", one, [])),
        (ConfigError, "nosiud", ("beta", two, ["nosiud"])),
    ]
    for kind, words, arguments in cases:
        with pytest.raises(kind, match=words):
            rig.mounts.mount(*arguments)
    assert len(rig.file()) == 1 and len(rig.keeper.asked) == 1


def test_a_command_to_copy_has_the_directory_quoted(rig: Rig, tmp_path: Path) -> None:
    name = str(tmp_path / "x; rm -rf y")
    with pytest.raises(NotFound) as told:
        rig.mounts.mount("alpha", name, [])
    command = str(told.value).partition("`")[2].partition("`")[0]
    assert shlex.split(command) == ["mkdir", "-p", name]


@pytest.mark.parametrize("formatter", [log.TextFormatter, log.JsonFormatter])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            FsError(errno.EBUSY, "volume v is mounted by session 4 on node n"),
            "volume v is mounted by session 4 on node n; unmount it there, or ",
        ),
        (Refused('there is no "shared" device; add one'), r'there is no "shared" device; add one$'),
        (
            ValueError("no luck"),
            r"worker exited with code 1 before it was ready: ValueError: no luck \(the worker's log has the details\)$",
        ),
    ],
)
def test_a_worker_that_does_not_serve_is_told_by_its_reason(rig: Rig, formatter: Any, error: Exception, words: str) -> None:
    try:
        raise error
    except Exception as raised:
        record = logging.LogRecord("worker", logging.ERROR, "x", 1, "it cannot be served", (), (type(raised), raised, raised.__traceback__))
    line = formatter("worker").format(record)
    rig.keeper.fails = FsError(errno.EIO, f"worker exited with code 1 before it was ready: {line}")
    with pytest.raises(FsError, match=f"^{words}"):
        rig.mounts.mount("alpha", rig.directories[0], [])


def test_refused_mount_leaves_nothing_desired(rig: Rig) -> None:
    trace = r'worker exited with code 1: ts=1 error="Traceback (most recent call last):\n  File \"x\", line 1\nValueError: no luck"'
    rig.keeper.fails = FsError(errno.EIO, trace)
    with pytest.raises(FsError, match=r"^worker exited with code 1: ValueError: no luck"):
        rig.mounts.mount("alpha", rig.directories[0], [])
    assert rig.file() == {} and rig.mounts.views() == []


def test_who_only_looks_does_not_wait_long_for_a_keeper_that_is_stopped(rig: Rig) -> None:
    """`volume ls`, `info` and `summary` took 12 s, for directories that this node knows by itself."""
    rig.mounts.mount("alpha", rig.directories[0], [])
    rig.keeper.away = True
    assert [view.state for view in rig.mounts.shown()] == ["unwatched"] and rig.keeper.patience_s == LOOK_S_MAX


def test_a_mount_that_completes_while_it_is_shown_is_not_called_dead(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rig.keeper.list

    def listed_before_it_completes(_timeout_s: float) -> list[dict[str, Any]]:
        rows = whole()
        if not rows:
            monkeypatch.setattr(rig.keeper, "list", whole)
            rig.mounts.mount("alpha", rig.directories[0], [])
        return rows

    monkeypatch.setattr(rig.keeper, "list", listed_before_it_completes)
    assert [view.state for view in rig.mounts.views()] == []
    assert [view.state for view in rig.mounts.views()] == ["serving"]


def test_a_mount_that_ends_while_it_is_shown_is_not_called_dead(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rig.keeper.list
    rig.mounts.mount("alpha", rig.directories[0], [])

    def listed_after_its_end(_timeout_s: float) -> list[dict[str, Any]]:
        monkeypatch.setattr(rig.keeper, "list", whole)
        rig.mounts.umount(rig.directories[0], force=False)
        return whole()

    monkeypatch.setattr(rig.keeper, "list", listed_after_its_end)
    assert rig.mounts.views() == []


def test_unknown_outcome_is_settled_by_looking(rig: Rig) -> None:
    """The keeper's answer was lost: the desired mount stays until reconcile sees whether it came true."""
    rig.keeper.fails = Unavailable("no answer")
    with pytest.raises(Unavailable):
        rig.mounts.mount("alpha", rig.directories[0], [])
    rig.keeper.away = True
    assert len(rig.file()) == 1 and rig.mounts.views()[0].state == "unwatched"
    rig.keeper.away = False
    assert rig.mounts.reconcile() == []
    assert rig.file() == {}


def test_umount_by_directory_volume_and_id(rig: Rig) -> None:
    for target in (lambda view: view.directory, lambda view: view.directory + "/", lambda view: "alpha", lambda view: f"{view.mount:x}"):
        view = rig.mounts.mount("alpha", rig.directories[0], [])
        assert rig.mounts.flush(target(view)) == view.directory
        done = rig.mounts.umount(target(view), force=False)
        assert done.directory == rig.directories[0] and done.flushed and rig.file() == {}
    with pytest.raises(NotFound, match="mounts: none"):
        rig.mounts.umount("alpha", force=False)


def test_busy_umount_keeps_the_mount(rig: Rig) -> None:
    rig.mounts.mount("alpha", rig.directories[0], [])
    rig.keeper.fails = FsError(errno.EBUSY, "busy: used by bash")
    with pytest.raises(FsError, match="used by bash"):
        rig.mounts.umount("alpha", force=False)
    assert len(rig.file()) == 1


def test_processes_that_died_come_back_under_a_new_id(rig: Rig) -> None:
    old = rig.mounts.mount("alpha", rig.directories[0], ["noatime"])
    rig.lose_all_processes()
    again = rig.daemon()
    assert again.views()[0].state == "dead"
    (wanted,) = again.reconcile()
    again.revive(wanted)
    (view,) = again.views()
    assert view.state == "serving" and view.mount != old.mount and view.options == ("noatime",) and view.directory == old.directory
    assert list(rig.file()) == [f"{view.mount:x}"] and again.reconcile() == []


def test_failed_revival_is_said_and_tried_again(rig: Rig) -> None:
    rig.mounts.mount("alpha", rig.directories[0], [])
    rig.lose_all_processes()
    rig.keeper.fails = FsError(errno.EBUSY, "volume held by session 3")
    rig.mounts.revive(rig.mounts.reconcile()[0])
    assert rig.mounts.views()[0].last_error == "volume held by session 3"
    rig.keeper.fails = None
    rig.mounts.revive(rig.mounts.reconcile()[0])
    assert rig.mounts.views()[0].state == "serving" and rig.mounts.views()[0].last_error == ""


def test_a_mount_of_a_removed_node_says_so(rig: Rig) -> None:
    rig.mounts.mount("alpha", rig.directories[0], [])
    rig.removed = "node x was removed from this cluster"
    [view] = rig.mounts.views()
    assert (view.state, view.last_error) == ("refused", "node x was removed from this cluster")


@pytest.mark.parametrize("purged", [True, False])
def test_what_was_mounted_as_another_node_is_refused(rig: Rig, purged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node left its cluster and joined another one, which has a volume of the same name and number."""
    old = rig.mounts.mount("alpha", rig.directories[0], [])
    if purged:
        (rig.state_dir / "mounts.json").unlink()
    joined = rig.daemon(node="another")
    assert joined.reconcile() == []
    [view] = joined.views()
    assert (view.mount, view.state) == (old.mount, "refused") and f"awsomefsd umount {rig.directories[0]}" in view.last_error
    assert joined.of_volume(VOLUMES["alpha"].volume) is None
    joined.mount("alpha", rig.directories[1], [])
    assert [op for op, _ in rig.keeper.asked] == ["mount", "mount"]
    rig.keeper.rows.pop(f"{old.mount:x}")
    rig.dead.add(rig.directories[0])
    assert joined.reconcile() == [] and joined.views()[0].state == "refused"
    monkeypatch.setattr(mounts, "_detach", rig.keeper.table.pop)
    joined.umount(rig.directories[0], force=False)
    assert rig.ended == []


def test_a_volume_by_name_is_the_one_of_this_cluster(rig: Rig) -> None:
    """`flush alpha` said that all was durable when it had flushed what the earlier node had mounted."""
    rig.mounts.mount("alpha", rig.directories[0], [])
    joined = rig.daemon(node="another")
    joined.reconcile()
    served = joined.mount("alpha", rig.directories[1], [])
    rig.keeper.rows[f"{served.mount:x}"]["config"]["node"] = "another"
    assert joined.flush("alpha") == rig.directories[1] and rig.keeper.asked[-1] == ("flush", f"{served.mount:x}")
    with pytest.raises(Refused, match="give one of these directories"):
        joined.umount("alpha", force=False)


def test_keeper_that_does_not_know_its_mounts_yet_is_waited_for(rig: Rig) -> None:
    """A restarted keeper lists nothing until workers have come back to it; the mount is alive, so nothing is done."""
    rig.mounts.mount("alpha", rig.directories[0], [])
    rows, rig.keeper.rows = rig.keeper.rows, {}
    assert rig.mounts.reconcile() == [] and len(rig.file()) == 1
    rig.keeper.rows = rows
    assert rig.mounts.reconcile() == [] and rig.mounts.views()[0].state == "serving"


def test_unmounted_by_others_is_forgotten(rig: Rig) -> None:
    rig.mounts.mount("alpha", rig.directories[0], [])
    rig.keeper.rows.clear()
    rig.keeper.table.clear()
    assert rig.mounts.reconcile() == [] and rig.file() == {}


def test_lost_file_is_made_again_from_the_keeper(rig: Rig) -> None:
    view = rig.mounts.mount("alpha", rig.directories[0], [])
    (rig.state_dir / "mounts.json").unlink()
    again = rig.daemon()
    assert again.views() == []
    again.reconcile()
    assert [found.mount for found in again.views()] == [view.mount] and len(rig.file()) == 1


def test_a_mount_taken_up_from_the_keeper_keeps_its_options_when_it_is_revived(rig: Rig) -> None:
    """The kernel's flags alone would lose root_squash and the mapping of ids."""
    wanted = ["noatime", "root_squash", "map_uid=0:100000:2000"]
    rig.mounts.mount("alpha", rig.directories[0], wanted)
    (rig.state_dir / "mounts.json").unlink()
    again = rig.daemon()
    again.reconcile()
    assert [list(found.options) for found in again.views()] == [wanted]
    rig.lose_all_processes()
    (dead,) = again.reconcile()
    again.revive(dead)
    assert rig.keeper.asked[-1][1][3]["config"]["options"] == tuple(wanted)


def test_desired_mounts_of_an_earlier_boot_are_dropped(rig: Rig) -> None:
    rig.mounts.mount("alpha", rig.directories[0], [])
    assert rig.daemon("next boot").views() == []


def test_damaged_file_is_named(rig: Rig) -> None:
    durable.write_json(rig.state_dir / "mounts.json", {"boot_id": "boot", "mounts": {"x": 1}})
    with pytest.raises(Corrupt, match=r"mounts\.json"):
        rig.daemon()


def test_one_operation_at_a_time_for_a_volume(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        assert go_on.wait(60)

    rig.keeper.inside = wait
    first = threading.Thread(target=rig.mounts.mount, args=("alpha", rig.directories[0], []))
    second = threading.Thread(target=rig.mounts.mount, args=("alpha", rig.directories[1], []))
    first.start()
    try:
        assert inside.wait(60)
        with monkeypatch.context() as patched:
            patched.setattr(mounts, "BUSY_S_MAX", 0.0)
            with pytest.raises(Refused, match="being mounted or unmounted now"):
                rig.mounts.mount("alpha", rig.directories[1], [])
        rig.keeper.inside = lambda: None
        second.start()  # waits
        assert [view.state for view in rig.mounts.views()] == ["mounting"] and rig.mounts.reconcile() == []
    finally:
        go_on.set()
        first.join(60)
        second.join(60)
    assert [view.state for view in rig.mounts.views()] == ["serving", "serving"]
    assert [op for op, _ in rig.keeper.asked] == ["mount", "attach"]


def test_a_mount_waits_for_the_unmount_of_the_same_volume(rig: Rig) -> None:
    rig.mounts.mount("alpha", rig.directories[0], [])
    inside, go_on = threading.Event(), threading.Event()
    umount = rig.keeper.umount

    def slow(target: str, *, dir: str, force: bool) -> dict[str, Any]:
        inside.set()
        assert go_on.wait(60)
        return umount(target, dir=dir, force=force)

    rig.keeper.umount = slow  # type: ignore[method-assign]
    ending = threading.Thread(target=rig.mounts.umount, args=("alpha",), kwargs={"force": False})
    ending.start()
    assert inside.wait(60)
    made: list[MountView] = []
    mounting = threading.Thread(target=lambda: made.append(rig.mounts.mount("alpha", rig.directories[0], [])))
    mounting.start()
    go_on.set()
    ending.join(60)
    mounting.join(60)
    assert [view.state for view in made] == ["serving"] and [view.mount for view in rig.mounts.views()] == [made[0].mount]


# --- further directories --------------------------------------------------------------------------------------------------------
def test_a_further_directory_has_flags_of_its_own(rig: Rig) -> None:
    one, two = rig.directories
    first = rig.mounts.mount("alpha", one, ["noatime"])
    second = rig.mounts.mount("alpha", two, ["noatime", "ro", "nosuid"])
    assert rig.keeper.asked[-1] == ("attach", (f"{first.mount:x}", two, ["noatime", "ro", "nosuid"]))
    assert [(view.directory, view.state, view.worker_pid) for view in rig.mounts.views()] == [(one, "serving", 7), (two, "serving", 7)]
    assert {view.mount for view in rig.daemon().views()} == {first.mount, second.mount} and rig.daemon().reconcile() == []
    with pytest.raises(Refused, match=f"mounted at {one} and {two}"):
        rig.mounts.umount("alpha", force=False)
    assert not rig.mounts.umount(one, force=False).detached
    assert [(view.directory, view.state) for view in rig.mounts.views()] == [(two, "serving")] and rig.mounts.reconcile() == []
    again = rig.mounts.mount("alpha", one, ["noatime"])
    assert rig.keeper.asked[-1][0] == "attach"
    rig.mounts.umount(f"{second.mount:x}", force=False)
    assert not rig.mounts.umount(f"{again.mount:x}", force=False).detached
    assert rig.file() == {} and rig.keeper.rows == {} and rig.ended == []


# --- remount --------------------------------------------------------------------------------------------------------------------
def test_a_remount_is_remembered_for_every_successor(rig: Rig) -> None:
    one = rig.directories[0]
    mount = rig.mounts.mount("alpha", one, ["noatime"]).mount
    view = rig.mounts.remount("alpha", one, ["rw", "noatime", "user_id=0", "remount", "ro", "readahead=64K"])
    assert rig.keeper.asked[-1] == ("remount", (f"{mount:x}", one, ["noatime", "ro"], 64))
    config = rig.keeper.rows[f"{mount:x}"]["config"]
    assert config["read_only"] and tuple(config["atime"]) == ("noatime", True) and config["options"] == list(view.options)
    assert [found.options for found in rig.daemon().views()] == [view.options] and "ro" in view.options and view.mount == mount
    rig.lose_all_processes()
    (dead,) = rig.mounts.reconcile()
    rig.mounts.revive(dead)
    assert rig.keeper.asked[-1][0] == "mount" and "ro" in rig.keeper.asked[-1][1][3]["options"]


def test_a_remount_that_is_refused_changes_nothing(rig: Rig) -> None:
    one, two = rig.directories
    rig.mounts.mount("alpha", one, [])
    before = rig.file()
    for words, name, error in ((["root_squash"], "alpha", ConfigError), (["ro"], "beta", NotFound), (["nosiud"], "alpha", ConfigError)):
        with pytest.raises(error):
            rig.mounts.remount(name, one, ["remount", *words])
    with pytest.raises(NotFound):
        rig.mounts.remount("alpha", two, ["remount", "ro"])
    rig.keeper.fails = FsError(errno.EBUSY, "open for writing")
    with pytest.raises(FsError, match="open for writing"):
        rig.mounts.remount("alpha", one, ["remount", "ro"])
    rig.keeper.fails = None
    rig.mounts.mount("alpha", two, ["ro"])
    with pytest.raises(Refused, match=f"{two} has the volume mounted too, and atime would differ"):
        rig.mounts.remount("alpha", one, ["remount", "noatime"])
    rig.mounts.remount("alpha", two, ["remount", "rw", "nosuid"])
    assert before.items() <= rig.file().items()


def test_what_a_container_holds_is_mounted_again_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = rig.directories
    rig.keeper.held = True
    monkeypatch.setattr(mounts.mount_syscalls, "superblock_lives", lambda device: True)
    first = rig.mounts.mount("alpha", one, [])
    assert rig.mounts.umount(one, force=False).detached and rig.file() == {}
    again = rig.mounts.mount("alpha", two, [])
    assert rig.keeper.asked[-1] == ("attach", (f"{first.mount:x}", two, [])) and again.state == "serving"
    del rig.keeper.table[two], rig.keeper.places[two]  # umount(8) alone: nobody told us
    assert rig.mounts.mount("alpha", one, []).state == "serving" and rig.keeper.asked[-1][0] == "attach"
    assert [view.directory for view in rig.mounts.views()] == [one]
    monkeypatch.setattr(mounts.mount_syscalls, "holders_of", lambda device: ["sh (pid 77, at /kept in another mount namespace)"])
    with pytest.raises(Refused, match=r"shared would differ; .* end what still uses .* \(held by sh \(pid 77, at /kept"):
        rig.mounts.mount("alpha", two, ["shared"])


def test_one_that_has_just_ended_is_mounted_anew(rig: Rig) -> None:
    """Its last holder went between our look and the keeper's."""
    one = rig.directories[0]
    rig.keeper.held = True
    rig.mounts.mount("alpha", one, [])
    rig.mounts.umount(one, force=False)

    def gone(mount: str, dir: str, *, options: Any) -> dict[str, Any]:
        rig.keeper.rows.clear()
        raise FsError(errno.ENOTCONN, "Transport endpoint is not connected")

    rig.keeper.attach = gone  # type: ignore[method-assign]
    assert rig.mounts.mount("alpha", one, []).state == "serving"
    assert rig.keeper.asked[-1][0] == "mount" and len(rig.file()) == 1


def test_all_directories_come_back_when_their_processes_died(rig: Rig) -> None:
    first = rig.mounts.mount("alpha", rig.directories[0], [])
    rig.mounts.mount("alpha", rig.directories[1], ["ro"])
    rig.lose_all_processes()
    dead = rig.mounts.reconcile()
    assert [wanted.directory for wanted in dead] == rig.directories
    for wanted in dead:
        rig.mounts.revive(wanted)
    assert [(view.directory, view.state, view.options) for view in rig.mounts.views()] == [
        (rig.directories[0], "serving", ()),
        (rig.directories[1], "serving", ("ro",)),
    ]
    assert len(rig.keeper.rows) == 1 and set(rig.ended) == {first.mount}


def test_the_session_of_what_was_unmounted_by_force_is_ended(rig: Rig) -> None:
    """Else the next mount would wait until it expires."""
    first = rig.mounts.mount("alpha", rig.directories[0], [])
    rig.mounts.umount("alpha", force=True)
    assert rig.ended == [first.mount]
    second = rig.mounts.mount("alpha", rig.directories[0], [])
    rows = dict(rig.keeper.rows)
    rig.keeper.rows.clear()  # a keeper that has just been started
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mounts, "_detach", lambda directory: None)
        rig.mounts.umount("alpha", force=False)
        assert rig.ended == [first.mount], "its worker may live"
        rig.keeper.rows.update(rows)
        rig.mounts.reconcile()
        rig.lose_all_processes()
        rig.mounts.umount("alpha", force=False)
    assert rig.ended == [first.mount, second.mount]


def test_probe_of_a_living_directory(tmp_path: Path) -> None:
    assert not mounts.is_dead(str(tmp_path)) and not mounts.is_dead(str(tmp_path / "none"))


def served(rig: Rig, directory: str) -> tuple[int, int, str, bool]:
    """Volume, snapshot, its uuid, and read-only, as the worker of a directory was told."""
    config = rig.keeper.rows[rig.keeper.places[directory]]["config"]
    return config["volume"], config["snapshot"], config["snapshot_uuid"], config["read_only"]


def test_a_snapshot_is_mounted_read_only_beside_its_volume(rig: Rig) -> None:
    volume, snapshot = rig.directories
    rig.mounts.mount("alpha", volume, [])
    view = rig.mounts.mount("alpha@old", snapshot, ["rw", "nosuid"])
    assert (view.volume_name, view.options) == ("alpha@old", ("nosuid", "ro"))
    assert served(rig, volume) == (1, 0, "", False) and served(rig, snapshot) == (1, 4, "uuid-old", True)
    found = rig.mounts.of_volume(1)
    assert found is not None and found.directory == volume
    rig.mounts.umount(snapshot, force=False)
    for name, options, words in (
        ("alpha@none", [], "no snapshot none"), ("gamma@old", [], "no volume gamma"), ("alpha@new", ["shared"], "option shared"),
    ):  # fmt: skip
        with pytest.raises((NotFound, ConfigError), match=words):
            rig.mounts.mount(name, snapshot, options)
    rig.mounts.mount("alpha@new", snapshot, [])
    assert served(rig, snapshot) == (1, 5, "uuid-new", True)


def test_a_snapshot_does_not_become_writable(rig: Rig) -> None:
    rig.mounts.mount("alpha@old", rig.directories[0], [])
    with pytest.raises(ConfigError, match="never writable"):
        rig.mounts.remount("alpha@old", rig.directories[0], ["rw"])


@pytest.mark.parametrize("lost", [False, True])
def test_a_snapshot_comes_back_as_itself(rig: Rig, lost: bool) -> None:
    """Its processes die; or first the file that says what is mounted."""
    volume, snapshot = rig.directories
    rig.mounts.mount("alpha", volume, [])
    rig.mounts.mount("alpha@old", snapshot, [])
    if lost:
        (rig.state_dir / "mounts.json").unlink()
    rig.mounts = rig.daemon()
    rig.mounts.reconcile()
    rig.lose_all_processes()
    for dead in rig.mounts.reconcile():
        rig.mounts.revive(dead)
    assert served(rig, snapshot) == (1, 4, "uuid-old", True) and served(rig, volume) == (1, 0, "", False)
