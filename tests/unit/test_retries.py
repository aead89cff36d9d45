"""DESIGN: no retry is endless, and none is silent.

Every loop of the program that goes on after an error is in the table below, with what ends it and where the trouble is seen.  A new one
fails the test until it is there.  What the table says is looked for in the function, as far as a program can tell.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import awsomefsd

ROOT = Path(awsomefsd.__path__[0])
Function = ast.FunctionDef | ast.AsyncFunctionDef

# What ends it.
DEADLINE = "deadline"  # by time: the error goes to whoever asked
STOP = "stop"  # a loop of a thread or task that lives as long as its owner, pauses, and is told to stop
TURN = "turn"  # each turn finishes one of a bounded number of things
PROGRESS = "progress"  # tried again only when what it met has changed: another session, no inline data any more
KEEPS = "keeps"  # it holds data that was acknowledged: to give up would lose it; `umount --force` and the end of the process end it

# Where the trouble is seen.
LOG = "log"
ANSWER = "answer"  # who asked gets the error, when the loop ends or with that turn
STATUS = "status"  # the status of the daemon names it


RETRIES: dict[str, tuple[str, str]] = {
    "cli.kubernetes:keep_nodes": (STOP, LOG),
    "cli.processes.new_node:await_daemon": (DEADLINE, ANSWER),
    "cli.processes.keeper:_upgrade": (DEADLINE, ANSWER),
    "cluster.control.client:ask_leader": (DEADLINE, ANSWER),
    "cluster.control.service:_keep": (STOP, LOG),
    "cluster.control.service:_serve": (STOP, LOG),
    "cluster.membership.membership:again": (STOP, LOG),
    "cluster.pki.node_admin:_check_majority": (DEADLINE, ANSWER),
    "cluster.pki.node_admin:_end_sessions": (DEADLINE, STATUS),  # the sessions are listed; they end by their leases
    "cluster.pki.node_admin:_take_out": (DEADLINE, ANSWER),
    "csi.block_volumes:_lock_file": (DEADLINE, ANSWER),
    "daemon.daemon:_initialise": (STOP, STATUS),  # NO_LEADER, NOT_FOUNDED
    "daemon.keep_mounts:keep_mounts": (STOP, LOG),
    "daemon.renewed_token:run": (STOP, STATUS),
    "daemon.without_identity:work": (STOP, STATUS),
    "io.pool.fanout:_run": (TURN, LOG),
    "io.pool.server:_accept_loop": (STOP, LOG),
    "io.transport.handshake:_say": (DEADLINE, ANSWER),
    "io.transport.handshake:receive": (DEADLINE, ANSWER),
    "io.transport.handshake:shake": (DEADLINE, ANSWER),
    "io.transport.link:_fill": (DEADLINE, ANSWER),
    "io.transport.link:_send": (DEADLINE, ANSWER),
    "keeper.mount:_read": (TURN, LOG),
    "io.pool.server_state:_run": (STOP, LOG),
    "io.segment.reader:read": (DEADLINE, ANSWER),
    "keeper.mount_holder:_run": (STOP, LOG),  # and KEEPER_GONE
    "keeper.mount_syscalls:clear_stale": (TURN, ANSWER),
    "keeper.worker_link:_listen": (STOP, LOG),
    "keeper.worker_link:_reconnect": (STOP, LOG),  # where the keeper is lost, and KEEPER_GONE
    "meta.client.client:_receive_loop": (STOP, LOG),
    "meta.client.client:_send_loop": (STOP, LOG),  # by the receive loop, which connects again
    "meta.client.recalls:_run": (TURN, LOG),
    "meta.client.tls_layer:shake": (DEADLINE, ANSWER),  # that of the socket
    "meta.server.admission:hand_in": (TURN, ANSWER),
    "meta.server.connections:next_request": (TURN, ANSWER),
    "node.devices.pool_operations:_lock": (DEADLINE, ANSWER),
    "node.maintenance.checkpoints:_main": (STOP, LOG),
    "node.maintenance.collection:_run": (STOP, LOG),
    "node.mounts:_attach_or_start": (DEADLINE, ANSWER),
    "node.pod.host_keeper:_begin": (DEADLINE, ANSWER),
    "recovery.fsck:write_below": (PROGRESS, ANSWER),  # the map is larger each time
    "tier.store:read": (DEADLINE, ANSWER),
    "tier.store_check:_until": (DEADLINE, ANSWER),
    "vfs.ops.locks:_wait_lock": (PROGRESS, ANSWER),
    "vfs.ops.ranges:_entry": (PROGRESS, ANSWER),
    "vfs.ops.writing:_reserve": (PROGRESS, ANSWER),
    "vfs.ops.writing:_write_allocated": (PROGRESS, ANSWER),
    "vfs.ops.writing:store_when_room": (PROGRESS, ANSWER),
    "vfs.ops.writing:write": (PROGRESS, ANSWER),
    "vfs.session.conflicts:_keep": (KEEPS, LOG),
    "segments.pool_device:_run": (STOP, LOG),
    "node.maintenance.pool_upkeep:_run": (STOP, LOG),
    "node.store_eras:_run": (STOP, LOG),
    "vfs.session.mount_session:_open": (STOP, LOG),
    "vfs.session.mount_session:open_session": (DEADLINE, ANSWER),
    "vfs.session.names_aside:_keep": (KEEPS, LOG),
    "vfs.vfs:_asked_again": (PROGRESS, ANSWER),
    "worker.background:_orphans_loop": (STOP, STATUS),  # there is no leader: NO_LEADER
    "worker.background:_space_loop": (STOP, STATUS),  # the same, or there is no session: MOUNT_WAITS
    "worker.corrupt_reads:_record_all": (TURN, LOG),
    "worker.forker:main": (TURN, ANSWER),
    "worker.quarantine_proof:_prove": (STOP, LOG),
    "worker.unmount:flush_until_clean": (KEEPS, LOG),
}


def goes_on(loop: ast.While) -> bool:
    """Whether the loop may turn again after an error: a handler that neither raises nor leaves it, or `suppress`."""
    for node in ast.walk(loop):
        if isinstance(node, ast.ExceptHandler) and not any(isinstance(one, ast.Raise | ast.Return | ast.Break) for one in node.body):
            return True
        if isinstance(node, ast.withitem) and "suppress" in ast.unparse(node.context_expr):
            return True
    return False


def loops(node: ast.AST, inside: Function | None = None) -> Iterator[tuple[Function, ast.While]]:
    """Yields the loops below a node, each with the innermost function that it is in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.While) and inside is not None:
            yield inside, child
        yield from loops(child, child if isinstance(child, Function) else inside)


