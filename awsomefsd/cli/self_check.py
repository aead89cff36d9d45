"""awsomefsd self-check: whether this build works on this host.  Exit status 1 when it cannot serve."""

from __future__ import annotations

import click

from awsomefsd.cli.main import ERROR, OK, Command
from awsomefsd.cli.output import output_option, print_json, print_table


@click.command(cls=Command)
@output_option
def self_check(form: str) -> int:
    """Check that this program works on this host; needs no node.

    Libraries, kernel, FUSE level, limits and clock.  "off" is what this host lacks and a node serves without.
    """
    from awsomefsd import __version__, self_check

    found = self_check.run()
    bad = any(finding.state == self_check.BAD for finding in found)
    if form == "json":
        print_json({"version": __version__, "ok": not bad, "findings": [finding._asdict() for finding in found]})
    else:
        click.echo(f"awsomefsd {__version__}: {'this host cannot serve' if bad else 'works on this host'}\n")
        print_table(["CHECK", "STATE", "DETAIL"], found)
    return ERROR if bad else OK
