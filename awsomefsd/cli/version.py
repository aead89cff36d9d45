"""awsomefsd version."""

from __future__ import annotations

import platform

import click

from awsomefsd import __version__, node
from awsomefsd.cli.main import Command
from awsomefsd.cli.output import output_option, print_json
from awsomefsd.meta.commands import COMMAND_VERSION
from awsomefsd.meta.messages import PROTOCOL_VERSION


@click.command(cls=Command)
@output_option
def version(form: str) -> None:
    """Show the version of the program and of its formats."""
    versions = {
        "version": __version__,
        "state_format": node.FORMAT_VERSION,
        "command_version": COMMAND_VERSION,
        "protocol_version": PROTOCOL_VERSION,
        "python": platform.python_version(),
    }
    if form == "json":
        print_json(versions)
        return
    click.echo(f"awsomefsd {__version__}")
    for name in list(versions)[1:]:
        click.echo(f"  {name.replace('_', ' '):<18}{versions[name]}")
