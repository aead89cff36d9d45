"""Which nodes are gone: seen once, away with their Kubernetes node, silent, and for long enough."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from awsomefsd.kubernetes.departed import AWAY_S_SLACK, Known, Record, decode, due, encode, looked

AFTER_S = 100


@dataclass
class Node:
    node: str
    name: str
    readiness: str = "ready"
    joined_ms: int = 1


def seen(*names: str) -> Record:
    return {name.upper(): Known(name) for name in names}


def test_a_node_is_known_when_it_was_ready_beside_its_kubernetes_node() -> None:
    nodes = [Node("A", "a"), Node("B", "b"), Node("C", "c", "not-ready"), Node("D", "d", "unknown")]
    assert looked({}, {"a", "c", "d"}, nodes, 7) == seen("a"), "b is no node of Kubernetes; c and d were not heard yet"


@pytest.mark.parametrize(
    ("names", "readiness", "away_s"),
    [
        ({"a"}, "not-ready", 0), ({"a"}, "ready", 0), (set(), "ready", 0), (set(), "not-ready", 50), (set(), "unknown", 5),
        ({"a"}, "unknown", 0),
    ],
)
def test_what_is_back_counts_anew_and_what_is_not_known_changes_nothing(names: set[str], readiness: str, away_s: int) -> None:
    before = 5 if readiness == "unknown" else 0
    assert looked({"A": Known("a", before)}, names, [Node("A", "a", readiness)], 50) == {"A": Known("a", away_s)}


def test_the_time_of_the_first_look_is_kept() -> None:
    record, nodes = seen("a"), [Node("A", "a", "not-ready")]
    for now_s in (10, 40, 90):
        record = looked(decode(encode(record)), set(), nodes, now_s)
        assert record == {"A": Known("a", 10)}
    assert due(record, nodes, AFTER_S, 109) == [] and due(record, nodes, AFTER_S, 110) == ["A"]
    assert due(record, [Node("A", "a", "unknown")], AFTER_S, 999) == [], "a new leader has not waited for it yet"


def test_a_clock_that_ran_ahead_is_not_believed() -> None:
    record = {"A": Known("a", 10_000)}
    nodes = [Node("A", "a", "not-ready")]
    assert looked(record, set(), nodes, 10_000 - AWAY_S_SLACK - 1)["A"].away_s == 10_000 - AWAY_S_SLACK - 1
    assert looked(record, set(), nodes, 10_000 - AWAY_S_SLACK)["A"].away_s == 10_000


def test_a_machine_made_anew_with_the_same_name_replaces_the_old_one() -> None:
    old, new = Node("OLD", "a", "not-ready", 1), Node("NEW", "a", "ready", 2)
    record = looked({"OLD": Known("a")}, {"a"}, [old, new], 30)
    assert record == {"OLD": Known("a", 30), "NEW": Known("a")}
    new.readiness = "not-ready"
    assert looked(record, {"a"}, [old, new], 60) == record, "the new one being silent does not bring the old one back"


def test_the_removed_are_forgotten_and_a_damaged_record_begins_anew() -> None:
    assert looked(seen("a", "b"), {"b"}, [Node("B", "b")], 1) == seen("b")
    assert decode("") == decode("[1]") == decode('{"A": 3}') == {}
    assert decode('{"A": {"name": "a", "away_s": 3, "later": 1}}') == {"A": Known("a", 3)}, "a newer build may write more"


def test_two_machines_with_one_name_are_never_one_made_anew() -> None:
    """One cluster of ours may serve two of Kubernetes, whose nodes have the same names."""
    here, there = Node("HERE", "a", joined_ms=1), Node("THERE", "a", joined_ms=2)
    record = looked(looked({}, {"a"}, [here], 5), {"a"}, [here, there], 10)
    here.readiness = "not-ready"
    for now_s in (20, 90, 500):
        record = looked(decode(encode(record)), {"a"}, [here, there], now_s)
        assert due(record, [here, there], AFTER_S, now_s) == [], "its Kubernetes node is there; the machine is switched off"
