"""A name that is replaced by rename leads to the old file or to the new one, at every moment: never to nothing.

The kernel looks a name up, and then opens or changes what it found, or asks about it.  That may be gone by then: ESTALE makes it look
again, once.  Who meets the next rename as well is told ESTALE; renames one behind the other, as here, make that likely for changes.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from buildtools.nodes import Node

pytestmark = pytest.mark.root
RENAMES = 400


@pytest.fixture(scope="module")
def node(make_node) -> Node:
    return make_node()


def _opened(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _opened_to_write(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY))


WAYS: dict[str, Callable[[Path], object]] = {
    "open": _opened,
    "open to write": _opened_to_write,
    "stat": os.stat,
    "chmod": lambda path: os.chmod(path, 0o600),
    "utime": lambda path: os.utime(path, ns=(1, 1)),
    "truncate": lambda path: os.truncate(path, 0),
    "xattr": lambda path: os.listxattr(path),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_never_missing(place: Path, way: str, figures: list[str]) -> None:
    name, over, wrong, looks, stale = place / "name", threading.Event(), list[OSError](), [0], [0]
    name.write_bytes(b"0")

    def look() -> None:
        while not over.is_set():
            try:
                WAYS[way](name)
            except OSError as err:
                stale[0] += err.errno == errno.ESTALE
                wrong.extend([err] if err.errno != errno.ESTALE else [])
            looks[0] += 1
            time.sleep(0)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    for number in range(RENAMES):
        (place / "new").write_bytes(b"%d" % number)
        os.rename(place / "new", name)
    over.set()
    for looker in lookers:
        looker.join()
    assert not wrong, (len(wrong), looks[0], wrong[:3])
    assert looks[0] > 10
    figures.append(f"{way} of a name that is replaced: {looks[0]} looks, {stale[0]} met two renames")