@cache
def retries() -> list[tuple[str, Function, ast.While]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found += [(f"{module}:{inside.name}", inside, loop) for inside, loop in loops(ast.parse(path.read_text())) if goes_on(loop)]
    return found


def test_each_has_an_end_and_is_seen() -> None:
    found = {name for name, _, _ in retries()}
    assert found - set(RETRIES) == set(), "say in RETRIES what ends these loops, and where their trouble is seen"
    assert set(RETRIES) - found == set(), "these go on after no error any more"


def test_what_ends_them_is_there() -> None:
    for name, function, loop in retries():
        ends, text = RETRIES[name][0], ast.unparse(function)
        endless = isinstance(loop.test, ast.Constant)
        if ends == DEADLINE:
            assert any(word in text for word in ("deadline", "until", "time-out")), name
        elif ends == STOP:  # a task is cancelled
            assert not endless or isinstance(function, ast.AsyncFunctionDef), name
            assert any(word in text for word in ("sleep", "wait", "receive", "open_session")), f"{name} does not pause"
        elif ends == TURN:
            assert not endless or any(isinstance(one, ast.Return | ast.Raise) for one in ast.walk(loop)), name
        else:
            assert any(isinstance(one, ast.Return | ast.Raise | ast.Break) for one in ast.walk(loop)) or not endless, name


def test_where_they_are_seen_is_there() -> None:
    logs = {name for name, (_, seen) in RETRIES.items() if seen == LOG}
    elsewhere = {"keeper.worker_link:_reconnect", "meta.client.client:_send_loop"}  # as the table says
    for name, function, _ in retries():
        text = ast.unparse(function)
        if name in logs - elsewhere:
            assert any(word in text for word in ("log.", "logger.", "say(", "_note_trouble(", "_failed(")), f"{name} logs nothing"


def test_only_what_holds_acknowledged_data_goes_on_for_ever() -> None:
    assert {name for name, (ends, _) in RETRIES.items() if ends == KEEPS} == {
        "vfs.session.conflicts:_keep", "vfs.session.names_aside:_keep", "worker.unmount:flush_until_clean",
    }  # fmt: skip
