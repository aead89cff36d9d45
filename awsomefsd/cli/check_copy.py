"""awsomefsd check-copy: every check of fsck over a copy of the state store, for scrub.  A process of its own, and of lowest priority."""

from __future__ import annotations

import os
from pathlib import Path

import click

from awsomefsd.cli.main import Command
from awsomefsd.cli.output import print_json


@click.command(name="check-copy", cls=Command)
@click.argument("directory", type=click.Path(path_type=Path))
def check_copy(directory: Path) -> int:
    """Check a copy of the state store."""
    from awsomefsd.meta.check import check
    from awsomefsd.meta.store import Store

    os.nice(19)
    store = Store.open(directory, readonly=True)
    try:
        print_json({"faults": [{"kind": fault.kind, "where": fault.where, "what": fault.detail} for fault in check(store)]})
    finally:
        store.close()
    return 0
