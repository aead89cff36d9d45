"""Three nodes for all tests of this directory, and the volume of a mode on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import making_clusters
from tests.shared.rig import MAIN, PINS, Machines, SharedVolume

clusters = contextmanager(making_clusters)


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    with clusters() as make:
        made = Machines(make(3, size_bytes=16 << 30, pins=PINS))
        made.found()
        yield made
        for said in made.end():
            assert "clean" in said, said


@pytest.fixture(scope="session")
def shared_volume(machines: Machines, request: pytest.FixtureRequest) -> SharedVolume:
    """In the main mode, or in the one that `parametrize(..., indirect=True)` names."""
    return machines.shared_volume(getattr(request, "param", MAIN))


@pytest.fixture
def places(shared_volume: SharedVolume, request: pytest.FixtureRequest) -> list[Path]:
    """A directory of the test's own, as each node shows it."""
    return shared_volume.places(re.sub(r"[^a-z0-9_]+", "-", request.node.name))
