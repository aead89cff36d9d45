"""Kills under verified load: nothing that write(2) acknowledged is lost, no operation fails, whoever of us dies.

Two halves, with FUSE_NOTIFY_RESEND and with it pinned off (a 5.14 kernel has none); together at least 60 kills of the worker, 20 of the
daemon, 10 of the keeper and 5 of worker and daemon at once.  Between two kills every client does BETWEEN verified operations, however long
that takes: so each kill hits a system at work, and rates and stalls are figures, which depend on the machine.
"""

from __future__ import annotations

import random

import pytest

from buildtools import chaos

BETWEEN = 25
HALF = {("worker",): 30, ("daemon",): 10, ("keeper",): 5, ("worker", "daemon"): 3}


def rounds(seed: int, times: int = 1) -> list[tuple[str, ...]]:
    order = [roles for roles, count in HALF.items() for _ in range(count * times)]
    random.Random(seed).shuffle(order)
    return order


def run_kills(make_node, figures, seed, pins: str, times: int) -> None:
    node = make_node(pins=pins)
    account = chaos.kill_under_load(node, node.mountpoint / "load", rounds(seed, times), clients=4, seed=seed, between=BETWEEN)
    figures.append(f"kills with {pins or 'resend as the kernel offers it'}:")
    figures += [f"  {row}" for row in account.lines()]

    assert account.errors == []
    for roles, count in HALF.items():
        assert account.count(*roles) == count * times
    assert account.operations >= len(account.kills) * BETWEEN * 4

    node.umount()
    node.mount()
    assert chaos.check_after_remount(account.finals) == []
    node.umount()
    node.stop()
    node.cli("fsck", timeout_s=120)


@pytest.mark.root
@pytest.mark.timeout(600)
@pytest.mark.parametrize("pins", ["", "resend=off"], ids=["resend", "no-resend"])
def test_kills_harm_nobody(make_node, figures, seed, pins):
    run_kills(make_node, figures, seed, pins, times=1)


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("pins", ["", "resend=off"], ids=["resend", "no-resend"])
def test_many_kills_harm_nobody(make_node, figures, seed, pins):
    run_kills(make_node, figures, seed, pins, times=30)
