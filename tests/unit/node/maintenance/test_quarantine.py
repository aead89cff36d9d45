"""Proofs that end a quarantine, and the operator's word for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base import worker_locks
from awsomefsd.base.errors import ConfigError, NotFound, Refused, WouldLoseData
from awsomefsd.base.types import SessionInfo
from awsomefsd.meta.api.commands import ClearQuarantine
from awsomefsd.meta.api.messages import Sessions, Volumes
from awsomefsd.meta.api.messages.devices import Quarantine, QuarantineInfo
from awsomefsd.meta.api.messages.nodes import NodeInfo, Nodes
from awsomefsd.node.maintenance.quarantine_admin import QuarantineAdmin
from awsomefsd.node.maintenance.quarantine_proofs import QuarantineProofs


def test_the_daemon_vouches_for_what_it_can_know_and_nothing_else(tmp_path: Path) -> None:
    held = worker_locks.hold(tmp_path, 1, 3)
    worker_locks.hold(tmp_path, 2, 3)  # let go at once
    rows = [  # session, mount, node, boot, worker
        (10, 1, "me", "now", 3, ""),
        (11, 2, "me", "now", 3, "worker 3 of mount 2 has exited, and no worker before it runs"),
        (12, 4, "me", "now", 3, ""),  # never seen here
        (13, 1, "me", "before", 3, "the node has booted since"),
        (14, 2, "other", "now", 3, ""),
        (15, 0, "me", "now", 0, "15 collects no more"),
        (16, 0, "me", "now", 0, ""),  # it may still write
    ]
    sessions = [SessionInfo(one, 1, mount, 1, node, boot, worker, 0, 0, True, 2) for one, mount, node, boot, worker, _ in rows]
    sessions += [SessionInfo(20, 1, 2, 1, "me", "now", 3, 0, 0, False, 0), SessionInfo(21, 1, 2, 1, "me", "now", 3, 0, 0, True, 0)]
    said: list[ClearQuarantine] = []
    proof = {15: "15 collects no more", 16: ""}.__getitem__
    QuarantineProofs(tmp_path, "me", "now", lambda body: Sessions(sessions), said.append, proof).poll()
    del held
    assert {one.session: one.proof for one in said} == {row[0]: row[5] for row in rows if row[5]}


def test_the_daemon_looks_for_something_to_prove_when_something_was_applied(tmp_path: Path) -> None:
    sessions: list[SessionInfo] = []
    index = [5]
    proofs = QuarantineProofs(tmp_path, "me", "now", lambda body: Sessions(sessions), list, lambda _: "", lambda: index[0])
    assert proofs.due()
    proofs.poll()
    assert not proofs.due()
    sessions.append(SessionInfo(16, 1, 0, 1, "me", "now", 0, 0, 0, True, 2))
    index[0] = 6
    assert proofs.due()
    proofs.poll()
    assert proofs.due(), "what cannot be proved yet does not become provable by an entry"
    sessions.clear()
    proofs.poll()
    assert not proofs.due()
    index[0] = 0
    assert proofs.due(), "how far the log is, is not known"


# --- the operator ----------------------------------------------------------------------------------------------------------------
def test_the_operators_word_is_typed_and_kept_and_not_taken_for_the_living() -> None:
    said: list[ClearQuarantine] = []

    def node(name: str, heard_ms: int) -> NodeInfo:
        return NodeInfo(f"uuid-{name}", name, "node", "active", "", "", {}, 0, "1", 2, True, 0, b"", heard_ms_ago=heard_ms)

    def ask(body: Any) -> Any:
        if type(body).__name__ == "GetQuarantine":
            return Quarantine([QuarantineInfo(n, 5, 1, f"uuid-{name}", "b", 1, 0, 3, 3, 0) for n, name in ((7, "dead"), (8, "well"))], 60)
        return Nodes([node("dead", 60_000), node("well", 100)]) if type(body).__name__ == "ListNodes" else Volumes([])

    quarantine = QuarantineAdmin("me", ask, said.append)
    with pytest.raises(NotFound, match="sessions that have: 7, 8"):
        quarantine.release(9, "why", "dead")
    with pytest.raises(ConfigError):
        quarantine.release(7, " \n", "dead")
    with pytest.raises(WouldLoseData):
        quarantine.release(7, "why", "deaf")
    with pytest.raises(Refused, match="runs and ends the quarantine itself"):
        quarantine.release(8, "why", "well")
    assert not said
    assert quarantine.release(7, "it burnt\ndown", "dead") == 3
    assert said == [ClearQuarantine(7, "operator at node me: it burnt down")]
