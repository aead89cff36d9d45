"""The addresses of the cluster's nodes in state_dir/endpoints.json, for a start without any other contact.

The file is written when a node joins, and by the reporter whenever the answer changes; a file that is old costs redirects, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awsomefsd.base import durable

FILE = "endpoints.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Endpoint:
    node: str
    name: str
    control: str
    metadata: str
    carries: bool


def write(state_dir: Path, cluster: str, nodes: Iterable[Any]) -> None:
    """Writes the file durably; `nodes` have node, name, control, metadata and carries.  Raises OSError."""
    table = {
        found.node: {"name": found.name, "control": found.control, "metadata": found.metadata, "carries": found.carries} for found in nodes
    }
    durable.write_json(state_dir / FILE, {"version": VERSION, "cluster": cluster, "nodes": table})


def read(state_dir: Path) -> dict[str, Endpoint]:
    """Returns the endpoints by node UUID; empty if there is no file, or none this build can read.  Raises Corrupt."""
    value = durable.read_json(state_dir / FILE, {})
    table = value.get("nodes")
    if value.get("version") != VERSION or not isinstance(table, dict):
        return {}
    return {
        str(node): Endpoint(str(node), str(found.get("name", "")), str(found.get("control", "")), str(found.get("metadata", "")),
                            bool(found.get("carries")))
        for node, found in table.items() if isinstance(found, dict)
    }  # fmt: skip
