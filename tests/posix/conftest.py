"""What is mounted in these tests is served by the compiled program, where dist/ has one of these very sources: it is what users run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildtools import binary
from buildtools.nodes import Node


@pytest.fixture(scope="package", autouse=True)
def _compiled() -> Iterator[None]:
    found = binary.current()
    if found is None or "AWSOMEFSD_BINARY" in os.environ:
        yield
        return
    os.environ["AWSOMEFSD_BINARY"] = str(found)
    try:
        yield
    finally:
        del os.environ["AWSOMEFSD_BINARY"]


@pytest.fixture
def place(node: Node, request: pytest.FixtureRequest) -> Path:
    """A fresh directory on the mount of the module's node, for each test."""
    folder = node.mountpoint / "".join(c if c.isalnum() else "_" for c in request.node.name)[:80]
    folder.mkdir()
    return folder
