"""Is a history linearizable?  Wing and Gong's search with partitioning: each object for itself, each cut where nothing was under way.

A history is what clients saw: operations with the moments of their call and return, by one clock.  It is linearizable if each operation can
be given one moment between the two such that, executed in that order, a sequential model gives every result that was seen.  An operation
without a result may have happened at any moment after its call, or never: it stays open for ever, and what it would have answered is free.

The search goes through calls and returns in order of time and keeps every *configuration* that explains what was seen so far: the model's
state, and which of the operations under way have happened already.  A return keeps those in which that operation has happened, after
letting the others happen before it in every order.  No configuration left: not linearizable, and that return is where it shows.  What with
its result never changes a state (reads, refusals) happens at once where it fits: it can be of no use later.  This is Lowe's form of the
search ("Testing for linearizability", 2017); its memory is bounded by the concurrency, not by the length.  A budget bounds its time; what
exceeds that is UNKNOWN, neither proven nor refuted, and the run that asked is void.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

OPEN = math.inf  # the return of an operation without a result
BUDGET = 2_000_000  # configurations looked at, of one object


class Operation(NamedTuple):
    """`result` None with `returned` OPEN: nobody knows."""

    object: Hashable
    client: int
    call: tuple[Any, ...]  # name and arguments, as the model knows them
    result: Any
    called: float
    returned: float


class Model(NamedTuple):
    """`step(state, call)` → possible (result, state after): several where more than one answer is right.

    What is in `idle`, a name of a call or a result, never changes any state.  (An unlock that changed nothing here is not idle: it may be
    the one that is needed later.)
    """

    initial: Hashable
    step: Callable[[Any, tuple[Any, ...]], Sequence[tuple[Any, Hashable]]]
    idle: frozenset[str]


class Verdict(enum.Enum):
    LINEARIZABLE = "linearizable"
    BROKEN = "not linearizable"
    UNKNOWN = "unknown: the search was given up"


class Finding(NamedTuple):
    object: Hashable
    verdict: Verdict
    detail: str = ""


Configuration = tuple[Hashable, frozenset[int]]


def _name(result: Any) -> str:
    return result if isinstance(result, str) else ""


class _Search:
    def __init__(self, model: Model, history: Sequence[Operation], budget: int) -> None:
        self._model = model
        self._history = history
        self.budget = budget
        self._pending: set[int] = set()
        idle = model.idle
        self._idle = {n for n, row in enumerate(history) if row.returned != OPEN and (row.call[0] in idle or _name(row.result) in idle)}

    def run(self) -> Finding:
        at = self._history[0].object
        configurations: set[Configuration] = {(self._model.initial, frozenset())}
        moments = [(row.called, 1, number) for number, row in enumerate(self._history)]
        moments += [(row.returned, 0, number) for number, row in enumerate(self._history) if row.returned != OPEN]
        for _, begins, number in sorted(moments, key=lambda row: (row[0], -row[1], row[2])):  # touching ones overlap: the weaker claim
            if begins:
                self._pending.add(number)
                configurations = {self._settle(one) for one in configurations}
                continue
            before = configurations
            configurations = self._let_happen(configurations, number)
            if self.budget < 0:
                return Finding(at, Verdict.UNKNOWN, f"{len(before)} configurations, {len(self._pending)} under way")
            if not configurations:
                return Finding(at, Verdict.BROKEN, self._explain(number, before))
            self._pending.discard(number)
        return Finding(at, Verdict.LINEARIZABLE)

    def _outcomes(self, state: Hashable, number: int) -> list[Hashable]:
        """The states after this operation, as far as they fit what was seen."""
        row = self._history[number]
        return [after for result, after in self._model.step(state, row.call) if row.returned == OPEN or result == row.result]

    def _settle(self, configuration: Configuration) -> Configuration:
        """All under way that are idle and fit have happened."""
        state, happened = configuration
        more = [number for number in self._pending - happened if number in self._idle and self._outcomes(state, number)]
        return (state, happened.union(more)) if more else configuration

    def _let_happen(self, configurations: Iterable[Configuration], wanted: int) -> set[Configuration]:
        """Every configuration in which `wanted` has happened, and is spoken of no more."""
        done: set[Configuration] = set()
        seen = set(configurations)
        todo = list(seen)
        while todo:
            state, happened = todo.pop()
            self.budget -= 1
            if self.budget < 0:
                return done
            if wanted in happened:
                done.add((state, happened - {wanted}))
                continue
            for number in self._pending - happened:
                for after in self._outcomes(state, number):
                    following = self._settle((after, happened | {number}))
                    if following not in seen:
                        seen.add(following)
                        todo.append(following)
        return done

    def _explain(self, number: int, before: set[Configuration]) -> str:
        row = self._history[number]
        states = sorted({repr(state) for state, _ in before})[:3]
        beside = [self._history[other] for other in sorted(self._pending - {number})]
        earlier = sorted((each for each in self._history if each.returned <= row.called), key=lambda each: each.returned)[-6:]
        rows = [f"{row}", f"possible states before: {'; '.join(states)}", *(f"under way: {each}" for each in beside[:8])]
        return "\n  ".join(rows + [f"before: {each}" for each in earlier])


def check(model: Model, history: Sequence[Operation], budget: int = BUDGET) -> Finding:
    """One object's history."""
    return _Search(model, history, budget).run()


