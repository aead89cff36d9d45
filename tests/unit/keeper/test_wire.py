"""The keeper's wire: descriptors beside messages, bounds, ends, and a decoder that raises nothing but ProtocolError."""

from __future__ import annotations

import json
import os
import random
import socket

import pytest

from awsomefsd.base.errors import ProtocolError
from awsomefsd.keeper import wire as wire
from awsomefsd.keeper.mount import checked_spec


def test_descriptors_arrive_with_their_message() -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        reader, writer = os.pipe()
        wire.send(ours, {"op": "start", "fds": ["a", "b"]}, [reader, writer])
        os.close(reader)
        os.close(writer)
        received = wire.receive(theirs)
        assert received is not None
        message, fds = received
        assert message["fds"] == ["a", "b"] and not any(os.get_inheritable(fd) for fd in fds)
        os.write(fds[1], b"x")
        assert os.read(fds[0], 1) == b"x"
        wire.close_all(fds)


def test_end_and_bounds() -> None:
    ours, theirs = wire.pair()
    with theirs:
        with ours:
            wire.send(ours, {"op": "x", "config": "y" * (wire.MESSAGE_BYTES_MAX - 100)})
            with pytest.raises(ProtocolError):
                wire.send(ours, {"op": "x" * wire.MESSAGE_BYTES_MAX})
            ours.send(b"z" * (wire.MESSAGE_BYTES_MAX + 1))
        received = wire.receive(theirs)
        assert received is not None and received[0]["op"] == "x"
        with pytest.raises(ProtocolError):
            wire.receive(theirs)
        assert wire.receive(theirs) is None


def test_refused_messages_leak_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = wire.pair()
    with ours, theirs, open("/dev/null") as null:
        socket.send_fds(ours, [b"not json"], [null.fileno()] * 3)
        with pytest.raises(ProtocolError):
            wire.receive(theirs)
    assert len(os.listdir("/proc/self/fd")) <= before, "fewer: garbage of earlier tests was collected"


def test_decoder_fuzz(seed: int) -> None:
    dice = random.Random(seed)
    words = {"op": "mount", "mount": "ab", "dir": "/d", "memfds": {"control": 1}, "options": ["ro"], "config": {"x": [1, None]}}
    good = json.dumps(words).encode()
    for _ in range(3_000):
        data = bytearray(good)
        for _ in range(dice.randrange(1, 6)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        data = data[: dice.randrange(len(data) + 1)] if dice.random() < 0.3 else data
        for decode in (wire.decode, lambda payload: checked_spec(wire.decode(payload))):
            try:
                assert isinstance(decode(bytes(data)), dict)
            except ProtocolError:
                pass
    with pytest.raises(ProtocolError):
        wire.decode(b"[" * 100_000)
