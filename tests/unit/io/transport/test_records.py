"""Headers of records and the bodies of the small ones: round trips, golden bytes, what is refused, what a seal refuses."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import BLOCK_BYTES, SEGMENT_BODY_BYTES_MAX, SEGMENT_REASON_BYTES_MAX
from awsomefsd.io.transport import messages, records, seal
from awsomefsd.io.transport.records import ANSWER, ENDS_ONLY, SHAPES, BulkRecord, Kind, pack, unpack

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "segment_records.txt"
DIALLER, ACCEPTOR = "11111111-2222-3333-4444-555555555555", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
VALUES = {"segment": 0x0102030405060708, "incarnation": 9, "device": 3, "index": 0x01020304, "offset": 5 << 20, "value": 1 << 20}
HELLO = messages.BulkHello(1, DIALLER, 77, 5)
WELCOME = messages.BulkWelcome(1, bytes(range(16)), [messages.ServedDevice(3, 1_000, 64 << 20)])
VERIFIED = messages.Verified(12, 1 << 20, 1, [messages.Wrong(4096, "checksum")])
ORDER = messages.CopyOrder(41, [messages.CopySource(f"{ACCEPTOR}@storage-2:7442", 3, 17)], 64 << 20)
COPIED = messages.Copied(True, bytes(range(16)), 12, 1, 1, [messages.Wrong(4096, "checksum")])
MESSAGES = (HELLO, WELCOME, VERIFIED, ORDER, COPIED)


def sample(kind: Kind) -> BulkRecord:
    """A record of a kind with something in every field that it has."""
    shape = SHAPES[kind]
    body = min(shape.body_bytes_max, 8_192)
    return BulkRecord(kind, call=0xABCD, flags=shape.flags, body_bytes=body, **{name: VALUES[name] for name in shape.fields})


def pair() -> tuple[seal.Keys, seal.Keys]:
    ours, theirs = bytes(range(32)), bytes(range(100, 132))
    return (
        seal.keys_of(ours, theirs, DIALLER, ACCEPTOR, dialled=True),
        seal.keys_of(ours, theirs, DIALLER, ACCEPTOR, dialled=False),
    )


def golden_lines() -> list[str]:
    lines = [f"{kind.name} {pack(sample(kind)).hex()}" for kind in Kind]
    lines += [f"{type(one).__name__} {messages.dumps(one).hex()}" for one in MESSAGES]
    sealing = seal.Seal(pair()[0].sending)
    for name, body in (("sealed-0", b"a body"), ("sealed-1", b"")):
        lines.append(f"{name} {bytes(sealing.seal(pack(sample(Kind.SYNC)), body)).hex()}")
    return lines


def test_the_bytes_are_those_of_the_golden_file() -> None:
    text = "\n".join(golden_lines()) + "\n"
    if os.environ.get("AWSOMEFSD_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text, "a record has changed: two builds would not understand each other"


@pytest.mark.parametrize("kind", list(Kind))
def test_round_trip(kind: Kind) -> None:
    record = sample(kind)
    assert unpack(pack(record)) == record
    assert record.is_answer == bool(kind & ANSWER)
    assert set(SHAPES) == set(Kind)


@pytest.mark.parametrize(
    "record",
    [
        replace(sample(Kind.SYNC), errno=5),
        replace(sample(Kind.SYNC), flags=ENDS_ONLY),
        replace(sample(Kind.SYNC), body_bytes=1),
        replace(sample(Kind.SYNC), value=1),
        replace(sample(Kind.HELLO), segment=1),
        replace(sample(Kind.APPEND), body_bytes=0),
        replace(sample(Kind.APPEND), body_bytes=BLOCK_BYTES + 1),
        replace(sample(Kind.APPEND), body_bytes=SEGMENT_BODY_BYTES_MAX + BLOCK_BYTES),
        replace(sample(Kind.APPEND), offset=512),
        replace(sample(Kind.READ), value=0),
        replace(sample(Kind.VERIFY), offset=512),
        replace(sample(Kind.VERIFY), value=512),
        replace(sample(Kind.COPY), value=6 << 20),
        replace(sample(Kind.COPIED), value=1),
        replace(sample(Kind.READ), value=SEGMENT_BODY_BYTES_MAX + 1),
        replace(sample(Kind.OPENED), errno=116, body_bytes=SEGMENT_REASON_BYTES_MAX + 1),
    ],
)
def test_what_no_sender_can_have_sent_is_refused(record: BulkRecord) -> None:
    with pytest.raises(ProtocolError):
        unpack(pack(record))


def test_other_bytes_are_refused() -> None:
    good = bytearray(pack(sample(Kind.READ)))
    for at, byte in ((0, 0), (4, 0), (4, 9), (4, 200), (56, 1), (63, 1)):
        raw = bytearray(good)
        raw[at] = byte
        with pytest.raises(ProtocolError):
            unpack(raw)
    with pytest.raises(ProtocolError):
        unpack(good[:63])


def test_messages_round_trip_and_nonsense() -> None:
    for one in MESSAGES:
        assert messages.loads(messages.dumps(one), type(one)) == one
    for raw in (b"", b"\xc0", b"\x90", messages.dumps(VERIFIED), b"\x94\x01\xa3abc\x00\x00", messages.dumps(replace(HELLO, version=0))):
        with pytest.raises(ProtocolError):
            messages.loads(raw, messages.BulkHello)
    for bad in (replace(ORDER, sources=[]), replace(ORDER, planned=0), replace(ORDER, pace=-1), replace(ORDER, sources=ORDER.sources * 17)):
        with pytest.raises(ProtocolError):
            messages.loads(messages.dumps(bad), messages.CopyOrder)
    assert (WELCOME.devices[0].bays, VERIFIED.wrong_count) == (1_000, 1)
    later = messages.dumps(HELLO).replace(b"\x94", b"\x95", 1) + b"\x07"
    assert messages.loads(later, messages.BulkHello) == HELLO, "what a later version adds is ignored"
    assert messages.reason_of(messages.reason("é" * 400)) == "é" * 256
    assert messages.reason_of(b"\xff") == "\ufffd"


# --- seal ---------------------------------------------------------------------------------------------------------------------
def test_both_sides_have_the_same_keys_one_for_each_direction() -> None:
    dialler, acceptor = pair()
    assert dialler == (acceptor.receiving, acceptor.sending) and dialler.sending != dialler.receiving
    others = [seal.keys_of(bytes(32), bytes(range(100, 132)), DIALLER, ACCEPTOR, dialled=True)]
    others.append(seal.keys_of(bytes(range(32)), bytes(32), DIALLER, ACCEPTOR, dialled=True))
    others.append(seal.keys_of(bytes(range(32)), bytes(range(100, 132)), ACCEPTOR, DIALLER, dialled=True))
    assert len({keys.sending for keys in (dialler, *others)} | {keys.receiving for keys in (dialler, *others)}) == 8
    assert dialler.sending.hex() not in f"{dialler!r}{dialler}" and str(list(dialler.sending)[:4]) not in repr(dialler)


def test_only_the_next_record_opens_and_only_as_it_was_sent(seed: int) -> None:
    rng = random.Random(seed)
    header, body = pack(sample(Kind.APPEND)), rng.randbytes(8_192)
    sealing = seal.Seal(pair()[0].sending)
    first, second = bytes(sealing.seal(header, body)), bytes(sealing.seal(header, body))
    assert first != second
    room = memoryview(bytearray(len(body)))

    def refused(head: bytes, raw: bytes, before: list[bytes] | None = None) -> None:
        opening = seal.Seal(pair()[1].receiving)
        for one in before or []:
            opening.open(header, one, room)
        with pytest.raises(ProtocolError):
            opening.open(head, raw, memoryview(bytearray(len(raw) - seal.TAG_BYTES)))

    refused(header, second)  # one was left out
    refused(header, first, [first])  # repeated
    refused(header, first[:-1])
    refused(header, first + b"\0")
    for _ in range(200):
        which, changed = rng.randrange(2), [bytearray(header), bytearray(first)]
        changed[which][rng.randrange(len(changed[which]))] ^= 1 << rng.randrange(8)
        refused(bytes(changed[0]), bytes(changed[1]))
    with pytest.raises(ProtocolError):  # sent back by whoever received it
        seal.Seal(pair()[0].receiving).open(header, first, room)
    opening = seal.Seal(pair()[1].receiving)
    for one in (first, second):
        opening.open(header, one, room)
        assert room == body


def test_a_seal_into_memory_is_the_same_and_ends_with_its_count() -> None:
    header, body = pack(sample(Kind.BYTES)), bytes(8_192)
    sealing, other = seal.Seal(pair()[0].sending, 2), seal.Seal(pair()[0].sending, 2)
    room = memoryview(bytearray(10_000))
    for _ in range(2):
        assert bytes(sealing.seal(header, body, room)) == other.seal(header, body)
    for used in (sealing, other):
        with pytest.raises(ConnectionResetError):
            used.seal(header, body)
    assert struct.unpack_from("<4s", header)[0] == records.MAGIC