def check_all(model_of: Callable[[Hashable], Model], history: Iterable[Operation], budget: int = BUDGET) -> list[Finding]:
    """Every object for itself: a history is linearizable if each of its objects' is (Herlihy and Wing)."""
    parts: dict[Hashable, list[Operation]] = {}
    for row in history:
        parts.setdefault(row.object, []).append(row)
    return [check(model_of(which), rows, budget) for which, rows in parts.items()]


# --- models ---------------------------------------------------------------------------------------------------------------------
def _register(value: Any, call: tuple[Any, ...]) -> list[tuple[Any, Hashable]]:
    return [(None, call[1])] if call[0] == "write" else [(value, value)]


REGISTER = Model(None, _register, frozenset({"read"}))  # ("write", value) → None; ("read",) → value


def _lock(holder: Any, call: tuple[Any, ...]) -> list[tuple[Any, Hashable]]:
    """Of one exclusive lock; taking it again is granted, releasing what one has not is no error (as fcntl)."""
    kind, client = call
    if kind == "lock":
        return [("granted", client)] if holder in (None, client) else [("refused", holder)]
    return [(None, None if holder == client else holder)]


LOCK = Model(None, _lock, frozenset({"refused"}))  # ("lock", client) → "granted" or "refused"; ("unlock", client) → None

Names = frozenset[tuple[bytes, int]]  # (name, inode)


def _directory(names: Names, call: tuple[Any, ...]) -> list[tuple[Any, Hashable]]:
    """Inodes are named by whoever makes them; one without a name is gone.  Where two errors are right, either is."""
    kind, *rest = call
    inode_of = dict(names)
    links = [inode for _, inode in names]
    if kind == "create":
        name, inode = rest
        return [("EEXIST", names)] if name in inode_of else [("ok", names | {(name, inode)})]
    if kind == "link":
        inode, name = rest
        errors = ["ENOENT"] * (inode not in links) + ["EEXIST"] * (name in inode_of)
        return [(error, names) for error in errors] or [(("ok", links.count(inode) + 1), names | {(name, inode)})]
    if kind == "unlink":
        (name,) = rest
        return [("ok", names - {(name, inode_of[name])})] if name in inode_of else [("ENOENT", names)]
    if kind == "rename":
        return _rename(names, inode_of, *rest)
    if kind == "lookup":
        (name,) = rest
        return [((inode_of[name], links.count(inode_of[name])) if name in inode_of else "ENOENT", names)]
    return [(names, names)]  # list


def _rename(names: Names, inode_of: dict[bytes, int], old: bytes, new: bytes, how: str) -> list[tuple[Any, Hashable]]:
    if old not in inode_of or (how == "exchange" and new not in inode_of):
        return [("ENOENT", names)]
    if how == "noreplace" and new in inode_of:
        return [("EEXIST", names)]
    moved, replaced = (old, inode_of[old]), (new, inode_of.get(new, 0))
    if moved[1] == replaced[1]:
        return [("ok", names)]
    after = (names - {moved, replaced}) | {(new, moved[1])}
    return [("ok", after | {(old, replaced[1])} if how == "exchange" else after)]


DIRECTORY = Model(frozenset(), _directory, frozenset({"lookup", "list", "EEXIST", "ENOENT"}))
