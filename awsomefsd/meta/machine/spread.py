"""The bays of new segments are chosen, and how many segments fit a pool.  Pure: labels, fill and draws are handed in.

A writer's own host takes the first mirror, which is then read without a hop, unless it is FULLER_PERCENT points fuller than the others.
The other mirrors go to the emptier of two hosts that are drawn, in zones that have none yet first: two drawn spread as well as all
compared, and do not send everybody to the host that is emptiest now.  Inside a host the device with the largest free share takes the bay.

A choice that would leave room for fewer segments than `df` has shown is not taken: then the hosts with the most free bays are, which never
costs more than the one segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

RESERVE_BAYS_MIN = 2
FULLER_PERCENT = 10


class BayRoom(Struct, gc=False):
    """A device that takes data.  `free`: bays that may be leased, without what is kept for repair."""

    device: int
    domain: str  # what fails together: the host, or the device where mirrors are spread by device
    host: str
    zone: str
    bays: int
    free: int


Draw = Callable[[int], int]  # draw(n) is one of 0 … n - 1


def kept_for_repair(bays: int, percent: int) -> int:
    """Returns how many of a host's bays writers leave alone: healing and collection use them."""
    return max(-(-bays * percent // 100), RESERVE_BAYS_MIN)


def placeable(free: Sequence[int], copies: int) -> int:
    """Returns how many segments with so many mirrors fit hosts with so many free bays, each mirror on another host.

    N fit exactly if the sum of min(free, N) over the hosts is at least copies * N: no host holds two mirrors of one segment.
    """
    assert copies > 0 and all(bays >= 0 for bays in free)
    low, high = 0, sum(free) // copies
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(bays, middle) for bays in free) >= copies * middle:
            low = middle
        else:
            high = middle - 1
    return low


def choose(rooms: Iterable[BayRoom], copies: int, own_host: str, draw: Draw) -> list[int]:
    """Returns devices for the mirrors of one segment, each in a domain of its own: `copies`, or fewer where there are not so many."""
    by_domain: dict[str, list[BayRoom]] = {}
    for room in rooms:
        if room.free > 0:
            by_domain.setdefault(room.domain, []).append(room)
    chosen = _spread(by_domain, copies, own_host, draw)
    free = {domain: sum(room.free for room in there) for domain, there in by_domain.items()}
    left = [bays - (domain in chosen) for domain, bays in free.items()]
    if len(chosen) == copies and placeable(left, copies) < placeable(list(free.values()), copies) - 1:
        chosen = sorted(by_domain, key=lambda domain: (domain not in chosen[:1], -free[domain], domain))[:copies]
        left = [bays - (domain in chosen) for domain, bays in free.items()]
        if placeable(left, copies) < placeable(list(free.values()), copies) - 1:
            chosen = sorted(by_domain, key=lambda domain: (-free[domain], domain))[:copies]
    return [max(by_domain[domain], key=lambda room: (room.free / room.bays, -room.device)).device for domain in chosen]


def _spread(by_domain: dict[str, list[BayRoom]], copies: int, own_host: str, draw: Draw) -> list[str]:
    left = dict(by_domain)
    first = _on_own_host(left, own_host)
    chosen: list[str] = []
    while len(chosen) < copies and left:
        domain = first if first and not chosen else _drawn(left, {by_domain[one][0].zone for one in chosen}, draw)
        left.pop(domain)
        chosen.append(domain)
    return chosen


def _on_own_host(by_domain: dict[str, list[BayRoom]], own_host: str) -> str:
    """Returns a domain on the writer's own host; "" without one, or if that is much fuller than the others."""
    own = {domain: _used(rooms) for domain, rooms in by_domain.items() if rooms[0].host == own_host}
    others = [room for rooms in by_domain.values() for room in rooms if room.host != own_host]
    if not own:
        return ""
    emptiest = min(own, key=lambda domain: (own[domain], domain))
    fuller = bool(others) and own[emptiest] >= _used(others) + FULLER_PERCENT / 100
    return "" if fuller else emptiest


def _used(rooms: Sequence[BayRoom]) -> float:
    bays = sum(room.bays for room in rooms)
    return 1 - sum(room.free for room in rooms) / bays


def _drawn(by_domain: dict[str, list[BayRoom]], zones: set[str], draw: Draw) -> str:
    """Returns the emptier of two domains that are drawn; of those in other zones than `zones`, if there are any."""
    candidates = sorted(domain for domain, rooms in by_domain.items() if rooms[0].zone not in zones) or sorted(by_domain)
    one = candidates[draw(len(candidates))]
    other = candidates[draw(len(candidates))]
    return min(one, other, key=lambda domain: (_used(by_domain[domain]), domain))
