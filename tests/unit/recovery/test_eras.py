"""An era is later than all before it, or there is none."""

from __future__ import annotations

import pytest

from awsomefsd.base.errors import Refused
from awsomefsd.io.device.superblock import ERA_MAX
from awsomefsd.recovery.eras import next_era


def test_an_era_is_later_than_every_other_and_never_wraps() -> None:
    assert next_era([], 7) == 7 and next_era([3, 9], 7) == 10 and next_era([ERA_MAX - 1], 7) == ERA_MAX
    with pytest.raises(Refused, match="last era"):
        next_era([1, ERA_MAX], 7)
