"""Tries what a store is needed for, before anything is stored in it: PUT, GET, ranges, DELETE, and what it says of itself.

A few small objects and one large one are put below the prefix, under names that nothing else has, and deleted at the end, whatever happens.
Nothing that is there is changed, and nothing is listed.  What was found is told in findings: `bad` is what the store must not be used with,
`note` is what an owner should know.

What cannot be seen by these requests is not looked for: rules that begin to work later, and a store that acknowledges what it then loses.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from uuid import UUID

from msgspec import Struct

from awsomefsd.base.errors import FormatTooNew
from awsomefsd.base.limits import MIB
from awsomefsd.tier.errors import ObjectDamaged, ObjectMissing, StoreError, StoreRefused
from awsomefsd.tier.store import SLOWEST_BYTES_PER_S, ObjectStore, owner

OK, NOTE, BAD = "ok", "note", "bad"
LARGE_BYTES = 64 * MIB  # as the largest objects of segments are
SMALL_BYTES = 10_000
VISIBLE_S = 60  # a store that shows an object, or its absence, later than that is not usable
PAUSE_S = 1.0
CLOCK_NOTE_S, CLOCK_BAD_S = 30, 300  # stores refuse requests that are 900 s off
LISTING = "a name that is not there is answered as forbidden; give these credentials s3:ListBucket, else a lost object looks like a refusal"


class StoreFinding(Struct, frozen=True):
    """What was tried, how it went (OK, NOTE, BAD), and in words what to do."""

    tried: str
    level: str
    words: str


def check_store(
    store: ObjectStore,
    cluster: UUID | None = None,
    *,
    owned: bool = False,
    told: Callable[[StoreFinding], object] = lambda _finding: None,
    large_bytes: int = LARGE_BYTES,
    now: Callable[[], float] = time.time,
    pause: Callable[[float], object] = time.sleep,
) -> list[StoreFinding]:
    """Returns what was found, in the order in which it was tried; the last are missing where a step showed that no other can go well.

    `cluster`: whose the prefix may be; None for one that is to be unused.  `owned`: it has to be the cluster's already.  `told` is given
    each finding when there is one.  Takes as long as `large_bytes` take twice, and up to twice
    VISIBLE_S for a store that shows changes late.  Raises nothing of a store.
    """
    made = _Check(store, cluster, owned, told, large_bytes, now, pause)
    made.run()
    return made.findings


class _Check:
    def __init__(
        self, store: ObjectStore, cluster: UUID | None, owned: bool, told: Callable[[StoreFinding], object], large_bytes: int,
        now: Callable[[], float], pause: Callable[[float], object],
    ) -> None:  # fmt: skip
        self._store, self._cluster, self._owned, self._told, self._now, self._pause = store, cluster, owned, told, now, pause
        self._large_bytes = large_bytes
        self._room = f"check-{secrets.token_hex(16)}"
        self._small = os.urandom(SMALL_BYTES)
        self._put_names: list[str] = []
        self.findings: list[StoreFinding] = []

    def run(self) -> None:
        steps: list[tuple[str, Callable[[], None]]] = [
            ("marker", self._marker), ("put", self._put), ("get", self._get), ("put again", self._put_again), ("ranges", self._ranges),
            ("missing", self._missing), ("headers", self._headers), ("large object", self._large),
        ]  # fmt: skip
        try:
            for tried, step in steps:
                before = len(self.findings)
                try:
                    step()
                except StoreError as err:
                    self._found(tried, BAD, str(err))
                if any(one.level == BAD for one in self.findings[before:]) and tried in ("marker", "put", "get"):
                    break
        except BaseException:  # somebody has interrupted it: what was put does not stay, and nobody waits until its absence shows
            self._remove()
            raise
        if self._put_names:
            self._delete()

    def _found(self, tried: str, level: str, words: str) -> None:
        self.findings.append(StoreFinding(tried, level, words))
        self._told(self.findings[-1])

    def _marker(self) -> None:
        try:
            marker = owner(self._store)
        except ObjectMissing:
            if self._owned:
                self._found("marker", BAD, "its marker is gone: it was emptied, or is another store; nothing is read, sent or deleted")
            else:
                self._found("marker", OK, "the prefix is unused")
            return
        except StoreRefused as err:
            self._found("marker", BAD, f"{err}; where nothing is there yet: {LISTING}")
            return
        except FormatTooNew as err:
            self._found("marker", BAD, str(err))
            return
        if marker.cluster == self._cluster:
            self._found("marker", OK, "the prefix is this cluster's")
        else:
            self._found("marker", BAD, f"the prefix belongs to cluster {marker.cluster}; give another prefix")

    def _put(self) -> None:
        self._put_object("small", self._small)
        self._found("put", OK, f"an object of {SMALL_BYTES} bytes")

    def _put_object(self, name: str, body: bytes) -> None:
        self._put_names.append(f"{self._room}/{name}")
        self._store.put(self._put_names[-1], body)

    def _get(self) -> None:
        late_s = self._until(lambda: self._store.whole(f"{self._room}/small", SMALL_BYTES) == self._small, ObjectMissing)
        if late_s is None:
            self._found("get", BAD, f"an object cannot be read {VISIBLE_S} s after its PUT was acknowledged, or has another content")
        elif late_s:
            self._found("get", NOTE, f"an object was there {late_s:.0f} s after its PUT was acknowledged; reads of it may wait so long")
        else:
            self._found("get", OK, "what was put can be read at once")

    def _until(self, look: Callable[[], bool], not_yet: type[StoreError]) -> float | None:
        """Returns after how many seconds of pauses `look` was true; None: never."""
        waited = 0.0
        while True:
            try:
                if look():
                    return waited
                if not_yet is ObjectMissing:  # it is there, with another content
                    return None
            except not_yet:
                pass
            if waited >= VISIBLE_S:
                return None
            self._pause(PAUSE_S)
            waited += PAUSE_S

    def _put_again(self) -> None:
        try:
            self._store.put(f"{self._room}/small", self._small)
        except StoreError as err:
            self._found("put again", BAD, f"an object cannot be put twice with the same bytes, as where an answer was lost: {err}")
        else:
            self._found("put again", OK, "the same object twice")

    def _ranges(self) -> None:
        name, size = f"{self._room}/small", SMALL_BYTES
        for start, length in ((0, 1), (1, 4_096), (size // 2, 100), (size - 1, 1), (0, size)):
            if b"".join(bytes(chunk) for chunk in self._store.read(name, start, length)) != self._small[start : start + length]:
                self._found("ranges", BAD, f"bytes {start} to {start + length} of an object came as others")
                return
        last = self._store.suffix(name, 128)
        if last != (self._small[-128:], size):
            self._found("ranges", BAD, "the last bytes of an object, or its length, came as others")
            return
        try:
            list(self._store.read(name, size - 10, 20))
        except ObjectDamaged:
            self._found("ranges", OK, "ranges and last bytes")
        else:
            self._found("ranges", BAD, "bytes behind the end of an object were given")

    def _missing(self) -> None:
        try:
            self._store.whole(f"{self._room}/none", 1)
        except ObjectMissing:
            self._found("missing", OK, "a name that is not there is told as such")
        except StoreRefused as err:
            self._found("missing", BAD, f"{LISTING} ({err})")
        else:
            self._found("missing", BAD, "a name that was never put has an object")

    def _headers(self) -> None:
        before = self._now()
        headers = self._store.headers(f"{self._room}/small")
        for level, words in told_by_headers(headers, (before + self._now()) / 2):
            self._found("headers", level, words)

    def _large(self) -> None:
        body = os.urandom(self._large_bytes)
        name = f"{self._room}/large"
        begun = time.monotonic()
        self._put_object("large", body)
        put_s = time.monotonic() - begun
        if self._until(lambda: self._store.suffix(name, 1).object_bytes == len(body), ObjectMissing) is None:
            self._found("large object", BAD, f"an object of {len(body)} bytes is not there, or not whole")
            return
        begun, at = time.monotonic(), 0
        for chunk in self._store.read(name, 0, len(body)):
            if body[at : at + len(chunk)] != chunk:
                self._found("large object", BAD, f"an object of {len(body)} bytes came with others, behind byte {at}")
                return
            at += len(chunk)
        get_s = time.monotonic() - begun
        slow = len(body) / max(put_s, get_s, 1e-6) < 2 * SLOWEST_BYTES_PER_S
        words = f"{len(body) >> 20} MiB were put with {_rate(len(body), put_s)} and read with {_rate(len(body), get_s)}"
        self._found("large object", NOTE if slow else OK, words + ("; give smaller segments (--segment) to a link so slow" if slow else ""))

    def _delete(self) -> None:
        wrong = self._remove()
        if wrong:
            left = f"{self._store.url}/{self._room}/"
            self._found("delete", BAD, f"objects cannot be deleted: {wrong}; what was put under {left} has to be removed by hand")
            return
        try:
            late_s = self._until(lambda: self._is_gone(self._put_names[0]), StoreRefused)
        except StoreError as err:
            self._found("delete", BAD, str(err))
            return
        if late_s is None:
            self._found("delete", BAD, f"an object can be read {VISIBLE_S} s after its DELETE was acknowledged; is an object lock on it?")
        else:
            self._found("delete", NOTE if late_s else OK, f"deleted objects are gone after {late_s:.0f} s")

    def _remove(self) -> str:
        """Deletes what was put; returns why some of it stays, "" if none does."""
        wrong = ""
        for name in self._put_names:
            try:
                self._store.delete(name)
            except StoreError as err:
                wrong = str(err)
        return wrong

    def _is_gone(self, name: str) -> bool:
        try:
            self._store.whole(name, SMALL_BYTES)
        except ObjectMissing:
            return True
        return False


def told_by_headers(headers: dict[str, str], now: float) -> list[tuple[str, str]]:
    """Returns level and words for what a store says of itself beside an object; none of it has to be said.  `headers`: in small letters."""
    found: list[tuple[str, str]] = []
    if headers.get("x-amz-expiration"):
        found.append((BAD, "a lifecycle rule deletes objects of this prefix after some time; end it, data would be lost"))
    if headers.get("x-amz-version-id", "null") != "null":
        found.append((NOTE, "the bucket keeps versions: what is deleted stays and costs, until a lifecycle rule removes old versions"))
    if headers.get("x-amz-object-lock-mode"):
        found.append((NOTE, "objects are locked when they are put: they cannot be deleted until the lock ends, and cost so long"))
    if headers.get("x-amz-storage-class", "").upper() in ("GLACIER", "DEEP_ARCHIVE"):
        found.append((BAD, f"objects go to {headers['x-amz-storage-class']}, from where they cannot be read; take another class"))
    if headers.get("content-encoding", "identity") not in ("identity", "aws-chunked", ""):
        found.append((BAD, f"objects come encoded as {headers['content-encoding'][:40]!r}; nothing on the way may change them"))
    try:
        off_s = abs(parsedate_to_datetime(headers["date"]).timestamp() - now)
    except (KeyError, ValueError, TypeError, OverflowError):
        return found
    if off_s > CLOCK_NOTE_S:
        level = BAD if off_s > CLOCK_BAD_S else NOTE
        found.append((level, f"the clocks of this node and of the store differ by {off_s:.0f} s; set this node's; 900 s are too many"))
    return found


def _rate(length: int, seconds: float) -> str:
    return f"{length / max(seconds, 1e-6) / MIB:.1f} MiB/s"
