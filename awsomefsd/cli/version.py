"""awsomefsd version: show the version of the program and of its formats."""

from __future__ import annotations

import platform

import click

from awsomefsd import __version__
from awsomefsd.base import identity
from awsomefsd.cli.main import CliCommand
from awsomefsd.cli.output import output_option, print_json, say
from awsomefsd.meta.api.commands import COMMAND_VERSION
from awsomefsd.meta.api.messages import PROTOCOL_VERSION


@click.command(cls=CliCommand)
@output_option
def version(form: str) -> None:
    """Show the version of the program and of its formats."""
    versions = {
        "version": __version__,
        "state_format": identity.FORMAT_VERSION,
        "command_version": COMMAND_VERSION,
        "protocol_version": PROTOCOL_VERSION,
        "python": platform.python_version(),
    }
    if form == "json":
        print_json(versions)
        return
    say(f"awsomefsd {__version__}")
    for name in list(versions)[1:]:
        say(f"  {name.replace('_', ' '):<18}{versions[name]}")
