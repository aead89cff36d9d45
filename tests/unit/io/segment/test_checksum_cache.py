"""The cache of checksums: bounded by bytes, the oldest entry goes first."""

from __future__ import annotations

import random

from awsomefsd.io.segment.checksum_cache import ByteLru


def test_lru_stays_within_its_bytes_and_drops_the_oldest() -> None:
    dropped: list[str] = []
    lru: ByteLru[str, str] = ByteLru(100, dropped.append)
    lru.put("a", "A", 40)
    lru.put("b", "B", 40)
    assert lru.get("a") == "A" and lru.get("x") is None
    lru.put("c", "C", 40)
    assert dropped == ["B"] and lru.get("b") is None
    lru.put("c", "C2", 60)
    assert dropped == ["B", "C"]
    lru.put("huge", "H", 101)
    assert dropped == ["B", "C", "H"] and lru.get("huge") is None
    lru.discard("a")
    lru.discard("a")
    found = lru.statistics()
    assert (found.bytes_used, found.bytes_max, found.entries, found.hits, found.misses, found.evictions) == (60, 100, 1, 1, 3, 1)
    lru.clear()
    assert lru.statistics().bytes_used == 0 and dropped == ["B", "C", "H", "A", "C2"]


def test_lru_against_a_plain_model(seed: int) -> None:
    rng = random.Random(seed)
    lru: ByteLru[int, int] = ByteLru(1_000)
    model: dict[int, int] = {}  # key -> size, in order of use
    for _ in range(5_000):
        key, size = rng.randrange(40), rng.randrange(1, 120)
        if rng.randrange(2):
            assert lru.get(key) == (key if key in model else None)
            if key in model:
                model[key] = model.pop(key)
        else:
            lru.put(key, key, size)
            model.pop(key, None)
            model[key] = size
            while sum(model.values()) > 1_000:
                del model[next(iter(model))]
        assert lru.statistics().bytes_used == sum(model.values()) <= 1_000
