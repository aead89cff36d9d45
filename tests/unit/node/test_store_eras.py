"""After a recovery a store is sent nothing before another era has begun in it.

Lives of one cluster, each from an earlier copy of its state, at one real directory: no name has two contents.
"""

from __future__ import annotations

import errno
import threading
import uuid
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from awsomefsd.base.errors import FsError, Refused, Unavailable
from awsomefsd.base.levels import UNFINISHED_VARIABLE
from awsomefsd.base.rule_levels import STORES
from awsomefsd.base.types import STORE_ACTIVE, STORE_RECOVERED, StoreInfo, StoreOptions
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages.stores import ListStores
from awsomefsd.meta.machine import stores as store_rules
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.node import stores as store_catalog
from awsomefsd.node.store_eras import StoreEras
from awsomefsd.node.stores import StoreAsked, StoreCatalog
from awsomefsd.recovery.first_entries import propose_one, recover_from_copy
from awsomefsd.recovery.force_single import first_commands
from awsomefsd.tier.object_format import unpack_era
from awsomefsd.tier.store_work import Job
from tests.rigs.machine_driver import Drive, sound
from tests.rigs.memory_txn import MemTxn
from tests.unit.node.test_stores import CLUSTER, OTHER, Killed, World, _stay, added, end, names_in


@pytest.fixture(autouse=True)
def unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNFINISHED_VARIABLE, "1")


def copy_of(world: World) -> dict[bytes, bytes]:
    world.drive.machine.flush()
    return dict(world.drive.txn.rows)


def recovered(copy: dict[bytes, bytes], times: int = 1) -> World:
    """A node that a recovery has made from a copy of the state, at the very moment of every other one."""
    world = World()
    txn = MemTxn()
    for key, raw in copy.items():
        txn.put(key, raw)
    world.drive = Drive(txn=txn, device=False, level=STORES)
    world.drive.index = world.drive.machine.applied_index
    for _ in range(times):
        world.drive.ok(c.Recover(0, "nobody from before writes"))
    return world


def begun(world: World) -> StoreInfo:
    [info] = world.stores.all()
    made: StoreInfo = end(world.stores.begin_era(info, _stay))[1]
    return made


def test_an_era_begins_that_says_what_was_before(tmp_path: Path) -> None:
    world = World()
    first = added(world, "nas", str(tmp_path))
    after = recovered(copy_of(world), times=3)
    [info] = after.stores.all()
    assert (info.state, info.era, info.era_number, info.before) == (STORE_RECOVERED, "", 0, first.era)
    made = begun(after)
    assert (made.state, made.era_number, made.before) == (STORE_ACTIVE, 2, first.era) and made.era not in ("", first.era)
    era = unpack_era((tmp_path / CLUSTER / "e" / "2").read_bytes())
    assert (str(era.era), str(era.before), era.index, era.created_ns) == (made.era, first.era, info.recovered, made.era_ns)
    assert names_in(tmp_path) == [f"{CLUSTER}/e/1", f"{CLUSTER}/e/2", "awsomefs"]
    sound(after.drive)
    again = recovered(copy_of(after))
    assert begun(again).era_number == 3 and again.stores.all()[0].before == made.era


def test_what_is_not_the_same_place_gets_no_marker_and_no_era(tmp_path: Path) -> None:
    """An empty directory, because a filesystem is not mounted: what the rows name lies elsewhere."""
    world = World()
    added(world, "nas", str(tmp_path))
    (tmp_path / "awsomefs").rename(tmp_path / "away")
    after = recovered(copy_of(world))
    for _ in range(2):
        with pytest.raises(Refused, match="marker of this cluster is not there"):
            begun(after)
    assert names_in(tmp_path) == [f"{CLUSTER}/e/1", "away"] and after.stores.all()[0].state == STORE_RECOVERED
    (tmp_path / "away").rename(tmp_path / "awsomefs")
    assert begun(after).era_number == 2


def test_a_store_that_was_being_added_may_have_been_used_in_what_is_lost(tmp_path: Path) -> None:
    world = World()
    world.killed_at = 7  # all is put, and the cluster does not know that it is ready
    with pytest.raises(Killed):
        added(world, "nas", str(tmp_path))
    copy = copy_of(world)
    used = end(StoreCatalog(world, CLUSTER, world.run).add("nas", str(tmp_path), StoreAsked(), _stay))[1]  # type: ignore[arg-type]
    after = recovered(copy)
    assert after.stores.all()[0].before == used.era and begun(after).era_number == 2


