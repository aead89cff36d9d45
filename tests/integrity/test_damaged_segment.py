"""A frame whose header rots is found by `scrub`, and its segment is emptied by itself: as a user of the command line meets it."""

from __future__ import annotations

import mmap
import random
from typing import Any

import pytest

from buildtools.nodes import Node, await_true
from tests.conftest import MakeNode, missing_for_mounts

pytestmark = pytest.mark.skipif(bool(missing_for_mounts()), reason=missing_for_mounts())
WAIT_S = 120
MIB = 1 << 20
HEADER_BYTES = 4_096  # of a frame of 64 KiB or more
VOLUME_AT = 24  # the field of a header that is damaged


def scrubbed(node: Node, repaired: int = 0) -> dict[str, Any] | None:
    """What a round has found; None while it goes on, or fewer are repaired."""
    found: dict[str, Any] = node.ask("scrub", "status", accept=(0, 3))
    return found if found["state"] == "done" and int(found["repaired"]) >= repaired else None


def flip(node: Node, data: bytes) -> None:
    """One bit in the header of the frame that holds these bytes."""
    with node.image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as raw:
        at = raw.find(data) - HEADER_BYTES
        assert raw[at : at + 4] == b"awFr"
        raw[at + VOLUME_AT] ^= 1
        raw.flush()


def test_a_segment_with_a_damaged_header_is_emptied_by_itself(make_node: MakeNode, seed: int) -> None:
    node = make_node(size_bytes=512 * MIB, use_loop=False)
    node.up()
    data = random.Random(seed).randbytes(MIB)
    (node.mountpoint / "file").write_bytes(data)
    node.umount()  # which seals the segment: its footer says what the header said
    flip(node, data[:4_096])
    node.cli("scrub", "start", "--rate", "512M")
    found = await_true("the end of the scrub", lambda: scrubbed(node), WAIT_S, 0.2)
    assert [one["kind"] for one in found["findings"]] == ["header"] and found["found"] == 1, found
    done = await_true("the repair", lambda: scrubbed(node, 1), WAIT_S, 0.2)
    assert done["findings"][0]["repaired"] and "[repaired]" in node.cli("scrub", "status")
    node.mount()
    assert (node.mountpoint / "file").read_bytes() == data
    node.cli("scrub", "start", "--rate", "512M")
    again = await_true("the end of the next scrub", lambda: scrubbed(node), WAIT_S, 0.2)
    assert not again["found"], again
