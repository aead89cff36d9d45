"""Stores of objects as rows: what is taken, what is refused, in any order; and that no secret of one leaves."""

from __future__ import annotations

import errno
import uuid
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.base.codec import encode
from awsomefsd.base.limits import STORES_MAX
from awsomefsd.base.rule_levels import STORES
from awsomefsd.base.types import KEPT, OF_ROLE, STORE_ACTIVE, STORE_ADDING, StoreOptions
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages.stores import GetStoreSecret, ListStores
from awsomefsd.meta.check.check import check
from awsomefsd.meta.state import keys, redaction, rows
from tests.rigs.machine_driver import Drive, sound

OPTIONS = StoreOptions(300_000, 86_400_000, credentials=KEPT)
ERA = str(uuid.UUID(int=5))
VEILED = bytes(range(16, 80))


def drive() -> Drive:
    return Drive(device=False, level=STORES)


def add(made: Drive, name: str = "cold", url: str = "s3://bucket/p", **changes: Any) -> int:
    command = replace(c.AddStore(name, url, ERA, OPTIONS, VEILED), **changes)
    number: int = made.ok(command).number
    return number


def test_a_store_becomes_known_is_ready_changes_and_goes() -> None:
    made = drive()
    number = add(made)
    [info] = made.ask(ListStores()).stores
    assert (info.store, info.name, info.url, info.state, info.era_number, info.has_secret) == (
        number, "cold", "s3://bucket/p", STORE_ADDING, 0, True,
    )  # fmt: skip
    assert info.created_ns == made.entries[-1].time_ns and info.changed == number == made.index
    assert made.ask(GetStoreSecret(number)).secret == VEILED
    assert made.errno(c.StoreReady(number, number + 1, 3)) == errno.ESTALE, "what was put may be elsewhere"
    made.ok(c.StoreReady(number, number, 3))
    made.ok(c.StoreReady(number, number, 3))
    ready = made.ask(ListStores()).stores[0].changed
    assert made.errno(c.StoreReady(number, ready, 4)) == errno.ESTALE and made.errno(c.StoreReady(number, ready, 0)) == errno.EINVAL
    [info] = made.ask(ListStores()).stores
    assert (info.state, info.era_number) == (STORE_ACTIVE, 3)
    sound(made)
    other = replace(OPTIONS, rpo_ms=20_000, credentials=OF_ROLE)
    assert made.errno(c.SetStore(number, info.changed - 1, other)) == errno.ESTALE
    assert made.errno(c.SetStore(number, info.changed, replace(other, sealed=True))) == errno.EINVAL
    made.ok(c.SetStore(number, info.changed, other))
    assert made.ask(ListStores()).stores[0].options == other and made.ask(GetStoreSecret(number)).secret == VEILED
    made.ok(c.SetStore(number, made.ask(ListStores()).stores[0].changed, other, b""))
    assert not made.ask(ListStores()).stores[0].has_secret and made.ask(GetStoreSecret(number)).secret == b""
    sound(made)
    made.ok(c.DetachStore(number))
    assert made.ask(ListStores()).stores == [] and made.ask_errno(GetStoreSecret(number)) == errno.ENOENT
    for command in (c.DetachStore(number), c.StoreReady(number, 1, 1), c.SetStore(number, 1, other)):
        assert made.errno(command) == errno.ENOENT
    made.machine.flush()
    assert not [key for key in made.txn.rows if keys.kind_of(key)[2] in (keys.STORE, keys.STORE_SECRET)]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""}, {"name": "x" * 64}, {"name": "a\nb"}, {"url": ""}, {"url": "s3://" + "x" * 1_100}, {"era": "not-a-uuid"},
        {"era": ERA.upper() if ERA.upper() != ERA else "{" + ERA + "}"}, {"secret": bytes(20_000)},
        {"options": replace(OPTIONS, rpo_ms=9_999)}, {"options": replace(OPTIONS, rpo_ms=8 * 86_400_000)},
        {"options": replace(OPTIONS, keep_ms=3_599_999)}, {"options": replace(OPTIONS, endpoint="x" * 600)},
        {"options": replace(OPTIONS, credentials="stolen")}, {"options": replace(OPTIONS, ca="x" * 40_000)},
        {"options": replace(OPTIONS, proxy="a\nb")},
    ],
)  # fmt: skip
def test_what_cannot_be_a_store_is_refused(changes: dict[str, Any]) -> None:
    assert drive().errno(replace(c.AddStore("cold", "s3://bucket/p", ERA, OPTIONS, VEILED), **changes)) == errno.EINVAL


def test_a_name_and_a_place_are_one_stores() -> None:
    made = drive()
    first = add(made)
    again = c.AddStore("cold", "s3://other", ERA, OPTIONS)
    assert made.errno(again) == errno.EEXIST and made.errno(replace(again, name="b", url="s3://bucket/p")) == errno.EEXIST
    elsewhere = replace(OPTIONS, endpoint="http://host:1")
    second = add(made, "b", options=elsewhere)
    assert second != first, "the same bucket name at another endpoint is another store"
    changed = made.ask(ListStores()).stores[1].changed
    assert made.errno(c.SetStore(second, changed, OPTIONS)) == errno.EEXIST
    made.ok(c.SetStore(second, changed, replace(elsewhere, rpo_ms=60_000)))
    for number in range(STORES_MAX - 2):
        add(made, f"n{number}", f"s3://bucket/{number}")
    assert made.errno(c.AddStore("more", "s3://bucket/more", ERA, OPTIONS)) == errno.ENOSPC
    sound(made)


def based_on(made: Drive, number: int, dice: Random) -> tuple[int, bool]:
    """The entry that changed a store last, or the one before it, and whether it is that one."""
    stale = dice.random() < 0.2
    return {one.store: one.changed for one in made.ask(ListStores()).stores}.get(number, 1) - stale, stale


