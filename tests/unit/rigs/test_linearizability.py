"""The judge of histories is judged: by examples that are right or wrong by definition, and by random ones against plain trying."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.rigs.linearizability import DIRECTORY, LOCK, OPEN, REGISTER, Model, Operation, Verdict, check, check_all

GOOD, BAD = Verdict.LINEARIZABLE, Verdict.BROKEN


def history(*rows: tuple) -> list[Operation]:
    """(call, result, called, returned) of one object; a return of OPEN has no result."""
    return [Operation("x", number, *row) for number, row in enumerate(rows)]


REGISTERS = {
    "read after write": (GOOD, [(("write", 1), None, 0, 1), (("read",), 1, 2, 3)]),
    "stale read": (BAD, [(("write", 1), None, 0, 1), (("write", 2), None, 2, 3), (("read",), 1, 4, 5)]),
    "read of a lost write": (BAD, [(("write", 1), None, 0, 1), (("read",), None, 2, 3)]),
    "old value during the write": (GOOD, [(("write", 1), None, 0, 9), (("read",), None, 1, 2), (("read",), 1, 3, 4)]),
    "back in time during the write": (BAD, [(("write", 1), None, 0, 9), (("read",), 1, 1, 2), (("read",), None, 3, 4)]),
    "open write that shows late": (GOOD, [(("write", 1), None, 0, OPEN), (("read",), None, 1, 2), (("read",), 1, 50, 51)]),
    "open write that never shows": (GOOD, [(("write", 1), None, 0, OPEN), (("read",), None, 50, 51)]),
    "open write that shows twice": (
        BAD,
        [(("write", 1), None, 0, OPEN), (("read",), 1, 1, 2), (("write", 2), None, 3, 4), (("read",), 2, 5, 6), (("read",), 1, 7, 8)],
    ),
    "open write that shows before it began": (BAD, [(("read",), 1, 0, 1), (("write", 1), None, 2, OPEN)]),
    "value from nowhere": (BAD, [(("read",), 7, 0, 1)]),
    "touching operations may overlap": (GOOD, [(("read",), 1, 0, 5), (("write", 1), None, 5, 6)]),
    "two orders, only one fits": (
        GOOD,
        [(("write", 1), None, 0, 5), (("write", 2), None, 0, 5), (("read",), 1, 6, 7), (("read",), 1, 8, 9)],
    ),
    "two readers disagree on the order": (
        BAD,
        [(("write", 1), None, 0, 5), (("write", 2), None, 0, 5), (("read",), 1, 6, 7), (("read",), 2, 8, 9)],
    ),
}
LOCKS = {
    "one after the other": (GOOD, [(("lock", 1), "granted", 0, 1), (("unlock", 1), None, 2, 3), (("lock", 2), "granted", 4, 5)]),
    "held by two": (BAD, [(("lock", 1), "granted", 0, 1), (("lock", 2), "granted", 2, 3)]),
    "refused though free": (BAD, [(("lock", 1), "granted", 0, 1), (("unlock", 1), None, 2, 3), (("lock", 2), "refused", 4, 5)]),
    "refused during the release": (GOOD, [(("lock", 1), "granted", 0, 1), (("unlock", 1), None, 2, 6), (("lock", 2), "refused", 3, 4)]),
    "a release of somebody else frees nothing": (
        BAD,
        [(("lock", 1), "granted", 0, 1), (("unlock", 2), None, 2, 3), (("lock", 3), "granted", 4, 5)],
    ),
    "an open release may free it": (
        GOOD,
        [(("lock", 1), "granted", 0, 1), (("unlock", 1), None, 2, OPEN), (("lock", 2), "granted", 90, 91)],
    ),
}
A, B = b"a", b"b"
DIRECTORIES = {
    "made twice": (BAD, [(("create", A, 1), "ok", 0, 1), (("create", A, 2), "ok", 2, 3)]),
    "its own creation is told to exist": (BAD, [(("create", A, 1), "EEXIST", 0, 1), (("lookup", A), (1, 1), 2, 3)]),
    "removed and lost": (GOOD, [(("create", A, 1), "ok", 0, 1), (("unlink", A), "ok", 2, 3), (("lookup", A), "ENOENT", 4, 5)]),
    "removed by two": (BAD, [(("create", A, 1), "ok", 0, 1), (("unlink", A), "ok", 2, 5), (("unlink", A), "ok", 2, 5)]),
    "renamed twice": (BAD, [(("create", A, 1), "ok", 0, 1), (("rename", A, B, ""), "ENOENT", 2, 3), (("lookup", B), (1, 1), 4, 5)]),
    "seen under both names": (
        BAD,
        [(("create", A, 1), "ok", 0, 1), (("rename", A, B, ""), "ok", 2, 3), (("list",), frozenset({(A, 1), (B, 1)}), 4, 5)],
    ),
    "seen under no name": (BAD, [(("create", A, 1), "ok", 0, 1), (("rename", A, B, ""), "ok", 2, 9), (("list",), frozenset(), 3, 4)]),
    "links are counted": (
        GOOD,
        [(("create", A, 1), "ok", 0, 1), (("link", 1, B), ("ok", 2), 2, 3), (("unlink", A), "ok", 4, 5), (("lookup", B), (1, 1), 6, 7)],
    ),
    "a link that was done twice": (BAD, [(("create", A, 1), "ok", 0, 1), (("link", 1, B), "EEXIST", 2, 3)]),
    "a link to what is gone": (GOOD, [(("create", A, 1), "ok", 0, 1), (("unlink", A), "ok", 2, 3), (("link", 1, B), "ENOENT", 4, 5)]),
    "replaced": (
        GOOD,
        [(("create", A, 1), "ok", 0, 1), (("create", B, 2), "ok", 2, 3), (("rename", A, B, ""), "ok", 4, 5), (("lookup", B), (1, 1), 6, 7)],
    ),
    "not replaced": (
        GOOD,
        [(("create", A, 1), "ok", 0, 1), (("create", B, 2), "ok", 2, 3), (("rename", A, B, "noreplace"), "EEXIST", 4, 5)],
    ),
    "exchanged": (
        GOOD,
        [
            (("create", A, 1), "ok", 0, 1),
            (("create", B, 2), "ok", 2, 3),
            (("rename", A, B, "exchange"), "ok", 4, 5),
            (("list",), frozenset({(A, 2), (B, 1)}), 6, 7),
        ],
    ),
    "two names of one inode: rename does nothing": (
        GOOD,
        [
            (("create", A, 1), "ok", 0, 1),
            (("link", 1, B), ("ok", 2), 2, 3),
            (("rename", A, B, ""), "ok", 4, 5),
            (("lookup", A), (1, 2), 6, 7),
        ],
    ),
}
CASES = [
    pytest.param(model, *case, id=name)
    for model, cases in ((REGISTER, REGISTERS), (LOCK, LOCKS), (DIRECTORY, DIRECTORIES))
    for name, case in cases.items()
]


@pytest.mark.parametrize(("model", "verdict", "rows"), CASES)
def test_examples(model: Model, verdict: Verdict, rows: list[tuple]) -> None:
    found = check(model, history(*rows))
    assert found.verdict is verdict, found


def by_trying(model: Model, rows: list[Operation]) -> bool:
    """The definition: some order that respects time gives every result."""
    for order in itertools.permutations(rows):
        if any(late.returned < early.called for early, late in itertools.combinations(order, 2)):
            continue
        states = {model.initial}
        for row in order:
            states = {
                after for state in states for result, after in model.step(state, row.call) if row.returned == OPEN or result == row.result
            }
        if states:
            return True
    return False


def random_call(dice: random.Random, model: Model, client: int) -> tuple:
    if model is REGISTER:
        return dice.choice([("read",), ("write", dice.randrange(3))])
    if model is LOCK:
        return dice.choice([("lock", client % 3), ("unlock", client % 3)])
    name, other, inode = dice.choice([A, B]), dice.choice([A, B]), dice.randrange(1, 3)
    how = dice.choice(["", "noreplace", "exchange"])
    return dice.choice(
        [("create", name, 10 + client), ("unlink", name), ("lookup", name), ("list",), ("link", inode, name), ("rename", name, other, how)]
    )


def executed(dice: random.Random, model: Model, count: int) -> list[Operation]:
    """What a right system may show: each operation happens at one moment inside its time."""
    state, rows = model.initial, []
    for moment in range(count):
        call = random_call(dice, model, moment)
        result, state = dice.choice(model.step(state, call))
        opened = dice.random() < 0.15
        rows.append(
            Operation(
                "x", moment, call, None if opened else result, moment - dice.random() * 3, OPEN if opened else moment + dice.random() * 3
            )
        )
    return rows


@pytest.mark.parametrize("model", [REGISTER, LOCK, DIRECTORY])
def test_right_and_spoiled_histories_against_the_definition(model: Model, seed: int) -> None:
    dice = random.Random(seed)
    broken = 0
    for _ in range(150):
        rows = executed(dice, model, 6)
        assert check(model, rows).verdict is GOOD, rows
        row, other = dice.sample(rows, 2)
        spoiled = [row._replace(result=other.result) if each is row else each for each in rows]
        wanted = by_trying(model, spoiled)
        broken += not wanted
        assert (check(model, spoiled).verdict is GOOD) is wanted, spoiled
    assert broken > 5


def test_long_histories_are_quick_and_objects_are_apart(seed: int) -> None:
    rows = executed(random.Random(seed), REGISTER, 8_000)
    rows = [
        row._replace(object=row.client % 4, result=row.result, returned=row.called + 3)
        for row in rows
        if row.returned != OPEN and row.call[0] == "write"
    ]
    rows.append(Operation(1, 0, ("read",), "nobody wrote this", 1e6, 1e6 + 1))
    verdicts = {found.object: found.verdict for found in check_all(lambda which: REGISTER, rows)}
    assert verdicts == {0: GOOD, 1: BAD, 2: GOOD, 3: GOOD}


def test_too_hard_is_unknown() -> None:
    rows = [Operation("x", number, ("write", number), None, 0, OPEN) for number in range(30)]
    rows.append(Operation("x", 99, ("read",), "no", 1, 2))
    assert check(REGISTER, rows, budget=1_000).verdict is Verdict.UNKNOWN
