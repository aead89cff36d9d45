"""One node with a mount, for all tests of what people and programs see of a system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from buildtools.nodes import Node
from tests.conftest import making_nodes
from tests.rigs.free_ports import free_ports

nodes = contextmanager(making_nodes)


@pytest.fixture(scope="package")
def node() -> Iterator[Node]:
    with nodes() as make:
        made = make(up=False)
        made.settings["AWSOMEFSD_METRICS_LISTEN"] = "unix"
        made.settings["AWSOMEFSD_UI_LISTEN"] = f"0.0.0.0:{free_ports(1)[0]}"
        made.settings["AWSOMEFSD_UI_NAMES"] = "node.example, Page.Example"
        made.up()
        yield made
