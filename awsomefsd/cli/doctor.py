"""awsomefsd doctor: find what is wrong on this node and in its cluster, with evidence and what mends it.

Exit status 3 if a finding needs somebody.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from awsomefsd.base.errors import ConfigError, Error
from awsomefsd.base.log import printable
from awsomefsd.cli.main import DEGRADED, OK, CliCommand, Invocation
from awsomefsd.cli.output import counted, message_dict, output_option, print_json
from awsomefsd.cli.waiting import LongWork

if TYPE_CHECKING:
    from awsomefsd.config.settings import Settings
    from awsomefsd.node.doctor.examine import Answers
    from awsomefsd.node.health.codes import HealthFinding

COLUMNS = 80
_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


@click.command(cls=CliCommand)
@click.option("--preflight", is_flag=True, help="Check this host before a node is installed on it; needs no daemon.")
@click.option(
    "--bundle",
    "bundle_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write findings, states, configuration and logs to a new .tar.gz, without secrets.",
)
@output_option
@click.pass_obj
def doctor(invocation: Invocation, preflight: bool, bundle_file: Path | None, form: str) -> int:
    """Find what is wrong on this node and in its cluster.

    Measures on this host, asks its daemon, and tries the ports of the other nodes.  Each finding has a code, what is wrong, the evidence,
    and what mends it.  Exit status 3 if a finding needs somebody.
    """
    if bundle_file is not None and preflight:
        raise click.UsageError("--bundle collects what a node has; leave --preflight out")
    if bundle_file is not None and os.path.lexists(bundle_file):
        raise click.UsageError(f"{bundle_file} exists; name a new file")
    with LongWork("looking"):
        found, settings, answers = _examine(invocation, preflight)
    _print(found, form, preflight)
    if bundle_file is not None:
        from awsomefsd.node.doctor import bundle

        with LongWork("writing the bundle"):
            files = bundle.write(bundle_file, settings, found, answers)
        click.echo(f"wrote {counted(files, 'file')} to {printable(bundle_file)}; names of files and hosts are in it", err=True)
    return DEGRADED if any(one.severity != "info" for one in found) else OK


def _examine(invocation: Invocation, preflight: bool) -> tuple[list[HealthFinding], Settings, Answers]:
    from awsomefsd.config import settings as configuration
    from awsomefsd.node.doctor import examine
    from awsomefsd.node.health.codes import HealthFinding

    broken: list[HealthFinding] = []
    try:
        settings = invocation.settings
    except ConfigError as err:
        broken = [HealthFinding("CONFIG_UNREADABLE", line) for line in err.lines]
        given = {key: value for key, value in (("state_dir", invocation.state_dir), ("run_dir", invocation.run_dir)) if value is not None}
        settings = configuration.Settings(**given)  # type: ignore[arg-type]  # the checks go on with the defaults
    if preflight:
        return broken + examine.preflight(settings), settings, examine.Answers(trouble="not asked before an install")
    answers = _ask(settings)
    return broken + examine.node(settings, answers), settings, answers


def _ask(settings: Settings) -> Answers:
    from awsomefsd.admin.client import AdminClient
    from awsomefsd.node.doctor.examine import Answers

    try:
        with AdminClient(settings.admin_socket) as client:
            status = message_dict(client.call("GetStatus"))
            nodes: list[dict[str, Any]] = []
            if status["metadata"]["leader"] and not status["metadata"]["trouble"]:
                try:
                    nodes = [message_dict(row) for row in client.call("ListNodes").nodes]
                except Error:
                    pass  # a client of the cluster may not list them, or the leader has just gone: the status says so
            return Answers(status, nodes)
    except Error as err:
        return Answers(trouble=str(err))


def _print(found: list[HealthFinding], form: str, preflight: bool) -> None:
    from awsomefsd.node.health.codes import CODES

    rows = [
        {"code": one.code, "severity": one.severity, "what": CODES[one.code].says, "evidence": one.what, "fix": one.remedy()}
        for one in found
    ]
    if form == "json":
        print_json({"sound": not any(row["severity"] != "info" for row in rows), "findings": rows})
        return
    if not rows:
        click.echo("nothing is wrong: a node can be installed here" if preflight else "nothing is wrong")
        return
    for row in rows:
        click.echo(click.style(f"{row['code']}  {row['severity']}", fg=_COLOURS[row["severity"]]))
        for name in ("what", "evidence", "fix"):
            click.echo(_wrapped(name, row[name]))
        click.echo("")
    click.echo(counted(len(rows), "finding"))


def _wrapped(name: str, words: str) -> str:
    """One field of a finding in COLUMNS columns; a word that is longer, such as a path, stays whole."""
    return textwrap.fill(
        printable(words), COLUMNS, initial_indent=f"  {name:<9}", subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False
    )
