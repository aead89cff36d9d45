"""The seam to a store of objects: GET, PUT and DELETE, and nothing else.  No list, no condition, no name that is written twice.

Three things are the same for every kind of store, and are here: which names there can be, how long a request may take, and how often it is
tried.  A kind (`s3_store`, `directory_store`) does one request and says what was wrong with it (`errors`).

A request has a deadline that grows with its bytes, REQUEST_S and a second for each SLOWEST_BYTES_PER_S.  What is down or slow is tried
TRIES times, within that time, with a growing pause in which half is chance, so that nodes which lost a store together do not come back
together.  Whatever goes on for longer is the caller's, who has a queue.  A GET that was cut goes on behind the bytes that were handed out
already.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from awsomefsd.base.errors import Corrupt
from awsomefsd.base.limits import KIB, MIB
from awsomefsd.io.device.checksum import Bytes
from awsomefsd.tier.errors import ObjectDamaged, ObjectUnnamed, StoreError, StoreForeign
from awsomefsd.tier.names import MARKER
from awsomefsd.tier.object_format import MARKER_BYTES, Marker, unpack_marker

CONNECT_S = 5
SILENCE_S = 20  # of a GET without a byte
REQUEST_S = 60
SLOWEST_BYTES_PER_S = 256 * KIB  # a slower link needs smaller segments
TRIES = 3
FIRST_PAUSE_S, PAUSE_S_MAX = 0.2, 5.0
CHUNK_BYTES = MIB  # of a stream
OBJECT_BYTES_MAX = 5 << 30  # of one PUT, by S3's rules
NAME_BYTES_MAX = 500  # and a prefix of up to 512: S3 knows 1,024
_PART = re.compile(r"[A-Za-z0-9._-]{1,200}")

Answer = TypeVar("Answer")


class Suffix(NamedTuple):
    """The last bytes of an object, and how many it has in all."""

    raw: bytes
    object_bytes: int


class ObjectStore(Protocol):
    """A store, below one prefix.  Every call blocks, has a deadline, and raises a StoreError.  Threads may share it.

    `url` names it for people and holds no secret.  Names are relative to its prefix.
    """

    url: str

    def read(self, name: str, start: int, length: int) -> Iterator[Bytes]:
        """Gives bytes [start, start + length) of an object in chunks, exactly so many.  ObjectDamaged if it has fewer."""

    def suffix(self, name: str, length: int) -> Suffix:
        """Returns the last `length` bytes of an object, all of it if it is shorter."""

    def whole(self, name: str, bytes_max: int) -> bytes:
        """Returns a small object.  ObjectDamaged if it is larger than `bytes_max`."""

    def put(self, name: str, body: Bytes) -> None:
        """Stores an object; on return it is as durable as the store makes anything.

        `body` must not change before this returns.  The same object may be put again.  One of the same name with another content is the
        caller's fault, which few stores notice.
        """

    def delete(self, name: str) -> None:
        """Removes an object; one that is not there counts as removed."""

    def headers(self, name: str) -> dict[str, str]:
        """Returns what a store says beside a small object, by names in small letters; {} for a kind that says nothing."""

    def close(self) -> None:
        """Ends connections; no other call may be under way or follow."""


def deadline_s(length: int) -> float:
    """Returns how long a request may take that moves so many bytes."""
    return REQUEST_S + length / SLOWEST_BYTES_PER_S


def check_name(name: str) -> str:
    """Returns the name of an object, relative to a prefix, which nothing on the way can read as another one.  Raises ObjectUnnamed.

    It is no assertion: a build that leaves those out would be led out of the prefix, or out of the directory, by a name.
    """
    if len(name) > NAME_BYTES_MAX or not all(_PART.fullmatch(part) and part.strip(".") for part in name.split("/")):
        raise ObjectUnnamed(f"{name[:200]!r} is no name of an object; nobody was asked for it")
    return name


class Tries:
    """Tries a request again where that helps.  Threads may share it.  `stop` ends pauses: the error is raised then."""

    def __init__(self, tries: int = TRIES, first_pause_s: float = FIRST_PAUSE_S, stop: threading.Event | None = None) -> None:
        self._tries, self._first_pause_s = tries, first_pause_s
        self._stop = stop or threading.Event()

    def run(self, request: Callable[[], Answer], length: int) -> Answer:
        """Returns what `request` does, which moves `length` bytes.  Raises its last StoreError; one that took all the time is the last."""
        until = time.monotonic() + deadline_s(length)
        for tried in range(1, self._tries + 1):
            try:
                return request()
            except StoreError as err:
                if not err.retry_helps or tried == self._tries or time.monotonic() > until or self._pause(tried):
                    raise
        raise AssertionError("no try at all")

    def read(self, request: Callable[[int], Iterator[Bytes]], length: int) -> Iterator[Bytes]:
        """Gives the bytes of `request(skipped)`, which begins behind `skipped` of `length` bytes; each try may bring it further.

        A try that brought bytes does not count.  Raises the last StoreError; ObjectDamaged where more or fewer bytes come.
        """
        done = tried = 0
        until = time.monotonic() + deadline_s(length)
        while done < length:
            before = done
            try:
                for chunk in request(done):
                    done += len(chunk)
                    if done > length:
                        raise ObjectDamaged(f"{done - length} bytes more than were asked for")
                    yield chunk
                if done < length:
                    raise ObjectDamaged(f"{length - done} bytes fewer than were asked for")
            except StoreError as err:
                tried = 1 if done > before else tried + 1
                if not err.retry_helps or tried >= self._tries or time.monotonic() > until or self._pause(tried):
                    raise

    def _pause(self, tried: int) -> bool:
        """Waits; True: no more tries."""
        pause_s = min(self._first_pause_s * 2 ** (tried - 1), PAUSE_S_MAX)
        return self._stop.wait(pause_s * (0.5 + random.random() / 2))


def owner(store: ObjectStore) -> Marker:
    """Returns the marker of a store, which says whose it is.  Raises ObjectMissing where none is, StoreForeign for anything else."""
    try:
        return unpack_marker(store.whole(MARKER, MARKER_BYTES))
    except (Corrupt, ObjectDamaged) as err:
        raise StoreForeign(f"{store.url}: what lies at {MARKER} is no marker of awsomefs ({err}); give another prefix") from None


