"""Stores of objects: a bucket or a directory becomes known to the cluster, is ready, changes, and is forgotten.

A store is known before anything is put there: its row names the era whose number is found by asking the store, and the time that its marker
has.  So whoever goes on after a crash puts the same objects under the same names.  Its number is the entry that added it: none comes twice.

A recovery takes the cluster back behind names that it may have put under.  So each store is left without an era, and nothing is put or
deleted before a fresh one is named (BeginEra) and its object was read back (StoreReady).  The identity of an era is drawn by the proposer:
two clusters that were recovered from one copy have one state, and must not come to one name.  The same for a store that was being added:
in what is lost it may have been used.

The secret is a row of its own, which the rules here carry and never look into.
"""

from __future__ import annotations

import errno
import uuid

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import (
    STORE_CA_BYTES_MAX,
    STORE_KEEP_MS_MAX,
    STORE_KEEP_MS_MIN,
    STORE_RPO_MS_MAX,
    STORE_RPO_MS_MIN,
    STORE_SECRET_BYTES_MAX,
    STORE_TEXT_BYTES_MAX,
    STORE_URL_BYTES_MAX,
    STORES_MAX,
    VOLUME_NAME_BYTES_MAX,
)
from awsomefsd.base.types import (
    KEPT,
    NO_CREDENTIALS,
    OF_ROLE,
    STORE_ACTIVE,
    STORE_ADDING,
    STORE_RECOVERED,
    StoreInfo,
    StoreOptions,
)
from awsomefsd.meta.api.commands import AddStore, BeginEra, DetachStore, Entry, SetStore, StoreReady
from awsomefsd.meta.api.messages import Done, Made, Reply
from awsomefsd.meta.api.messages.stores import GetStoreSecret, ListStores, Stores, VeiledSecret
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.rows_cache import State


def add(state: State, entry: Entry, command: AddStore) -> Reply:
    """Adds a store, in which nothing is yet.  Answered by Made(number)."""
    _check_text("name", command.name, VOLUME_NAME_BYTES_MAX)
    _check_text("URL", command.url, STORE_URL_BYTES_MAX)
    _check_options(command.options)
    _check_secret(command.secret)
    if not _is_uuid(command.era):
        raise FsError(errno.EINVAL, "an era is named by a UUID")
    known = every(state)
    if len(known) >= STORES_MAX:
        raise FsError(errno.ENOSPC, f"{STORES_MAX} stores are in the cluster already")
    if any(row.name == command.name for row in known):
        raise FsError(errno.EEXIST, f"a store {command.name} exists")
    _check_place(known, command.url, command.options.endpoint)
    row = rows.StoreRow(
        entry.index, command.name, command.url, STORE_ADDING, command.era, 0, max(entry.time_ns, 0), entry.index, command.options
    )
    _save(state, row)
    _put_secret(state, row.store, command.secret)
    return Made(row.store)


def ready(state: State, entry: Entry, command: StoreReady) -> Reply:
    """Says that a store may be used."""
    row = _existing(state, command.store)
    if not command.era_number:
        raise FsError(errno.EINVAL, "eras count from 1")
    if row.state == STORE_ACTIVE and row.era_number == command.era_number:
        return Done()
    if row.state == STORE_ACTIVE:
        raise FsError(errno.ESTALE, f"store {row.name} is in its era {row.era_number} already")
    if not row.era:
        raise FsError(errno.ESTALE, f"store {row.name} has no era since the cluster was recovered; name one first")
    _check_changed(row, command.changed)
    row.state, row.era_number, row.changed = STORE_ACTIVE, command.era_number, entry.index
    _save(state, row)
    return Done()


def begin_era(state: State, entry: Entry, command: BeginEra) -> Reply:
    """Names the era of a store that a recovery has left without one."""
    row = _existing(state, command.store)
    if not _is_uuid(command.era) or command.era == row.before:
        raise FsError(errno.EINVAL, "an era is named by a UUID that none before has")
    if row.state != STORE_RECOVERED or row.era:
        raise FsError(errno.ESTALE, f"store {row.name} has an era")
    _check_changed(row, command.changed)
    row.era, row.era_ns, row.changed = command.era, max(entry.time_ns, 0), entry.index
    _save(state, row)
    return Done()


def recovered(state: State, entry: Entry) -> None:
    """Leaves every store without an era: the state was taken back behind what may have been put in it."""
    for row in every(state):
        row.before, row.era, row.era_number, row.era_ns = row.era or row.before, "", 0, 0
        row.state, row.recovered, row.changed = STORE_RECOVERED, entry.index, entry.index
        _save(state, row)


