"""What a power cut may take: the sentence follows the worker's figures, and the mount's options until there are any."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from awsomefsd.base.power_cut import DECIDES, UNKNOWN, WHY, Why, of_mount, of_volume

DECIDING = {DECIDES: 1, WHY: Why.DECIDES}
NAMES_MAY_GO, NAMES_STAY, ALL_STAYS = "newest changes of names", "no change of a name", "takes nothing that was answered"


def asked(why: int) -> Mapping[str, int]:
    return {DECIDES: 0, WHY: why}


@pytest.mark.parametrize(
    ("names", "options", "figures", "promise", "words"),
    [
        ("durable", (), {}, NAMES_STAY, "(names=durable)"),
        ("durable", ("sync",), {}, ALL_STAYS, "(names=durable)"),
        ("durable", ("async", "sync"), {}, ALL_STAYS, "(names=durable)"),
        ("durable", ("sync", "async"), {}, NAMES_STAY, "(names=durable)"),
        ("durable", (), asked(Why.VOLUME), NAMES_STAY, "(names=durable)"),
        ("durable", ("shared",), {"workers": 1}, NAMES_STAY, "(names=durable)"),
        ("durable", (), DECIDING, NAMES_MAY_GO, "began when the volume had names=delegated"),
        ("delegated", (), {}, NAMES_MAY_GO, "(names=delegated)"),
        ("delegated", (), DECIDING, NAMES_MAY_GO, "(names=delegated)"),
        ("delegated", ("shared",), {}, NAMES_STAY, "decides none: it is shared"),
        ("delegated", ("shared",), {"workers": 1}, NAMES_STAY, "decides none: it is shared"),
        ("delegated", ("shared", "names=leases", "names=leader"), {"workers": 1}, NAMES_STAY, "decides none: it is shared"),
        ("delegated", ("shared", "names=leases"), {}, NAMES_MAY_GO, "(names=delegated)"),
        ("delegated", ("shared", "names=leases"), DECIDING, NAMES_MAY_GO, "(names=delegated)"),
        ("delegated", ("shared", "names=leases"), asked(Why.REFUSED), NAMES_STAY, "refused or put aside"),
        ("delegated", ("shared", "names=leases", "sync"), {}, ALL_STAYS, "option sync or dirsync"),
        ("durable", ("shared", "names=leases"), asked(Why.VOLUME), NAMES_STAY, "(names=durable)"),
        ("delegated", ("sync",), {}, ALL_STAYS, "option sync or dirsync"),
        ("delegated", ("dirsync",), {}, NAMES_STAY, "option sync or dirsync"),
        ("delegated", ("sync",), {DECIDES: 1, WHY: Why.SYNC}, ALL_STAYS, "option sync or dirsync"),
        ("delegated", ("sync",), DECIDING, NAMES_MAY_GO, "(names=delegated)"),
        ("delegated", (), asked(Why.SYNC), NAMES_STAY, "or began with it"),
        ("delegated", (), asked(Why.VOLUME), NAMES_STAY, "began when the volume had names=durable; mount it again"),
        ("delegated", (), asked(Why.LEVEL), NAMES_STAY, "older build than the level"),
        ("delegated", (), asked(Why.KEEPER), NAMES_STAY, "keeper"),
        ("delegated", (), asked(Why.DIRTY), NAMES_STAY, "data was dirty"),
        ("delegated", (), asked(Why.REFUSED), NAMES_STAY, "refused or put aside"),
        ("delegated", (), asked(99), NAMES_STAY, "a reason that this daemon does not know"),
        ("delegated", (), {"workers": 1}, NAMES_STAY, "of an older build"),
    ],
)
def test_a_mount_says_what_a_power_cut_may_take_and_why(
    names: str, options: tuple[str, ...], figures: Mapping[str, int], promise: str, words: str
) -> None:
    said = of_mount(names, options, figures)
    assert promise in said and words in said and sum(other in said for other in (NAMES_MAY_GO, NAMES_STAY, ALL_STAYS)) == 1
    assert "\n" not in said and not said.endswith(".")


def test_without_a_leader_nothing_is_promised() -> None:
    assert of_mount("", (), {}) == of_mount("", ("sync",), DECIDING) == UNKNOWN


def test_each_reason_has_words_of_its_own() -> None:
    said = [of_mount("delegated", (), asked(why)) for why in Why if why is not Why.DECIDES]
    assert len({*said}) == len(said)


def test_a_volume_says_it_for_a_mount_that_has_it_for_itself() -> None:
    assert of_volume("durable") in of_mount("durable", (), {}) and of_volume("delegated") in of_mount("delegated", (), DECIDING)
