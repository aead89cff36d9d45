"""Deliberately broken variants of production code that decides names: the simulation must find each (as in tests/sim/broken.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from awsomefsd.io.file.op_log import OpLog
from awsomefsd.io.file.shipper import Shipper
from awsomefsd.io.file.shipper_core import RecordBatch, ShipperCore
from awsomefsd.meta.client.held_leases import LeaseHolder
from awsomefsd.meta.client.lease_cache import MountLeases
from awsomefsd.meta.machine import names_elsewhere, records
from awsomefsd.meta.server.leases.lease_requests import LeaseRequests
from awsomefsd.vfs.state.overlay_state import OverlayState
from awsomefsd.vfs.state.shared_names import SharedNames
from awsomefsd.worker.delegation import NamesStart

Patch = tuple[Any, str, Any]


def _recall_answered_before_shipping() -> list[Patch]:
    def let_go(self: Any, ino: int, mode: int, done: Callable[[], None]) -> None:
        with self.lock:
            self._forget([ino])
        done()

    return [(SharedNames, "let_go", let_go)]


def _rows_are_kept_over_a_recall() -> list[Patch]:
    let_go = SharedNames.let_go

    def keeping(self: Any, ino: int, mode: int, done: Callable[[], None]) -> None:
        forget, self._forget = self._forget, lambda inos: None

        def over() -> None:
            self._forget = forget
            done()

        let_go(self, ino, mode, over)

    return [(SharedNames, "let_go", keeping)]


def _a_void_recall_takes_rows() -> list[Patch]:
    """A recall of an earlier leader ends as if nothing could have been decided since."""

    def let_go(self: Any, ino: int, mode: int, done: Callable[[], None]) -> None:
        newest = self._newest_of_all() if self._names is None else self._names.rows.newest_of(ino)

        def gone(_value: Any, _error: BaseException | None) -> None:
            self._forget([ino])
            done()

        self.shipper.wait(newest).start(gone)

    return [(SharedNames, "let_go", let_go)]


def _given_back_unshipped() -> list[Patch]:
    def is_clean(self: Any, ino: int) -> bool:
        with self.lock:
            self._forget([ino])
        return True

    return [(SharedNames, "is_clean", is_clean)]


def _a_grant_outlives_its_session() -> list[Patch]:
    begin = LeaseHolder.begin

    def keeping(self: Any, session: int, epoch: int) -> None:
        held = dict(self._held)
        begin(self, session, epoch)
        self._held.update(held)

    return [(LeaseHolder, "begin", keeping), (MountLeases, "lost", lambda self: None)]


def _decides_behind_the_fence() -> list[Patch]:
    may_decide = LeaseHolder.may_decide

    def unfenced(self: Any, ino: int) -> bool:
        left, self._left_ns = self._left_ns, lambda: 1
        try:
            return may_decide(self, ino)
        finally:
            self._left_ns = left

    decided = SharedNames._decided

    def believing(self: Any, names: Any, command: Any, unique: int) -> Any:
        lease, self._lease = self._lease, _Endless()
        try:
            return decided(self, names, command, unique)
        finally:
            self._lease = lease

    return [(LeaseHolder, "may_decide", unfenced), (SharedNames, "_decided", believing)]


class _Endless:
    def left_ns(self) -> int:
        return 1


def _decides_while_it_is_asked_to_let_go() -> list[Patch]:
    def may_decide(self: Any, ino: int) -> bool:
        held = self._held.get(ino)
        return held is not None and held.mode == 2 and self._left_ns() > 0

    return [(LeaseHolder, "may_decide", may_decide)]


def _a_lost_session_ships_on() -> list[Patch]:
    """What was decided under ended leases goes under the next session."""

    def session_lost(self: Any, applied: int, round_: int, why: str) -> None:
        with self.lock:
            self._numbers.clear()
            if self._names is not None:
                self._names.rows.forget_nameless()
        self.shipper.goes_on(applied, round_)

    return [(SharedNames, "session_lost", session_lost)]


def _a_successor_forgets_the_op_log() -> list[Patch]:
    ship = NamesStart._ship_inherited

    def forgetting(self: Any, opened: Any, changed_by_others: bool) -> None:
        recover = self._log.recover

        def nothing(unanswered: Any) -> list[Any]:
            found = recover(unanswered)
            self._log.applied(max((record.sequence for record in found), default=0))
            return found

        self._log.recover = nothing
        ship(self, opened, changed_by_others)

    return [(NamesStart, "_ship_inherited", forgetting)]


def _a_successor_ships_what_has_ended() -> list[Patch]:
    ship = NamesStart._ship_inherited
    return [(NamesStart, "_ship_inherited", lambda self, opened, changed_by_others: ship(self, opened, False))]


def _a_successor_decides_requests_again() -> list[Patch]:
    return [(OpLog, "find_unique", lambda self, unique: None)]


def _applied_records_are_forgotten_unanswered() -> list[Patch]:
    """A record is clean when it is applied: an unanswered request does not find it."""
    close = OpLog._close

    def closing(self: Any, found: Any) -> None:
        found = list(found)
        for record in found:
            record.answered = True
            self._unanswered.pop(record.unique, None)
        close(self, found)

    return [(OpLog, "_close", closing)]


def _swapped_in_a_batch() -> list[Patch]:
    """Records of different directories need no order, one might think."""
    take = ShipperCore._take

    def swapping(self: Any) -> RecordBatch:
        batch = take(self)
        if len(batch.records) > 1:
            object.__setattr__(batch, "records", (*batch.records[1:], batch.records[0]))
            for sequence, record in zip(sorted(one.sequence for one in batch.records), batch.records, strict=True):
                record.sequence = sequence
        return batch

    return [(ShipperCore, "_take", swapping)]


def _a_batch_leaves_one_out() -> list[Patch]:
    take = ShipperCore._take

    def leaving(self: Any) -> RecordBatch:
        batch = take(self)
        if len(batch.records) > 2:
            object.__setattr__(batch, "records", (batch.records[0], *batch.records[2:]))
        return batch

    return [(ShipperCore, "_take", leaving)]


def _shipped_twice() -> list[Patch]:
    """The machine does not skip what it has, and a batch may come twice."""
    run = records._run_all

    def forgetful(state: Any, entry: Any, command: Any, volume: Any, row: Any, reply: Any) -> None:
        if command.records and row.applied >= command.records[0].sequence:
            row.applied = command.records[0].sequence - 1
        run(state, entry, command, volume, row, reply)

    return [(records, "_run_all", forgetful)]


def _fsync_asks_nobody() -> list[Patch]:
    return [(SharedNames, "synced", lambda self: None)]


def _waits_end_with_the_batch_on_its_way() -> list[Patch]:
    """Who waits is told when the batch is sent."""
    send = Shipper._send

    def hasty(self: Any, batch: Any) -> None:
        send(self, batch)
        told = [waiter for waiter in self._core._waiters if waiter.through <= batch.last and not waiter.rides]
        self._core._waiters = [waiter for waiter in self._core._waiters if waiter not in told]
        for waiter in told:
            waiter.token.fire()

    return [(Shipper, "_send", hasty)]


def _the_leader_is_asked_past_records() -> list[Patch]:
    return [
        (SharedNames, "_behind", lambda self, newest, send, resume: send().start(resume)),
        (OverlayState, "newest_of", lambda self, ino: 0),
    ]


def _decides_beside_the_leader() -> list[Patch]:
    """What this mount changes at the leader keeps nothing off."""
    return [(SharedNames, "_is_held", lambda self, inos: all(self.leases.may_decide(ino) for ino in inos))]


def _rows_of_others_are_believed() -> list[Patch]:
    return [
        (SharedNames, "_believed", lambda self, missing, found: found),
        (SharedNames, "_fetch", lambda self, names, missing, resume: super(SharedNames, self)._fetch(names, missing, resume)),
        (SharedNames, "_holds", lambda self, inos: [self._miss(ino) for ino in inos if not self.leases.may_decide(ino)] or True),
    ]


def _directories_go_elsewhere_here() -> list[Patch]:
    return [(SharedNames, "_moves_directory", lambda self, record: False)]


def _questions_pass_a_directory() -> list[Patch]:
    """The leader answers from its rows whatever is held."""
    return [(LeaseRequests, "park_if_buffered", lambda self, request: False)]


def _changes_pass_a_directory() -> list[Patch]:
    """Nobody is recalled for a change of names, and the machine does not look."""
    return [
        (LeaseRequests, "admit", lambda self, request: request),
        (names_elsewhere, "check", lambda state, entry: None),
    ]


VARIANTS: dict[str, Callable[[], list[Patch]]] = {
    "a recall answered before shipping": _recall_answered_before_shipping,
    "rows are kept over a recall": _rows_are_kept_over_a_recall,
    "a void recall takes rows": _a_void_recall_takes_rows,
    "a lease given back unshipped": _given_back_unshipped,
    "a grant outlives its session": _a_grant_outlives_its_session,
    "decides behind the fence": _decides_behind_the_fence,
    "decides while it is asked to let go": _decides_while_it_is_asked_to_let_go,
    "a lost session ships on": _a_lost_session_ships_on,
    "a successor forgets the op log": _a_successor_forgets_the_op_log,
    "a successor ships what has ended": _a_successor_ships_what_has_ended,
    "a successor decides requests again": _a_successor_decides_requests_again,
    "applied records are forgotten unanswered": _applied_records_are_forgotten_unanswered,
    "records swapped in a batch": _swapped_in_a_batch,
    "a batch leaves one out": _a_batch_leaves_one_out,
    "a batch is applied twice": _shipped_twice,
    "fsync asks nobody": _fsync_asks_nobody,
    "waits end with the batch on its way": _waits_end_with_the_batch_on_its_way,
    "the leader is asked past records": _the_leader_is_asked_past_records,
    "decides beside the leader": _decides_beside_the_leader,
    "rows of others are believed": _rows_of_others_are_believed,
    "directories go elsewhere here": _directories_go_elsewhere_here,
    "questions pass a directory": _questions_pass_a_directory,
    "changes pass a directory": _changes_pass_a_directory,
}


@contextlib.contextmanager
def broken(name: str) -> Iterator[None]:
    patches = VARIANTS[name]()
    saved = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in patches]
    try:
        for owner, attribute, stand_in in patches:
            setattr(owner, attribute, stand_in)
        yield
    finally:
        for owner, attribute, original in saved:
            setattr(owner, attribute, original)


FOUND: dict[str, int] = {  # the seed that finds it first
    "a batch is applied twice": 21,
    "a batch leaves one out": 2,
    "a grant outlives its session": 2,
    "a lease given back unshipped": 2,
    "a lost session ships on": 2,
    "a recall answered before shipping": 2,
    "a successor decides requests again": 3,
    "a successor forgets the op log": 3,
    "a successor ships what has ended": 2,
    "a void recall takes rows": 380,
    "applied records are forgotten unanswered": 3,
    "changes pass a directory": 1,
    "decides behind the fence": 8,
    "decides beside the leader": 1,
    "decides while it is asked to let go": 2,
    "directories go elsewhere here": 12,
    "fsync asks nobody": 1,
    "questions pass a directory": 2,
    "records swapped in a batch": 1,
    "rows are kept over a recall": 2,
    "rows of others are believed": 1,
    "the leader is asked past records": 1,
    "waits end with the batch on its way": 1,
}
