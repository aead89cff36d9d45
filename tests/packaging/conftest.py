"""The compiled program, where there is one of these sources, and its package, made once for all tests that install it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildtools import binary, packages


@pytest.fixture(scope="session")
def debs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The package, and a newer one of the same program."""
    target = binary.directory()
    if not (target / "awsomefsd").exists():
        pytest.skip("no binary in dist/: python3 build.py binary")
    folder = tmp_path_factory.mktemp("debs")
    found = []
    for release in (1, 2):
        made = packages.build(target, release=release, kinds=("deb",), folder=folder, packed="none")
        found += made
    return found


@pytest.fixture(scope="session")
def program() -> Path:
    found = binary.executable()
    if found is None:
        pytest.skip("no binary: python3 build.py binary, or AWSOMEFSD_BINARY")
    if "AWSOMEFSD_BINARY" not in os.environ and binary.current() is None:
        pytest.skip("the binary in dist/ is of other sources: python3 build.py binary")
    return found
