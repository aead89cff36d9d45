"""The judge of shared mounts finds what is wrong, and takes nothing for wrong that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cluster.shared_client import record
from tests.cluster.shared_judge import Row, Trouble, Written, of_appends, of_errors, of_histories, read_log
from tests.rigs.linearizability import OPEN


def row(which: str, call: tuple[Any, ...], result: Any, called: float, returned: float, node: int = 1, client: int = 1) -> Row:
    return Row(which, client, node, call, result, called, returned)


def test_stale_reads_and_broken_locks_are_found() -> None:
    write = row("r0", ("write", 5), None, 1, 2)
    assert not of_histories([write, row("r0", ("read",), 5, 3, 4, node=2)], [])
    assert of_histories([write, row("r0", ("read",), 0, 3, 4, node=2)], []), "older than what was acknowledged"
    cas = [row("c0", ("cas", 0, 5), "ok", 1, 4), row("c0", ("cas", 0, 6), "ok", 2, 3, node=2, client=2)]
    assert of_histories(cas, []) and not of_histories(cas[:1], [])


def test_a_late_write_of_a_zombie_is_found() -> None:
    """Its outcome is unknown; seen once, it may not come back after a newer one."""
    zombie = row("r0", ("write", 5), None, 1, OPEN)
    newer = row("r0", ("write", 6), None, 3, 4, node=2, client=2)
    later = row("r0", ("read",), 5, 7, 8, node=3, client=3)
    assert not of_histories([zombie, newer, later], []), "unknown may mean late, if nobody saw the newer value before"
    assert not of_histories([zombie, newer, row("r0", ("read",), 6, 5, 6, node=3, client=3)], [])
    seen = [row("r0", ("read",), 5, 2, 2.5, node=2, client=2), newer, later]
    assert of_histories([zombie, *seen], []), "seen before the newer one was written, and again after it"


def test_what_a_node_showed_itself_and_lost_is_not_judged() -> None:
    unknown = row("r0", ("write", 5), None, 1, OPEN)
    rows = [unknown, row("r0", ("read",), 5, 2, 3, client=2), row("r0", ("read",), 0, 4, 5, node=2, client=3)]
    assert not of_histories(rows, [])
    assert of_histories([*rows[:1], rows[1]._replace(node=3), rows[2]], []), "another node saw it: it was durable"
    lazy = [row("z0", ("write", 5), None, 1, 2), row("z0", ("read",), 0, 30, 31, node=2, client=2)]
    assert of_histories(lazy, []) and not of_histories(lazy, [Trouble("kill node", 1, 10, 20)])
    assert of_histories(lazy, [Trouble("kill worker", 1, 10, 20)])
    seen = row("z0", ("read",), 5, 3, 4, node=3, client=3)
    assert of_histories([*lazy, seen], [Trouble("kill node", 1, 10, 20)]), "another node saw it: it was durable"


def test_names() -> None:
    rows = [row("d1", ("add", "a", 7), "ok", 1, 2), row("d1", ("move", "a", "b"), "ok", 3, 4), row("d1", ("look", "b"), 7, 5, 6)]
    assert not of_histories([*rows, row("d1", ("add", "b", 8), "EEXIST", 7, 8)], [])
    assert of_histories([*rows, row("d1", ("remove", "a"), "ok", 7, 8)], [])
    assert of_histories([*rows, row("d1", ("look", "a"), "ENOENT", 1.5, 1.6), row("d1", ("look", "a"), "ENOENT", 2.5, 2.6)], [])


def test_a_move_that_the_kernel_answered_needs_another_nodes_move_under_way() -> None:
    def found(first: Row, second: Row, *more: Row) -> list[str]:
        return of_histories([row("d1", ("add", "a", 7), "ok", 1, 2), first, second, *more], [])

    first, second = (row("d1", ("move", "a", "b"), "ok", 3, 5, node, node) for node in (1, 2))
    late = second._replace(called=6.0, returned=7.0)
    assert not found(first, second) and not found(first, second._replace(called=4.5, returned=6.0))
    assert found(first, late), "it had ended before"
    assert found(first, second._replace(node=1)), "one kernel does one after the other"
    assert found(first, second._replace(call=("move", "a", "c"))), "the file is not there"
    assert found(first, second._replace(call=("move", "c", "b"))), "the file was never there"
    assert not found(first._replace(result=None, returned=OPEN), late), "nobody knows when that one happened"
    again = row("d1", ("add", "a", 8), "ok", 5.5, 5.6)
    assert not found(first, second, again, row("d1", ("look", "a"), 8, 7, 8), row("d1", ("look", "b"), 7, 7, 8))
    assert found(first, second, again, row("d1", ("look", "b"), 8, 7, 8)), "carried out twice"
    other = row("d1", ("add", "b", 9), "ok", 1, 2)
    assert not found(first, second, other) and found(first, second, other, row("d1", ("look", "b"), 9, 7, 8))


def test_appends() -> None:
    rows = [row("l0", ("append", 1), None, 1, 2), row("l0", ("append", 2), None, 3, OPEN), row("l0", ("size",), 128, 4, 5)]
    first, second = record(1, 1), record(1, 2)
    assert not of_appends(rows, {"l0": first}) and not of_appends(rows, {"l0": first + second})
    for data in (b"", second, first + first, second + first, first + record(2, 1), first[:-1] + b"?", first + bytes(128)):
        assert of_appends(rows, {"l0": data}), data
    assert of_appends([*rows[:1], rows[2]._replace(result=0)], {"l0": first})


def test_errors_need_a_reason() -> None:
    written = Written([], [], [(1, "r0", "EIO", 11, 12)])
    assert (
        of_errors(written, [])
        and of_errors(written, [Trouble("cut", 2, 10, 20)])
        and of_errors(written, [Trouble("kill worker", 1, 10, 20)])
    )
    assert not of_errors(written, [Trouble("cut", 1, 10, 20)])
    assert of_errors(written, [Trouble("cut", 1, 5, 10.5)]), "it began when the fault was over"


def test_an_error_through_a_handle_belongs_to_the_fault_that_ended_its_session(tmp_path: Path) -> None:
    log, trouble = tmp_path / "log", [Trouble("cut", 1, 10, 20)]
    for opened, explained in ((15.0, True), (0, False), (50.0, False)):
        log.write_text("".join(json.dumps(line) + "\n" for line in (["c", 1, "r0", ["read"], 60], ["e", 1, "EIO", 61, opened])))
        written = Written([], [], [])
        read_log(log, 1, 1, written)
        assert (not of_errors(written, trouble)) == explained
