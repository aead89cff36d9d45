"""Three nodes decide names of what they hold under write leases: what it costs, what the others see, and what a death takes.

What has returned on one node is seen by the next look on another, though the cluster is told of it only then.  A worker's death takes
nothing.  A lost session, or a machine's death, takes an end of what was done and not synced, and what went is told where that can be.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from awsomefsd.base.limits import NS_PER_MS, SHIP_GAP_MS
from buildtools import leader, procs
from buildtools.nodes import Node, await_true
from tests.shared.programs import running, together
from tests.shared.rig import WAIT_S, SharedVolume
from tests.shared.test_storms import the_same_everywhere

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200), pytest.mark.parametrize("shared_volume", ["leased"], indirect=True)]
# Asked by time, whoever does what.
IN_TIME = {
    "Renew", "Report", "NodeReport", "ReportDevices", "GetStatus", "GetReports", "GetSessions", "ListNodes", "Hello", "GetOrphans",
    "ReleaseOrphan", "GetSparse", "GetDevices", "AwaitRecalls",
}  # fmt: skip
CREATES, SHARE = 1_500, 0.05
STEPS = 400
KILLS = 4


def said(node: Node, root: Path) -> str:
    """What `status -v` says of a mount."""
    rows = node.cli("status", "-v", accept=(0, 3)).splitlines()
    return next((row.partition(": ")[2] for row in rows if row.startswith(f"{root}: ")), "nothing is said of it")


def test_a_mount_says_whether_it_decides(shared_volume: SharedVolume) -> None:
    """The sentence, and the requests: without the option each name is one of the leader's."""
    node = shared_volume.machines.nodes[0]
    root = node.directory / "mnt-told"
    root.mkdir()
    node.cli("volume", "create", "told", "--names", "delegated")
    made = itertools.count()

    def asked(creates: int) -> int:
        before = requests(shared_volume)
        for _ in range(creates):
            (root / f"{next(made)}").touch()
        return (requests(shared_volume) - before)["Create"]

    told = node.cli("mount", "told", str(root), "-O", "shared")
    try:
        assert asked(50) == 50 and "without the option names=leases" in told and "no change of a name" in told
        await_true("the same in the status", lambda: said(node, root) in told, WAIT_S, 0.5)
        node.cli("umount", str(root), timeout_s=WAIT_S)
        told = node.cli("mount", "told", str(root), "-O", "shared,names=leases")
        await_true("a lease of the directory", lambda: asked(1) == 0, WAIT_S)
        assert asked(50) < 10, "a question that has to be asked again may send a few along"
        assert "newest changes of names" in told
        await_true("the same in the status", lambda: said(node, root) in told, WAIT_S, 0.5)
    finally:
        node.cli("umount", str(root), timeout_s=WAIT_S)


def requests(shared_volume: SharedVolume) -> Counter[str]:
    machines = shared_volume.machines
    return Counter(leader.requests(machines.nodes[machines.leader()].run / "meta.sock"))


def own(places: list[Path]) -> list[Path]:
    """A directory of each node, made there."""
    for number, place in enumerate(places):
        (place / f"of{number}").mkdir()
    return [place / f"of{number}" for number, place in enumerate(places)]


