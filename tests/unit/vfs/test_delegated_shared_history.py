"""Random operations on mounts that decide names of one volume, at the same time: the history is judged (test_connection_cuts.py).

Nothing is contested here, so leases go back and forth with almost every operation, and each mount decides what it just got.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from awsomefsd.meta.server.leases.contention import Contention
from tests.rigs.sharing_nodes import sound
from tests.unit.vfs.test_connection_cuts import CHANCES, Client, Key, Numbered, Run, cut_nodes

MOUNTS, CLIENTS, ROUNDS, STEPS, SEEDS = 3, 2, 5, 30, 2
DEATHS = 0.3
AT_HOME = 0.97
SOAK_SEEDS = 30


class Deciding(Numbered):
    delegated = True


class AtHome(Client):
    """Works in the directory of its mount more often than elsewhere."""

    def key(self) -> Key:
        folder, name = super().key()
        if self.dice.random() < AT_HOME:
            folder = self.run_.folders[1 + self.run_.nodes.index(self.node)]
        return folder, name


class Households(Run):
    client = AtHome
    more_folders = MOUNTS


@pytest.fixture(autouse=True)
def uncontested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contention, "pause_ms", lambda *_: 0)
    monkeypatch.setattr("awsomefsd.vfs.state.shared_names.SharedNames._miss", lambda names, ino: names.leases.want_to_decide(ino))


def go(directory: Path, seed: int, *, cut: bool, deaths: float) -> str:
    with cut_nodes(directory, seed, MOUNTS, Deciding) as (nodes, cuts):
        run = (Run if seed % 4 == 0 else Households)(nodes, seed, CLIENTS, STEPS, deaths)
        cuts.chance = run.dice.choice(CHANCES) if cut else 0.0
        decided = 0
        try:
            for _ in range(ROUNDS):
                before = sum(node.worker.names.decided for node in nodes)
                run.round()
                decided += max(sum(node.worker.names.decided for node in nodes) - before, 0)
        except BaseException as err:
            err.add_note(f"seed {seed}, {run.judged} operations before this round, cuts: {dict(cuts.done)}")
            raise
        cuts.chance = 0.0
        diverged = [node.worker.names.figures()["names_diverged"] for node in nodes]
        sound(nodes)
    assert decided > 0 and not any(diverged)
    return f"{run.judged} operations judged, {decided} decided, {run.unknown} rounds unknown"


@pytest.mark.parametrize("cut", [False, True], ids=["whole connections", "cut connections"])
def test_mounts_that_decide_names_show_one_history(tmp_path: Path, seed: int, figures: list[str], cut: bool) -> None:
    for number in range(SEEDS):
        place = tmp_path / str(number)
        place.mkdir()
        told = go(place, seed + number, cut=cut, deaths=0.0)
        figures.append(f"random operations of mounts that decide names, seed {seed + number}: {told}")


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_long(tmp_path: Path, seed: int, figures: list[str]) -> None:
    for number in range(SOAK_SEEDS):
        place = tmp_path / str(number)
        place.mkdir()
        go(place, seed + number, cut=True, deaths=DEATHS)
    figures.append(f"{SOAK_SEEDS} seeds of random operations of mounts that decide names, from {seed}")
