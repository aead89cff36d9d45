"""replicas=… as people write it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awsomefsd.base.errors import ConfigError
from awsomefsd.base.limits import COPIES_MAX
from awsomefsd.base.types import DEVICE_CLASSES, SPREAD_DEVICE, Redundancy
from awsomefsd.config.redundancy import parse_redundancy, redundancy_text


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("replicas=1", Redundancy(1, 1)),
        ("replicas=2", Redundancy(2, 1)),
        ("replicas=2,min=2", Redundancy(2, 2)),
        ("replicas=3", Redundancy(3, 2)),
        (" replicas=3, ack=quorum ", Redundancy(3, 2, quorum=True)),
        ("ack=all,replicas=3,spread=host", Redundancy(3, 2)),
        ("replicas=3,min=1,ack=quorum,spread=device,class=ssd", Redundancy(3, 1, 0, 0, SPREAD_DEVICE, "ssd", True)),
    ],
)
def test_what_is_possible(text, want):
    assert parse_redundancy(text) == want


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no value"),
        ("3", "has no value"),
        ("replicas=", "has no value"),
        ("replicas=0", "replicas=1 to replicas=8 are possible"),
        ("replicas=9", "replicas=1 to replicas=8 are possible"),
        ("replicas=-1", "not possible"),
        ("replicas=٣", "not possible"),
        ("replicas=3,min=4", "min is at most the number of replicas, so 1 to 3"),
        ("replicas=3,min=0", "so 1 to 3"),
        ("min=1", "does not say how many replicas"),
        ("ec=4+2", "erasure coding (ec=) is not built; replicas=1 to replicas=8 are possible"),
        ("replicas=3,ack=one", "it is one of all, quorum"),
        ("replicas=3,spread=rack", "it is one of host, device"),
        ("replicas=3,class=tape", "it is one of nvme, ssd, hdd"),
        ("replicas=3,replicas=2", "'replicas' twice"),
        ("copies=3", "'copies' says nothing about redundancy"),
    ],
)
def test_what_is_not_possible_is_refused_with_what_is(text, says):
    with pytest.raises(ConfigError) as caught:
        parse_redundancy(text)
    assert says in str(caught.value)


@settings(deadline=None)
@given(st.integers(1, COPIES_MAX), st.data())
def test_the_text_of_a_redundancy_asks_for_it(copies, data):
    least, spread = data.draw(st.integers(1, copies)), data.draw(st.integers(0, 1))
    want = Redundancy(copies, least, 0, 0, spread, data.draw(st.sampled_from(("", *DEVICE_CLASSES))), data.draw(st.booleans()))
    assert parse_redundancy(redundancy_text(want)) == want
