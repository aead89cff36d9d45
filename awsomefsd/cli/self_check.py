"""awsomefsd self-check: check that this build works on this host.  Exit status 1 if it cannot serve."""

from __future__ import annotations

import click

from awsomefsd.cli.main import ERROR, OK, CliCommand
from awsomefsd.cli.output import output_option, print_json, print_table, say
from awsomefsd.cli.waiting import LongWork


@click.command(cls=CliCommand)
@output_option
def self_check(form: str) -> int:
    """Check that this program works on this host.

    Checks libraries, kernel, FUSE level, limits and clock; it needs no node.  State "off" marks an optional feature that this host lacks.
    Exit status 1 if a node could not serve here.
    """
    from awsomefsd import __version__
    from awsomefsd.node import self_check

    with LongWork("checking"):
        found = self_check.run()
    bad = any(finding.state == self_check.BAD for finding in found)
    if form == "json":
        print_json({"version": __version__, "ok": not bad, "findings": [finding._asdict() for finding in found]})
    else:
        say(f"awsomefsd {__version__}: {'this host cannot serve' if bad else 'works on this host'}\n")
        print_table(["CHECK", "STATE", "DETAIL"], found)
    return ERROR if bad else OK
