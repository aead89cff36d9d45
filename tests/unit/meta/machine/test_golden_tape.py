"""Entries that were recorded once are played: each reply, and the state behind each entry, must be those that were recorded.

A voter of another build applies the same log.  Where this test fails, the two have two states: the changed rule needs a level of the
cluster (base/rule_levels.py, decision 128).  Level 2 was released, so its tape stays for ever; a level that was not may be recorded again,
with AWSOMEFSD_UPDATE_GOLDEN=1, and so are tapes that a new command makes longer.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest

from awsomefsd.base.codec import encode
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.machine import Machine
from tests.rigs.memory_txn import MemTxn
from tests.unit.meta.machine import tape

GOLDEN = Path(__file__).parents[3] / "golden" / "tape"
LEVELS = [2, 3, 4]
NEVER_REFUSED = {c.NoOp, c.Reap, c.ChangeMembership, c.EndClaims, c.OpenCollector}  # the last one: with 1,024 sessions only


def recorded(level: int) -> list[str]:
    path = GOLDEN / f"level-{level}.txt"
    if os.environ.get("AWSOMEFSD_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(tape.record(level))
    return path.read_text().splitlines()


@pytest.mark.parametrize("level", LEVELS)
def test_what_was_recorded_has_the_same_replies_and_states(level: int) -> None:
    txn = MemTxn()
    machine = Machine(txn)
    for number, line in enumerate(recorded(level), 1):
        raw, reply, digest = line.split()
        entry = c.entry_decode(bytes.fromhex(raw))
        said = machine.apply(entry)
        machine.flush()
        assert encode(said).hex() == reply, f"entry {number}, {entry.command}: another reply, {said}"
        assert tape.digest(txn) == digest, f"entry {number}, {entry.command}: another state"


@pytest.mark.parametrize("level", LEVELS)
def test_every_command_is_on_the_tape_done_and_refused(level: int) -> None:
    found: dict[bool, set[type]] = defaultdict(set)
    machine = Machine(MemTxn())
    for line in recorded(level):
        entry = c.entry_decode(bytes.fromhex(line.split()[0]))
        found[isinstance(machine.apply(entry), m.Failed)].add(type(entry.command))
    assert found[False] == tape.known(level), "each must be done at least once: see tape.py"
    assert not tape.known(level) - NEVER_REFUSED - found[True], "each must be refused at least once: see tape.py"
