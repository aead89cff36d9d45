"""A prefix is taken once: whoever ends half way, or does it again, puts the same objects; another cluster's is not touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from awsomefsd.io.device.checksum import Bytes
from awsomefsd.tier.claim import Claim, check_owner, claim
from awsomefsd.tier.directory_store import DirectoryStore
from awsomefsd.tier.errors import ObjectMissing, StoreDown, StoreForeign
from awsomefsd.tier.names import MARKER, EraName
from awsomefsd.tier.object_format import Era, Marker, pack_era, pack_marker, unpack_era, unpack_marker
from awsomefsd.tier.store import Suffix
from awsomefsd.tier.store_url import parse_store_url

OURS, THEIRS = UUID(int=1), UUID(int=2)
WANTED = Claim(OURS, UUID(int=11), 7)
NO_PAUSE: Callable[[float], object] = lambda _seconds: None  # noqa: E731


class Killed(BaseException):
    """The process ends here."""


class MemoryStore:
    """A store in memory whose user may be ended before or after each request, and that shows objects late."""

    url = "memory:"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.contents: dict[str, set[bytes]] = {}
        self.requests = 0
        self.killed_at = -1  # 2 n: before the n-th request, 2 n + 1: after it
        self.late = 0  # so many reads of a new object find nothing
        self._unseen: dict[str, int] = {}

    def _step(self, after: bool) -> None:
        if self.killed_at == 2 * self.requests + after:
            raise Killed
        self.requests += after

    def whole(self, name: str, bytes_max: int) -> bytes:
        self._step(False)
        self._unseen[name] = self._unseen.get(name, 0) - 1
        found = self.objects.get(name) if self._unseen[name] < 0 else None
        self._step(True)
        if found is None:
            raise ObjectMissing(name)
        return found

    def put(self, name: str, body: Bytes) -> None:
        self._step(False)
        if name not in self.objects:
            self._unseen[name] = self.late
        self.objects[name] = bytes(body)
        self.contents.setdefault(name, set()).add(bytes(body))
        self._step(True)

    def delete(self, name: str) -> None:
        raise AssertionError("nothing is deleted")

    def suffix(self, name: str, length: int) -> Suffix:
        raise NotImplementedError

    def read(self, name: str, start: int, length: int) -> Iterator[Bytes]:
        raise NotImplementedError

    def headers(self, name: str) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


def test_a_prefix_is_taken_with_its_marker_and_its_first_era() -> None:
    store = MemoryStore()
    with pytest.raises(ObjectMissing):
        check_owner(store, OURS)
    assert claim(store, WANTED) == 1
    assert unpack_marker(store.objects[MARKER]) == Marker(OURS, 7)
    assert unpack_era(store.objects[str(EraName(OURS, 1))]) == Era(1, OURS, WANTED.era, None, 0, 0, 7)
    check_owner(store, OURS)
    assert claim(store, WANTED) == 1 and len(store.objects) == 2


@pytest.mark.parametrize("late", [0, 1, 5])
def test_a_kill_at_each_step_and_the_same_again(late: int) -> None:
    whole = MemoryStore()
    whole.late = late
    claim(whole, WANTED, NO_PAUSE)
    for step in range(2 * whole.requests):
        store = MemoryStore()
        store.late, store.killed_at = late, step
        with pytest.raises(Killed):
            claim(store, WANTED, NO_PAUSE)
        store.killed_at = -1
        while store.late and any(left > 0 for left in store._unseen.values()):  # it is visible some time later
            for name in store._unseen:
                store._unseen[name] = 0
        assert claim(store, WANTED, NO_PAUSE) == 1
        assert store.objects == whole.objects and all(len(found) == 1 for found in store.contents.values())


def test_kills_at_random_and_claims_after_each_other(seed: int) -> None:
    """One cluster adds the same prefix again after it has forgotten it: each time a new era, and no name has two contents."""
    dice, store = Random(seed), MemoryStore()
    for number in range(1, 6):
        wanted = Claim(OURS, UUID(int=100 + number), dice.randrange(1, 1 << 40))
        for _ in range(dice.randrange(6)):
            store.killed_at = 2 * store.requests + dice.randrange(12)
            try:
                assert claim(store, wanted, NO_PAUSE) == number
            except Killed:
                pass
        store.killed_at = -1
        assert claim(store, wanted, NO_PAUSE) == number
    assert {name for name in store.objects if name != MARKER} == {str(EraName(OURS, number)) for number in range(1, 6)}
    assert all(len(found) == 1 for found in store.contents.values())


def test_what_is_another_clusters_is_not_touched() -> None:
    store = MemoryStore()
    store.objects = {MARKER: pack_marker(Marker(THEIRS, 1)), "x": b"y"}
    before = dict(store.objects)
    for work in (lambda: claim(store, WANTED), lambda: check_owner(store, OURS)):
        with pytest.raises(StoreForeign, match=f"belongs to cluster {THEIRS}"):
            work()
    store.objects[MARKER] = b"something else"
    with pytest.raises(StoreForeign, match="no marker of awsomefs"):
        claim(store, WANTED)
    assert {name: body for name, body in store.objects.items() if name != MARKER} == {"x": b"y"} and before["x"] == b"y"


def test_of_two_clusters_at_one_prefix_one_is_refused() -> None:
    """Both found it unused; the other one's PUT came last."""
    store = MemoryStore()
    other = pack_marker(Marker(THEIRS, 1))

    class Raced(MemoryStore):
        def put(self, name: str, body: Bytes) -> None:
            super().put(name, body)
            if name == MARKER:
                self.objects[name] = other

    store = Raced()
    with pytest.raises(StoreForeign, match=f"belongs to cluster {THEIRS}"):
        claim(store, WANTED, NO_PAUSE)
    assert list(store.objects) == [MARKER]


def test_eras_that_cannot_be() -> None:
    store = MemoryStore()
    store.objects = {MARKER: pack_marker(Marker(OURS, 7)), str(EraName(OURS, 1)): b"x"}
    with pytest.raises(StoreForeign, match="is no era"):
        claim(store, WANTED)

    class Replaced(MemoryStore):
        def put(self, name: str, body: Bytes) -> None:
            super().put(name, body)
            if name != MARKER:
                self.objects[name] = pack_era(Era(1, OURS, THEIRS, None, 0, 0, 9))

    with pytest.raises(StoreForeign, match="somebody else has begun this era"):
        claim(Replaced(), WANTED, NO_PAUSE)


def test_a_store_that_never_shows_what_was_put_is_down() -> None:
    store = MemoryStore()
    store.late = 1 << 20
    with pytest.raises(StoreDown, match="cannot be read 60 s after"):
        claim(store, WANTED, NO_PAUSE)


def test_a_directory_is_taken(tmp_path: Path) -> None:
    store = DirectoryStore(parse_store_url(str(tmp_path)))
    assert claim(store, WANTED) == 1 == claim(store, WANTED)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["1", "awsomefs"]
    with pytest.raises(StoreForeign):
        claim(store, Claim(THEIRS, UUID(int=12), 8))
