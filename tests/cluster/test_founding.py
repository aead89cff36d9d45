"""One founding token on several nodes, over real sockets: exactly one cluster, whatever the order, the troubles, and who dies when."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import trio

from awsomefsd.base import failpoints
from awsomefsd.base.errors import Refused, Unavailable
from awsomefsd.base.identity import identity_path
from awsomefsd.cluster.founding.driver import FoundingDriver
from awsomefsd.cluster.founding.files import FoundingFiles
from awsomefsd.cluster.founding.founding import Kept, StoreKept
from awsomefsd.cluster.pki import founding_token
from awsomefsd.meta.api.messages.nodes import ListNodes, ListTokens
from tests.cluster.founding_rig import WAIT_S, Group, Member, one_cluster, run_node, settings_of, spawn, wall_ms
from tests.rigs.free_ports import free_ports

ORDERS = 30
AT_ONCE = 5
KILLS = [name for name, reached in failpoints.POINTS.items() if reached == "founding"]
HOUR_MS = 3_600_000


def make_token(expect: int, ports: list[int], nodes: int = 0) -> founding_token.FoundingToken:
    return founding_token.make(expect, tuple(f"127.0.0.1:{port}" for port in ports), wall_ms() + HOUR_MS, nodes)


async def in_some_order(directory: Path, dice: random.Random) -> None:
    """N of M nodes come at random times and find each other by some of the endpoints; the rest comes when the cluster is there."""
    total = dice.choice((2, 3, 3, 3, 4, 5))
    expect = dice.randrange(total // 2 + 1, total + 1)
    ports = free_ports(total)
    known = dice.sample(ports, dice.randrange(1, total + 1))
    group = Group(directory, make_token(expect, known), ports)
    order = dice.sample(range(total), total)
    spread = dice.choice((0.0, 0.02, 0.5))
    async with trio.open_nursery() as nursery:
        for number in order[:expect]:
            group.start(nursery, number)
            await trio.sleep(dice.random() * spread)
        for number in order[expect:]:
            if dice.random() < 0.5 and set(known) & {ports[one] for one in order[:expect]}:
                await group.formed(expect)
            group.start(nursery, number)
        await group.formed(total)
        nursery.cancel_scope.cancel()
    group.check(total)


@pytest.mark.trio
async def test_thirty_random_orders_form_one_cluster_each(tmp_path: Path, seed: int) -> None:
    limit = trio.CapacityLimiter(AT_ONCE)

    async def one(number: int) -> None:
        async with limit:
            await in_some_order(tmp_path / str(number), random.Random(f"{seed} {number}"))

    async with trio.open_nursery() as nursery:
        for number in range(ORDERS):
            nursery.start_soon(one, number)


@pytest.mark.trio
async def test_a_node_comes_an_hour_later_a_day_later_and_when_the_uses_are_up(tmp_path: Path) -> None:
    ports = free_ports(5)
    group = Group(tmp_path / "g", make_token(2, ports[:2]), ports)
    async with trio.open_nursery() as nursery:
        for number in (0, 1):
            group.start(nursery, number)
        await group.formed(2)
        founder = next(member for member in group.members.values() if member.node.founder)
        founder.advance(HOUR_MS // 2)
        group.start(nursery, 2)
        await group.formed(3)
        group.check(3)
        group.start(nursery, 3)
        await told(group, 3, "is used up")
        founder.advance(HOUR_MS)
        group.start(nursery, 4)
        await told(group, 4, "has expired")
        assert len(group.members) == 3
        nursery.cancel_scope.cancel()


async def told(group: Group, number: int, words: str) -> None:
    with trio.fail_after(WAIT_S):
        while number not in group.drivers or words not in "; ".join(group.drivers[number].describe()):
            await trio.sleep(0.02)


@pytest.mark.trio
async def test_two_tokens_on_one_network_make_two_clusters(tmp_path: Path) -> None:
    """All ports are named in both tokens: one is foreign, or its secret wrong, for the nodes of the other."""
    ports = free_ports(4)
    groups = [Group(tmp_path / name, make_token(2, ports), mine) for name, mine in (("a", ports[:2]), ("b", ports[2:]))]
    async with trio.open_nursery() as nursery:
        groups[0].start(nursery, 0)
        groups[1].start(nursery, 0)
        await told(groups[0], 0, "another founding token")
        groups[0].start(nursery, 1)
        groups[1].start(nursery, 1)
        for group in groups:
            await group.formed(2)
        nursery.cancel_scope.cancel()
    for group in groups:
        group.check(2)


@pytest.mark.trio
async def test_a_wrong_secret_under_the_same_id_gets_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are derived from secrets, so only somebody who saw an id can come with it."""
    ports = free_ports(3)
    group = Group(tmp_path / "g", make_token(2, ports), ports)
    thief = Group(tmp_path / "thief", make_token(2, ports), ports[2:])
    good_id = group.token.id
    monkeypatch.setattr(founding_token.FoundingToken, "id", property(lambda self: good_id))
    async with trio.open_nursery() as nursery:
        thief.start(nursery, 0)
        group.start(nursery, 0)
        await told(thief, 0, "does not prove the token's secret")
        group.start(nursery, 1)
        await group.formed(2)
        await told(thief, 0, "does not prove the token's secret")
        assert not thief.members
        nursery.cancel_scope.cancel()
    group.check(2)


