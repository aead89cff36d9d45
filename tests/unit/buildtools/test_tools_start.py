"""Every tool of the checkout can be imported: a rename in the package must not be found by whoever runs `build.py up` next."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import buildtools
from tests import bench

TOOLS = [f"buildtools.{one.name}" for one in pkgutil.iter_modules(buildtools.__path__)]
BENCHES = [f"tests.bench.{one.name}" for one in pkgutil.iter_modules(bench.__path__)]


@pytest.mark.parametrize("name", [*TOOLS, *BENCHES])
def test_it_can_be_imported(name: str) -> None:
    importlib.import_module(name)