def test_any_order_of_commands_is_what_a_dict_would_do(seed: int) -> None:
    dice, made = Random(seed), drive()
    known: dict[int, dict[str, Any]] = {}
    names, urls = ["a", "b", "c"], ["s3://bucket/1", "s3://bucket/2", "file:///x"]
    for _ in range(300):
        number = dice.choice([*known, 99_999]) if known else 99_999
        model = known.get(number)
        match dice.randrange(5):
            case 0:
                name, url, secret = dice.choice(names), dice.choice(urls), dice.choice([b"", dice.randbytes(40)])
                taken = any(one["name"] == name or one["url"] == url for one in known.values())
                command: Any = c.AddStore(name, url, ERA, OPTIONS, secret)
                if not taken:
                    known[made.index + 1] = {"name": name, "url": url, "secret": secret, "era": 0, "rpo": OPTIONS.rpo_ms}
                expected = errno.EEXIST if taken else 0
            case 1:
                era, changed, stale = dice.randrange(1, 3), *based_on(made, number, dice)
                command = c.StoreReady(number, changed, era)
                other = model is not None and model["era"] not in (0, era)
                expected = errno.ENOENT if model is None else errno.ESTALE if other or (stale and not model["era"]) else 0
                if model is not None and not expected:
                    model["era"] = era
            case 2:
                command, expected = c.DetachStore(number), 0 if model else errno.ENOENT
                known.pop(number, None)
            case _:
                changed, stale = based_on(made, number, dice)
                rpo, secret = dice.randrange(10_000, 90_000), dice.choice([None, b"", dice.randbytes(40)])
                command = c.SetStore(number, changed, replace(OPTIONS, rpo_ms=rpo), secret)
                expected = errno.ENOENT if model is None else errno.ESTALE if stale else 0
                if model is not None and not expected:
                    model |= {"rpo": rpo} | ({} if secret is None else {"secret": secret})
        assert (made.errno(command) == expected) if expected else made.ok(command)
        told = {one.store: (one.name, one.url, one.era_number, one.options.rpo_ms, one.has_secret) for one in made.ask(ListStores()).stores}
        assert told == {n: (o["name"], o["url"], o["era"], o["rpo"], bool(o["secret"])) for n, o in known.items()}
        assert {n: made.ask(GetStoreSecret(n)).secret for n in known} == {n: o["secret"] for n, o in known.items()}
        if dice.random() < 0.1:
            made.reload()
    sound(made)


# --- secrets ---------------------------------------------------------------------------------------------------------------
def test_no_stream_shows_a_secret() -> None:
    made = drive()
    number = add(made)
    made.ok(c.SetStore(number, number, OPTIONS, VEILED[::-1]))
    for entry in made.entries:
        assert VEILED not in (raw := redaction.hidden(encode(entry))) and VEILED[::-1] not in raw
    entry = made.entries[-1]
    assert redaction.without_secrets(c.SetStore(1, 2, OPTIONS, VEILED)) == c.SetStore(1, 2, OPTIONS, b"")
    assert redaction.without_secrets(c.SetStore(1, 2, OPTIONS)) == c.SetStore(1, 2, OPTIONS), "whether there is another one is no secret"
    assert "secret" not in repr(entry) and repr(VEILED)[2:20] not in repr(made.entries)
    made.machine.flush()
    [raw] = [value for key, value in made.txn.rows.items() if keys.kind_of(key)[2] == keys.STORE_SECRET]
    repair = c.RepairRows([], [(keys.store_secret(number), raw)])
    assert VEILED[::-1] not in redaction.hidden(encode(made.entry(repair)))


def test_a_copy_that_leaves_has_no_secret_and_says_so_when_it_is_a_store_again() -> None:
    made = drive()
    number = add(made)
    made.machine.flush()
    erased = redaction.erasures(made.txn)
    for key, raw in list(made.txn.rows.items()):
        eraser = redaction.Eraser(erased)
        made.txn.put(key, out := eraser.feed(raw) + eraser.rest())
        assert VEILED not in out and len(out) == len(raw)
    redaction.empty_erased(made.txn)
    made.reload()
    assert made.ask(GetStoreSecret(number)).secret == b"" and not made.ask(ListStores()).stores[0].has_secret
    sound(made)
    assert redaction.erasures(made.txn) == {}


# --- fsck -------------------------------------------------------------------------------------------------------------------
def test_fsck_finds_what_contradicts() -> None:
    made = drive()
    number = add(made)
    sound(made)
    row: rows.StoreRow = rows.STORE.loads(made.txn.rows[keys.store(number)])

    def faults(key: bytes, value: bytes | None) -> set[str]:
        before = made.txn.rows.get(key)
        made.txn.delete(key) if value is None else made.txn.put(key, value)
        found = {fault.kind for fault in check(made.txn)}
        made.txn.delete(key) if before is None else made.txn.put(key, before)
        return found

    assert faults(keys.store_secret(9), rows.STORE_SECRET.dumps(rows.StoreSecretRow(9, b"x"))) == {"store-secret"}
    assert faults(keys.store_secret(number), None) == set(), "it may have gone in a recovery"
    for wrong in (replace(row, state=STORE_ACTIVE), replace(row, era_number=1), replace(row, state=7), replace(row, changed=10**6)):
        assert faults(keys.store(number), rows.STORE.dumps(wrong)) == {"store"}
    twin = replace(row, store=number - 1, changed=number)
    assert faults(keys.store(number - 1), rows.STORE.dumps(twin)) == {"store-name"}
    assert faults(keys.store(number), b"nonsense") >= {"store-secret"}
    made.reload()
    sound(made)
