"""awsomefsd check-copy: run every check of fsck on a copy of the state store, for scrub, in a process of lowest priority."""

from __future__ import annotations

import os
from pathlib import Path

import click

from awsomefsd.cli.main import CliCommand
from awsomefsd.cli.output import print_json


@click.command(name="check-copy", cls=CliCommand)
@click.argument("directory", type=click.Path(path_type=Path))
def check_copy(directory: Path) -> int:
    """Check a copy of the metadata store; scrub runs this."""
    from awsomefsd.recovery import check_copy as checking

    os.nice(19)
    print_json({"faults": checking.check_copy(directory)})
    return 0
