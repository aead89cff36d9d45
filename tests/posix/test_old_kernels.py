"""What kernels older than this one lack is switched off, one by one and all of it (FUSE 7.34, the floor 5.14): the same results on a mount.

A kernel of another version is not had here.  What is negotiated away is: INIT's second word of flags, mapping of files that are open with
O_DIRECT (7.39), requests sent again to a successor (7.40), and the notifications that came later.
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from awsomefsd.fuse import abi
from buildtools.nodes import Node

pytestmark = pytest.mark.root
PINS = ["minor=34", f"without={abi.DIRECT_IO_ALLOW_MMAP:#x}", "minor=39,resend=off"]
BYTES = 3 << 20


@pytest.fixture(scope="module", params=PINS)
def node(request: pytest.FixtureRequest, make_node: Callable[..., Node]) -> Node:
    return make_node(pins=request.param)


def test_ordinary_programs(node: Node, seed: int) -> None:
    place = node.mountpoint / "place"
    place.mkdir()
    content = random.Random(seed).randbytes(BYTES)
    (place / "a").write_bytes(content)
    (place / "a").rename(place / "b")
    with (place / "b").open("r+b") as file, mmap.mmap(file.fileno(), BYTES) as seen:
        assert seen[:] == content
        seen[5:10] = b"12345"
        seen.flush()
    content = content[:5] + b"12345" + content[10:]
    _drop_caches()
    assert (place / "b").read_bytes() == content
    os.setxattr(place / "b", "user.name", b"value")
    subprocess.run(["cp", "-a", place / "b", place / "c"], check=True)
    assert os.getxattr(place / "c", "user.name") == b"value" and (place / "c").read_bytes() == content
    for number in range(300):
        (place / f"n{number}").symlink_to("b")
    assert len(os.listdir(place)) == 302 and os.readlink(place / "n7") == "b"


def test_direct_io_and_mappings(node: Node) -> None:
    """Both ways of one file are of the same bytes where the kernel lets both be."""
    path = node.mountpoint / "direct"
    path.write_bytes(b"x" * 65_536)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4_096) as page:
            page[:] = b"y" * 4_096
            assert os.pwrite(fd, page, 8_192) == 4_096
    finally:
        os.close(fd)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 65_536, prot=mmap.PROT_READ) as seen:
        assert seen[:] == b"x" * 8_192 + b"y" * 4_096 + b"x" * 53_248


def test_a_successor_goes_on(node: Node) -> None:
    path = node.mountpoint / "rows"
    with path.open("w") as file:
        for number in range(200):
            file.write(f"{number}\n")
            file.flush()
            if number == 100:
                node.replaced("worker", node.kill("worker")["worker"])
    assert path.read_text() == "".join(f"{number}\n" for number in range(200))


def _drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")
