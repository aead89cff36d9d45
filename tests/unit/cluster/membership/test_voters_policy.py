"""Who shall vote: cases one by one, and a model of a cluster in which random things happen and the policy must bring everything to rest."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from awsomefsd.cluster.membership.voters_policy import (
    Carry,
    Grow,
    Transfer,
    View,
    VoterCandidate,
    VoterChange,
    desired,
    next_step,
    voters_wanted,
)
from awsomefsd.meta.api.messages.members import MemberInfo, Members

REPLACE_MS = 600_000
DEAD_MS = 10_000_000


def member(node: str, *, voter: bool = True, silent_ms: int = 0, near: bool = True, journal: str = "1") -> MemberInfo:
    return MemberInfo(node, journal, voter, "", 0, silent_ms, near)


def view(
    nodes: list[VoterCandidate], members: list[MemberInfo], leader: str = "a", announced: str = "", index: int = 9, joint: bool = False
) -> View:
    told = Members(index, joint, leader, members, [(node, "1") for node in announced])
    return View(nodes, told, REPLACE_MS)


def carrying(names: str, **fields: object) -> list[VoterCandidate]:
    return [VoterCandidate(name, carries=True, **fields) for name in names]  # type: ignore[arg-type]


def idle(names: str, **fields: object) -> list[VoterCandidate]:
    return [VoterCandidate(name, **fields) for name in names]  # type: ignore[arg-type]


def all_voters(names: str, **fields: object) -> list[MemberInfo]:
    return [member(name, **fields) for name in names]  # type: ignore[arg-type]


@pytest.mark.parametrize(("nodes", "voters"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (100, 5)])
def test_how_many(nodes: int, voters: int) -> None:
    assert voters_wanted(nodes) == voters


def test_one_stays_alone_until_there_are_three_healthy_nodes() -> None:
    alone = [member("a")]
    assert next_step(view(carrying("a") + idle("b"), alone, index=0)) is None
    assert next_step(view(carrying("a") + idle("bc"), alone, index=0)) == Grow()
    assert next_step(view(carrying("a") + idle("b") + idle("c", role="client"), alone, index=0)) is None
    assert next_step(view(carrying("a") + idle("b") + idle("c", state="cordoned"), alone, index=0)) is None
    assert next_step(view(idle("a"), alone, index=0)) == Carry("a", True), "the row of the first node is brought into line"


def test_two_are_told_to_carry_join_and_are_promoted_together() -> None:
    rows = carrying("a") + idle("bc")
    assert next_step(view(rows, [member("a")])) == Carry("b", True)
    assert next_step(view(carrying("ab") + idle("c"), [member("a")])) == Carry("c", True)
    rows = carrying("abc")
    assert next_step(view(rows, [member("a")])) is None, "nobody has announced a journal yet"
    assert next_step(view(rows, [member("a")], announced="cb")) == VoterChange(add="c")
    learner = member("c", voter=False)
    assert next_step(view(rows, [member("a"), learner], announced="b")) == VoterChange(add="b")
    assert next_step(view(rows, [member("a"), learner])) is None, "two voters would be worse than one"
    both = [member("a"), learner, member("b", voter=False, near=False)]
    assert next_step(view(rows, both)) is None, "one of them has not caught up"
    both[2] = member("b", voter=False)
    assert next_step(view(rows, both)) == VoterChange(promote=("b", "c"))
    assert next_step(view(rows, all_voters("abc"))) is None
    assert next_step(view(rows, both, joint=True)) is None


def test_zones_are_spread() -> None:
    rows = [
        VoterCandidate("a", zone="x", carries=True),
        VoterCandidate("b", zone="x"),
        VoterCandidate("c", zone="y"),
        VoterCandidate("d", zone="z"),
    ]
    assert desired(view(rows, [member("a")])) == {"a", "c", "d"}
    crowded = [VoterCandidate(name, zone="x", carries=True) for name in "abc"] + [VoterCandidate("d", zone="y", carries=True)]
    assert len(desired(view(crowded, all_voters("abc"))) & {"a", "d"}) == 2, "the leader stays, one of the others makes room"
    assert desired(view(crowded[:3] + idle("d"), all_voters("abc"))) == {"a", "c", "d"}, "a node without a label is a zone of its own"
    balanced = [VoterCandidate(name, zone=zone, carries=True) for name, zone in zip("abcd", "xyzz", strict=True)]
    assert desired(view(balanced, all_voters("abc"))) == {"a", "b", "c"}, "nothing is gained by another exchange"


def test_one_that_is_gone_is_replaced_after_a_while_if_there_is_another() -> None:
    gone = [member("a"), member("b"), member("c", silent_ms=REPLACE_MS)]
    late = [member("a"), member("b"), member("c", silent_ms=REPLACE_MS - 1)]
    assert next_step(view(carrying("abc") + idle("d"), late)) is None
    assert next_step(view(carrying("abc"), gone)) is None, "there is no other"
    assert next_step(view(carrying("abc") + idle("d", silent_ms=DEAD_MS), gone)) is None, "the other one is not well"
    assert next_step(view(carrying("abc") + idle("d"), gone)) == Carry("d", True)
    assert next_step(view(carrying("abcd"), [*gone, member("d", voter=False)])) == VoterChange(promote=("d",), remove=("c",))
    assert next_step(view(carrying("abcd"), all_voters("abd"))) == Carry("c", False)


def test_a_wiped_one_comes_back_under_its_new_journal() -> None:
    wiped = [member("a"), member("b"), member("c", silent_ms=60_000, journal="0")]
    assert next_step(view(carrying("abc"), wiped, announced="c")) == VoterChange(add="c")
    assert next_step(view(carrying("abc"), [member("a"), member("b"), member("c", voter=False)])) == VoterChange(promote=("c",))
    both = [member("a"), member("b", silent_ms=60_000), member("c", silent_ms=60_000, journal="0")]
    assert next_step(view(carrying("abc"), both, announced="c")) is None, "one of two would be dead"


def test_a_cordoned_one_goes_when_another_can_take_its_place() -> None:
    for state in ("cordoned", "draining"):
        rows = carrying("ab") + carrying("c", state=state)
        assert next_step(view(rows, all_voters("abc"))) is None
        assert next_step(view(rows + idle("d"), all_voters("abc"))) == Carry("d", True)
        rows += carrying("d")
        assert next_step(view(rows, [*all_voters("abc"), member("d", voter=False)])) == VoterChange(promote=("d",), remove=("c",))


def test_a_leader_that_is_to_go_hands_over_first() -> None:
    rows = carrying("a", state="draining") + carrying("bcd")
    assert next_step(view(rows, [*all_voters("abc"), member("d", voter=False)])) == Transfer("b")
    rows = carrying("a", state="removed") + carrying("bc")
    assert next_step(view(rows, all_voters("abc"))) == Transfer("b")
    assert next_step(view(rows, all_voters("abc"), leader="b")) == VoterChange(remove=("a",))


def test_a_removed_one_goes_at_once() -> None:
    rows = carrying("ab") + carrying("c", state="removed")
    assert next_step(view(rows, all_voters("abc"))) == VoterChange(remove=("c",))
    assert next_step(view(carrying("ab"), all_voters("abc"))) == VoterChange(remove=("c",)), "nobody knows it"
    assert next_step(view(carrying("ab"), all_voters("ab"))) == VoterChange(remove=("b",)), "two nodes have one voter"
    assert next_step(view(carrying("ab"), [member("a")])) == Carry("b", False)
    dead = [member("a"), member("b", silent_ms=60_000), member("c")]
    assert next_step(view(rows, dead)) == VoterChange(remove=("b", "c")), "then a and b would need each other, and b is dead"
    four = carrying("abd") + carrying("c", state="removed")
    dead = [member("a"), member("b", silent_ms=60_000), member("c"), member("d", silent_ms=60_000)]
    assert next_step(view(four, dead)) is None, "two of three would be dead"
    dead[1] = member("b", silent_ms=DEAD_MS)
    assert next_step(view(four, dead)) is None
    dead[3] = member("d", silent_ms=DEAD_MS)
    assert next_step(view(four, dead)) == VoterChange(remove=("b", "c", "d")), "dead for long, they go too"


def test_a_leader_that_drains_is_not_taken_out_with_those_that_are_gone() -> None:
    """It is here and leads the change; it hands over first, in a step of its own."""
    rows = [*carrying("a", state="draining"), *carrying("bcd"), *carrying("e", state="removed")]
    members = [*all_voters("ab"), *all_voters("cd", silent_ms=DEAD_MS), member("e", silent_ms=DEAD_MS)]
    assert next_step(view(rows, members)) == VoterChange(remove=("c", "d", "e"))


def test_the_only_voter_of_two_nodes_can_be_drained() -> None:
    rows = carrying("a", state="draining") + idle("b")
    assert next_step(view(rows, [member("a")], index=0)) == Grow()
    assert next_step(view(rows, [member("a")])) == Carry("b", True)
    rows = carrying("a", state="draining") + carrying("b")
    assert next_step(view(rows, [member("a")], announced="b")) == VoterChange(add="b")
    assert next_step(view(rows, [member("a"), member("b", voter=False)])) == VoterChange(promote=("b",))
    assert next_step(view(rows, all_voters("ab"))) == Transfer("b")
    assert next_step(view(rows, all_voters("ab"), leader="b")) == VoterChange(remove=("a",))
    assert next_step(view(rows, [member("b")], leader="b")) == Carry("a", False)


def test_a_learner_that_is_not_wanted_any_more_goes() -> None:
    rows = carrying("abc") + carrying("d", state="draining")
    assert next_step(view(rows, [*all_voters("abc"), member("d", voter=False)])) == VoterChange(remove=("d",))


# --- a model ----------------------------------------------------------------------------------------------------------------
@dataclass
class Model:
    """A cluster that does what it is told.  Journals have numbers; a node that carries runs one."""

    dice: random.Random
    rows: dict[str, VoterCandidate] = field(default_factory=dict)
    dead: dict[str, int] = field(default_factory=dict)  # node → for so many ms
    journal: dict[str, int] = field(default_factory=dict)
    members: dict[str, tuple[int, bool]] = field(default_factory=dict)  # node → journal, voter
    alone: bool = True
    leader: str = "n0"
    steps: int = 0

    def begin(self) -> None:
        self.rows["n0"] = VoterCandidate("n0", carries=True)
        self.journal["n0"] = 1
        self.members["n0"] = (1, True)

    def lives(self, node: str) -> bool:
        member = self.members.get(node)
        return node not in self.dead and member is not None and self.journal.get(node) == member[0]

    def voters(self) -> set[str]:
        return {node for node, (_, voter) in self.members.items() if voter}

    def quorum(self) -> bool:
        return sum(map(self.lives, self.voters())) * 2 > len(self.voters())

    def elect(self) -> None:
        if not (self.leader in self.voters() and self.lives(self.leader)):
            self.leader = min(node for node in self.voters() if self.lives(node))

    def look(self) -> View:
        self.elect()
        infos = [
            MemberInfo(node, str(number), voter, "", 0, 0 if self.lives(node) else self.dead.get(node, 60_000), self.lives(node))
            for node, (number, voter) in sorted(self.members.items())
        ]
        wanting = [
            (node, str(number))
            for node, number in sorted(self.journal.items())
            if node not in self.dead and self.rows[node].carries and self.members.get(node, (0,))[0] != number
        ]
        rows = [row._replace(silent_ms=self.dead.get(row.node, 0)) for row in self.rows.values()]
        return View(rows, Members(0 if self.alone else 7, False, self.leader, infos, wanting), REPLACE_MS)

    def step(self) -> bool:
        step = next_step(self.look())
        if step is None:
            return False
        self.steps += 1
        if isinstance(step, Grow):
            assert self.alone
            self.alone = False
        elif isinstance(step, Carry):
            row = self.rows[step.node]
            assert row.carries != step.carries
            self.rows[step.node] = row._replace(carries=step.carries)
            if step.carries:
                self.journal.setdefault(step.node, self.dice.getrandbits(60))
            else:
                assert step.node not in self.members, "who is a member goes on carrying"
                self.journal.pop(step.node, None)
        elif isinstance(step, Transfer):
            assert step.node != self.leader and self.lives(step.node) and step.node in self.voters()
            self.leader = step.node
        else:
            self.change(step)
        return True

    def change(self, step: VoterChange) -> None:
        assert not self.alone
        before, lived = self.voters(), self.quorum()
        for node in step.remove:
            del self.members[node]
        if step.add:
            self.members[step.add] = (self.journal[step.add], False)
        for node in step.promote:
            number, voter = self.members[node]
            assert not voter and self.lives(node)
            self.members[node] = (number, True)
        assert lived and self.quorum(), f"after {step} from {before} nothing could be committed"
        assert self.leader in self.voters()

    def happen(self) -> None:
        """One thing, none of which takes the majority away for good."""
        dice = self.dice
        node = dice.choice(sorted(self.rows))
        kind = dice.choice(["join", "join", "die", "live", "wipe", "cordon", "uncordon", "remove", "time"])
        row = self.rows[node]
        if kind == "join" and len(self.rows) < 9:
            name = f"n{len(self.rows)}"
            self.rows[name] = VoterCandidate(name, zone=dice.choice(["", "x", "y", "z"]), joined_ms=len(self.rows))
        elif kind == "live":
            self.dead.pop(node, None)
        elif kind == "time":
            self.dead = {name: ms + dice.choice([1_000, DEAD_MS]) for name, ms in self.dead.items()}
        elif kind in ("cordon", "uncordon") and row.state != "removed":
            self.rows[node] = row._replace(state="active" if kind == "uncordon" else dice.choice(["cordoned", "draining"]))
        elif kind == "remove" and sum(one.state == "active" for one in self.rows.values()) > 2 and row.state != "removed":
            self.rows[node] = row._replace(state="removed", carries=False)
        elif kind in ("die", "wipe"):
            self.dead[node] = 5_000
            if not self.quorum() or self.alone:
                del self.dead[node]
            elif kind == "wipe":
                del self.dead[node]
                old = self.journal.get(node)
                if old is not None:
                    self.journal[node] = self.dice.getrandbits(60)
                    if not self.quorum():
                        self.journal[node] = old


def test_whatever_happens_it_comes_to_rest_and_never_loses_its_majority(seed: int) -> None:
    for number in range(300):
        model = Model(random.Random(f"{seed}/{number}"))
        model.begin()
        for _ in range(40):
            model.happen()
            for _ in range(model.dice.randrange(4)):
                model.step()
        model.dead.clear()
        for _ in range(200):
            if not model.step():
                break
        else:
            raise AssertionError(f"seed {seed}/{number}: it never rests: {next_step(model.look())}")
        active = [row for row in model.rows.values() if row.state == "active"]
        held = [row for row in model.rows.values() if row.state in ("cordoned", "draining") and row.node in model.voters()]
        assert len(model.voters()) == voters_wanted(len(active) + len(held)), f"{seed}/{number}"
        assert {row.node for row in model.rows.values() if row.carries} == set(model.members) == model.voters()
        assert not any(model.rows[node].state == "removed" for node in model.voters() - {model.leader})
        assert len(held) == 0 or len(active) < voters_wanted(len(active) + len(held)), "a cordoned one votes only where it must"
