"""What programs on shared mounts wrote down (shared_client.py), judged: nothing stale, lost, torn, doubled, and no error without a reason.

Registers, compare-and-sets and directories have to be linearizable (tests/rigs/linearizability.py); an operation that failed or whose
program died may have happened or not.  Of a register that is decided beforehand, which keeps the search small and loses nothing: values are
unique, so a write nobody saw is left out, and one that somebody on another node saw had happened by then.  What only programs of the same
node saw of a write that was never acknowledged as durable is not judged: a node may show its own programs what it then loses with them.
For the same reason a write to a z register, which is not synced, is unknown if its node lost its memory or its session within DIRTY_S.

Appended records: each acknowledged one is there once, in its program's order; an unknown one at most once; sizes that were seen are never
smaller than what had been acknowledged before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.cluster.shared_client import RECORD_BYTES, read_record
from tests.rigs.linearizability import OPEN, Model, Operation, Verdict, check_all

DIRTY_S = 40.0  # an acknowledged write is committed when it is 5 s old, begun then
LATE = frozenset({"EIO"})
GONE = frozenset({"EIO", "ENOTCONN", "ECONNABORTED", "ENOENT", "EEXIST", "EINTR", "ENODEV"})  # EEXIST: of makedirs
ALLOWED: dict[str, frozenset[str]] = {
    "kill worker": frozenset(), "kill daemon": frozenset(), "change leader": frozenset(),
    "stop node": LATE, "stop worker": LATE, "cut": LATE, "kill keeper and worker": frozenset(), "kill node": GONE,
    "kill leading node": GONE, "unmount": GONE,
}  # fmt: skip
LOSING = frozenset(kind for kind, errors in ALLOWED.items() if errors)


class Trouble(NamedTuple):
    """A fault of one node; `node` is its number."""

    kind: str
    node: int
    began: float
    whole: float


class Row(NamedTuple):
    which: str
    client: int
    node: int
    call: tuple[Any, ...]
    result: Any
    called: float
    returned: float  # OPEN: nobody knows the outcome
    doubted: bool = False  # it returned, and may have been lost since

    @property
    def known(self) -> bool:
        return self.returned != OPEN


class Written(NamedTuple):
    rows: list[Row]
    wrong: list[str]
    errors: list[tuple[int, str, str, float, float]]  # node, what, errno, from, to


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def read_log(path: Path, client: int, node: int, into: Written) -> None:
    called: dict[int, tuple[str, Any, float]] = {}
    for line in path.read_bytes().splitlines():
        try:
            kind, *rest = json.loads(line)
        except ValueError:
            continue  # the program was killed while it wrote this
        if kind == "c":
            number, which, call, at = rest
            called[number] = which, _tuple(call), at
        elif kind == "w":
            into.wrong.append(f"client {client} on node {node} at {rest[1]:.2f}: {rest[0]}")
        elif kind == "o":
            into.errors.append((node, rest[0], rest[1], rest[2], rest[2]))
        else:
            number, result, at = rest[:3]
            which, call, began = called.pop(number)
            if kind == "e":
                into.errors.append((node, f"{which} {call}", result, min(began, rest[3] or began), at))
                into.rows.append(Row(which, client, node, call, None, began, OPEN))
            else:
                into.rows.append(Row(which, client, node, call, _tuple(result), began, at))
    into.rows.extend(Row(which, client, node, call, None, began, OPEN) for which, call, began in called.values())


# --- models -----------------------------------------------------------------------------------------------------------------------
def _register(value: int, call: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    if call[0] == "write":
        return [(None, call[1])]
    if call[0] == "cas":
        return [("ok", call[2])] if value == call[1] else [("lock broken", value)]
    return [(value, value)]


class Names(NamedTuple):
    at: frozenset[tuple[str, int]]  # name, file
    left: frozenset[tuple[str, int, int]]  # name, a file that is there and had it, the move that took it away


def _names(state: Names, call: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    kind, *rest = call
    names, left = state
    of = dict(names)
    if kind == "look":
        return [(of.get(rest[0], "ENOENT"), state)]
    if kind == "add":
        return [("EEXIST", state)] if rest[0] in of else [("ok", Names(names | {(rest[0], rest[1])}, left))]
    if kind == "move":
        return _move(state, of, *rest)
    if rest[0] not in of:
        return [("ENOENT", state)]
    return [("ok", _without(state, rest[0], of[rest[0]]))]


def _without(state: Names, name: str, file: int) -> Names:
    return Names(state.at - {(name, file)}, frozenset(one for one in state.left if one[1] != file))


def _move(state: Names, of: Mapping[str, int], old: str, new: str, number: int, beside: frozenset[int]) -> list[tuple[Any, Any]]:
    """The kernel looks the names up one after the other.  Where a move of another node has taken the file from the one to the other in
    between, both are one file to it, and it answers 0 without asking anybody (test_two_nodes_rename_one_file_to_one_name)."""
    nothing = [("ok", state)] if any((old, of.get(new), mover) in state.left for mover in beside) else []
    if old not in of:
        return [("ENOENT", state), *nothing]
    file = of[old]
    after = _without(state, new, of[new]) if new in of else state
    left = after.left | {(old, file, number)} if beside else after.left
    return [("ok", Names(after.at - {(old, file)} | {(new, file)}, left)), *nothing]


def _moves_named(rows: Sequence[Row]) -> list[Row]:
    """Each move with its number, and with those of other nodes that took from the same name and were under way at the same time."""
    moves: dict[tuple[str, str], list[tuple[int, Row]]] = {}
    for number, row in enumerate(rows):
        if row.call[0] == "move":
            moves.setdefault((row.which, row.call[1]), []).append((number, row))
    found = list(rows)
    for same in moves.values():
        for number, row in same:
            beside = [at for at, other in same if other.node != row.node and other.called <= row.returned and row.called <= other.returned]
            found[number] = row._replace(call=(*row.call, number, frozenset(beside)))
    return found


REGISTER = Model(0, _register, frozenset({"read"}))
NAMES = Model(Names(frozenset(), frozenset()), _names, frozenset({"look", "ENOENT", "EEXIST"}))


def model_of(which: Any) -> Model:
    return NAMES if which[0] == "d" else REGISTER


# --- what is unknown ----------------------------------------------------------------------------------------------------------------
def settle(rows: Iterable[Row], troubles: Sequence[Trouble]) -> list[Row]:
    """Outcomes that cannot be believed are unknown, and those of registers decided; see above."""
    found = [_unless_lost(row, troubles) for row in rows]
    registers: dict[str, list[Row]] = {}
    others: list[Row] = []
    for row in found:
        if row.which[0] in "rzc":
            registers.setdefault(row.which, []).append(row)
        elif row.known or row.call[0] != "look":
            others.append(row)
    return others + [row for part in registers.values() for row in _decided(part)]


def _unless_lost(row: Row, troubles: Sequence[Trouble]) -> Row:
    if not row.known:
        return row
    mine = [one for one in troubles if one.node == row.node and one.kind in LOSING]
    lost = (
        row.which[0] == "z"
        and row.call[0] == "write"
        and any(row.called < one.whole and one.began < row.returned + DIRTY_S for one in mine)
    )
    return row._replace(doubted=lost)


def _seen(row: Row) -> Any:
    """The value that an operation shows it saw."""
    if row.call[0] == "read":
        return row.result if row.known else None
    return row.call[1] if row.call[0] == "cas" else None


def _wrote(row: Row) -> Any:
    return row.call[-1] if row.call[0] in ("write", "cas") else None


def _decided(rows: list[Row]) -> list[Row]:
    unknown = {_wrote(row): row for row in rows if (row.doubted or not row.known) and _wrote(row) is not None}
    bound: dict[Any, float] = {}
    sure = [row for row in rows if row.known and not row.doubted]
    todo = [(_seen(row), row.returned, row.node, row.call[0] == "cas") for row in sure]
    while todo:
        value, at, node, firm = todo.pop()
        writer = unknown.get(value)
        if writer is None or (writer.node == node and not firm) or bound.get(value, OPEN) <= at:
            continue
        bound[value] = at
        if writer.call[0] == "cas":
            todo.append((writer.call[1], at, node, True))
    found = [row for row in sure if not (_seen(row) in unknown and _seen(row) not in bound)]
    for value, at in bound.items():
        row = unknown[value]
        if row.doubted:  # it was not lost, so it was there when it returned
            found.append(row)
            continue
        found.append(row._replace(result="ok" if row.call[0] == "cas" else None, returned=max(at, row.called)))
    return found


# --- verdicts -----------------------------------------------------------------------------------------------------------------------
def of_histories(rows: Sequence[Row], troubles: Sequence[Trouble]) -> list[str]:
    judged = [
        Operation(row.which, row.client, row.call, row.result, row.called, row.returned)
        for row in _moves_named(settle(rows, troubles))
        if row.which[0] in "rzcd"
    ]
    judged.sort(key=lambda row: row.called)
    return [
        f"{one.object}: {one.verdict.value}\n  {one.detail}"
        for one in check_all(model_of, judged)
        if one.verdict is not Verdict.LINEARIZABLE
    ]


def of_appends(rows: Sequence[Row], contents: Mapping[str, bytes]) -> list[str]:
    wrong = []
    for which, data in contents.items():
        mine = [row for row in rows if row.which == which]
        found = [read_record(data[at : at + RECORD_BYTES]) for at in range(0, len(data), RECORD_BYTES)]
        whole = [one for one in found if one is not None]
        if len(whole) != len(found):
            wrong.append(f"{which}: {len(found) - len(whole)} of {len(found)} records are torn or foreign")
        if len(set(whole)) != len(whole):
            wrong.append(f"{which}: records twice: {sorted(one for one in set(whole) if whole.count(one) > 1)[:5]}")
        appended = {(row.client, row.call[1]): row for row in mine if row.call[0] == "append"}
        there = set(whole)
        if lost := [row for one, row in appended.items() if row.known and one not in there]:
            wrong.append(f"{which}: {len(lost)} acknowledged records are lost: {lost[:5]}")
        if foreign := there - set(appended):
            wrong.append(f"{which}: records that nobody appended: {sorted(foreign)[:5]}")
        for client in {one[0] for one in whole}:
            numbers = [number for of, number in whole if of == client]
            if numbers != sorted(numbers):
                wrong.append(f"{which}: the records of client {client} are out of order")
        wrong += _of_sizes(which, mine)
    return wrong


def _of_sizes(which: str, rows: Sequence[Row]) -> list[str]:
    acknowledged = sorted(row.returned for row in rows if row.call[0] == "append" and row.known)
    wrong, count = [], 0
    for row in sorted((row for row in rows if row.call[0] == "size" and row.known), key=lambda row: row.called):
        while count < len(acknowledged) and acknowledged[count] < row.called:
            count += 1
        if row.result < count * RECORD_BYTES:
            wrong.append(f"{which}: client {row.client} saw {row.result} bytes after {count} records were acknowledged: {row}")
    return wrong


def of_errors(written: Written, troubles: Sequence[Trouble]) -> list[str]:
    """Those that no fault of that node explains.  An error through a handle counts from when that was opened: one of an ended session says
    EIO whenever it is used next.  What began when the fault was over has no reason to fail: programs of the node have got on by then, and a
    mount serves nothing before it is decided what of an ended session goes on."""
    wrong = []
    for node, what, name, began, ended in written.errors:
        near = [one for one in troubles if one.node == node and began < one.whole and ended > one.began]
        if not any(name in ALLOWED[one.kind] for one in near):
            wrong.append(f"{name} of {what} on node {node} from {began:.2f} to {ended:.2f}; faults there: {near}")
    return wrong
