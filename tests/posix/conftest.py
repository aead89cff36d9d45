"""What is mounted in these tests is served by the compiled program, where dist/ has one of these very sources: it is what users run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from buildtools import binary


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