def test_a_kill_at_each_step_and_another_node_goes_on(tmp_path: Path) -> None:
    world = World()
    added(world, "nas", str(tmp_path))
    copy = copy_of(world)
    whole = recovered(copy)
    begun(whole)
    assert whole.steps == 6, "the name, the object, ready: before and after each"
    for step in range(1, whole.steps + 1):
        after = recovered(copy)
        after.killed_at = step
        with pytest.raises(Killed):
            begun(after)
        if step == whole.steps:
            assert after.stores.all()[0].state == STORE_ACTIVE
            continue
        named = after.stores.all()[0].era
        made = begun(after)
        assert not named or made.era == named
        sound(after.drive)
    eras = [unpack_era((tmp_path / name).read_bytes()) for name in names_in(tmp_path) if "/e/" in name]
    assert len({era.era for era in eras}) == len(eras) == 1 + 1 + whole.steps


def test_what_is_refused(tmp_path: Path) -> None:
    world = World()
    made = added(world, "nas", str(tmp_path))
    ours = str(uuid.UUID(int=7))
    assert world.drive.errno(c.BeginEra(made.store, made.changed, ours)) == errno.ESTALE, "it has one"
    assert world.drive.errno(c.BeginEra(made.store + 9, made.changed, ours)) == errno.ENOENT
    after = recovered(copy_of(world))
    [info] = after.stores.all()
    assert after.drive.errno(c.StoreReady(info.store, info.changed, 2)) == errno.ESTALE, "no era is named"
    for era, changed, refusal in (
        (made.era, info.changed, errno.EINVAL), ("x", info.changed, errno.EINVAL), (str(uuid.UUID(int=0)), info.changed, errno.EINVAL),
        (ours, made.changed, errno.ESTALE),
    ):  # fmt: skip
        assert after.drive.errno(c.BeginEra(info.store, changed, era)) == refusal
    after.drive.ok(c.BeginEra(info.store, info.changed, ours))
    [named] = after.stores.all()
    assert after.drive.errno(c.BeginEra(info.store, named.changed, str(uuid.UUID(int=8)))) == errno.ESTALE, "one is named"
    assert after.drive.errno(c.StoreReady(info.store, info.changed, 2)) == errno.ESTALE
    after.drive.ok(c.StoreReady(info.store, named.changed, 2))
    sound(after.drive)


@pytest.mark.parametrize("forced", [False, True])
def test_every_recovery_says_so(forced: bool, tmp_path: Path) -> None:
    """From devices, a backup or a dump; and one voter by force."""
    replica = Replica.open_single(tmp_path, CLUSTER, OTHER, partial(Machine, level=STORES))
    try:
        for command in (c.Init(CLUSTER, 0, STORES), c.AddStore("nas", "file:///x", CLUSTER, StoreOptions(300_000, 86_400_000))):
            propose_one(replica, command)
        if forced:
            for command in first_commands(Membership([Member(OTHER, "j", True, "h:1")]), 0, "nobody writes"):
                propose_one(replica, command)
        else:
            recover_from_copy(replica, 0, "nobody writes", OTHER)
        [info] = answer(replica.machine, ListStores()).stores  # type: ignore[arg-type, union-attr]
        assert (info.state, info.era, info.before) == (STORE_RECOVERED, "", CLUSTER)
    finally:
        replica.close()


# --- many lives -------------------------------------------------------------------------------------------------------------
def lives(seed: int, place: Path) -> dict[str, set[bytes]]:
    """Recovers a cluster again and again from one of its copies, with kills, and lets each life put under the same segment of its era.

    Returns the contents that each name was to have.
    """
    dice, contents = Random(seed), dict[str, set[bytes]]()
    world = World()
    added(world, "nas", str(place))
    copies = [copy_of(world)]
    for life in range(12):
        [info] = world.stores.all()
        if info.state == STORE_ACTIVE:
            contents.setdefault(f"{info.era}/s/01/1-1", set()).add(bytes([life]))
            contents.setdefault(f"{info.era}/m/1/1", set()).add(bytes([life]))
        copies.append(copy_of(world))
        world = recovered(dice.choice(copies), dice.choice((1, 1, 2)))
        for _ in range(dice.randrange(3)):
            world.killed_at = world.steps + dice.randrange(1, 7)
            try:
                begun_if_it_must(world)
            except Killed:
                copies.append(copy_of(world))
        world.killed_at = -1
        if dice.random() < 0.8:
            begun_if_it_must(world)
    sound(world.drive)
    return contents


