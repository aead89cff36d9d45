"""RecordOverlay against a model of single bytes."""

from __future__ import annotations

import random

import pytest

from awsomefsd.io.file.overlay import RecordOverlay
from tests.conftest import SEED

SPACE = 200


@pytest.mark.parametrize("round_", range(40))
def test_an_overlay_holds_the_latest_bytes_in_the_fewest_runs(round_: int) -> None:
    seed = SEED + round_
    print(f"AWSOMEFSD_SEED={seed}")
    dice = random.Random(seed)
    overlay, model = RecordOverlay(), {}
    for _ in range(dice.randrange(1, 40)):
        start, data = dice.randrange(SPACE), dice.randbytes(dice.randrange(1, 30))
        overlay.put(start, memoryview(data))
        model.update(dict(enumerate(data, start)))
    got, last_end = {}, -1
    for start, buffers in overlay.runs():
        data = b"".join(buffers)
        assert start > last_end, "touching runs were not joined"
        got.update(dict(enumerate(data, start)))
        last_end = start + len(data)
    assert got == model
