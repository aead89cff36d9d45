"""One node with the driver on, for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import making_nodes
from tests.csi.rig import Player, playing

nodes = contextmanager(making_nodes)


@pytest.fixture(scope="session")
def player() -> Iterator[Player]:
    with nodes() as make, playing(make(up=False, size_bytes=64 << 30)) as made:
        yield made
