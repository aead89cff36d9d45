"""Who loses the place when a new connection comes and all places are taken."""

from __future__ import annotations

import random

import pytest

from awsomefsd.base.sources import gives_place, source_of

PLACES = 64


def test_whoever_holds_the_most_loses_its_oldest() -> None:
    assert gives_place({1: "a", 2: "b", 3: "b", 4: "c"}, "d") == 2
    assert gives_place({1: "a", 2: "b", 3: "c"}, "c") == 3, "the newcomer counts for its source"
    assert gives_place({1: "a", 2: "b", 3: "c"}, "d") == 1, "all hold one: the oldest goes"
    assert gives_place({1: "a"}, "b") == 1


def test_one_source_pushes_out_nobody_else(seed: int) -> None:
    """Whatever a stranger does from one address, or from half as many as there are places: who came once from another one stays."""
    draw = random.Random(seed)
    for sources in (1, 2, PLACES // 2):
        places = {-1: "honest"}
        for number in range(2_000):
            source = f"stranger {draw.randrange(sources)}"
            if len(places) >= PLACES:
                del places[gives_place(places, source)]
            places[number] = source
        assert -1 in places and len(places) == PLACES


def test_of_a_network_the_address_with_the_most_gives_up_its_place() -> None:
    """All machines of one IPv6 network are one source: there too a stranger crowds out itself first."""
    places = {-1: "2001:db8::1", **dict.fromkeys(range(10), "2001:db8::2"), 10: "10.0.0.1"}
    assert gives_place(places, "2001:db8::2") == 0
    assert gives_place(places, "10.0.0.2") == 0
    assert gives_place(places, "2001:db8::3") == 0
    assert gives_place({1: "2001:db8::1", 2: "2001:db8::2"}, "2001:db8::2") == 2, "the newcomer counts for its address"
    assert gives_place({1: "10.0.0.1", 2: "2001:db8::1", 3: "2001:db8::2"}, "10.0.0.3") == 2, "the network has the most"


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("?", "?"),
    ],
)
def test_the_source_of_an_address(address: str, source: str) -> None:
    assert source_of(address) == source
