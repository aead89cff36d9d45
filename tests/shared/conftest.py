"""Three nodes for all tests of this directory, and the volume of a mode on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import making_clusters
from tests.shared.rig import MAIN, Machines, Trio

clusters = contextmanager(making_clusters)


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    with clusters() as make:
        made = Machines(make(3, size_bytes=16 << 30))
        made.found()
        yield made
        for said in made.end():
            assert "clean" in said, said


@pytest.fixture(scope="session")
def trio(machines: Machines, request: pytest.FixtureRequest) -> Trio:
    """In the main mode, or in the one that `parametrize(..., indirect=True)` names."""
    return machines.trio(getattr(request, "param", MAIN))


@pytest.fixture
def places(trio: Trio, request: pytest.FixtureRequest) -> list[Path]:
    """A directory of the test's own, as each node shows it."""
    return trio.places(re.sub(r"[^a-z0-9_]+", "-", request.node.name))
