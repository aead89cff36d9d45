"""Founding's decision under loss, reordering, duplicates, crashes between a store and its sends, late nodes: never two, one in the end."""

from __future__ import annotations

import random

import pytest

from awsomefsd.base.errors import ProtocolError
from awsomefsd.cluster.founding.founding import (
    Accept,
    Ballot,
    Decided,
    Founding,
    FoundingMessage,
    Kept,
    PaxosPromise,
    Prepare,
    SendMessage,
    StoreKept,
    Value,
)

STEP_MS = 100
HOUR_MS = 3_600_000


class Holder:
    """One node: its disk, and its core while it runs."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.disk = Kept()
        self.formed = False
        self.core: Founding | None = None

    def start(self) -> None:
        self.core = Founding(self.name, f"ca-of-{self.name}", self.world.quorum, self.disk)
        for other in self.world.nodes.values():
            if other is not self and other.core is not None:
                self.world.link(self, other)

    def crash(self) -> None:
        self.core = None
        for other in self.world.nodes.values():
            if other.core is not None and other is not self:
                other.core.part(self.name)

    def do(self, effects: list[StoreKept | SendMessage]) -> None:
        """Effects in order; a crash may come before any of them."""
        for effect in effects:
            if self.world.dice.random() < self.world.crash_rate:
                self.crash()
                return
            if isinstance(effect, StoreKept):
                self.disk = effect.kept
                if effect.kept.decided is not None and self.world.loss and self.world.dice.random() < 0.7:
                    self.crash()  # before anybody hears of it
                    return
            else:
                self.world.send(self.name, effect)
        decided = self.disk.decided
        if decided is not None and decided.founder == self.name:
            self.formed = True


class World:
    def __init__(self, seed: int, quorum: int, total: int) -> None:
        self.dice = random.Random(seed)
        self.quorum = quorum
        self.crash_rate = self.loss = 0.0
        self.now = 0
        self.delay_ms = self.dice.choice((900, 900, 2_500))
        self.wire: list[tuple[int, str, str, FoundingMessage]] = []
        names = [f"node-{letter}" for letter in "abcdefghi"[:total]]
        self.dice.shuffle(names)
        self.nodes = {name: Holder(self, name) for name in names}

    def link(self, one: Holder, other: Holder) -> None:
        for near, far in ((one, other), (other, one)):
            if near.core is not None:
                near.do(near.core.meet(far.name))

    def send(self, sender: str, effect: SendMessage) -> None:
        for _ in range(2 if self.dice.random() < self.loss / 2 else 1):
            if self.dice.random() >= self.loss:
                delay = self.dice.randrange(1, self.delay_ms if self.loss else 60)
                self.wire.append((self.now + delay, sender, effect.to, effect.message))

    def step(self) -> None:
        self.now += STEP_MS
        due = [letter for letter in self.wire if letter[0] <= self.now]
        self.wire = [letter for letter in self.wire if letter[0] > self.now]
        self.dice.shuffle(due)
        for _, sender, to, message in due:
            holder = self.nodes[to]
            if holder.core is not None:
                holder.do(holder.core.receive(sender, message, self.now, self.dice.random()))
        for holder in self.nodes.values():
            if holder.core is not None:
                holder.do(holder.core.tick(self.now, self.dice.random()))
        self.check()

    def check(self) -> None:
        assert len({holder.disk.decided for holder in self.nodes.values()} - {None}) <= 1
        assert sum(holder.formed for holder in self.nodes.values()) <= 1

    def trouble(self) -> None:
        """Crashes, restarts and links that come and go."""
        for holder in self.nodes.values():
            if holder.core is None:
                if self.dice.random() < 0.01:
                    holder.start()
            elif self.dice.random() < 0.003:
                holder.crash()
            elif self.dice.random() < 0.1:
                other = self.dice.choice(list(self.nodes.values()))
                if other is not holder and other.core is not None:
                    if self.dice.random() < 0.3:
                        holder.core.part(other.name)
                    else:
                        self.link(holder, other)

    def heal(self, alive: list[str]) -> None:
        self.loss = self.crash_rate = 0.0
        self.wire.clear()
        for name, holder in self.nodes.items():
            holder.crash()
            if name in alive:
                holder.start()

    def until_decided(self, names: list[str], within_ms: int) -> None:
        end = self.now + within_ms
        while any(self.nodes[name].disk.decided is None for name in names):
            assert self.now < end, "a quorum is there and nothing was decided"
            self.step()


def test_two_hundred_troubled_foundings_decide_once(seed: int) -> None:
    for number in range(200):
        chooser = random.Random(f"{seed} {number}")
        quorum = chooser.choice((1, 2, 2, 2, 2, 3, 3, 4))
        total = 2 * quorum - 1 if chooser.random() < 0.7 else chooser.randrange(quorum, 2 * quorum)
        world = World(chooser.randrange(1 << 60), quorum, total)
        world.loss, world.crash_rate = chooser.choice((0.1, 0.2, 0.4)), chooser.choice((0.0, 0.02, 0.1))
        for holder in world.nodes.values():
            if chooser.random() < 0.8:
                holder.start()
        for _ in range(chooser.randrange(1_000)):
            world.trouble()
            world.step()
        alive = chooser.sample(sorted(world.nodes), chooser.randrange(quorum, total + 1))
        world.heal(alive)
        world.until_decided(alive, 120_000)
        before = world.nodes[alive[0]].disk.decided
        world.now += HOUR_MS
        world.heal(sorted(world.nodes))  # those that were away come an hour later
        world.until_decided(sorted(world.nodes), 120_000)
        assert {holder.disk.decided for holder in world.nodes.values()} == {before}
        world.step()
        assert sum(holder.formed for holder in world.nodes.values()) == 1, f"run {number}"


def test_all_at_the_same_instant_decide_in_one_attempt() -> None:
    world = World(1, 3, 3)
    for holder in world.nodes.values():
        holder.start()
    world.until_decided(sorted(world.nodes), 1_000)
    assert {holder.disk.promised.number for holder in world.nodes.values()} == {1}


def test_fewer_than_the_quorum_decide_nothing() -> None:
    world = World(2, 3, 5)
    for name in sorted(world.nodes)[:2]:
        world.nodes[name].start()
    for _ in range(1_000):
        world.step()
    assert all(holder.disk == Kept() for holder in world.nodes.values())


def test_nothing_is_promised_before_it_is_stored() -> None:
    core = Founding("b", "ca-b", 2, Kept())
    stored, sent = core.receive("a", Prepare(Ballot(4, "a")), 0, 0.5)
    assert stored == StoreKept(Kept(promised=Ballot(4, "a"))) and sent == SendMessage("a", PaxosPromise(Ballot(4, "a"), Ballot(), None))
    again = Founding("b", "ca-b", 2, stored.kept)
    assert not any(isinstance(effect, StoreKept) for effect in again.receive("c", Accept(Ballot(3, "c"), Value("c", "ca-c")), 0, 0.5))


def test_an_accepted_value_survives_its_proposer() -> None:
    """The old founder is gone after one acceptor stored its value; whoever proposes next must take it."""
    accepted = Kept(promised=Ballot(1, "a"), accepted=Ballot(1, "a"), value=Value("a", "ca-a"))
    core = Founding("b", "ca-b", 2, Kept())
    core.meet("c")
    effects = core.tick(0, 0.5)
    ballot = next(effect.message.ballot for effect in effects if isinstance(effect, SendMessage) and isinstance(effect.message, Prepare))
    effects = core.receive("c", PaxosPromise(ballot, accepted.accepted, accepted.value), 0, 0.5)
    assert SendMessage("c", Accept(ballot, Value("a", "ca-a"))) in effects


def test_two_decisions_are_never_taken_silently() -> None:
    core = Founding("b", "ca-b", 2, Kept(decided=Value("a", "ca-a")))
    with pytest.raises(ProtocolError, match="two founders"):
        core.receive("c", Decided(Value("c", "ca-c")), 0, 0.5)