def change(state: State, entry: Entry, command: SetStore) -> Reply:
    """Changes options and secret of a store."""
    row = _existing(state, command.store)
    _check_options(command.options)
    if command.secret is not None:
        _check_secret(command.secret)
    _check_changed(row, command.changed)
    if row.options.sealed != command.options.sealed:
        raise FsError(errno.EINVAL, "whether a store is sealed is said when it is added, and stays so")
    _check_place([other for other in every(state) if other.store != row.store], row.url, command.options.endpoint)
    row.options, row.changed = command.options, entry.index
    _save(state, row)
    if command.secret is not None:
        _put_secret(state, row.store, command.secret)
    return Done()


def detach(state: State, entry: Entry, command: DetachStore) -> Reply:
    """Forgets a store.  Nothing can be in it yet."""
    row = _existing(state, command.store)
    state.txn.delete(keys.store(row.store))
    state.txn.delete(keys.store_secret(row.store))
    return Done()


# --- queries ----------------------------------------------------------------------------------------------------------------
def list_stores(state: State, body: ListStores) -> Reply:
    """Answers ListStores."""
    return Stores(
        [
            StoreInfo(
                row.store, row.name, row.url, row.state, row.era, row.era_number, row.created_ns, row.changed, row.options,
                bool(_secret_of(state, row.store)), row.before, row.era_ns, row.recovered,
            )
            for row in every(state)
        ]
    )  # fmt: skip


def get_secret(state: State, body: GetStoreSecret) -> Reply:
    """Answers GetStoreSecret."""
    return VeiledSecret(_secret_of(state, _existing(state, body.store).store))


def every(state: State) -> list[rows.StoreRow]:
    """Returns all stores, in the order in which they were added."""
    return [rows.STORE.loads(raw) for _, raw in state.txn.scan(*keys.kind_range(0, keys.STORE))]


def _existing(state: State, number: int) -> rows.StoreRow:
    row: rows.StoreRow | None = state.read(keys.store(number), rows.STORE)
    if row is None:
        raise FsError(errno.ENOENT, f"there is no store {number} (any more)")
    return row


def _check_changed(row: rows.StoreRow, changed: int) -> None:
    if row.changed != changed:
        raise FsError(errno.ESTALE, f"store {row.name} was changed by somebody else in the meantime; look at it and try again")


def _save(state: State, row: rows.StoreRow) -> None:
    state.write(keys.store(row.store), row, rows.STORE)


def _secret_of(state: State, number: int) -> bytes:
    row: rows.StoreSecretRow | None = state.read(keys.store_secret(number), rows.STORE_SECRET)
    return row.secret if row is not None else b""


def _put_secret(state: State, number: int, secret: bytes) -> None:
    if secret:
        state.write(keys.store_secret(number), rows.StoreSecretRow(number, secret), rows.STORE_SECRET)
    else:
        state.txn.delete(keys.store_secret(number))


# --- what may be said ---------------------------------------------------------------------------------------------------------
def _check_place(others: list[rows.StoreRow], url: str, endpoint: str) -> None:
    for row in others:
        if (row.url, row.options.endpoint) == (url, endpoint):
            raise FsError(errno.EEXIST, f"store {row.name} is at this URL and endpoint")


def _check_options(options: StoreOptions) -> None:
    for what, text in (("endpoint", options.endpoint), ("region", options.region), ("proxy", options.proxy)):
        if text:
            _check_text(what, text, STORE_TEXT_BYTES_MAX)
    if len(options.ca.encode()) > STORE_CA_BYTES_MAX:
        raise FsError(errno.EINVAL, f"certificates of a store have at most {STORE_CA_BYTES_MAX} bytes")
    if options.credentials not in (KEPT, OF_ROLE, NO_CREDENTIALS):
        raise FsError(errno.EINVAL, "credentials of a store are kept, or of a role")
    if not STORE_RPO_MS_MIN <= options.rpo_ms <= STORE_RPO_MS_MAX:
        raise FsError(errno.EINVAL, f"the rpo of a store is {STORE_RPO_MS_MIN // 1_000} s to {STORE_RPO_MS_MAX // 86_400_000} days")
    if not STORE_KEEP_MS_MIN <= options.keep_ms <= STORE_KEEP_MS_MAX:
        raise FsError(errno.EINVAL, f"a store keeps what is deleted for 1 hour to {STORE_KEEP_MS_MAX // 86_400_000} days")


def _check_text(what: str, text: str, bytes_max: int) -> None:
    if not (0 < len(text.encode()) <= bytes_max and text.isprintable()):
        raise FsError(errno.EINVAL, f"the {what} of a store has 1 to {bytes_max} printable bytes")


def _check_secret(secret: bytes) -> None:
    if len(secret) > STORE_SECRET_BYTES_MAX:
        raise FsError(errno.EINVAL, f"the secret of a store has at most {STORE_SECRET_BYTES_MAX} bytes")


def _is_uuid(text: str) -> bool:
    try:
        return str(found := uuid.UUID(text)) == text and found.int != 0
    except ValueError:
        return False
