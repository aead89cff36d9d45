"""What the cluster keeps secret of a store: it comes back, its words stand nowhere, and damage is told."""

from __future__ import annotations

import struct
from random import Random

import msgspec
import pytest
from crc32c import crc32c

from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.tier.credentials import Credentials
from awsomefsd.tier.store_secret import KEY_BYTES, NONCE_BYTES, StoreSecret, _masked, new_key, unveil, veil
from tests.unit.meta.test_golden_encodings import golden

WHOLE = StoreSecret(Credentials("AKTESTKEY", "minioadmin", "a-session-token"), bytes(range(KEY_BYTES)), 1)
EACH = [
    WHOLE, StoreSecret(), StoreSecret(Credentials("AK", "secret")), StoreSecret(None, bytes(KEY_BYTES), 3),
    StoreSecret(Credentials("", "")),
]  # fmt: skip


@pytest.mark.parametrize("secret", EACH)
def test_what_is_veiled_comes_back(secret: StoreSecret) -> None:
    assert unveil(veil(secret)) == secret
    assert (veil(secret) == b"") == (secret == StoreSecret())


def test_its_words_stand_nowhere_and_no_two_veils_are_alike() -> None:
    veiled, again = veil(WHOLE), veil(WHOLE)
    assert veiled != again and len(veiled) == len(again)
    for words in (b"minioadmin", b"AKTESTKEY", b"a-session-token", WHOLE.segments_key):
        assert words not in veiled
    assert "minioadmin" not in repr(WHOLE) and "AKTESTKEY" not in repr(WHOLE)
    assert len(new_key()) == KEY_BYTES and new_key() != new_key()


def test_golden() -> None:
    held = golden("store_secret.txt", {f"secret-{at}": veil(secret, bytes(range(NONCE_BYTES))) for at, secret in enumerate(EACH)})
    assert [unveil(raw) for raw in held.values()] == EACH


def test_damage_is_told_and_never_a_secret(seed: int) -> None:
    dice = Random(seed)
    for _ in range(500):
        raw = bytearray(before := veil(WHOLE))
        for _ in range(dice.randrange(1, 4)):
            match dice.randrange(3):
                case 0 if raw:
                    raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
                case 1:
                    del raw[dice.randrange(len(raw) + 1) :]
                case _:
                    raw += dice.randbytes(dice.randrange(1, 4))
        if not raw or raw == before:
            continue
        with pytest.raises(Corrupt):
            unveil(bytes(raw))


def test_a_later_version_is_told_from_damage() -> None:
    def made(version: int, body: bytes) -> bytes:
        nonce = bytes(NONCE_BYTES)
        body = bytes((version,)) + body
        return nonce + _masked(nonce, struct.pack("<I", crc32c(body)) + body)

    with pytest.raises(FormatTooNew, match="upgrade this node"):
        unveil(made(2, b"whatever"))
    for fields in ([None, b"", 0, 1], ["x"], [["a", "b"], b"", 0], [None, b"short", 0], [None, b"", -1], "x", [None, "", 0]):
        with pytest.raises(Corrupt):
            unveil(made(1, msgspec.msgpack.encode(fields)))
