"""Secrets in a copy of a store: overwritten wherever the bytes are cut, and nothing else is changed."""

from __future__ import annotations

import random

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.redaction import Eraser, empty_erased, erasures
from tests.rigs.machine_driver import Drive

PEM = "-----BEGIN PRIVATE KEY-----\n" + "k" * 180 + "\n-----END PRIVATE KEY-----\n"
FOUNDING, JOIN = bytes(range(1, 65)), bytes(range(100, 132))


def with_secrets() -> Drive:
    drive = Drive()
    drive.ok(c.PutCa("a1", "certificate", PEM, "active"))
    drive.ok(c.PutToken("f1", "founding", "node", FOUNDING, 1 << 50, 3))
    drive.ok(c.PutToken("j1", "join", "node", JOIN, 1 << 50, 1))
    drive.machine.flush()
    return drive


def test_a_file_comes_out_without_secrets_however_it_is_cut(seed: int) -> None:
    dice = random.Random(seed)
    txn = with_secrets().machine.state.txn
    erased = erasures(txn)
    raws = [raw for kind in (keys.CA, keys.TOKEN) for _, raw in txn.scan(*keys.kind_range(0, kind))]
    for _ in range(200):
        parts = [dice.choice([*raws, PEM.encode(), FOUNDING, FOUNDING[:40], dice.randbytes(dice.randrange(300))]) for _ in range(12)]
        file = b"".join(parts)
        eraser, out, at = Eraser(erased), b"", 0
        while at < len(file):
            size = dice.randrange(1, 400)
            out += eraser.feed(file[at : at + size])
            at += size
        out += eraser.rest()
        assert out == b"".join(erased.get(part, part) for part in parts)
        assert PEM.encode() not in out and FOUNDING not in out


def test_rows_without_their_secret_are_read_and_say_so() -> None:
    drive = with_secrets()
    txn = drive.machine.state.txn
    for kind in (keys.CA, keys.TOKEN):
        for key, raw in list(txn.scan(*keys.kind_range(0, kind))):
            eraser = Eraser(erasures(txn))
            txn.put(key, eraser.feed(raw) + eraser.rest())
    empty_erased(txn)
    [authority] = [rows.CA.loads(raw) for _, raw in txn.scan(*keys.kind_range(0, keys.CA))]
    tokens = {row.id: row.verifier for _, raw in txn.scan(*keys.kind_range(0, keys.TOKEN)) if (row := rows.TOKEN.loads(raw))}
    assert (authority.certificate, authority.key, authority.state) == ("certificate", "", "active")
    assert tokens == {"f1": b"", "j1": JOIN}
    assert erasures(txn) == {}
