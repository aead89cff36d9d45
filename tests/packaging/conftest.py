"""The package of the last build, made once for all tests that install it."""

from __future__ import annotations

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
        made = packages.build(target, release=release, kinds=("deb",), folder=folder)
        found += made
    return found
