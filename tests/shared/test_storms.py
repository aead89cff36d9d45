"""Programs on all three nodes at the same time: nothing is lost, nothing is there twice, nothing stands still, all nodes show the same.

What each does follows from the seed; who comes first does not.  fsck of the volume is clean when the fixture ends.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.shared import programs, tasks

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
FILE_BYTES = 400_000


def words(places: list[Path]) -> list[str]:
    return [str(place) for place in places]


def counted(told: list[Counter[str]]) -> dict[str, int]:
    return dict(sum(told, Counter[str]()))


def the_same_everywhere(places: list[Path]) -> dict[str, object]:
    """The tree with names, attributes and checksums, as all nodes show it."""
    with programs.running(3) as made:
        trees = programs.together(made, [("picture", place) for place in words(places)])
    for node in (1, 2):
        different = [name for name in trees[0].keys() | trees[node].keys() if trees[0].get(name) != trees[node].get(name)]
        for name in different[:4]:  # pytest shortens long values
            print(f"{name}: node 0 {trees[0].get(name)}, node {node} {trees[node].get(name)}")
            print("later:", *(os.lstat(place / name) for place in places))
        assert not different
    return dict(trees[0])


def shuffled(places: list[Path], folders: list[str], seed: int, rounds: int) -> dict[str, int]:
    files, slots = 24, 16
    for folder in folders:
        (places[0] / folder).mkdir(exist_ok=True)
    wanted = {}
    for number in range(files):
        path = places[0] / folders[number % len(folders)] / f"n{number // len(folders)}"
        path.write_bytes(b"%d" % number)
        wanted[path.stat().st_ino] = b"%d" % number
    slots = max(slots, files // len(folders) + 8)
    with programs.running(3) as made:
        told = programs.together(made, [("shuffle", place, folders, slots, seed * 3 + n, rounds) for n, place in enumerate(words(places))])
    the_same_everywhere(places)
    for place in places:
        found = [path for folder in folders for path in (place / folder).iterdir() if path.is_file()]
        assert len(found) == files and all(path.stat().st_nlink == 1 for path in found)
        assert {path.stat().st_ino: path.read_bytes() for path in found} == wanted
    return counted(told)


def test_renames_and_links_in_one_directory(places: list[Path], seed: int, figures: list[str]) -> None:
    figures.append(f"renames in one directory by three nodes, seed {seed}: {shuffled(places, ['.'], seed, 120)}")


def test_renames_and_links_between_directories(places: list[Path], seed: int, figures: list[str]) -> None:
    figures.append(f"renames between directories by three nodes, seed {seed}: {shuffled(places, ['a', 'b', 'c'], seed, 120)}")


def test_directories_moved_into_each_other_make_no_loop(places: list[Path], seed: int, figures: list[str]) -> None:
    names = [f"d{number}" for number in range(12)]
    wanted = set()
    for name in names:
        (places[0] / name).mkdir()
        wanted.add((places[0] / name).stat().st_ino)
    with programs.running(3) as made:
        told = programs.together(made, [("nest", place, names, seed * 3 + n, 25) for n, place in enumerate(words(places))])
    the_same_everywhere(places)
    for place in places:
        found = [Path(folder) for folder, _, _ in os.walk(place)][1:]
        assert sorted(path.stat().st_ino for path in found) == sorted(wanted)
        assert all(path.stat().st_nlink == 2 + sum(1 for entry in os.scandir(path)) for path in found)
    figures.append(f"directories moved by three nodes, seed {seed}: {counted(told)}")
    assert counted(told)["moved"] >= 5


def test_nodes_that_create_in_one_directory(places: list[Path], figures: list[str]) -> None:
    count, common, began = 150, 50, time.monotonic()
    with programs.running(3) as made:
        won = programs.together(made, [("create_many", place, f"of{n}", common, count) for n, place in enumerate(words(places))])
    took = time.monotonic() - began
    assert sorted(number for numbers in won for number in numbers) == list(range(common)), "each was made by exactly one"
    wanted = {f"of{n}-{number}" for n in range(3) for number in range(count)} | {f"common-{number}" for number in range(common)}
    for place in places:
        assert set(os.listdir(place)) == wanted and len(os.listdir(place)) == len(wanted)
        assert place.stat().st_nlink == 2
    shares = [len(mine) for mine in won]
    figures.append(f"three nodes created {3 * count + common} files in one directory in {took:.1f} s, of {common} wanted by all {shares}")


def appended(places: list[Path], seed: int, files: int, count: int, large: int) -> None:
    with programs.running(3) as made:
        rows = [("append", place, files, n, seed * 3 + n, count, large) for n, place in enumerate(words(places))]
        done = programs.together(made, rows, 240)
    for number in {target for mine in done for target in mine}:
        data = [(place / f"log{number}").read_bytes() for place in places]
        assert data[0] == data[1] == data[2], f"log{number} differs between nodes, seed {seed}"
        found = tasks.records(data[0])
        for writer, mine in enumerate(done):
            assert [row[1] for row in found if row[0] == writer] == mine.get(number, []), (number, writer, seed)
        assert len(found) == sum(len(mine.get(number, [])) for mine in done)


def test_a_hundred_files_appended_by_all_nodes(places: list[Path], seed: int) -> None:
    appended(places, seed, 100, 150, 4)


def test_two_files_appended_by_all_nodes(places: list[Path], seed: int) -> None:
    appended(places, seed, 2, 60, 3)


def test_ranges_of_one_file_written_by_all_at_once(places: list[Path], seed: int) -> None:
    """No two writers share a byte; many share a page, and the blocks of one."""
    dice = random.Random(seed)
    cuts = sorted({0, FILE_BYTES, *(dice.randrange(FILE_BYTES) for _ in range(90))})
    owned: list[list[tuple[int, int]]] = [[], [], []]
    expected = b""
    for start, end in itertools.pairwise(cuts):
        writer = dice.randrange(3)
        owned[writer].append((start, end))
        expected += tasks.filling(seed + writer, start, end)
    (places[0] / "f").write_bytes(bytes(FILE_BYTES))
    with programs.running(3) as made:
        programs.together(made, [("write_ranges", str(places[n] / "f"), owned[n], seed + n) for n in range(3)])
    for node, place in enumerate(places):
        got = (place / "f").read_bytes()
        wrong = [at for at in range(FILE_BYTES) if got[at : at + 1] != expected[at : at + 1]] if got != expected else []
        assert got == expected, f"node {node}: {len(got)} bytes, {len(wrong)} wrong, from {wrong[:3]}, seed {seed}"


def stressed(places: list[Path], seed: int, figures: list[str], rounds: int) -> None:
    mounts = words(places) * 2
    with programs.running(len(mounts)) as made:
        told = programs.together(made, [("stress", place, seed * 10 + n, rounds) for n, place in enumerate(mounts)], 3_000)
    tree = the_same_everywhere(places)
    figures.append(f"six programs on three nodes, seed {seed}: {len(tree)} entries left, {counted(told)}")
    assert sum(counted(told).values()) == rounds * len(mounts) and len(set(counted(told)) & set(tasks.STRESS)) >= len(tasks.STRESS) - 3


def test_any_load_then_identical_trees(places: list[Path], seed: int, figures: list[str]) -> None:
    stressed(places, seed, figures, 250)