def test_creates_in_directories_of_ones_own_are_told_by_many_at_once(
    shared_volume: SharedVolume, places: list[Path], figures: list[str]
) -> None:
    mine = own(places)
    with running(3) as made:
        together(made, [("create_many", str(place), "first", 0, 20) for place in mine])  # numbers and leases are there
        before, began = requests(shared_volume), time.monotonic_ns()
        together(made, [("create_many", str(place), "then", 0, CREATES) for place in mine])
        took_ns = time.monotonic_ns() - began
        asked = Counter({kind: count for kind, count in (requests(shared_volume) - before).items() if kind not in IN_TIME})
    batches, total = asked.pop("Apply", 0), 3 * CREATES
    beside = sum(asked.values())
    figures.append(
        f"{total} creates by three nodes in directories of their own in {took_ns / 1e9:.1f} s: {batches / total:.3f} entries of records "
        f"and {beside / total:.3f} other requests for each: {dict(asked)}"
    )
    assert 0 < batches <= 3 * (took_ns // (SHIP_GAP_MS * NS_PER_MS) + 2), "no batch waits for less than others"
    assert beside <= SHARE * total, asked
    for place in places:
        assert [len(os.listdir(place / f"of{number}")) for number in range(3)] == [CREATES + 20] * 3


class Tree:
    """Four directories, one of each node and one of all, and what is to be in them."""

    def __init__(self, places: list[Path], seed: int) -> None:
        self.dice, self.places, self.seed = random.Random(seed), places, seed
        self.names: dict[str, dict[str, tuple[int, int]]] = {name: {} for name in ("of0", "of1", "of2", "all")}
        own(places)
        (places[0] / "all").mkdir()
        self.history: list[str] = []
        self.made = 0

    def step(self) -> None:
        node, other = self.dice.sample(range(3), 2)
        folder = self.dice.choice((f"of{node}", f"of{node}", f"of{node}", "all", f"of{other}"))
        kinds = ("create", "create", "mkdir", "rename", "rename", "move", "unlink", "chmod", "link")
        kind = self.dice.choice(kinds) if self.names[folder] else "create"
        touched = self.do(kind, self.places[node], folder)
        self.history.append(f"{kind} {touched} in {folder} on {node}, looked at on {other}")
        for where in {folder, *touched}:
            self.look(other, where)

    def do(self, kind: str, root: Path, folder: str) -> list[str]:
        """Returns the directories that it has changed."""
        names = self.names[folder]
        name = self.dice.choice(sorted(names)) if names else ""
        self.made += 1
        new = f"n{self.made}"
        if kind in ("create", "mkdir"):
            (root / folder / new).touch(mode=0o600) if kind == "create" else (root / folder / new).mkdir(mode=0o700)
            info = (root / folder / new).lstat()
            names[new] = info.st_ino, info.st_mode
        elif kind in ("rename", "move"):
            there = self.dice.choice(sorted(self.names)) if kind == "move" else folder
            os.rename(root / folder / name, root / there / new)
            self.names[there][new] = names.pop(name)
            return [folder, there]
        elif kind == "unlink":
            (root / folder / name).rmdir() if names.pop(name)[1] & 0o040000 else (root / folder / name).unlink()
        elif kind == "chmod":
            ino, mode = names[name]
            mode = mode & ~0o777 | self.dice.choice((0o600, 0o640, 0o755))
            os.chmod(root / folder / name, mode & 0o777)
            for entries in self.names.values():
                entries |= {twin: (ino, mode) for twin, (same, _) in entries.items() if same == ino}
        elif kind == "link" and not names[name][1] & 0o040000:
            os.link(root / folder / name, root / folder / new)
            names[new] = names[name]
        return [folder]

    def look(self, node: int, folder: str) -> None:
        place, wanted = self.places[node] / folder, self.names[folder]
        if self.dice.random() < 0.5 and wanted:
            name = self.dice.choice(sorted(wanted))
            info = (place / name).lstat()
            assert (info.st_ino, info.st_mode) == wanted[name], self.failed(node, folder)
        found = {entry.name: (entry.inode(), entry.stat(follow_symlinks=False).st_mode) for entry in os.scandir(place)}
        assert found == wanted, f"{found.items() ^ wanted.items()}; {self.failed(node, folder)}"

    def failed(self, node: int, folder: str) -> str:
        return f"node {node} shows something old of {folder}; seed {self.seed}: {self.history[-5:]}"


def test_what_returned_is_seen_by_the_next_look_elsewhere(places: list[Path], seed: int, figures: list[str]) -> None:
    tree = Tree(places, seed)
    for _ in range(STEPS):
        tree.step()
    the_same_everywhere(places)
    figures.append(f"{STEPS} changes of names on three nodes that decide them, each looked at elsewhere, seed {seed}")


def test_what_all_make_in_one_directory_is_there_once(places: list[Path], figures: list[str]) -> None:
    count, common = 300, 60
    with running(3) as made:
        won = together(made, [("create_many", str(place), f"of{n}", common, count) for n, place in enumerate(places)])
    assert sorted(number for numbers in won for number in numbers) == list(range(common)), "each was made by exactly one"
    wanted = sorted([f"of{n}-{number}" for n in range(3) for number in range(count)] + [f"common-{number}" for number in range(common)])
    assert [sorted(os.listdir(place)) for place in places] == [wanted] * 3
    figures.append(f"names that three nodes wanted to make: {[len(mine) for mine in won]}")


def workers_of(shared_volume: SharedVolume, number: int) -> list[int]:
    return procs.pids(str(shared_volume.machines.nodes[number].directory), "worker")


def test_a_worker_that_is_killed_loses_nothing(shared_volume: SharedVolume, places: list[Path]) -> None:
    mine, count = own(places)[0], 2_000
    with running(1) as (program,):
        program.start("create_many", str(mine), "n", 0, count)
        for turn in range(KILLS):
            await_true("names", lambda least=turn * count // KILLS // 2: len(os.listdir(mine)) > least, WAIT_S)
            before = workers_of(shared_volume, 0)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            await_true("successors", lambda pids=before: len({*workers_of(shared_volume, 0)} - {*pids}) >= len(pids), WAIT_S, 0.1)
            shown = os.listdir(places[1] / "of0")
            assert len({*shown}) == len(shown)
        program.result()
    wanted = sorted(f"n-{number}" for number in range(count))
    assert [sorted(os.listdir(place / "of0")) for place in places] == [wanted] * 3


def aside(shared_volume: SharedVolume, number: int) -> int:
    """How many changes of names are put aside on a node."""
    folders = (shared_volume.machines.nodes[number].state / "conflicts").glob("*-names")
    return sum(len([json.loads(line) for line in (folder / "records").read_text().splitlines()]) for folder in folders)


def test_a_lost_session_puts_the_end_aside_and_says_so(
    shared_volume: SharedVolume, places: list[Path], tmp_path: Path, figures: list[str]
) -> None:
    mine, over, count = own(places)[0], tmp_path / "over", 20_000
    lost_before, folder = aside(shared_volume, 0), os.open(mine, os.O_RDONLY)
    with running(1) as (program,):
        program.start("create_until", str(mine), str(over), count)
        await_true("names", lambda: (mine / "n-300").exists(), WAIT_S)
        workers = workers_of(shared_volume, 0)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            shown = {*os.listdir(places[1] / "of0")}  # waits until the session is over
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
        (places[1] / "of0" / "by-another").touch()
        over.touch()
        acknowledged = program.result(WAIT_S)
    said = []
    for _ in range(2):
        try:
            os.fsync(folder)
        except OSError as err:
            said.append(errno.errorcode[err.errno or 0])
    os.close(folder)
    lost = aside(shared_volume, 0) - lost_before
    trees = [{*os.listdir(place / "of0")} for place in places]
    assert trees[0] == trees[1] == trees[2]
    missing = sorted(int(name[2:]) for name in {f"n-{number}" for number in range(acknowledged)} - trees[0])
    assert shown <= trees[0] and len(missing) <= lost
    assert missing == [] or missing == list(range(missing[0], missing[0] + len(missing))), "no hole: an end, as it was at that moment"
    assert bool(missing) <= bool(said), "an fsync says that something went"
    figures.append(f"a lost session: {acknowledged} answered, {len(shown)} shown, {len(missing)} missing, {lost} put aside, fsync {said}")


def test_the_death_of_a_machine_takes_nothing_that_was_synced(shared_volume: SharedVolume, places: list[Path]) -> None:
    mine = own(places)[0]
    for number in range(100):
        (mine / f"kept{number}").touch()
    folder = os.open(mine, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    for number in range(100):
        (mine / f"then{number}").touch()
    shared_volume.machines.kill(0)
    try:
        shown = {*os.listdir(places[1] / "of0")}
        assert {f"kept{number}" for number in range(100)} <= shown
        later = sorted(int(name[4:]) for name in shown if name.startswith("then"))
        assert later == list(range(len(later))), "an end of what was done is gone, and nothing before it"
    finally:
        shared_volume.machines.revive(0)
    assert [{*os.listdir(place / "of0")} for place in places] == [shown] * 3