@pytest.mark.trio
async def test_nodes_find_each_other_by_what_multicast_tells_alone(tmp_path: Path) -> None:
    ports = free_ports(3)
    group = Group(tmp_path / "g", make_token(3, []), ports)
    async with trio.open_nursery() as nursery:
        group.start(nursery, 0)
        await told(group, 0, "no other node is known")
        group.start(nursery, 1, found=lambda: [f"127.0.0.1:{ports[0]}", "nonsense"])
        group.start(nursery, 2, found=lambda: [f"127.0.0.1:{ports[0]}"])  # 1 and 2 hear of each other from 0
        await group.formed(3)
        nursery.cancel_scope.cancel()
    group.check(3)


@pytest.mark.trio
async def test_a_late_node_that_asks_one_that_does_not_lead_is_sent_on(tmp_path: Path) -> None:
    ports = free_ports(3)
    group = Group(tmp_path / "g", make_token(2, []), ports)
    async with trio.open_nursery() as nursery:
        for number, other in ((0, 1), (1, 0)):
            group.start(nursery, number, found=lambda other=other: [f"127.0.0.1:{ports[other]}"])
        await group.formed(2)
        [member] = [number for number, one in group.members.items() if not one.node.founder]
        group.start(nursery, 2, found=lambda: [f"127.0.0.1:{ports[member]}"])
        await group.formed(3)
        nursery.cancel_scope.cancel()
    group.check(3)


@pytest.mark.trio
async def test_a_founder_that_is_away_is_waited_for_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies between the decision and the cluster; nobody else founds; it comes back and does."""
    ports = free_ports(3)
    group = Group(tmp_path / "g", make_token(2, ports), ports)
    died: list[int] = []

    def die(files: FoundingFiles, site: int) -> None:
        died.append(next(number for number, driver in group.drivers.items() if driver.core.me == files.node))
        scopes[died[0]].cancel()
        raise Unavailable("it died here")

    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as patch:
            patch.setattr(FoundingFiles, "found", die)
            scopes = {number: group.start(nursery, number) for number in (0, 1)}
            with trio.fail_after(WAIT_S):
                while not died:
                    await trio.sleep(0.02)
            other = 1 - died[0]
            await told(group, other, "founds the cluster; this node joins")
            assert "make a new token" in group.drivers[other].describe()[0]
        group.start(nursery, 2)
        await told(group, 2, "founds the cluster; this node joins")
        assert not group.members
        group.start(nursery, died[0])
        await group.formed(3)
        nursery.cancel_scope.cancel()
    group.check(3)
    assert group.members[died[0]].node.founder


def test_a_vote_that_comes_when_this_node_has_just_joined_is_not_for_it_any_more(tmp_path: Path) -> None:
    """Its promises are gone; storing one more ended the daemon with an error."""
    ports = free_ports(2)
    settings = settings_of(tmp_path / "n", ports[0])
    token = make_token(2, ports)
    driver = FoundingDriver(settings, token, FoundingFiles(settings.state_dir, token), list, wall_ms)
    driver._do([StoreKept(Kept())])
    assert list((settings.state_dir / "founding").rglob("promises.json"))
    identity_path(settings.state_dir).touch()
    shutil.rmtree(settings.state_dir / "founding")
    driver._do([StoreKept(Kept())])
    assert not (settings.state_dir / "founding").exists()


@pytest.mark.parametrize("point", KILLS)
def test_killed_at_each_step_and_started_again(tmp_path: Path, point: str) -> None:
    """Every process that gets there is killed there once; processes of their own, so that only what is on the disk is left."""
    ports = free_ports(3)
    token = make_token(2, ports)
    directories = [tmp_path / f"n{number}" for number in range(3)]
    running = {number: spawn(directories[number], ports[number], token, f"{point}=kill") for number in range(3)}
    deaths = 0
    try:
        end = time.monotonic() + WAIT_S
        while not all((directory / "entered").exists() for directory in directories):
            assert time.monotonic() < end, f"{deaths} deaths, and no cluster"
            for number, process in list(running.items()):
                process.join(0.05)
                if process.exitcode is not None:
                    assert process.exitcode == -signal.SIGKILL
                    deaths += 1
                    running[number] = spawn(directories[number], ports[number], token, "")
    finally:
        for process in running.values():
            process.kill()
            process.join()
    assert deaths, f"nobody came to {point}"
    one_cluster(directories, token)
    assert not any((directory / "pki" / "ca.key").exists() for directory in directories)
    members = [Member(settings_of(directory, port)) for directory, port in zip(directories, ports, strict=True)]
    [founder] = [member for member in members if member.node.founder]
    assert len(founder.ask(ListNodes()).nodes) == 3
    assert founder.ask(ListTokens()).tokens[0].uses_left == 0


@pytest.mark.trio
async def test_a_token_that_has_expired_founds_nothing(tmp_path: Path) -> None:
    ports = free_ports(1)
    token = founding_token.make(1, (), wall_ms() - 1)
    with pytest.raises(Refused, match="expired"):
        await run_node(settings_of(tmp_path / "n", ports[0]), token, print)
    assert not (tmp_path / "n" / "node.json").exists()
