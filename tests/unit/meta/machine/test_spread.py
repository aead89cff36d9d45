"""The choice of bays, and how many segments fit a pool: the formula of `df` against an exhaustive search."""

from __future__ import annotations

import itertools
import random
from functools import cache

from awsomefsd.meta.machine.spread import BayRoom, choose, kept_for_repair, placeable


@cache
def _search(free: tuple[int, ...], copies: int) -> int:
    """The most segments that fit, found by trying every set of hosts for each."""
    best = 0
    for hosts in itertools.combinations(range(len(free)), copies):
        if all(free[host] for host in hosts):
            left = tuple(sorted(bays - (at in hosts) for at, bays in enumerate(free)))
            best = max(best, 1 + _search(left, copies))
    return best


def test_df_is_what_an_exhaustive_search_places() -> None:
    for hosts in range(1, 5):
        for free in itertools.combinations_with_replacement(range(5), hosts):
            for copies in range(1, 5):
                assert placeable(free, copies) == _search(free, copies), (free, copies)


def test_df_of_known_pools() -> None:
    assert placeable([100, 100, 100], 3) == 100
    assert placeable([1000, 10, 10], 2) == 20, "one large host among small ones promises what has a second place only"
    assert placeable([1000, 10], 3) == placeable([], 1) == 0
    assert placeable([160_000] * 30, 3) == 1_600_000


def test_the_reserve_for_repair() -> None:
    assert [kept_for_repair(bays, 4) for bays in (0, 10, 50, 51, 1000)] == [2, 2, 2, 3, 40]


def _room(device: int, host: str, free: int, zone: str = "", bays: int = 100) -> BayRoom:
    return BayRoom(device, host, host, zone, bays, free)


def test_the_first_mirror_is_on_the_writers_host_unless_that_is_much_fuller() -> None:
    draw = random.Random(1).randrange
    rooms = [_room(1, "a", 50), _room(2, "b", 55), _room(3, "c", 55)]
    assert choose(rooms, 3, "a", draw)[0] == 1
    rooms = [_room(1, "a", 44), _room(2, "b", 55), _room(3, "c", 55)]
    assert choose(rooms, 2, "a", draw)[0] != 1 or choose(rooms, 2, "a", draw)[0] != 1
    assert set(choose(rooms, 3, "a", draw)) == {1, 2, 3}
    assert choose([_room(1, "a", 1)], 1, "a", draw) == [1], "there is no other"


def test_of_two_drawn_the_emptier_host_is_taken() -> None:
    rooms = [_room(1, "a", 90), _room(2, "b", 10), _room(3, "c", 50)]
    draws = iter([1, 2])  # b, c
    assert choose(rooms, 1, "elsewhere", lambda count: next(draws)) == [3]


def test_zones_come_before_hosts() -> None:
    rooms = [_room(1, "a", 80, "east"), _room(2, "b", 90, "east"), _room(3, "c", 85, "west")]
    for seed in range(20):
        assert set(choose(rooms, 2, "a", random.Random(seed).randrange)) == {1, 3}


def test_inside_a_host_the_device_with_the_largest_free_share_is_taken() -> None:
    rooms = [_room(1, "a", 50, bays=1000), _room(2, "a", 40, bays=100)]
    assert choose(rooms, 1, "", lambda count: 0) == [2]


def test_no_two_mirrors_are_on_one_host_and_as_many_as_can_be(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(300):
        rooms = [
            _room(number, chance.choice("abcd"), chance.randrange(4), chance.choice("xy")) for number in range(1, chance.randrange(1, 9))
        ]
        copies = chance.randrange(1, 5)
        chosen = choose(rooms, copies, chance.choice("abcde"), chance.randrange)
        hosts = [room.host for number in chosen for room in rooms if room.device == number]
        assert len(set(hosts)) == len(chosen) == min(copies, len({room.host for room in rooms if room.free}))
        assert all(room.free for room in rooms if room.device in chosen)


def test_what_df_shows_is_placed(seed: int) -> None:
    """Whatever is drawn: as many segments as the formula says, on hosts of any sizes."""
    chance = random.Random(seed)
    for _ in range(40):
        sizes = [chance.randrange(1, 30) for _ in range(chance.randrange(1, 6))]
        copies = chance.randrange(1, 4)
        rooms = [_room(number, f"h{number}", free, chance.choice("xy"), bays=free) for number, free in enumerate(sizes, 1)]
        written = 0
        while len(chosen := choose(rooms, copies, "h1", chance.randrange)) == copies:
            for number in chosen:
                rooms[number - 1].free -= 1
            written += 1
        assert written == placeable(sizes, copies), (sizes, copies)
