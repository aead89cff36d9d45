"""The control area of a mount: 64 KiB of shared memory with all that a successor must know before its first request.

A successor does no FUSE_INIT and asks no other process for its identity: negotiated values, mount id, dirty log id, volume, session and
epoch are here.  All of that is one record in two copies (shm.Doubled): after a kill it is the old or the new record, so values that belong
together, as session and epoch, are never mixed.

`opening`: a session is being opened in the place of `session`, or it was and others had the volume before (worker/session_opening.py).

`next_background_unique` returns ids for requests that no FUSE request stands behind.  The word in shared memory is the end of the present
block of ids; it is stored before the first id of the block is used, so a successor starts behind every id that may have been used.
A kill wastes up to BACKGROUND_BLOCK ids of 2**62.

Counters are plain words.  They survive the worker, so that metrics do not start again at each restart.  Two threads that `add` at once
may lose one of the two: a counter belongs to one thread, or it is one whose figure need not be exact.

Layout: page 0 header, background word at 64; page 1.. two copies of the state (16 KiB each); then 256 counters of 64 bytes; then the rows
of latencies.py.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from awsomefsd.base import shm
from awsomefsd.base.codec import encode
from awsomefsd.base.errors import Corrupt
from awsomefsd.base.types import BACKGROUND_BIT
from awsomefsd.fuse.latencies import LATENCY_WORDS, Latencies

MAGIC = b"awsmctl\x00"
VERSION = 1
CONTROL_BYTES = 64 * 1024
BACKGROUND_BLOCK = 1024
COUNTERS_MAX = 256
COUNTER_NAME_BYTES_MAX = 48
SUSPECTS_MAX = 256

_BACKGROUND_WORD = 8  # at byte 64
_STATE_AT = shm.PAGE_BYTES
_STATE_BYTES = 32 * 1024
_COUNTERS_AT = _STATE_AT + _STATE_BYTES
_COUNTER_BYTES = 64

_LATENCIES_WORD = (_COUNTERS_AT + COUNTERS_MAX * _COUNTER_BYTES) // 8

assert (_LATENCIES_WORD + LATENCY_WORDS) * 8 <= CONTROL_BYTES


class Negotiated(NamedTuple):
    """The outcome of FUSE_INIT; constant for the life of the mount.  `flags` is flags and flags2 as one 64-bit number."""

    minor: int
    flags: int
    max_write: int
    max_readahead: int
    max_background: int
    congestion_threshold: int = 0
    max_pages: int = 0
    time_gran: int = 1


class Suspect(NamedTuple):
    """A request that was executing when its worker died."""

    unique: int
    deaths: int
    opcode: int = 0


class ControlState(Struct, array_like=True, frozen=True):
    """The doubled record.  Fields are only ever appended, with a default."""

    mount: int = 0
    dirty_log: int = 0
    volume: int = 0
    session: int = 0
    epoch: int = 0
    workers: int = 0
    negotiated: Negotiated | None = None
    suspects: list[Suspect] = []
    opening: bool = False


_decode_state = msgspec.msgpack.Decoder(ControlState).decode


class SharedCounter:
    """One named u64 in the control area.  One thread adds to it, any thread reads it."""

    __slots__ = ("_at", "_words", "name")

    def __init__(self, words: memoryview, at: int, name: str) -> None:
        self._words = words
        self._at = at
        self.name = name

    def add(self, amount: int = 1) -> None:
        self._words[self._at] = (self._words[self._at] + amount) & shm.U64

    def set(self, value: int) -> None:
        self._words[self._at] = value & shm.U64

    @property
    def value(self) -> int:
        return int(self._words[self._at])


class ControlArea:
    """Typed access to the control area.  Thread-safe except for counters; nothing blocks.

    `fresh` formats the area; so does the absence of a header (a worker died while it formatted).  The constructor raises Corrupt for an
    area that is too small or damaged, FormatTooNew for one of a newer build.
    """

    def __init__(self, mem: shm.Mem, fresh: bool = False) -> None:
        self._view = shm.bytes_view(mem)
        if len(self._view) < CONTROL_BYTES:
            raise Corrupt(f"control area of {len(self._view)} bytes, {CONTROL_BYTES} wanted")
        self._words = shm.words(self._view)
        self._doubled = shm.Doubled(self._view[_STATE_AT : _STATE_AT + _STATE_BYTES], "control state")
        self._lock = threading.Lock()
        self._counters: dict[str, SharedCounter] = {}
        self.latencies = Latencies(self._words, _LATENCIES_WORD)
        self.formatted = fresh or shm.read_header(self._view, MAGIC, VERSION, "control area") is None
        if self.formatted:
            self._format()
        self._state = self._load()
        self._next_background = self._background_end = self._words[_BACKGROUND_WORD]
        if not 0 < self._next_background < BACKGROUND_BIT - BACKGROUND_BLOCK:
            raise Corrupt(f"control area: background id {self._next_background:#x}")
        self._load_counters()

    def _format(self) -> None:
        shm.clear_header(self._view)
        self._doubled.clear()
        self._words[_BACKGROUND_WORD] = 1
        for index in range(COUNTERS_MAX):
            self._words[_counter_at(index) + 1] = 0
        self.latencies.clear()
        self._doubled.store(encode(ControlState()))
        shm.write_header(self._view, MAGIC, VERSION, (0, 0, 0))

    def _load(self) -> ControlState:
        raw = self._doubled.load()
        if raw is None:
            raise Corrupt("control state: missing")
        try:
            state: ControlState = _decode_state(raw)
        except (msgspec.DecodeError, RecursionError) as err:
            raise Corrupt(f"control state: {err}") from err
        return state

    @property
    def state(self) -> ControlState:
        """The record as it stands; immutable, read it once for values that belong together."""
        return self._state

    def update(self, **changes: Any) -> ControlState:
        """Replaces the named fields of the state, all at once, and returns the new state."""
        with self._lock:
            state: ControlState = msgspec.structs.replace(self._state, **changes)
            assert len(state.suspects) <= SUSPECTS_MAX, "more suspects than parked requests may be executing"
            self._doubled.store(encode(state))
            self._state = state
        return state

    def next_background_unique(self) -> int:
        """Returns an id with BACKGROUND_BIT that this mount never used before."""
        with self._lock:
            value = self._next_background
            if value >= self._background_end:
                self._background_end = value + BACKGROUND_BLOCK
                self._words[_BACKGROUND_WORD] = self._background_end  # before any id of the block is used
            self._next_background = value + 1
        return value | BACKGROUND_BIT

    def counter(self, name: str) -> SharedCounter:
        """Returns the counter of that name, made (with 0) when it is new.  A name has at most COUNTER_NAME_BYTES_MAX bytes."""
        with self._lock:
            counter = self._counters.get(name)
            if counter is None:
                counter = self._new_counter(name)
                self._counters[name] = counter
        return counter

    def counters(self) -> dict[str, int]:
        """Returns the values of all counters by name."""
        with self._lock:
            return {name: counter.value for name, counter in self._counters.items()}

    def _new_counter(self, name: str) -> SharedCounter:
        raw = name.encode()
        index = len(self._counters)
        assert 0 < len(raw) <= COUNTER_NAME_BYTES_MAX and index < COUNTERS_MAX, name
        at = _counter_at(index)
        self._words[at] = 0
        start = at * 8 + 16
        self._view[start : start + len(raw)] = raw
        self._words[at + 1] = len(raw)  # from here on it exists
        return SharedCounter(self._words, at, name)

    def _load_counters(self) -> None:
        for index in range(COUNTERS_MAX):
            at = _counter_at(index)
            length = self._words[at + 1]
            if length == 0:
                return
            if length > COUNTER_NAME_BYTES_MAX:
                raise Corrupt(f"control area: counter {index} has a name of {length} bytes")
            start = at * 8 + 16
            try:
                name = str(self._view[start : start + length], "utf-8")
            except UnicodeDecodeError as err:
                raise Corrupt(f"control area: counter {index}: {err}") from err
            self._counters[name] = SharedCounter(self._words, at, name)


def _counter_at(index: int) -> int:
    return (_COUNTERS_AT + index * _COUNTER_BYTES) // 8
