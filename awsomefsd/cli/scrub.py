"""awsomefsd scrub start|status|stop."""

from __future__ import annotations

import time
from typing import Any

import click

from awsomefsd.cli.main import OK, Group, Session
from awsomefsd.cli.output import SIZE, message_dict, output_option, print_json
from awsomefsd.sizes import format_bytes

FINDINGS = 3  # as a degraded status: something needs you


@click.group(cls=Group)
def scrub() -> None:
    """Look at everything that is stored, beside running mounts, and repair what has a second copy."""


@scrub.command()
@click.option("--rate", type=SIZE, default=0, help="Bytes a second at most [64M].  It takes less where the device is slow.")
@output_option
@click.pass_obj
def start(session: Session, rate: int, form: str) -> None:
    """Begin a scrub.  It goes on by itself, over restarts of the daemon too."""
    _ask(session, "ScrubStart", form, bytes_per_s=rate)


@scrub.command()
@output_option
@click.pass_obj
def status(session: Session, form: str) -> int:
    """Show how far it is and what it found; exit status 3 if something is not repaired."""
    found = _ask(session, "ScrubStatus", form)
    return FINDINGS if found.found > found.repaired else OK


@scrub.command()
@output_option
@click.pass_obj
def stop(session: Session, form: str) -> None:
    """End it.  The next one begins anew."""
    _ask(session, "ScrubStop", form, timeout_s=60.0)


def _ask(session: Session, rpc: str, form: str, **fields: Any) -> Any:
    with session.client() as client:
        found = client.call(rpc, **fields)
    if form == "json":
        print_json(message_dict(found))
        return found
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.started_ns / 1e9)) if found.started_ns else "-"
    click.echo(f"scrub {found.state}; begun {began}; {found.segments} segments, {found.extents} extents, {format_bytes(found.bytes)} read")
    if found.reason:
        click.echo(f"it failed: {found.reason}")
    for finding in found.findings:
        file = f" file {finding.path} of volume {finding.volume} offset {finding.offset}:" if finding.path else ""
        click.echo(f"{finding.where}:{file} {finding.what}{' [repaired]' if finding.repaired else ''}")
    click.echo(f"{found.found} found, {found.repaired} repaired")
    return found