def test_no_life_puts_under_a_name_of_another(seed: int, tmp_path: Path) -> None:
    contents = lives(seed, tmp_path)
    assert len(contents) > 2 and all(len(of) == 1 for of in contents.values())


def begun_if_it_must(world: World) -> None:
    if world.stores.all()[0].state == STORE_RECOVERED:
        begun(world)


def named_by_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity follows from the state: two recoveries of one copy come to the same."""
    of_state = iter(range(1, 10_000))
    monkeypatch.setattr(store_catalog.uuid, "uuid4", lambda: uuid.UUID(int=77 + next(of_state) // 3))


def keeps_its_era(monkeypatch: pytest.MonkeyPatch) -> None:
    def recovered(state: Any, entry: Any) -> None:
        for row in store_rules.every(state):
            row.state, row.recovered, row.changed, row.era_number = STORE_RECOVERED, entry.index, entry.index, 0
            store_rules._save(state, row)

    monkeypatch.setattr(store_rules, "recovered", recovered)


def goes_on_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_rules, "recovered", lambda _state, _entry: None)


@pytest.mark.parametrize("broken", [keeps_its_era, goes_on_as_it_was, named_by_the_state])
def test_rules_without_a_new_era_are_found(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken(monkeypatch)
    for seed in range(20):
        (place := tmp_path / str(seed)).mkdir()
        try:
            if any(len(of) > 1 for of in lives(seed, place).values()):
                return
        except Refused as err:
            if "another content" in str(err):  # the directory sees what a bucket would not
                return
            raise
        except FsError as err:
            if "that none before has" not in str(err):
                raise
    pytest.fail("not found in 20 runs")


# --- the thread -------------------------------------------------------------------------------------------------------------
class Upkeep:
    """The daemon of a leader, which looks when it is told to."""

    def __init__(self, world: World) -> None:
        self.world, self.leads, self.looks = world, True, 0
        self.eras = StoreEras(world.stores, self._level, lambda: self.leads, lambda: world.drive.machine.applied_index)

    def _level(self) -> bool:
        self.looks += 1
        return True

    def turn(self) -> StoreInfo:
        self.eras.turn()
        return self.world.stores.all()[0]


def test_the_leader_begins_it_and_asks_nothing_of_an_idle_cluster(tmp_path: Path) -> None:
    world = World()
    added(world, "nas", str(tmp_path))
    upkeep = Upkeep(recovered(copy_of(world)))
    upkeep.leads = False
    assert upkeep.turn().state == STORE_RECOVERED and upkeep.looks == 0
    upkeep.leads = True
    assert upkeep.turn().state == STORE_ACTIVE
    upkeep.turn()
    looks = upkeep.looks
    for _ in range(5):
        upkeep.turn()
    assert upkeep.looks == looks
    upkeep.world.drive.ok(c.NoOp())
    upkeep.turn()
    assert upkeep.looks == looks + 1


def test_what_is_in_the_way_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1_000.0]
    monkeypatch.setattr("awsomefsd.node.store_eras.time.monotonic", lambda: clock[0])
    world = World()
    added(world, "nas", str(tmp_path))
    (tmp_path / "awsomefs").rename(tmp_path / "away")
    upkeep = Upkeep(recovered(copy_of(world)))
    for _ in range(10):
        upkeep.turn()
        clock[0] += 1
    tries = len(upkeep.world.jobs)
    assert 2 < tries < 6, "the pauses grow"
    assert [record.levelname for record in caplog.records].count("WARNING") == 1 and "store nas" in caplog.text
    (tmp_path / "away").rename(tmp_path / "awsomefs")
    clock[0] += 60
    assert upkeep.turn().state == STORE_ACTIVE


def test_the_thread_ends_with_what_it_does_at_a_store(tmp_path: Path) -> None:
    world = World()
    added(world, "nas", str(tmp_path))
    after = recovered(copy_of(world))
    at_work, ended = threading.Event(), threading.Event()

    def hangs(job: Job, leave: Any) -> Generator[dict[str, Any], None, dict[str, Any]]:
        leave(ended.set)
        at_work.set()
        yield {"tried": "something"}
        ended.wait()
        raise Unavailable("was ended")

    eras = StoreEras(
        StoreCatalog(after, CLUSTER, hangs), lambda: True, lambda: True, lambda: after.drive.machine.applied_index  # type: ignore[arg-type]
    )  # fmt: skip
    eras.start()
    assert at_work.wait(60)
    eras.stop()
    assert ended.is_set() and not eras._thread.is_alive()
