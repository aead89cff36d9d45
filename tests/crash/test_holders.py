"""Several processes of a node killed at once, under verified load: as long as one holder of the mount lives, nothing is lost.

Holders are the keeper, the worker, the daemon and the supervisor (docs/decisions/0146).  What write(2) acknowledged and nobody fsynced is
checked by the clients themselves, who keep their files open over all kills.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Sequence

import pytest

from awsomefsd.base.errors import Error
from awsomefsd.keeper.client import KeeperClient
from buildtools import chaos, procs
from buildtools.nodes import Node, await_true

BETWEEN = 10
ROLES = ("keeper", "forker", "worker", "daemon", "supervisor")
HOLDERS = {"keeper", "worker", "daemon", "supervisor"}
GROUPS = [group for size in (2, 3, 4) for group in itertools.combinations(ROLES, size) if not set(group) >= HOLDERS]
FIRST = ("keeper", "worker")
SAMPLE = min(int(os.environ.get("AWSOMEFSD_TEST_GROUPS") or 7), len(GROUPS))  # groups, after FIRST


def await_held(node: Node, roles: Sequence[str]) -> None:
    """Every holder that stays has been told of the mount: one that has just begun has to be."""
    for role in HOLDERS - set(roles):
        await_true(f"a {role} that holds the mount", lambda role=role: any(procs.holds(pid, "/dev/fuse") for pid in node.pids(role)), 60)


def bring_forker(node: Node) -> None:
    """A keeper starts a forker once a minute at most; one that has just begun starts one at once."""

    def there() -> bool:
        try:
            client = KeeperClient(node.run)
            starts = client.list()[0]["starts"]
            return client.warm(starts["argv"], starts["env"]) and bool(node.pids("forker"))
        except (Error, IndexError):
            return False  # a keeper that has just begun

    if not node.pids("forker"):
        node.strike(("keeper",))
    await_true("a forker", there, 60, 0.05)


def striking(node: Node) -> Callable[[tuple[str, ...]], None]:
    def strike(roles: tuple[str, ...]) -> None:
        if "forker" in roles:
            bring_forker(node)
        await_held(node, roles)
        hit = node.kill(*roles)
        if "supervisor" in roles:
            await_true("the end of the supervisor", lambda: not procs.alive(hit["supervisor"]), 60)
            node.launch()
        for role, pid in hit.items():
            if role != "forker":  # the next one begins when a worker is needed
                node.replaced(role, pid)

    return strike


@pytest.mark.root
@pytest.mark.timeout(900)
@pytest.mark.parametrize("options", ["", "shared"], ids=["exclusive", "shared"])
def test_groups_killed_at_once_harm_nobody(make_node, figures, seed, options):
    """Some of the groups, others in each run."""
    harm_nobody(make_node, figures, seed, options, SAMPLE)


def harm_nobody(make_node, figures, seed, options, count):
    node = make_node(up=False)
    node.shared, node.mount_options = bool(options), options
    node.up()
    rounds = [FIRST, *random.Random(seed).sample(GROUPS, count)]
    account = chaos.kill_under_load(node, node.mountpoint / "load", rounds, clients=2, seed=seed, between=BETWEEN, strike=striking(node))
    figures.append(f"groups of processes killed at once, {options or 'exclusive'} mount:")
    figures += [f"  {row}" for row in account.lines()]

    assert account.errors == []
    assert [kill.roles for kill in account.kills] == rounds
    node.umount()
    for role in ("keeper", "daemon", "supervisor"):
        await_true(f"the {role} to let go of the mount", lambda role=role: not procs.holds(node.pid(role), "/dev/fuse"), 60)
    node.mount()
    assert chaos.check_after_remount(account.finals) == []
    node.umount()
    node.stop()
    node.cli("fsck", timeout_s=120)
