"""Several clients of a mount that decides names by itself, at the same time, over connections that are cut: the history is judged.

Clients, model and judge are those of tests/unit/vfs/test_connection_cuts.py; here there is one mount, which has its volume for itself, and
its worker, its leader and the rows that it may remember end now and then between two rounds.

The kernel keeps changes of a directory from listings of it.  It does not keep them from lookups, which it sends without a lock when a name
is looked up again.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.meta.client.connection import connect
from tests.rigs.delegated_mount import Delegated
from tests.rigs.mount_without_kernel import Rig
from tests.unit.vfs import test_connection_cuts as histories
from tests.unit.vfs.connection_cuts import Cuts

SEEDS, ROUNDS, STEPS, CLIENTS = 6, 5, 15, 4
CHANCES = (0.0, 0.03, 0.1)  # of each transfer, to end the connection
DEATHS = 0.3  # of the worker, and of the leader, after a round


class Numbered(Delegated):
    """Its requests are several threads'."""

    read = histories.Numbered.read  # type: ignore[assignment]

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._uniques = itertools.count(2, 2)

    def ctx(self, unique: int | None = None, uid: int = 0, open_flags: int = 0) -> Any:
        return super().ctx(next(self._uniques) if unique is None else unique, uid, open_flags)


def append(node: Rig, ino: int, fh: int, piece: bytes) -> int:
    """As the kernel appends where nobody else does; its lock of the inode is held."""
    node.write(ino, fh, node.attr(ino).size, piece)
    return len(piece)


def stat_of_something_named(tree: histories.Tree, ino: int, seen: Any) -> list[histories.Tree]:
    """One without a name that nobody has open any more shows what the worker remembers; the kernel does not ask for it."""
    return histories.do_stat(tree, ino, seen) if histories.links(tree, ino) else [tree]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs where a mount has its volume for itself."""
    step_list = histories.Client.step_list

    def listing(client: histories.Client) -> None:
        with client.names:
            step_list(client)

    monkeypatch.setattr(histories, "append", append)
    monkeypatch.setattr(histories.Client, "step_list", listing)
    monkeypatch.setitem(histories.STEP, "stat", stat_of_something_named)


def go(directory: Path, seed: int) -> str:
    node, cuts = Numbered(directory), Cuts(connect, seed)
    node.client_options = {"connect": cuts.connect}
    node.hold_lease_clock()
    try:
        node.start()
        run = histories.Run([node], seed, CLIENTS, STEPS, DEATHS)  # type: ignore[list-item]
        cuts.chance = run.dice.choice(CHANCES)
        decided: dict[int, int] = {}  # by worker
        for _ in range(ROUNDS):
            before, number = node.worker, node.workers
            run.round()
            names = before.names
            assert names is not None and names.shipper.differing == 0
            assert node.worker.names is not None and node.worker.names.decides
            decided[number] = names.decided
            node.worker.names.bound(run.dice.choice((0.0, 1.0)))
            if run.dice.random() < DEATHS:
                node.host.crash()
                node.host.start()
        cuts.chance = 0.0
        assert sum(decided.values()) > 10, "otherwise this shows nothing"
        node.unmount()
        node.check()
    except BaseException as err:
        err.add_note(f"seed {seed}")
        raise
    finally:
        cuts.chance = 0.0
        node.close()
    return f"{run.judged} operations judged, {sum(decided.values())} decided by {len(decided)} workers, cuts: {dict(cuts.done)}"


@pytest.mark.usefixtures("alone")
def test_its_clients_see_one_history(tmp_path: Path, seed: int, figures: list[str]) -> None:
    for number in range(SEEDS):
        place = tmp_path / str(number)
        place.mkdir()
        figures.append(f"clients of a mount that decides names, seed {seed + number}: {go(place, seed + number)}")
