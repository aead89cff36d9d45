"""The keeper's wire: descriptors beside messages, bounds, ends, and a decoder that raises nothing but ProtocolError."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from pathlib import Path

import pytest

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import BACKOFF_MS_MAX, WORKER_DEATHS_BEFORE_BACKOFF
from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper import wire as wire
from awsomefsd.keeper.loop import Loop, Promise, Sequence_
from awsomefsd.keeper.mount import backoff_ms, checked_spec


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


def test_back_off_starts_late_and_ends_somewhere() -> None:
    waits = [backoff_ms(deaths) for deaths in range(1, 100)]
    assert waits[: WORKER_DEATHS_BEFORE_BACKOFF - 1] == [0] * (WORKER_DEATHS_BEFORE_BACKOFF - 1)
    assert waits[WORKER_DEATHS_BEFORE_BACKOFF - 1] > 0 and waits == sorted(waits) and waits[-1] == BACKOFF_MS_MAX


def test_mount_options() -> None:
    assert mount_syscalls.flags_of(["ro", "nosuid", "noatime", "_netdev", "x-systemd.automount"]) == 1 | 2 | 1024
    assert mount_syscalls.flags_of(["ro", "rw", "defaults"]) == 0
    with pytest.raises(OSError, match="unknown mount option 'quick'"):
        mount_syscalls.flags_of(["quick"])


def test_mount_table_with_odd_names(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"22 1 0:45 / /mnt/a\\040b\\134c rw shared:1 master:2 - fuse.awsomefs my\\040vol rw,fd=3\n"
        b"23 22 8:1 /sub /x rw - ext4 /dev/sda1 rw\nnonsense\n24 1 0:5 / / rw - proc\n"
    )
    first, second, third = mount_syscalls.mounts(str(table))
    assert (first.dir, first.source, first.device, first.minor) == ("/mnt/a b\\c", "my vol", "0:45", 45)
    assert (second.root, second.fstype) == ("/sub", "ext4") and third.source == ""


def test_sequences_and_timeouts() -> None:
    loop = Loop()
    never = Promise()
    seen: list[object] = []

    def inner() -> Sequence_:
        yield loop.sleep(1)
        return 7

    def outer() -> Sequence_:
        seen.append((yield loop.start(inner())))
        try:
            yield loop.within(never, 5, "nothing")
        except TimeoutError as error:
            seen.append(error.strerror)
        seen.append((yield loop.chore(os.getpid, 5_000, "a child")) != os.getpid())
        try:
            yield loop.chore(lambda: os.stat("/no/such/path"), 5_000, "a stat")
        except OSError as error:
            seen.append(error.errno)
        began = time.monotonic()
        try:
            yield loop.chore(lambda: time.sleep(60), 20, "a child that hangs")
        except TimeoutError:
            seen.append(time.monotonic() - began < 55)
        loop.later(0, loop.stop)

    done = loop.start(outer())
    loop.run()
    assert done.error is None and seen == [7, "nothing took more than 5 ms", True, 2, True]


def test_a_callback_that_fails_does_not_end_the_loop() -> None:
    loop = Loop()

    def broken() -> None:
        raise ValueError("a bug")

    loop.later(0, broken)
    loop.later(5, loop.stop)
    loop.run()
